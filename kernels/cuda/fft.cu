// Fourier transforms: a block takes a row through Stockham's passes, one for each factor of its length, between two buffers in shared
// memory or, where they do not fit, in the work area. The inverse is the forward one with the parts of every number exchanged.
// A pass with factor p reads from[i + ido * (m + p * k)] and writes to[i + ido * (k + l1 * j)]; l1 is the product of the factors before.
struct FftArgs {
  ix x, y, roots, work, rows, points, given, bins, inner, x_outer, x_step, x_inner, x_part, y_outer, y_step, y_inner, y_part;
  ix inverse, hermitian, x_parts, y_parts, fits;
};
template <class real> struct Number {
  real re, im;
};
template <class real> __device__ __forceinline__ Number<real> operator+(Number<real> a, Number<real> b) { return {a.re + b.re, a.im + b.im}; }
template <class real> __device__ __forceinline__ Number<real> operator-(Number<real> a, Number<real> b) { return {a.re - b.re, a.im - b.im}; }
template <class real> __device__ __forceinline__ Number<real> operator*(Number<real> a, Number<real> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

// roots[k] = exp(-2 pi i k / n), by angles below an eighth of a turn.
template <class W> __device__ void tabulate(ix* ctx, const ix* args) {
  typedef typename W::wide real;
  const FftArgs a = *(const FftArgs*)args;
  const ix n = a.points;
  for (ix k = (ix)blockIdx.x * blockDim.x + threadIdx.x; k < n; k += (ix)gridDim.x * blockDim.x) {
    const ix quarter = 4 * k / n, rest = 4 * k - quarter * n;
    const bool swapped = 2 * rest > n;
    const double angle = (double)(swapped ? n - rest : rest) * 1.5707963267948966 / (double)n;
    double c = cos(angle), s = sin(angle);
    if (swapped) {
      const double other = c;
      c = s, s = other;
    }
    const double re = quarter == 0 ? c : quarter == 1 ? -s : quarter == 2 ? -c : s, im = quarter == 0 ? s : quarter == 1 ? c : quarter == 2 ? -s : -c;
    at<Number<real> >(a.roots)[k] = Number<real>{(real)re, (real)-im};
  }
}

// The p sums of p numbers v, the root of p being every `turn`-th of the table.
template <int P, class real> __device__ __forceinline__ void butterfly(Number<real> (&v)[P], const Number<real>* roots, ix turn) {
  if (P == 2) {
    const Number<real> a = v[0], b = v[1];
    v[0] = a + b, v[1] = a - b;
  } else if (P == 4) {
    const Number<real> a = v[0] + v[2 % P], b = v[0] - v[2 % P], c = v[1] + v[3 % P], d = v[1] - v[3 % P], turned = {d.im, -d.re};
    v[0] = a + c, v[2 % P] = a - c, v[1] = b + turned, v[3 % P] = b - turned;
  } else {
    Number<real> w[P], out[P];
#pragma unroll
    for (int j = 0; j < P; ++j) w[j] = roots[j * turn];
#pragma unroll
    for (int j = 0; j < P; ++j) {
      out[j] = v[0];
#pragma unroll
      for (int m = 1; m < P; ++m) out[j] = out[j] + v[m] * w[j * m % P];
    }
#pragma unroll
    for (int j = 0; j < P; ++j) v[j] = out[j];
  }
}
template <int P, class real>
__device__ __forceinline__ void pass_of(const Number<real>* from, Number<real>* to, ix n, ix l1, const Number<real>* roots) {
  const ix ido = n / (l1 * P);
  for (ix e = threadIdx.x; e < l1 * ido; e += blockDim.x) {
    const ix k = quotient(e, ido), i = e - k * ido;
    Number<real> v[P];
#pragma unroll
    for (int m = 0; m < P; ++m) v[m] = from[i + ido * (m + P * k)];
    butterfly<P>(v, roots, n / P);
#pragma unroll
    for (int j = 0; j < P; ++j) to[i + ido * (k + l1 * j)] = j ? v[j] * roots[j * l1 * i] : v[j];
  }
}
// Long sums go in stretches, so that less is rounded away.
enum { STRETCH = 32 };
template <class real> __device__ __forceinline__ void pass_of_any(const Number<real>* from, Number<real>* to, ix n, ix p, ix l1, const Number<real>* roots) {
  const ix ido = n / (l1 * p), turn = n / p;
  for (ix e = threadIdx.x; e < n; e += blockDim.x) {
    const ix rest = quotient(e, ido), i = e - rest * ido, j = quotient(rest, l1), k = rest - j * l1;
    Number<real> sum = from[i + ido * p * k];
    ix place = 0;
    for (ix first = 1; first < p; first += STRETCH) {
      Number<real> part = {0, 0};
      for (ix m = first; m < p && m < first + STRETCH; ++m) {
        place += j;
        if (place >= p) place -= p;
        part = part + from[i + ido * (m + p * k)] * roots[place * turn];
      }
      sum = sum + part;
    }
    to[e] = sum * roots[j * l1 * i];
  }
}

// Input k of a row.
template <class T, class real> __device__ __forceinline__ Number<real> taken(const FftArgs& a, ix base, ix k) {
  real sign = 1;
  if (a.hermitian && k > a.points / 2) k = a.points - k, sign = -1;
  if (k >= a.given) return {0, 0};
  const ix place = base + k * a.x_step;
  return {(real)ld<T>(a.x, place), a.x_parts < 2 ? (real)0 : (real)ld<T>(a.x, place + a.x_part) * sign};
}

template <class T, class W> __device__ void transform(ix* ctx, const ix* args) {
  typedef typename W::wide real;
  const FftArgs a = *(const FftArgs*)args;
  extern __shared__ __align__(16) double room[];
  const ix n = a.points, row = blockIdx.x, outer = row / a.inner, inner = row - outer * a.inner;
  if (n <= 0) return;
  const Number<real>* roots = at<const Number<real> >(a.roots);
  Number<real>*from = a.fits ? (Number<real>*)room : at<Number<real> >(a.work) + row * 2 * n, *to = from + n;
  const ix in = outer * a.x_outer + inner * a.x_inner, out = outer * a.y_outer + inner * a.y_inner;
  for (ix k = threadIdx.x; k < n; k += blockDim.x) {
    const Number<real> v = taken<T, real>(a, in, k);
    from[k] = a.inverse ? Number<real>{v.im, v.re} : v;
  }
  __syncthreads();
  ix l1 = 1, rest = n, odd = 3;
  while (rest > 1) {
    ix p = rest % 4 == 0 ? 4 : rest % 2 == 0 ? 2 : 0;
    while (!p) {
      if (odd * odd > rest) p = rest;
      else if (rest % odd == 0) p = odd;
      else odd += 2;
    }
    if (p == 4) pass_of<4>(from, to, n, l1, roots);
    else if (p == 2) pass_of<2>(from, to, n, l1, roots);
    else if (p == 3) pass_of<3>(from, to, n, l1, roots);
    else if (p == 5) pass_of<5>(from, to, n, l1, roots);
    else pass_of_any(from, to, n, p, l1, roots);
    __syncthreads();
    Number<real>* other = from;
    from = to, to = other;
    l1 *= p, rest /= p;
  }
  const real scale = a.inverse ? (real)(1.0 / (double)n) : (real)1;
  for (ix k = threadIdx.x; k < a.bins; k += blockDim.x) {
    const Number<real> v = a.inverse ? Number<real>{from[k].im * scale, from[k].re * scale} : from[k];
    st<T>(a.y, out + k * a.y_step, (typename T::wide)v.re);
    if (a.y_parts > 1) st<T>(a.y, out + k * a.y_step + a.y_part, (typename T::wide)v.im);
  }
}
