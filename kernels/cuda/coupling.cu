// Probabilities of classes from those of pairs, as libsvm: one warp a row of x; q, what q makes of p, and p lie in the work area.
struct CouplingArgs {
  ix x, out, work, rows, count, x_row, x_step, out_row, out_step;
};
__device__ __forceinline__ float warp_sum(float v) {
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
  return v;
}
__device__ __forceinline__ float warp_max(float v) {
  for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(~0u, v, o));
  return v;
}

__device__ void couple(ix* ctx, const ix* args) {
  const CouplingArgs a = *(const CouplingArgs*)args;
  const int lane = threadIdx.x & 31;
  const ix row = (ix)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), n = a.count;
  if (row >= a.rows) return;
  float *q = at<float>(a.work) + row * n * (n + 2), *qp = q + n * n, *p = qp + n;
  const float* won = at<const float>(a.x) + row * a.x_row;
  for (ix i = lane; i < n; i += 32) {
    float own = 0;
    for (ix j = 0; j < n; ++j) {
      if (j == i) continue;
      const ix low = j < i ? j : i, high = j < i ? i : j, pair = low * (2 * n - low - 1) / 2 + high - low - 1;
      const float r = won[pair * a.x_step], against = i < j ? 1.f - r : r;
      own += against * against;
      q[j * n + i] = -r * (1.f - r);
    }
    q[i * n + i] = own;
    p[i] = 1.f / (float)n;
  }
  __syncwarp();
  for (int round = 0; round < 100; ++round) {
    float sum = 0;
    for (ix i = lane; i < n; i += 32) {
      float product = 0;
      for (ix j = 0; j < n; ++j) product += q[j * n + i] * p[j];
      qp[i] = product;
      sum += p[i] * product;
    }
    float whole = warp_sum(sum), error = 0;
    for (ix i = lane; i < n; i += 32) error = fmaxf(error, fabsf(qp[i] - whole));
    if (warp_max(error) < 0.005f / (float)n) break;
    __syncwarp();
    for (ix i = 0; i < n; ++i) {
      const float pivot = q[i * n + i], before = qp[i], away = (whole - before) / pivot, scale = 1.f + away;
      whole = (whole + away * (away * pivot + 2.f * before)) / scale / scale;
      __syncwarp();
      for (ix j = lane; j < n; j += 32) {
        qp[j] = (qp[j] + away * q[i * n + j]) / scale;
        p[j] = (p[j] + (j == i ? away : 0.f)) / scale;
      }
      __syncwarp();
    }
  }
  for (ix i = lane; i < n; i += 32) at<float>(a.out)[row * a.out_row + i * a.out_step] = p[i];
}
