// Tensor cores: d += a b, a 16 rows by 32 bytes of k, b 32 bytes of k by 8 columns; registers as in the PTX ISA (m16n8k16, m16n8k32).
#pragma once
#ifdef GPUONNX_EMULATED
#define MMA_LINE , int line = __builtin_LINE()
struct MmaF16 {
  typedef unsigned short raw;
  typedef float sum;
  static void run(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1 MMA_LINE) { emu_mma<EmuHalf>(d, a, b0, b1, line); }
};
struct MmaBf16 {
  typedef unsigned short raw;
  typedef float sum;
  static void run(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1 MMA_LINE) { emu_mma<EmuBfloat>(d, a, b0, b1, line); }
};
template <class A, class B> struct MmaBytes {
  typedef unsigned char raw;
  typedef int sum;
  static void run(int (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1 MMA_LINE) { emu_mma_bytes<A, B>(d, a, b0, b1, line); }
};
inline void load_matrices(unsigned (&r)[4], const void* row MMA_LINE) { emu_load_matrices(r, row, false, line); }
inline void load_matrices_turned(unsigned (&r)[4], const void* row MMA_LINE) { emu_load_matrices(r, row, true, line); }
#else
// Lane 8 i + j holds the address of row j (16 bytes) of matrix i, 8 x 8 of 16 bits; r[i] is words of row lane / 4 (turned: of column lane / 4).
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((unsigned)__cvta_generic_to_shared(row)) : "memory");
}
__device__ __forceinline__ void load_matrices_turned(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((unsigned)__cvta_generic_to_shared(row)) : "memory");
}
#define MMA_WHOLE(text, type)                                                                                                     \
  asm volatile(text " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                                      \
               : "+" type(d[0]), "+" type(d[1]), "+" type(d[2]), "+" type(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
struct MmaF16 {
  typedef unsigned short raw;
  typedef float sum;
  static __device__ __forceinline__ void run(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
    MMA_WHOLE("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "f");
#else
    half_depth(d, a[0], a[1], b0);
    half_depth(d, a[2], a[3], b1);
#endif
  }
  static __device__ __forceinline__ void half_depth(float (&d)[4], unsigned upper, unsigned lower, unsigned b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(upper), "r"(lower), "r"(b));
  }
};
__device__ __forceinline__ float bf16_of(unsigned word, int i) { return __uint_as_float((word >> 16 * i) << 16); }
__device__ __noinline__ void mma_bf16_by_shuffles(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
  for (int k = 0; k < 16; ++k) {
    const bool high = k >= 8;
    const int from = k % 8 / 2, bit = k % 2;
    const unsigned upper = __shfl_sync(~0u, high ? a[2] : a[0], g * 4 + from), lower = __shfl_sync(~0u, high ? a[3] : a[1], g * 4 + from);
    const unsigned left = __shfl_sync(~0u, high ? b1 : b0, q * 8 + from), right = __shfl_sync(~0u, high ? b1 : b0, q * 8 + 4 + from);
    const float x = bf16_of(upper, bit), y = bf16_of(lower, bit), u = bf16_of(left, bit), v = bf16_of(right, bit);
    d[0] += x * u, d[1] += x * v, d[2] += y * u, d[3] += y * v;
  }
}
struct MmaBf16 {
  typedef unsigned short raw;
  typedef float sum;
  static __device__ __forceinline__ void run(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
    MMA_WHOLE("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "f");
#else
    mma_bf16_by_shuffles(d, a, b0, b1);
#endif
  }
};
#define MMA_QUARTER(text, i, x, y) asm volatile(text " {%0,%1}, {%2}, {%3}, {%0,%1};" : "+r"(d[i]), "+r"(d[i + 1]) : "r"(x), "r"(y))
#if __CUDA_ARCH__ >= 800
#define MMA_BYTES(a_type, b_type) MMA_WHOLE("mma.sync.aligned.m16n8k32.row.col.s32." a_type "." b_type ".s32", "r")
#else
#define MMA_BYTES(a_type, b_type)                                                           \
  MMA_QUARTER("mma.sync.aligned.m8n8k16.row.col.s32." a_type "." b_type ".s32", 0, a[0], b0); \
  MMA_QUARTER("mma.sync.aligned.m8n8k16.row.col.s32." a_type "." b_type ".s32", 0, a[2], b1); \
  MMA_QUARTER("mma.sync.aligned.m8n8k16.row.col.s32." a_type "." b_type ".s32", 2, a[1], b0); \
  MMA_QUARTER("mma.sync.aligned.m8n8k16.row.col.s32." a_type "." b_type ".s32", 2, a[3], b1)
#endif
template <class A, class B> struct MmaBytes {
  typedef unsigned char raw;
  typedef int sum;
  static __device__ __forceinline__ void run(int (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const bool left_signed = (typename A::raw)-1 < 0, right_signed = (typename B::raw)-1 < 0;
    if (left_signed && right_signed) {
      MMA_BYTES("s8", "s8");
    } else if (left_signed) {
      MMA_BYTES("s8", "u8");
    } else if (right_signed) {
      MMA_BYTES("u8", "s8");
    } else {
      MMA_BYTES("u8", "u8");
    }
  }
};
#endif
