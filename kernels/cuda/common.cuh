// What every kernel text starts from: stored types, errors, index arithmetic, cp.async. No header of CUDA is included.
#pragma once
typedef long long ix;
typedef unsigned long long u64;
#define INF_F32 __int_as_float(0x7f800000)
#define NAN_F32 __int_as_float(0x7fc00000)
#define INF_F64 __longlong_as_double(0x7ff0000000000000ll)
#define NAN_F64 __longlong_as_double(0x7ff8000000000000ll)

// ---- errors: value and limit first, then the code (contract.py, CTX_*) -------------------------------------------------
enum { ERROR_INDEX = 1, ERROR_DIVIDE = 2, ERROR_DOMAIN = 4 };
__device__ __noinline__ void raise_error(ix* ctx, ix code, ix value, ix limit) {
  if (atomicCAS((u64*)ctx, 0ull, (u64)code) == 0ull) {
    ctx[2] = value;
    ctx[3] = limit;
  }
}
__device__ __forceinline__ bool in_range(ix* ctx, ix value, ix limit) {
  if ((u64)value < (u64)limit) return true;
  raise_error(ctx, ERROR_INDEX, value, limit);
  return false;
}

// ---- index arithmetic --------------------------------------------------------------------------------------------------
__device__ __forceinline__ ix quotient(ix a, ix b) {
  if (((a | b) >> 32) == 0) return (unsigned)a / (unsigned)b;
  return a / b;
}
__device__ __forceinline__ ix floor_div(ix a, ix b) {
  if (b == 0) return 0;
  if (((a | b) >> 32) == 0) return (unsigned)a / (unsigned)b;
  if (b == -1) return (ix)(0 - (u64)a);
  const ix q = a / b;
  return q - (q * b != a && ((a ^ b) < 0));
}
__device__ __forceinline__ ix floor_mod(ix a, ix b) { return b == 0 ? 0 : a - floor_div(a, b) * b; }
template <class T> __device__ __forceinline__ T maximum(T a, T b) { return a > b || a != a ? a : b; }
template <class T> __device__ __forceinline__ T minimum(T a, T b) { return a < b || a != a ? a : b; }
#ifdef GPUONNX_EMULATED
template <class T> inline T* at(ix address) { return (T*)(u64)address; }
#else
// Words are addresses of global memory: said to the compiler, which else takes generic accesses and none of 16 bytes.
template <class T> __device__ __forceinline__ T* at(ix address) { return (T*)__cvta_global_to_generic((size_t)address); }
#endif

// ---- stored types: load widens, store rounds to nearest even -------------------------------------------------------------
template <class C> struct Plain {
  typedef C raw;
  typedef C wide;
  static __device__ __forceinline__ C widen(C x) { return x; }
  static __device__ __forceinline__ C narrow(C x) { return x; }
};
typedef Plain<float> f32;
typedef Plain<double> f64;
typedef Plain<signed char> i8;
typedef Plain<unsigned char> u8;
typedef Plain<short> i16;
typedef Plain<unsigned short> u16;
typedef Plain<int> i32;
typedef Plain<unsigned> u32;
typedef Plain<long long> i64;
typedef Plain<unsigned long long> u64t;
template <class C, int BITS> struct small_integer {
  typedef C raw;
  typedef C wide;
  static __device__ __forceinline__ C widen(C x) { return (C)((C)(x << (8 - BITS)) >> (8 - BITS)); }
  static __device__ __forceinline__ C narrow(C x) { return (C)(x & ((1 << BITS) - 1)); }
};
typedef small_integer<signed char, 4> i4;
typedef small_integer<unsigned char, 4> u4;
typedef small_integer<signed char, 2> i2;
typedef small_integer<unsigned char, 2> u2;
struct boolean {
  typedef unsigned char raw;
  typedef bool wide;
  static __device__ __forceinline__ bool widen(unsigned char x) { return x != 0; }
  static __device__ __forceinline__ unsigned char narrow(bool x) { return x; }
};
#ifdef GPUONNX_EMULATED
__device__ inline float half_to_float(unsigned short h) { return (float)emu_bits<_Float16>(h); }
__device__ inline unsigned short float_to_half(float f) { return emu_bits<unsigned short>((_Float16)f); }
#else
__device__ __forceinline__ float half_to_float(unsigned short h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
}
__device__ __forceinline__ unsigned short float_to_half(float f) {
  unsigned short h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}
#endif
struct f16 {
  typedef unsigned short raw;
  typedef float wide;
  static __device__ __forceinline__ float widen(unsigned short x) { return half_to_float(x); }
  static __device__ __forceinline__ unsigned short narrow(float x) { return float_to_half(x); }
};
struct bf16 {
  typedef unsigned short raw;
  typedef float wide;
  static __device__ __forceinline__ float widen(unsigned short x) { return __uint_as_float((unsigned)x << 16); }
  static __device__ __forceinline__ unsigned short narrow(float x) {
    unsigned u = __float_as_uint(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (unsigned short)((u >> 16) | 0x40);
    return (unsigned short)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
  }
};

// Small floats of one byte: E exponent bits, M mantissa bits, exponent bias B. FN: no infinities, NaN is all ones; UZ: one NaN at 0x80, no -0.
enum { SMALL_IEEE, SMALL_FN, SMALL_UZ, SMALL_FINITE };
template <int E, int M, int B, int KIND> struct small_float {
  typedef unsigned char raw;
  typedef float wide;
  static __device__ float widen(unsigned char x) {
    unsigned sign = (unsigned)(x >> (E + M) & 1) << 31, e = x >> M & ((1 << E) - 1), m = x & ((1 << M) - 1);
    if (KIND == SMALL_UZ && x == 0x80) return NAN_F32;
    if (KIND == SMALL_FN && e == (1 << E) - 1 && m == (1 << M) - 1) return NAN_F32;
    if (KIND == SMALL_IEEE && e == (1 << E) - 1) return __uint_as_float(sign | (m ? 0x7fc00000u : 0x7f800000u));
    float tiny = __uint_as_float((unsigned)(127 - B - M + 1) << 23);
    if (e == 0) return __uint_as_float(sign | __float_as_uint((float)m * tiny));
    return __uint_as_float(sign | ((e + 127 - B) << 23) | (m << (23 - M)));
  }
  static __device__ unsigned char narrow(float f) {
    unsigned u = __float_as_uint(f), sign = u >> 31 << (E + M), a = u & 0x7fffffffu;
    const unsigned nan = KIND == SMALL_UZ ? 0x80u : KIND == SMALL_FINITE ? sign ^ (1u << (E + M)) : KIND == SMALL_IEEE ? sign | (((1u << E) - 1) << M) | (1u << (M - 1)) : sign | ((1u << (E + M)) - 1);
    const unsigned largest = KIND == SMALL_FN ? (1u << (E + M)) - 2 : KIND == SMALL_IEEE ? (((1u << E) - 1) << M) - 1 : (1u << (E + M)) - 1;
    if (a > 0x7f800000u) return (unsigned char)nan;
    if (KIND == SMALL_IEEE && a == 0x7f800000u) return (unsigned char)(sign | (((1u << E) - 1) << M));
    unsigned code;
    if (a < (unsigned)(127 - B + 1) << 23) {
      float scaled = __uint_as_float(a) * __uint_as_float((unsigned)(127 + B + M - 1) << 23);
      code = (unsigned)(int)rintf(scaled);
    } else {
      unsigned r = a + ((1u << (22 - M)) - 1) + (a >> (23 - M) & 1);
      code = (r >> (23 - M)) - ((unsigned)(127 - B) << M);
    }
    if (code > largest) code = largest;
    if (KIND == SMALL_UZ && code == 0) return 0;
    return (unsigned char)(sign | code);
  }
};
typedef small_float<4, 3, 7, SMALL_FN> f8e4m3fn;
typedef small_float<4, 3, 8, SMALL_UZ> f8e4m3fnuz;
typedef small_float<5, 2, 15, SMALL_IEEE> f8e5m2;
typedef small_float<5, 2, 16, SMALL_UZ> f8e5m2fnuz;
typedef small_float<2, 1, 1, SMALL_FINITE> f4e2m1;
typedef small_float<2, 3, 1, SMALL_FINITE> f6e2m3;
typedef small_float<3, 2, 3, SMALL_FINITE> f6e3m2;
struct f8e8m0 {
  typedef unsigned char raw;
  typedef float wide;
  static __device__ float widen(unsigned char x) {
    if (x == 255) return NAN_F32;
    return x ? __uint_as_float((unsigned)x << 23) : __uint_as_float(0x00400000u);
  }
  static __device__ unsigned char narrow(float f) {
    unsigned u = __float_as_uint(f) & 0x7fffffffu;
    if (u > 0x7f800000u) return 255;
    unsigned e = (u >> 23) + (u >> 22 & 1);
    return (unsigned char)(e > 254 ? 254 : e);
  }
};

template <class T> __device__ __forceinline__ typename T::wide ld(ix base, ix i) { return T::widen(at<const typename T::raw>(base)[i]); }
template <class T> __device__ __forceinline__ void st(ix base, ix i, typename T::wide x) { at<typename T::raw>(base)[i] = T::narrow(x); }
template <class T> __device__ __forceinline__ typename T::wide rounded(typename T::wide x) { return T::widen(T::narrow(x)); }

// V elements moved by one access; the address must be aligned to V * sizeof(T::raw).
template <class T, int V> struct Pack {
  typename T::raw x[V];
};
template <class T, int V> struct alignas(sizeof(typename T::raw) * V) AlignedPack : Pack<T, V> {};
template <class T, int V> __device__ __forceinline__ AlignedPack<T, V> ld_pack(ix base, ix i) {
  return *(const AlignedPack<T, V>*)(at<const typename T::raw>(base) + i);
}
// In words of up to 16 bytes: bytes and halves would be stored one by one.
template <int BYTES> struct WordOf { typedef unsigned char type; };
template <> struct WordOf<2> { typedef unsigned short type; };
template <> struct WordOf<4> { typedef unsigned type; };
template <> struct WordOf<8> { typedef uint2 type; };
template <> struct WordOf<16> { typedef uint4 type; };
template <class W> __device__ __forceinline__ void st_words(W* to, const W& words) { *to = words; }
#ifndef GPUONNX_EMULATED
__device__ __forceinline__ void st_words(uint2* to, const uint2& w) { asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(w.x), "r"(w.y) : "memory"); }
__device__ __forceinline__ void st_words(uint4* to, const uint4& w) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w) : "memory");
}
#endif
template <class T, int V> __device__ __forceinline__ void st_pack(ix base, ix i, const AlignedPack<T, V>& p) {
  enum { BYTES = sizeof(p) < 16 ? sizeof(p) : 16, COUNT = sizeof(p) / BYTES };
  typename WordOf<BYTES>::type words[COUNT], *to = (typename WordOf<BYTES>::type*)(at<typename T::raw>(base) + i);
  memcpy(words, &p, sizeof(p));
#pragma unroll
  for (int k = 0; k < COUNT; ++k) st_words(to + k, words[k]);
}

// ---- conversions of C types: real to integer saturates, NaN becomes 0 ------------------------------------------------------
template <class I, class F> __device__ __forceinline__ I saturated(F x) {
  const bool is_signed = (I)-1 < (I)0;
  const int bits = 8 * (int)sizeof(I) - (is_signed ? 1 : 0);
  const I high = (I)(((1ull << (bits - 1)) - 1) * 2 + 1), low = is_signed ? (I)(-high - 1) : (I)0;
  const F limit = (F)2 * (F)(1ull << (bits - 1));
  if (!(x == x)) return (I)0;
  if (x >= limit) return high;
  if (is_signed ? x <= -limit : x <= (F)-1) return low;
  return (I)x;
}

// ---- scalar functions of ir/scalar.py that are no operators: g_<row> ------------------------------------------------------------
#define UNARY_REAL(name, f32_text, f64_text)                                          \
  __device__ __forceinline__ float g_##name(float x) { return f32_text; }             \
  __device__ __forceinline__ double g_##name(double x) { return f64_text; }
UNARY_REAL(sqrt, sqrtf(x), sqrt(x))
UNARY_REAL(rsqrt, 1.f / sqrtf(x), 1. / sqrt(x))
UNARY_REAL(reciprocal, 1.f / x, 1. / x)
UNARY_REAL(exp, expf(x), exp(x))
UNARY_REAL(exp2, exp2f(x), exp2(x))
UNARY_REAL(expm1, expm1f(x), expm1(x))
UNARY_REAL(log, logf(x), log(x))
UNARY_REAL(log2, log2f(x), log2(x))
UNARY_REAL(log10, log10f(x), log10(x))
UNARY_REAL(log1p, log1pf(x), log1p(x))
UNARY_REAL(sin, sinf(x), sin(x))
UNARY_REAL(cos, cosf(x), cos(x))
UNARY_REAL(tan, tanf(x), tan(x))
UNARY_REAL(asin, asinf(x), asin(x))
UNARY_REAL(acos, acosf(x), acos(x))
UNARY_REAL(atan, atanf(x), atan(x))
UNARY_REAL(sinh, sinhf(x), sinh(x))
UNARY_REAL(cosh, coshf(x), cosh(x))
UNARY_REAL(tanh, tanhf(x), tanh(x))
UNARY_REAL(asinh, asinhf(x), asinh(x))
UNARY_REAL(acosh, acoshf(x), acosh(x))
UNARY_REAL(atanh, atanhf(x), atanh(x))
UNARY_REAL(erf, erff(x), erf(x))
UNARY_REAL(lgamma, lgammaf(x), lgamma(x))
UNARY_REAL(sigmoid, 1.f / (1.f + expf(-x)), 1. / (1. + exp(-x)))
template <class T> struct is_real { static const bool value = false; };
template <> struct is_real<float> { static const bool value = true; };
template <> struct is_real<double> { static const bool value = true; };
__device__ __forceinline__ float g_floor(float x) { return floorf(x); }
__device__ __forceinline__ double g_floor(double x) { return floor(x); }
__device__ __forceinline__ float g_ceil(float x) { return ceilf(x); }
__device__ __forceinline__ double g_ceil(double x) { return ceil(x); }
__device__ __forceinline__ float g_trunc(float x) { return truncf(x); }
__device__ __forceinline__ double g_trunc(double x) { return trunc(x); }
__device__ __forceinline__ float g_rint(float x) { return rintf(x); }
__device__ __forceinline__ double g_rint(double x) { return rint(x); }
template <class T> __device__ __forceinline__ T g_floor(T x) { return x; }
template <class T> __device__ __forceinline__ T g_ceil(T x) { return x; }
template <class T> __device__ __forceinline__ T g_trunc(T x) { return x; }
template <class T> __device__ __forceinline__ T g_rint(T x) { return x; }
template <class T> __device__ __forceinline__ T g_max(T a, T b) { return maximum(a, b); }
template <class T> __device__ __forceinline__ T g_min(T a, T b) { return minimum(a, b); }
template <class T> __device__ __forceinline__ T g_fmax(T a, T b) { return a != a ? b : b != b ? a : a > b ? a : b; }
template <class T> __device__ __forceinline__ T g_fmin(T a, T b) { return a != a ? b : b != b ? a : a < b ? a : b; }
template <class T> __device__ __forceinline__ T g_abs(T x) { return x < (T)0 ? (T)-x : x == (T)0 ? (T)0 : x; }
template <class T> __device__ __forceinline__ T g_sign(T x) { return x > (T)0 ? (T)1 : x < (T)0 ? (T)-1 : x; }
template <class T> __device__ __forceinline__ T g_relu(T x) { return maximum((T)0, x); }
template <class T> __device__ __forceinline__ bool g_isnan(T x) { return x != x; }
__device__ __forceinline__ bool g_isinf(float x) { return x == INF_F32 || x == -INF_F32; }
__device__ __forceinline__ bool g_isinf(double x) { return x == INF_F64 || x == -INF_F64; }
__device__ __forceinline__ float g_div(float a, float b) { return a / b; }
__device__ __forceinline__ double g_div(double a, double b) { return a / b; }
template <class T> __device__ __forceinline__ T g_div(T a, T b) { return b == (T)0 ? (T)0 : b == (T)-1 ? (T)((T)0 - a) : (T)(a / b); }
__device__ __forceinline__ float g_truncmod(float a, float b) { return fmodf(a, b); }
__device__ __forceinline__ double g_truncmod(double a, double b) { return fmod(a, b); }
template <class T> __device__ __forceinline__ T g_truncmod(T a, T b) { return b == (T)0 || b == (T)-1 ? (T)(b == (T)0 || (T)-1 < (T)0 ? 0 : a % b) : (T)(a % b); }
template <class T> __device__ __forceinline__ T g_floormod(T a, T b) {
  const T r = g_truncmod(a, b);
  return r != (T)0 && (r < (T)0) != (b < (T)0) ? (T)(r + b) : r;
}
__device__ __forceinline__ float g_floordiv(float a, float b) { return floorf(a / b); }
__device__ __forceinline__ double g_floordiv(double a, double b) { return floor(a / b); }
template <class T> __device__ __forceinline__ T g_floordiv(T a, T b) {
  const T q = g_div(a, b);
  return b != (T)0 && (T)(q * b) != a && (a < (T)0) != (b < (T)0) ? (T)(q - 1) : q;
}
__device__ __forceinline__ float g_pow(float a, float b) { return powf(a, b); }
__device__ __forceinline__ double g_pow(double a, double b) { return pow(a, b); }
template <class T> __device__ __forceinline__ T g_pow(T a, T b) {
  if (b < (T)0) return a == (T)1 ? (T)1 : a == (T)-1 ? (T)(b % 2 == 0 ? 1 : -1) : (T)0;
  T out = 1;
  for (u64 n = (u64)b; n; n >>= 1) {
    if (n & 1) out = (T)(out * a);
    a = (T)(a * a);
  }
  return out;
}
template <class T> __device__ __forceinline__ T g_shl(T a, T b) { return b < (T)0 || b >= (T)(8 * sizeof(T)) ? (T)0 : (T)((u64)a << (int)b); }
template <class T> __device__ __forceinline__ T g_shr(T a, T b) { return b < (T)0 || b >= (T)(8 * sizeof(T)) ? (a < (T)0 ? (T)-1 : (T)0) : (T)(a >> (int)b); }
template <class T> __device__ __forceinline__ T g_popcount(T x) { return (T)__popcll((u64)x & (sizeof(T) == 8 ? ~0ull : (1ull << 8 * (sizeof(T) & 7)) - 1)); }
__device__ __forceinline__ unsigned g_philox(ix seed, ix counter, ix index) {
  unsigned c0 = (unsigned)index, c1 = (unsigned)((u64)index >> 32), c2 = (unsigned)counter, c3 = (unsigned)((u64)counter >> 32);
  unsigned k0 = (unsigned)seed, k1 = (unsigned)((u64)seed >> 32);
  for (int i = 0; i < 10; ++i) {
    const u64 p0 = (u64)0xD2511F53u * c0, p1 = (u64)0xCD9E8D57u * c2;
    c0 = (unsigned)(p1 >> 32) ^ c1 ^ k0, c1 = (unsigned)p1, c2 = (unsigned)(p0 >> 32) ^ c3 ^ k1, c3 = (unsigned)p0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return c0;
}

// Best: at is -1 before the first element.
// ---- folds: `lanes` threads of a block hold parts of one row; all get the whole. F::f combines two, symmetrically --------------
template <class T> struct Best {
  T value;
  ix at;
};
template <class T> __device__ __forceinline__ T warp_from(T v, int mask) {
  return (T)__shfl_xor_sync(~0u, v, mask);
}
__device__ __forceinline__ bool warp_from(bool v, int mask) { return __shfl_xor_sync(~0u, (int)v, mask) != 0; }
__device__ __forceinline__ signed char warp_from(signed char v, int mask) { return (signed char)__shfl_xor_sync(~0u, (int)v, mask); }
__device__ __forceinline__ unsigned char warp_from(unsigned char v, int mask) { return (unsigned char)__shfl_xor_sync(~0u, (int)v, mask); }
__device__ __forceinline__ short warp_from(short v, int mask) { return (short)__shfl_xor_sync(~0u, (int)v, mask); }
__device__ __forceinline__ unsigned short warp_from(unsigned short v, int mask) { return (unsigned short)__shfl_xor_sync(~0u, (int)v, mask); }
template <class T> __device__ __forceinline__ Best<T> warp_from(Best<T> v, int mask) {
  return Best<T>{warp_from(v.value, mask), warp_from(v.at, mask)};
}
// Neighbouring threads share a row; lanes is 1, 2, 4, 8, 16, 32 or the whole block. scratch: 16 bytes a warp.
template <class F, class T> __device__ __forceinline__ T block_fold(T v, int lanes, u64* scratch) {
  for (int o = (lanes < 32 ? lanes : 32) >> 1; o; o >>= 1) v = F::f(v, warp_from(v, o));
  if (lanes <= 32) return v;
  T* parts = (T*)scratch;
  if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = v;
  __syncthreads();
  v = parts[0];
  for (int k = 1; k < (int)(blockDim.x >> 5); ++k) v = F::f(v, parts[k]);
  __syncthreads();
  return v;
}
// Thread `lane * (blockDim.x / lanes) + row` holds part `lane` of a row. scratch: 16 bytes a thread.
template <class F, class T> __device__ __forceinline__ T block_fold_across(T v, int lanes, u64* scratch) {
  if (lanes == 1) return v;
  T* parts = (T*)scratch;
  const int rows = blockDim.x / lanes, row = threadIdx.x % rows;
  parts[threadIdx.x] = v;
  __syncthreads();
  v = parts[row];
  for (int k = 1; k < lanes; ++k) v = F::f(v, parts[k * rows + row]);
  __syncthreads();
  return v;
}

// ---- asynchronous copies of 4, 8 or 16 bytes to shared memory; the first `valid` bytes are read, the rest become 0 ------------
#ifdef GPUONNX_EMULATED
template <int N> inline void async_copy(void* to, const void* from, int valid) { emu_async_copy(to, from, N, valid); }
inline void async_commit() { emu_async_commit(); }
template <int PENDING> inline void async_wait() { emu_async_wait(PENDING); }
#elif __CUDA_ARCH__ >= 800
template <int N> __device__ __forceinline__ void async_copy(void* to, const void* from, int valid) {
  unsigned shared = (unsigned)__cvta_generic_to_shared(to);
  if (N == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(valid));
  else if (N == 8)
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared), "l"(from), "r"(valid));
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(from), "r"(valid));
}
__device__ __forceinline__ void async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }
#else
template <int N> __device__ __forceinline__ void async_copy(void* to, const void* from, int valid) {
  unsigned words[N / 4];
#pragma unroll
  for (int i = 0; i < N / 4; ++i) words[i] = 0;
  if (valid == N) {
#pragma unroll
    for (int i = 0; i < N / 4; ++i) words[i] = ((const unsigned*)from)[i];
  } else {
    for (int i = 0; i < valid; ++i) ((unsigned char*)words)[i] = ((const unsigned char*)from)[i];
  }
#pragma unroll
  for (int i = 0; i < N / 4; ++i) ((unsigned*)to)[i] = words[i];
}
__device__ __forceinline__ void async_commit() {}
template <int PENDING> __device__ __forceinline__ void async_wait() {}
#endif
