// A block takes blockDim.x columns of one state through time, a thread a column. The columns lie in shared memory where they fit (`fits`), else in
// the state that goes out; the rows of q, k and the factors are the same for all threads of a block.
struct Place {
  ix batch, head, row, step;
  __device__ __forceinline__ ix at(ix b, ix n, ix t) const { return b * batch + n * head + t * row; }
};
struct Place3 {
  ix batch, head, row;
};
struct LinearAttentionArgs {
  ix q, k, v, before, factors, rates, y, after, length, size, width, heads, group;
  Place qs, ks, vs, befores, factor_s;
  Place3 rate_s;
  Place ys, afters;
  ix fits;
};

__device__ void recall(ix* ctx, const ix* args) {
  const LinearAttentionArgs a = *(const LinearAttentionArgs*)args;
  extern __shared__ __align__(16) float columns[];
  const ix parts = (a.width + blockDim.x - 1) / blockDim.x, state = quotient(blockIdx.x, parts), part = blockIdx.x - state * parts;
  const ix b = quotient(state, a.heads), n = state - b * a.heads, e = part * blockDim.x + threadIdx.x;
  if (e >= a.width) return;
  float* const out = at<float>(a.after) + a.afters.at(b, n, 0) + e * a.afters.step;
  float* const s = a.fits ? columns + threadIdx.x : out;
  const ix next = a.fits ? blockDim.x : a.afters.row;
  const float* const before = at<float>(a.before) + a.befores.at(b, n, 0) + e * a.befores.step;
  for (ix i = 0; i < a.size; ++i) s[i * next] = a.before ? before[i * a.befores.row] : 0.f;
  for (ix t = 0; t < a.length; ++t) {
    const float* const k = at<float>(a.k) + a.ks.at(b, n, t);
    const float* const factor = at<float>(a.factors) + a.factor_s.at(b, n, t);
    float value = at<float>(a.v)[a.vs.at(b, n, t) + e * a.vs.step];
    if (a.factors || a.rates) {
      float found = 0.f;
      for (ix i = 0; i < a.size; ++i) {
        const float x = a.factors ? s[i * next] * factor[i * a.factor_s.step] : s[i * next];
        s[i * next] = x;
        found += x * k[i * a.ks.step];
      }
      if (a.rates) value = at<float>(a.rates)[b * a.rate_s.batch + n * a.rate_s.head + t * a.rate_s.row] * (value - found);
    }
    for (ix i = 0; i < a.size; ++i) s[i * next] += k[i * a.ks.step] * value;
    for (ix g = 0; g < a.group; ++g) {
      const ix h = n * a.group + g;
      const float* const q = at<float>(a.q) + a.qs.at(b, h, t);
      float read = 0.f;
      for (ix i = 0; i < a.size; ++i) read += s[i * next] * q[i * a.qs.step];
      at<float>(a.y)[a.ys.at(b, t, h) + e * a.ys.step] = read;
    }
  }
  if (a.fits)
    for (ix i = 0; i < a.size; ++i) out[i * a.afters.row] = s[i * next];
}
