// Tiles of products: where a block works, the loops over slices of k, the stores. gemm.cu and conv.cu bring the operands.
#pragma once
#include "mma.cuh"
// Blocks of a multiprocessor that registers must allow for, where ptxas manages it without spills.
#define RESIDENT(n) (__CUDA_ARCH__ >= 800 && __CUDA_ARCH__ < 1000 ? n : 1)
struct Extent { ix rows, columns, depth, batches, pieces; };
// The block sums k from `first` to `last` for batch entry `batch`; its tile starts at (row, column).
struct Task { ix batch, row, column, piece, first, last; };
enum { BAND = 8 };

__device__ __forceinline__ void set_piece(Task& t, const Extent& e, int unit) {
  const ix each = quotient((e.depth + unit - 1) / unit + e.pieces - 1, e.pieces) * unit;
  t.first = t.piece * each;
  t.last = minimum(e.depth, t.first + each);
}
// Tiles are taken in bands of 8 rows of tiles, so that blocks which run together share operands in the second-level cache.
__device__ __forceinline__ Task task_of(const Extent& e, int height, int width, int unit) {
  const ix across = (e.columns + width - 1) / width, down = (e.rows + height - 1) / height;
  const ix above = quotient(blockIdx.x, across * down), t = blockIdx.x - above * across * down;
  const ix top = quotient(t, BAND * across) * BAND, tall = minimum(down - top, (ix)BAND);
  const ix within = t - top * across, column = quotient(within, tall);
  Task task;
  task.piece = quotient(above, e.batches);
  task.batch = above - task.piece * e.batches;
  task.row = (top + within - column * tall) * height;
  task.column = column * width;
  set_piece(task, e, unit);
  return task;
}
// One element a thread: the second step of a product whose k was cut into pieces.
__device__ __forceinline__ Task element_of(const Extent& e) {
  const ix each = (e.rows * e.columns + blockDim.x - 1) / blockDim.x, batch = quotient(blockIdx.x, each);
  const ix at = (blockIdx.x - batch * each) * blockDim.x + threadIdx.x, row = quotient(at, e.columns);
  return Task{batch, row, at - row * e.columns, 0, 0, 0};
}

// ---- results: sums become stored values at their places, or parts in the workspace where k is cut ------------------------------
template <class Stored, class Sum, class RowOf, class ColumnOf, class Value, class Place> struct Output {
  ix base, partial;
  RowOf row_of;
  ColumnOf column_of;
  Value value;
  Place place;
  __device__ __forceinline__ ix part(const Extent& e, const Task& t, ix piece, ix row, ix column) const {
    return ((piece * e.batches + t.batch) * e.rows + row) * e.columns + column;
  }
  // V neighbouring columns of a row; one access where they are neighbours in memory and aligned.
  template <int V> __device__ __forceinline__ void store(const Extent& e, const Task& t, ix row, ix column, const Sum* sums) const {
    if (row >= e.rows || column >= e.columns) return;
    if (e.pieces > 1) {
      Sum* to = at<Sum>(partial) + part(e, t, t.piece, row, column);
#pragma unroll
      for (int j = 0; j < V; ++j)
        if (column + j < e.columns) to[j] = sums[j];
    } else {
      finish<V>(e, row, column, sums);
    }
  }
  template <int V> __device__ __forceinline__ void finish(const Extent& e, ix row, ix column, const Sum* sums) const {
    const auto r = row_of(row);
    AlignedPack<Stored, V> pack;
    ix places[V];
    bool run = column + V <= e.columns;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      if (column + j >= e.columns) break;
      const auto c = column_of(column + j);
      places[j] = place(r, c);
      pack.x[j] = Stored::narrow(value(r, c, sums[j]));
      run = run && places[j] == places[0] + j;
    }
    if (run && ((base + places[0] * (ix)sizeof(typename Stored::raw)) & (ix)(sizeof(pack) - 1)) == 0) {
      st_pack<Stored, V>(base, places[0], pack);
      return;
    }
#pragma unroll
    for (int j = 0; j < V; ++j)
      if (column + j < e.columns) at<typename Stored::raw>(base)[places[j]] = pack.x[j];
  }
  __device__ __forceinline__ void add_pieces(const Extent& e, const Task& t) const {
    if (t.row >= e.rows) return;
    Sum sum = 0;
    for (ix piece = 0; piece < e.pieces; ++piece) sum += at<const Sum>(partial)[part(e, t, piece, t.row, t.column)];
    finish<1>(e, t.row, t.column, &sum);
  }
};
template <class Stored, class Sum, class R, class C, class V, class P>
__device__ __forceinline__ Output<Stored, Sum, R, C, V, P> output(ix base, ix partial, R row_of, C column_of, V value, P place) {
  return Output<Stored, Sum, R, C, V, P>{base, partial, row_of, column_of, value, place};
}

// ---- sums by FMA: BM x BN a block, TM x TN a thread, slices of BK in shared memory as [k][row], two of them ---------------------
template <class T, int BM, int BN, int BK, int TM, int TN> struct Simt {
  typedef T raw;
  enum { THREADS = BM / TM * (BN / TN), HEIGHT = BM, WIDTH = BN, DEPTH = BK, V = 16 / (int)sizeof(T), LEFT = BM + V, RIGHT = BN + V };
  enum { SLICE = BK * (LEFT + RIGHT), ACROSS = BN / TN / 8 };
  enum { POOL = 2 * SLICE > BM / 2 * RIGHT ? 2 * SLICE : BM / 2 * RIGHT };
  T sum[TM][TN];

  static __device__ __forceinline__ int row(int i) {
    return i / V * (BM * V / TM) + ((threadIdx.x >> 5) / ACROSS * 4 + ((threadIdx.x & 31) >> 3)) * V + i % V;
  }
  static __device__ __forceinline__ int column(int j) {
    return j / V * (BN * V / TN) + ((threadIdx.x >> 5) % ACROSS * 8 + (threadIdx.x & 7)) * V + j % V;
  }
  template <class Left, class Right> __device__ __forceinline__ void run(T* pool, const Task& task, Left left, Right right) {
#pragma unroll
    for (int i = 0; i < TM * TN; ++i) sum[i / TN][i % TN] = (T)0;
    const int slices = task.last > task.first ? (int)((task.last - task.first + BK - 1) / BK) : 0;
    if (slices > 0) {
      left.fill(pool);
      right.fill(pool + BK * LEFT);
    }
    async_commit();
    for (int s = 0; s < slices; ++s) {
      async_wait<0>();
      __syncthreads();
      const T* now = pool + (s & 1) * SLICE;
      T* next = pool + (~s & 1) * SLICE;
      if (s + 1 < slices) {
        left.fill(next);
        right.fill(next + BK * LEFT);
      }
      async_commit();
      slice(now, now + BK * LEFT);
    }
  }
  __device__ __forceinline__ void slice(const T* left, const T* right) {
#pragma unroll
    for (int k = 0; k < BK; ++k) {
      T a[TM], b[TN];
#pragma unroll
      for (int i = 0; i < TM; i += V) *(Pack<Plain<T>, V>*)(a + i) = *(const AlignedPack<Plain<T>, V>*)(left + k * LEFT + row(i));
#pragma unroll
      for (int j = 0; j < TN; j += V) *(Pack<Plain<T>, V>*)(b + j) = *(const AlignedPack<Plain<T>, V>*)(right + k * RIGHT + column(j));
#pragma unroll
      for (int i = 0; i < TM; ++i)
#pragma unroll
        for (int j = 0; j < TN; ++j) sum[i][j] += a[i] * b[j];
    }
  }
  // Through shared memory, half of the rows at a time: one text of the stores, and neighbouring threads store neighbours.
  template <class Out> __device__ __forceinline__ void store(T* room, const Extent& e, const Task& task, const Out& out) const {
#pragma unroll 1
    for (int part = 0; part < 2; ++part) {
      __syncthreads();
#pragma unroll
      for (int i = 0; i < TM; ++i)
        if ((TM > V ? i / (TM / 2) : row(i) / (BM / 2)) == part)
#pragma unroll
          for (int j = 0; j < TN; ++j) room[(row(i) - part * (BM / 2)) * RIGHT + column(j)] = sum[i][j];
      __syncthreads();
#pragma unroll 1
      for (int c = threadIdx.x; c < BM / 2 * (BN / V); c += THREADS) {
        const int r = c / (BN / V), at = c % (BN / V) * V;
        const AlignedPack<Plain<T>, V> run = *(const AlignedPack<Plain<T>, V>*)(room + r * RIGHT + at);
        out.template store<V>(e, task, task.row + part * (BM / 2) + r, task.column + at, run.x);
      }
    }
  }
};

// ---- sums by tensor cores: slices of 64 bytes of k in shared memory, four of them, in chunks of 16 bytes swizzled against conflicts --
// By k: [row][64 bytes]. By row: [k][row], for operands whose rows are neighbours in memory.
__device__ __forceinline__ int chunk_by_k(int row, int chunk) { return row * 64 + ((chunk ^ (row >> 1 & 3)) << 4); }
template <int ROWS> __device__ __forceinline__ int chunk_by_row(int k, int chunk) {
  return k * ROWS * 2 + ((chunk ^ (ROWS < 64 ? k >> 1 & 3 : k & 7)) << 4);
}
// This lane's row for ldmatrix: 16 rows from `row`, half a slice of k.
template <int ROWS, bool BY_K> __device__ __forceinline__ int fragment(int row, int half, int next_row, int next_k) {
  const int j = threadIdx.x & 7;
  return BY_K ? chunk_by_k(row + j + next_row * 8, half * 2 + next_k) : chunk_by_row<ROWS>(half * 16 + j + next_k * 8, row / 8 + next_row);
}
template <bool BY_K> __device__ __forceinline__ void load_fragment(unsigned (&r)[4], const char* row) {
  if (BY_K)
    load_matrices(r, row);
  else
    load_matrices_turned(r, row);
}
struct NoZeros {
  __device__ __forceinline__ void slice(const char*, const char*) {}
  template <int BM, int BN> __device__ __forceinline__ void share(char*) {}
  template <class Sum> __device__ __forceinline__ Sum apply(Sum sum, const Extent&, const Task&, int, int) const { return sum; }
};

template <class Mma, int BM, int BN, int WM, int WN, bool LEFT_BY_K, bool RIGHT_BY_K> struct Tensor {
  typedef typename Mma::raw raw;
  typedef typename Mma::sum Sum;
  enum { THREADS = BM / WM * (BN / WN) * 32, HEIGHT = BM, WIDTH = BN, DEPTH = 64 / (int)sizeof(raw), STAGES = 4 };
  enum { LEFT = BM * 64, SLICE = (BM + BN) * 64, PITCH = WN + 8 };
  Sum sum[WM / 16][WN / 8][4];

  static __device__ __forceinline__ int warp_row() { return (threadIdx.x >> 5) / (BN / WN) * WM; }
  static __device__ __forceinline__ int warp_column() { return (threadIdx.x >> 5) % (BN / WN) * WN; }

  template <class Left, class Right, class Zeros>
  __device__ __forceinline__ void run(char* pool, const Task& task, Left left, Right right, Zeros& zeros) {
#pragma unroll
    for (int i = 0; i < WM / 16 * (WN / 8) * 4; ++i) sum[i / 4 / (WN / 8)][i / 4 % (WN / 8)][i % 4] = 0;
    const int slices = task.last > task.first ? (int)((task.last - task.first + DEPTH - 1) / DEPTH) : 0;
    for (int s = 0; s < STAGES - 1; ++s) {
      if (s < slices) {
        left.fill(pool + s * SLICE);
        right.fill(pool + s * SLICE + LEFT);
      }
      async_commit();
    }
    for (int s = 0; s < slices; ++s) {
      async_wait<STAGES - 2>();
      __syncthreads();
      const int ahead = s + STAGES - 1;
      char* next = pool + (ahead & (STAGES - 1)) * SLICE;
      if (ahead < slices) {
        left.fill(next);
        right.fill(next + LEFT);
      }
      async_commit();
      const char* now = pool + (s & (STAGES - 1)) * SLICE;
      zeros.slice(now, now + LEFT);
      half(now, now + LEFT, 0);
      half(now, now + LEFT, 1);
    }
    async_wait<0>();
    __syncthreads();
    zeros.template share<BM, BN>(pool + 2 * SLICE);
  }
  __device__ __forceinline__ void half(const char* left, const char* right, int h) {
    const int upper = threadIdx.x >> 4 & 1, lower = threadIdx.x >> 3 & 1;
    unsigned a[WM / 16][4], b[WN / 16][4];
#pragma unroll
    for (int i = 0; i < WM / 16; ++i) load_fragment<LEFT_BY_K>(a[i], left + fragment<BM, LEFT_BY_K>(warp_row() + i * 16, h, lower, upper));
#pragma unroll
    for (int j = 0; j < WN / 16; ++j)
      load_fragment<RIGHT_BY_K>(b[j], right + fragment<BN, RIGHT_BY_K>(warp_column() + j * 16, h, upper, lower));
#pragma unroll
    for (int i = 0; i < WM / 16; ++i)
#pragma unroll
      for (int j = 0; j < WN / 8; ++j) Mma::run(sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
  }
  // Through shared memory, 16 rows of a warp at a time, so that a thread stores 8 neighbouring columns.
  template <class Out, class Zeros>
  __device__ __forceinline__ void store(char* pool, const Extent& e, const Task& task, const Out& out, const Zeros& zeros) const {
    const int lane = threadIdx.x & 31;
    Sum* mine = (Sum*)pool + (threadIdx.x >> 5) * 16 * PITCH;
#pragma unroll 1
    for (int i = 0; i < WM / 16; ++i) {
      __syncwarp();
#pragma unroll
      for (int k = 0; k < WM / 16 * (WN / 8) * 4; ++k)
        if (k / 4 / (WN / 8) == i)
          mine[((lane >> 2) + (k >> 1 & 1) * 8) * PITCH + k / 4 % (WN / 8) * 8 + (lane & 3) * 2 + (k & 1)] = sum[k / 4 / (WN / 8)][k / 4 % (WN / 8)][k & 3];
      __syncwarp();
#pragma unroll 1
      for (int c = lane; c < 2 * WN; c += 32) {
        const int r = c / (WN / 8), column = c % (WN / 8) * 8;
        AlignedPack<Plain<Sum>, 4> part[2];
        part[0] = *(const AlignedPack<Plain<Sum>, 4>*)(mine + r * PITCH + column);
        part[1] = *(const AlignedPack<Plain<Sum>, 4>*)(mine + r * PITCH + column + 4);
        Sum whole[8];
#pragma unroll
        for (int v = 0; v < 8; ++v) whole[v] = zeros.apply(part[v / 4].x[v % 4], e, task, warp_row() + i * 16 + r, warp_column() + column + v);
        out.template store<8>(e, task, task.row + warp_row() + i * 16 + r, task.column + warp_column() + column, whole);
      }
    }
  }
};

// Zero points of bytes: sum (a - za)(b - zb) = sum ab - za sum b - zb sum a + k za zb. Two threads share a row of either slice.
template <class A, class B, bool LEFT, bool RIGHT> struct ByteZeros {
  ix left, left_step, right, right_step;
  int left_sum = 0, right_sum = 0;
  int *left_sums, *right_sums;
  __device__ __forceinline__ ByteZeros(ix l, ix l_step, ix r, ix r_step) : left(l), left_step(l_step), right(r), right_step(r_step) {}
  template <class T> static __device__ __forceinline__ int total(const char* slice, int sum) {
    const AlignedPack<u32, 4>* words = (const AlignedPack<u32, 4>*)(slice + threadIdx.x * 32);
#pragma unroll
    for (int i = 0; i < 8; ++i)
      sum = (typename T::raw)-1 < 0 ? __dp4a((int)words[i / 4].x[i % 4], 0x01010101, sum) : (int)__dp4a(words[i / 4].x[i % 4], 0x01010101u, (unsigned)sum);
    return sum;
  }
  __device__ __forceinline__ void slice(const char* a, const char* b) {
    if (RIGHT) left_sum = total<A>(a, left_sum);
    if (LEFT) right_sum = total<B>(b, right_sum);
  }
  template <int BM, int BN> __device__ __forceinline__ void share(char* room) {
    left_sums = (int*)room, right_sums = left_sums + BM;
    left_sum += __shfl_xor_sync(~0u, left_sum, 1);
    right_sum += __shfl_xor_sync(~0u, right_sum, 1);
    if ((threadIdx.x & 1) == 0) left_sums[threadIdx.x >> 1] = left_sum, right_sums[threadIdx.x >> 1] = right_sum;
    __syncthreads();
  }
  __device__ __forceinline__ int apply(int sum, const Extent& e, const Task& t, int row, int column) const {
    const int za = LEFT && t.row + row < e.rows ? at<const typename A::raw>(left)[(t.row + row) * left_step] : 0;
    const int zb = RIGHT && t.column + column < e.columns ? at<const typename B::raw>(right)[(t.column + column) * right_step] : 0;
    const int depth = t.last > t.first ? (int)(t.last - t.first) : 0;
    return (int)((unsigned)sum - (unsigned)za * right_sums[column] - (unsigned)zb * left_sums[row] + (unsigned)depth * za * zb);
  }
};
