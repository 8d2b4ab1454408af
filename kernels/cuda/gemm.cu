// Products of strided matrices: how slices of an operand come to shared memory, and a kernel of its own for few rows.
#include "product.cuh"
// The address of an operand's first element for this batch entry; steps in elements along its rows (the other's columns) and along k.
struct Matrix { ix base, row, k; };
__device__ __forceinline__ int clamped(ix n, int most) { return n < 0 ? 0 : n > most ? most : (int)n; }

// A thread's part of the slices of an operand, one slice after the other: where it reads next, what is left of k.
template <class T, int DEPTH> struct Reader {
  const T* from;
  ix row, k;
  int rows, left;
  bool vectors;
  __device__ __forceinline__ Reader(const Matrix& m, ix first_row, ix count, const Task& task, bool run, ix line, int most)
      : from(at<const T>(m.base) + first_row * m.row + task.first * m.k), row(m.row), k(m.k), rows(clamped(count - first_row, most)),
        left(clamped(task.last - task.first, 1 << 30)), vectors(run && ((m.base | line * (ix)sizeof(T)) & 15) == 0) {}
  __device__ __forceinline__ void next() { from += DEPTH * k, left -= DEPTH; }
};

// A slice as [k][row] for Simt: chunks of 16 bytes where rows are neighbours and aligned, else single elements.
template <class Tile, int ROWS, bool BY_ROW> struct MatrixSlice : Reader<typename Tile::raw, Tile::DEPTH> {
  typedef typename Tile::raw T;
  enum { V = Tile::V, BK = Tile::DEPTH, PITCH = ROWS + V, THREADS = Tile::THREADS, RUNS = ROWS / V };
  typedef Reader<T, Tile::DEPTH> Base;
  __device__ __forceinline__ MatrixSlice(const Matrix& m, ix first_row, ix count, const Task& task)
      : Base(m, first_row, count, task, BY_ROW && m.row == 1, m.k, ROWS) {
    const int t = threadIdx.x;
    this->from += this->vectors ? t / RUNS * this->k + t % RUNS * V : BY_ROW ? t / ROWS * this->k + t % ROWS * this->row : t % BK * this->k + t / BK * this->row;
  }
  __device__ __forceinline__ void fill(T* to) {
    const int t = threadIdx.x;
    const T* from = this->from;
    if (BY_ROW && this->vectors) {
      const int r = t % RUNS * V, bytes = clamped(this->rows - r, V) * (int)sizeof(T);
#pragma unroll
      for (int kk = t / RUNS; kk < BK; kk += THREADS / RUNS, from += THREADS / RUNS * this->k)
        async_copy<16>(to + kk * PITCH + r, from, kk < this->left ? bytes : 0);
    } else if (BY_ROW) {
#pragma unroll
      for (int kk = t / ROWS; kk < BK; kk += THREADS / ROWS, from += THREADS / ROWS * this->k)
        async_copy<sizeof(T)>(to + kk * PITCH + t % ROWS, from, kk < this->left && t % ROWS < this->rows ? (int)sizeof(T) : 0);
    } else {
#pragma unroll
      for (int r = t / BK; r < ROWS; r += THREADS / BK, from += THREADS / BK * this->row)
        async_copy<sizeof(T)>(to + t % BK * PITCH + r, from, t % BK < this->left && r < this->rows ? (int)sizeof(T) : 0);
    }
    this->next();
  }
};

// A slice in chunks of 16 bytes for Tensor; chunks that are not neighbours and aligned in memory are gathered.
template <class Tile, int ROWS, bool BY_K> struct MatrixChunks : Reader<typename Tile::raw, Tile::DEPTH> {
  typedef typename Tile::raw Raw;
  enum { V = 16 / (int)sizeof(Raw), BK = Tile::DEPTH, THREADS = Tile::THREADS, RUNS = ROWS / V };
  typedef Reader<Raw, Tile::DEPTH> Base;
  __device__ __forceinline__ MatrixChunks(const Matrix& m, ix first_row, ix count, const Task& task)
      : Base(m, first_row, count, task, (BY_K ? m.k : m.row) == 1, BY_K ? m.row : m.k, ROWS) {
    const int t = threadIdx.x;
    this->from += !BY_K ? t / RUNS * this->k + t % RUNS * V * this->row : this->vectors ? t / 4 * this->row + t % 4 * V : t / ROWS * V * this->k + t % ROWS * this->row;
  }
  __device__ __forceinline__ void fill(char* to) {
    const int t = threadIdx.x;
    const Raw* from = this->from;
    if (!BY_K) {
#pragma unroll
      for (int kk = t / RUNS; kk < BK; kk += THREADS / RUNS, from += THREADS / RUNS * this->k)
        chunk(to + chunk_by_row<ROWS>(kk, t % RUNS), from, kk < this->left ? clamped(this->rows - t % RUNS * V, V) : 0, this->row);
    } else if (this->vectors) {
#pragma unroll
      for (int r = t / 4; r < ROWS; r += THREADS / 4, from += THREADS / 4 * this->row)
        chunk(to + chunk_by_k(r, t % 4), from, r < this->rows ? clamped(this->left - t % 4 * V, V) : 0, 1);
    } else {
#pragma unroll
      for (int c = t / ROWS; c < 4; c += THREADS / ROWS, from += THREADS / ROWS * V * this->k)
        chunk(to + chunk_by_k(t % ROWS, c), from, t % ROWS < this->rows ? clamped(this->left - c * V, V) : 0, this->k);
    }
    this->next();
  }
  // 16 bytes of which `count` elements are there, `step` apart.
  __device__ __forceinline__ void chunk(char* to, const Raw* from, int count, ix step) const {
    if (this->vectors) {
      async_copy<16>(to, from, count * (int)sizeof(Raw));
      return;
    }
    AlignedPack<Plain<Raw>, V> pack;
#pragma unroll
    for (int j = 0; j < V; ++j) pack.x[j] = j < count ? from[j * step] : (Raw)0;
    *(AlignedPack<Plain<Raw>, V>*)to = pack;
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
