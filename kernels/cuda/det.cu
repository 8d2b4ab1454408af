// Gaussian elimination with partial pivoting in float64. A matrix belongs to `lanes` threads of a block: a warp where it is small, else all;
// it lies in shared memory where it fits (`fits`), else in the work area.
struct DetArgs {
  ix x, out, work, count, size, x_batch, x_row, x_step, out_step, lanes, fits;
};
struct Pivot {
  double size;
  ix row;
};
// The larger magnitude, of equals the upper row.
__device__ __forceinline__ Pivot better(Pivot a, Pivot b) { return b.size > a.size || (b.size == a.size && b.row < a.row) ? b : a; }
__device__ __forceinline__ void meet(int lanes) {
  if (lanes == 32) __syncwarp();
  else __syncthreads();
}

template <class T> __device__ void eliminate(ix* ctx, const ix* args) {
  const DetArgs a = *(const DetArgs*)args;
  extern __shared__ __align__(16) double matrices[];
  __shared__ Pivot pivots[8];
  const int lanes = (int)a.lanes, group = threadIdx.x / lanes, lane = threadIdx.x - group * lanes, per = blockDim.x / lanes;
  const ix n = a.size, number = (ix)blockIdx.x * per + group;
  if (number >= a.count) return;
  double* m = a.fits ? matrices + group * n * n : at<double>(a.work) + number * n * n;
  for (ix e = lane; e < n * n; e += lanes) {
    const ix i = quotient(e, n), j = e - i * n;
    m[e] = ld<T>(a.x, number * a.x_batch + i * a.x_row + j * a.x_step);
  }
  meet(lanes);
  double result = 1;
  for (ix k = 0; k < n; ++k) {
    Pivot best = {-2, n};
    for (ix i = k + lane; i < n; i += lanes) {
      const double size = fabs(m[i * n + k]);
      best = better(best, Pivot{size == size ? size : i == k ? INF_F64 : -1, i});
    }
    for (int o = 16; o; o >>= 1) best = better(best, Pivot{__shfl_xor_sync(~0u, best.size, o), __shfl_xor_sync(~0u, best.row, o)});
    if (lanes > 32) {
      if ((lane & 31) == 0) pivots[lane >> 5] = best;
      __syncthreads();
      for (int w = 0; w < lanes >> 5; ++w) best = better(best, pivots[w]);
    }
    const ix p = best.row;
    if (p != k) {
      result = -result;
      for (ix j = k + lane; j < n; j += lanes) {
        const double swapped = m[p * n + j];
        m[p * n + j] = m[k * n + j];
        m[k * n + j] = swapped;
      }
    }
    meet(lanes);
    const double pivot = m[k * n + k];
    result *= pivot;
    if (pivot == 0) break;
    for (ix i = k + 1 + lane; i < n; i += lanes) m[i * n + k] /= pivot;
    meet(lanes);
    const ix rest = n - k - 1;
    for (ix e = lane; e < rest * rest; e += lanes) {
      const ix down = quotient(e, rest), i = k + 1 + down, j = k + 1 + e - down * rest;
      m[i * n + j] -= m[i * n + k] * m[k * n + j];
    }
    meet(lanes);
  }
  if (lane == 0) st<T>(a.out, number * a.out_step, (typename T::wide)result);
}
