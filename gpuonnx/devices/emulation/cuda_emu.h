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
using std::memcpy;
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
inline int __dp4a(int a, int b, int c) { for (int i = 0; i < 32; i += 8) c += (int)(signed char)(a >> i) * (int)(signed char)(b >> i); return c; }
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) { for (int i = 0; i < 32; i += 8) c += (a >> i & 255) * (b >> i & 255); return c; }
template <class T> inline T __ldg(const T* p) { return *p; }

// ---- tensor cores: the register layouts of the PTX ISA -----------------------------------------------------------------
struct EmuHalf { UNCHECKED static float wide(unsigned w, int i) { return (float)emu_bits<_Float16>((uint16_t)(w >> 16 * i)); } };
struct EmuBfloat { UNCHECKED static float wide(unsigned w, int i) { return __uint_as_float((w >> 16 * i) << 16); } };
template <class T> struct EmuByte { UNCHECKED static int wide(unsigned w, int i) { return (typename T::raw)(w >> 8 * i); } };
template <class S> struct EmuMma { S d[4]; unsigned a[4], b[2]; };

template <class S, class A, class B, int PER> UNCHECKED inline void emu_mma_all(void** lanes, unsigned) {
  auto t = (EmuMma<S>**)lanes;
  static S a[16][8 * PER], b[8][8 * PER];
  for (int l = 0; l < 32; ++l)
    for (int i = 0; i < PER; ++i) {
      const int g = l >> 2, k = (l & 3) * PER + i;
      for (int r = 0; r < 4; ++r) a[g + (r & 1) * 8][k + (r >> 1) * 4 * PER] = A::wide(t[l]->a[r], i);
      for (int r = 0; r < 2; ++r) b[g][k + r * 4 * PER] = B::wide(t[l]->b[r], i);
    }
  for (int l = 0; l < 32; ++l)
    for (int i = 0; i < 4; ++i) {
      const S *x = a[(l >> 2) + (i >> 1) * 8], *y = b[(l & 3) * 2 + (i & 1)];
      S s = t[l]->d[i];
      for (int k = 0; k < 8 * PER; ++k) s += x[k] * y[k];
      t[l]->d[i] = s;
    }
}
template <class S, class A, class B, int PER> UNCHECKED inline void emu_mma_run(S (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, int line) {
  EmuMma<S> t{{d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  emu_warp(EMU_MMA, line, ~0u, 0, 0, emu_mma_all<S, A, B, PER>, &t);
  std::memcpy(d, t.d, sizeof d);
}
template <class F> inline void emu_mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, int line) { emu_mma_run<float, F, F, 2>(d, a, b0, b1, line); }
template <class A, class B> inline void emu_mma_bytes(int (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, int line) {
  emu_mma_run<int, EmuByte<A>, EmuByte<B>, 4>(d, a, b0, b1, line);
}

// ldmatrix.x4: each lane reads its row, where bounds and races are looked for; then the rows are dealt out.
struct EmuMatrices { uint16_t row[8]; unsigned r[4]; bool turned; };
UNCHECKED inline void emu_matrices_all(void** lanes, unsigned) {
  auto t = (EmuMatrices**)lanes;
  for (int l = 0; l < 32; ++l)
    for (int m = 0; m < 4; ++m) {
      const int g = l >> 2, q = (l & 3) * 2;
      const uint16_t low = t[l]->turned ? t[m * 8 + q]->row[g] : t[m * 8 + g]->row[q];
      const uint16_t high = t[l]->turned ? t[m * 8 + q + 1]->row[g] : t[m * 8 + g]->row[q + 1];
      t[l]->r[m] = low | (unsigned)high << 16;
    }
}
inline void emu_load_matrices(unsigned (&r)[4], const void* row, bool turned, int line) {
  if ((uintptr_t)row & 15) emu_fail("ldmatrix at line %d: the row at %p is misaligned", line, row);
  EmuMatrices t;
  for (int i = 0; i < 8; ++i) t.row[i] = ((const uint16_t*)row)[i];
  t.turned = turned;
  emu_warp(EMU_MMA, line, ~0u, 0, 0, emu_matrices_all, &t);
  std::memcpy(r, t.r, sizeof r);
}
