// The device dialect of CUDA C++ on a plain C++17 host compiler. A kernel text is compiled after this and common.cuh.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emu_rt.h"

#define GPUONNX_EMULATED 1
#define __CUDA_ARCH__ 800
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __restrict__ __restrict
#define LINE int line = __builtin_LINE()
#define UNCHECKED __attribute__((no_sanitize("thread")))

template <class T> T& emu_shm(const void* key) { return *(T*)emu_shared(key, sizeof(T), alignof(T)); }
#define threadIdx (emu.thread->tid)
#define blockIdx (emu.block)
#define blockDim (emu.threads)
#define gridDim (emu.grid)
#define warpSize 32

struct __align__(8) float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };
struct __align__(8) int2 { int x, y; };
struct __align__(16) int4 { int x, y, z, w; };
struct __align__(8) uint2 { unsigned x, y; };
struct __align__(16) uint4 { unsigned x, y, z, w; };
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// ---- barriers, warps -------------------------------------------------------------------------------------------------
inline void __syncthreads(LINE) { emu_barrier(line, 0, nullptr); }
inline int __syncthreads_count(int p, LINE) { int o[2]; emu_barrier(line, !!p, o); return o[0]; }
inline int __syncthreads_and(int p, LINE) { int o[2]; emu_barrier(line, !!p, o); return o[1]; }
inline int __syncthreads_or(int p, LINE) { int o[2]; emu_barrier(line, !!p, o); return o[0] != 0; }
inline void __syncwarp(unsigned m = ~0u, LINE) { emu_warp(EMU_SYNCWARP, line, m, 0, 0, nullptr, nullptr); }
inline unsigned __ballot_sync(unsigned m, int p, LINE) { return (unsigned)emu_warp(EMU_BALLOT, line, m, !!p, 0, nullptr, nullptr); }
inline int __any_sync(unsigned m, int p, LINE) { return __ballot_sync(m, p, line) != 0; }
inline int __all_sync(unsigned m, int p, LINE) { return __ballot_sync(m, p, line) == m; }
inline unsigned __match_any_sync(unsigned m, unsigned long long v, LINE) { return (unsigned)emu_warp(EMU_MATCH, line, m, v, 0, nullptr, nullptr); }

template <class T> UNCHECKED T emu_shuffle(unsigned mask, T v, int source, int line) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &v, sizeof(T));
  bits = emu_warp(EMU_SHFL, line, mask, bits, source, nullptr, nullptr);
  T r;
  std::memcpy((void*)&r, &bits, sizeof(T));
  return r;
}
template <class T> T __shfl_sync(unsigned m, T v, int s, int w = 32, LINE) {
  int l = emu.thread->lane;
  return emu_shuffle(m, v, (l & ~(w - 1)) + (s & (w - 1)), line);
}
template <class T> T __shfl_xor_sync(unsigned m, T v, int x, int w = 32, LINE) {
  int l = emu.thread->lane, j = l ^ x;
  return emu_shuffle(m, v, j < (l & ~(w - 1)) + w ? j : l, line);
}
template <class T> T __shfl_down_sync(unsigned m, T v, unsigned d, int w = 32, LINE) {
  int l = emu.thread->lane;
  return emu_shuffle(m, v, (l & (w - 1)) + (int)d < w ? l + (int)d : l, line);
}
template <class T> T __shfl_up_sync(unsigned m, T v, unsigned d, int w = 32, LINE) {
  int l = emu.thread->lane;
  return emu_shuffle(m, v, (l & (w - 1)) - (int)d >= 0 ? l - (int)d : l, line);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- atomics: fibers never pre-empt, so a plain read-modify-write is atomic; the race detector hears of it apart --------
#define ATOMIC template <class T> __attribute__((no_sanitize("thread"), noinline)) T
ATOMIC atomicAdd(T* p, std::common_type_t<T> v) { emu_atomic(p, sizeof(T)); T o = *p; *p = (T)(o + v); return o; }
ATOMIC atomicMax(T* p, std::common_type_t<T> v) { emu_atomic(p, sizeof(T)); T o = *p; if (v > o) *p = v; return o; }
ATOMIC atomicMin(T* p, std::common_type_t<T> v) { emu_atomic(p, sizeof(T)); T o = *p; if (v < o) *p = v; return o; }
ATOMIC atomicOr(T* p, std::common_type_t<T> v) { emu_atomic(p, sizeof(T)); T o = *p; *p = o | v; return o; }
ATOMIC atomicExch(T* p, std::common_type_t<T> v) { emu_atomic(p, sizeof(T)); T o = *p; *p = v; return o; }
ATOMIC atomicCAS(T* p, std::common_type_t<T> c, std::common_type_t<T> v) { emu_atomic(p, sizeof(T)); T o = *p; if (o == c) *p = v; return o; }

// ---- mathematics -----------------------------------------------------------------------------------------------------
using std::max;
using std::min;
template <class A, class B> UNCHECKED inline A emu_bits(B b) { static_assert(sizeof(A) == sizeof(B)); A a; std::memcpy(&a, &b, sizeof(A)); return a; }
inline float __int_as_float(int i) { return emu_bits<float>(i); }
inline int __float_as_int(float f) { return emu_bits<int>(f); }
inline unsigned __float_as_uint(float f) { return emu_bits<unsigned>(f); }
inline float __uint_as_float(unsigned u) { return emu_bits<float>(u); }
inline double __longlong_as_double(long long i) { return emu_bits<double>(i); }
inline long long __double_as_longlong(double f) { return emu_bits<long long>(f); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.f / a; }
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline double rsqrt(double x) { return 1. / std::sqrt(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
inline long long __mul64hi(long long a, long long b) { return (long long)((__int128)a * b >> 64); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return (unsigned long long)((unsigned __int128)a * b >> 64); }
template <class T> inline T __ldg(const T* p) { return *p; }

// ---- tensor cores: the register layouts of the PTX ISA -----------------------------------------------------------------
struct EmuMma { float* d; const unsigned *a, *b; const float* c; };

template <class F> UNCHECKED inline void emu_mma_product(EmuMma** t, const float (*a)[16], const float (*b)[8], int depth) {
  for (int l = 0; l < 32; ++l)
    for (int i = 0; i < 4; ++i) {
      int row = (l >> 2) + (i >> 1) * 8, column = (l & 3) * 2 + (i & 1);
      float s = t[l]->c[i];
      for (int k = 0; k < depth; ++k) s += a[row][k] * b[k][column];
      t[l]->d[i] = s;
    }
}
struct EmuHalf { UNCHECKED static float wide(unsigned w, int i) { return (float)emu_bits<_Float16>((uint16_t)(w >> 16 * i)); } };
struct EmuBfloat { UNCHECKED static float wide(unsigned w, int i) { return __uint_as_float((w >> 16 * i) << 16); } };

template <class F> UNCHECKED inline void emu_mma16(void** lanes, unsigned) {
  auto t = (EmuMma**)lanes;
  static float a[16][16], b[16][8];
  for (int l = 0; l < 32; ++l) {
    int g = l >> 2, q = l & 3;
    for (int i = 0; i < 8; ++i) a[g + ((i >> 1) & 1) * 8][q * 2 + (i & 1) + (i >= 4) * 8] = F::wide(t[l]->a[i >> 1], i & 1);
    for (int i = 0; i < 4; ++i) b[q * 2 + (i & 1) + (i >= 2) * 8][g] = F::wide(t[l]->b[i >> 1], i & 1);
  }
  emu_mma_product<F>(t, a, b, 16);
}
UNCHECKED inline void emu_mma_tf32(void** lanes, unsigned) {
  auto t = (EmuMma**)lanes;
  static float a[16][16], b[16][8];
  auto wide = [](unsigned w) { return __uint_as_float(w & 0xffffe000u); };
  for (int l = 0; l < 32; ++l) {
    int g = l >> 2, q = l & 3;
    for (int i = 0; i < 4; ++i) a[g + (i & 1) * 8][q + (i >> 1) * 4] = wide(t[l]->a[i]);
    for (int i = 0; i < 2; ++i) b[q + i * 4][g] = wide(t[l]->b[i]);
  }
  emu_mma_product<void>(t, a, b, 8);
}
UNCHECKED inline void emu_mma(EmuCollective fn, float (&d)[4], const unsigned* a, const unsigned* b, const float* c, int line) {
  float out[4];
  EmuMma t{out, a, b, c};
  emu_warp(EMU_MMA, line, ~0u, 0, 0, fn, &t);
  std::memcpy(d, out, sizeof out);
}
