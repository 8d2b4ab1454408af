// Products of strided matrices: how slices of an operand come to shared memory, and a kernel of its own for few rows.
#include "product.cuh"
// The address of an operand's first element for this batch entry; steps in elements along its rows (the other's columns) and along k.
struct Matrix { ix base, row, k; };
__device__ __forceinline__ int clamped(ix n, int most) { return n < 0 ? 0 : n > most ? most : (int)n; }

// A slice as [k][row] for Simt: chunks of 16 bytes where rows are neighbours and aligned, else single elements.
template <class Tile, int ROWS, bool BY_ROW> struct MatrixSlice {
  typedef typename Tile::raw T;
  enum { V = Tile::V, BK = Tile::DEPTH, PITCH = ROWS + V, THREADS = Tile::THREADS };
  const T* base;
  ix row, k, rows, last;
  bool vectors;
  __device__ __forceinline__ MatrixSlice(const Matrix& m, ix first_row, ix count, const Task& task) {
    base = at<const T>(m.base) + first_row * m.row;
    row = m.row, k = m.k, rows = count - first_row, last = task.last;
    vectors = BY_ROW && row == 1 && ((m.base | k * (ix)sizeof(T)) & 15) == 0;
  }
  __device__ __forceinline__ void fill(T* to, ix k0) const {
    if (BY_ROW && vectors) {
#pragma unroll
      for (int c = threadIdx.x; c < ROWS / V * BK; c += THREADS) {
        const int kk = c / (ROWS / V), r = c % (ROWS / V) * V, count = k0 + kk < last ? clamped(rows - r, V) : 0;
        async_copy<16>(to + kk * PITCH + r, count ? base + (k0 + kk) * k + r : base, count * (int)sizeof(T));
      }
      return;
    }
#pragma unroll
    for (int c = threadIdx.x; c < ROWS * BK; c += THREADS) {
      const int kk = BY_ROW ? c / ROWS : c % BK, r = BY_ROW ? c % ROWS : c / BK;
      const bool inside = k0 + kk < last && r < rows;
      async_copy<sizeof(T)>(to + kk * PITCH + r, inside ? base + (k0 + kk) * k + r * row : base, inside ? (int)sizeof(T) : 0);
    }
  }
};

// A slice in chunks of 16 bytes for Tensor; chunks that are not neighbours and aligned in memory are gathered.
template <class Tile, int ROWS, bool BY_K> struct MatrixChunks {
  typedef typename Tile::raw Raw;
  enum { V = 16 / (int)sizeof(Raw), BK = Tile::DEPTH, THREADS = Tile::THREADS };
  const Raw* base;
  ix row, k, rows, last;
  bool vectors;
  __device__ __forceinline__ MatrixChunks(const Matrix& m, ix first_row, ix count, const Task& task) {
    base = at<const Raw>(m.base) + first_row * m.row;
    row = m.row, k = m.k, rows = count - first_row, last = task.last;
    vectors = (BY_K ? k : row) == 1 && ((m.base | (BY_K ? row : k) * (ix)sizeof(Raw)) & 15) == 0;
  }
  __device__ __forceinline__ void fill(char* to, ix k0) const {
    if (vectors) {
#pragma unroll
      for (int c = threadIdx.x; c < ROWS * 4; c += THREADS) {
        const int r = BY_K ? c / 4 : c % (ROWS / V) * V, kk = BY_K ? c % 4 * V : c / (ROWS / V);
        const int count = BY_K ? (r < rows ? clamped(last - k0 - kk, V) : 0) : k0 + kk < last ? clamped(rows - r, V) : 0;
        const int place = BY_K ? chunk_by_k(r, c % 4) : chunk_by_row<ROWS>(kk, c % (ROWS / V));
        async_copy<16>(to + place, count ? base + r * row + (k0 + kk) * k : base, count * (int)sizeof(Raw));
      }
      return;
    }
#pragma unroll
    for (int c = threadIdx.x; c < ROWS * 4; c += THREADS) {
      const int r = BY_K ? c % ROWS : c % (ROWS / V) * V, kk = BY_K ? c / ROWS * V : c / (ROWS / V);
      AlignedPack<Plain<Raw>, V> pack;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const int rj = BY_K ? r : r + j, kj = BY_K ? kk + j : kk;
        pack.x[j] = rj < rows && k0 + kj < last ? base[rj * row + (k0 + kj) * k] : (Raw)0;
      }
      *(AlignedPack<Plain<Raw>, V>*)(to + (BY_K ? chunk_by_k(r, c / ROWS) : chunk_by_row<ROWS>(kk, c % (ROWS / V)))) = pack;
    }
  }
};

// ---- few rows: every element of the right operand is read once, from memory to registers -----------------------------------------
// By k: a warp a column, lanes along k. Else: lanes along columns, warps along k. ROWS rows a block.
template <class T, class Sum_, bool BY_K> struct Skinny {
  typedef Sum_ Sum;
  enum { THREADS = 256, HEIGHT = 4, WIDTH = BY_K ? 8 : 32, DEPTH = 32, WARPS = THREADS / 32 };
  Sum sum[HEIGHT];
  static __device__ __forceinline__ int lane() { return threadIdx.x & 31; }
  static __device__ __forceinline__ int warp() { return threadIdx.x >> 5; }
  __device__ __forceinline__ void run(const Extent& e, const Task& task, const Matrix& left, const Matrix& right) {
#pragma unroll
    for (int i = 0; i < HEIGHT; ++i) sum[i] = 0;
    const ix column = task.column + (BY_K ? warp() : lane());
    const ix last = column < e.columns ? task.last : task.first;
    const ix b = right.base + column * right.row * (ix)sizeof(typename T::raw);
#pragma unroll 4
    for (ix k = task.first + (BY_K ? lane() : warp()); k < last; k += BY_K ? 32 : WARPS) {
      const Sum y = ld<T>(b, k * right.k);
#pragma unroll
      for (int i = 0; i < HEIGHT; ++i)
        if (task.row + i < e.rows) sum[i] += ld<T>(left.base, (task.row + i) * left.row + k * left.k) * y;
    }
    BY_K ? add_lanes() : add_warps();
  }
  __device__ __forceinline__ void add_lanes() {
#pragma unroll
    for (int i = 0; i < HEIGHT; ++i)
#pragma unroll
      for (int o = 16; o; o >>= 1) sum[i] += __shfl_xor_sync(~0u, sum[i], o);
  }
  __device__ __forceinline__ void add_warps() {
    __shared__ Sum parts[WARPS * HEIGHT * 32];
#pragma unroll
    for (int i = 0; i < HEIGHT; ++i) parts[(warp() * HEIGHT + i) * 32 + lane()] = sum[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < HEIGHT; ++i) sum[i] = 0;
    if (warp() == 0)
      for (int w = 0; w < WARPS; ++w)
#pragma unroll
        for (int i = 0; i < HEIGHT; ++i) sum[i] += parts[(w * HEIGHT + i) * 32 + lane()];
  }
  template <class Out> __device__ __forceinline__ void store(const Extent& e, const Task& task, const Out& out) const {
    if (BY_K ? lane() : warp()) return;
#pragma unroll
    for (int i = 0; i < HEIGHT; ++i) out.template store<1>(e, task, task.row + i, task.column + (BY_K ? warp() : lane()), sum + i);
  }
};
