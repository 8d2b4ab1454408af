// Attention by tiles of keys: scores, an online softmax (Milakov and Gimelshein 2018; Dao et al. 2022), their product with the values. A block
// has HEIGHT rows and WIDTH columns of the result; slices of 64 bytes of the operands come to shared memory one after the other.
#include "gemm.cu"
struct Sizes { ix rows, columns, depth; };
template <class T> __device__ __forceinline__ T lowest();
template <> __device__ __forceinline__ float lowest<float>() { return -INF_F32; }
template <> __device__ __forceinline__ double lowest<double>() { return -INF_F64; }

// What the text knows about rows: row_of(row); score(row, key, product); base(row, most) is what scores are taken from before exp;
// result(row, most, total, sum) divides; first(row, from) and last(row, to) are the keys beyond which a row's scores are -inf.
template <class RowOf, class Score, class Base, class Result, class First, class Last> struct Rules {
  RowOf row_of;
  Score score;
  Base base;
  Result result;
  First first;
  Last last;
};
template <class R, class S, class B, class V, class F, class L>
__device__ __forceinline__ Rules<R, S, B, V, F, L> rules_of(R row_of, S score, B base, V result, F first, L last) {
  return Rules<R, S, B, V, F, L>{row_of, score, base, result, first, last};
}
// Sums are kept as those of exp(score - finite(most)): a row that has seen no score yet has sums of 0.
template <class T> __device__ __forceinline__ T finite(T most) { return most == lowest<T>() ? (T)0 : most; }
template <class T> __device__ __forceinline__ T rescale(T was, T now) { return was == lowest<T>() ? (T)0 : (T)g_exp(was - finite(now)); }
// From those sums to the ones of exp(score - base).
template <class T> __device__ __forceinline__ T share(T most, T base) {
  return most == lowest<T>() ? (base == lowest<T>() ? base - base : (T)0) : (T)g_exp(most - base);
}
// Parts of rows in the workspace, where the keys are cut into pieces: largest score and sum.
template <class T> __device__ __forceinline__ T* row_part(ix stats, const Extent& e, ix piece, ix batch, ix row) {
  return at<T>(stats) + ((piece * e.batches + batch) * e.rows + row) * 2;
}

// What the text reads again where it is needed, so that it takes no registers in between: sizes, operands, rules (with(use) calls use(rules)).
template <class Sizes, class LeftOf, class RightOf, class ValuesOf, class With> struct Operands {
  Sizes sizes;
  LeftOf left;
  RightOf right;
  ValuesOf values;
  With with;
};
template <class S, class L, class R, class V, class W> __device__ __forceinline__ Operands<S, L, R, V, W> operands_of(S sizes, L left, R right, V values, W with) {
  return Operands<S, L, R, V, W>{sizes, left, right, values, with};
}

// The task with the keys alone that some row of the block can reach, from whole tiles on.
template <class Tile, class Operands> __device__ __forceinline__ Task within_reach(char* pool, Task task, const Operands& operands) {
  ix first = task.last, last = task.first;
  const ix rows = operands.sizes().rows;
  operands.with([&](const auto& rules) {
    for (int i = threadIdx.x; i < Tile::HEIGHT && task.row + i < rows; i += Tile::THREADS) {
      const auto row = rules.row_of(task.row + i);
      first = minimum(first, rules.first(row, task.first)), last = maximum(last, rules.last(row, task.last - 1) + 1);
    }
  });
  for (int o = 16; o; o >>= 1) first = minimum(first, __shfl_xor_sync(~0u, first, o)), last = maximum(last, __shfl_xor_sync(~0u, last, o));
  ix* ends = (ix*)pool;
  if ((threadIdx.x & 31) == 0) ends[threadIdx.x >> 5 << 1] = first, ends[(threadIdx.x >> 5 << 1) + 1] = last;
  __syncthreads();
  for (int w = 0; w < Tile::THREADS / 32; ++w) first = minimum(first, ends[w * 2]), last = maximum(last, ends[w * 2 + 1]);
  __syncthreads();
  if (first > task.first) task.first += quotient(first - task.first, Tile::KEYS) * Tile::KEYS;
  task.last = minimum(task.last, last);
  return task;
}

// The next slices in the order in which they are used: for each tile of keys those of queries and keys along their depth, those of values along keys.
template <class Tile, class Left, class Right, class Values, class Operands> struct Feed {
  const Operands& from;
  const Task& task;
  char* room;
  ix key;
  int number;
  static __device__ __forceinline__ Task along(ix first, ix last) { return Task{0, 0, 0, 0, first, last}; }
  __device__ __forceinline__ Feed(const Operands& operands, const Task& t, char* r) : from(operands), task(t), room(r), key(t.first), number(0) {}
  __device__ __forceinline__ int slices() const { return (int)((from.sizes().depth + Tile::DEPTH - 1) / Tile::DEPTH); }
  // Slices of values for the tile at `at`.
  __device__ __forceinline__ int parts(ix at) const { return (clamped(task.last - at, Tile::KEYS) + Tile::DEPTH - 1) / Tile::DEPTH; }
  __device__ __forceinline__ void next(char* to) {
    if (key >= task.last) return;
    const auto sizes = from.sizes();
    const int scores = slices();
    if (number < scores) {
      const Task part = along(number * Tile::DEPTH, sizes.depth);
      if (scores > Tile::HELD)
        Left(from.left(), task.row, sizes.rows, part).fill(to);
      else if (key == task.first)
        Left(from.left(), task.row, sizes.rows, part).fill(room + number * Tile::LEFT);
      Right(from.right(), key, task.last, part).fill(to + Tile::LEFT);
    } else {
      const ix at = key + (number - scores) * Tile::DEPTH;
      Values(from.values(), task.column, sizes.columns, along(at, task.last)).fill((typename Tile::slot*)to);
    }
    if (++number == scores + parts(key)) number = 0, key += Tile::KEYS;
  }
};

template <class Left, class Right, class Values, class Tile, class Operands>
__device__ __forceinline__ void attend(Tile& tile, char* pool, const Task& task, const Operands& operands) {
  tile.start();
  char* stages = pool + Tile::HELD * Tile::LEFT;
  Feed<Tile, Left, Right, Values, Operands> feed(operands, task, pool);
#pragma unroll 1
  for (int s = 0; s < Tile::STAGES - 1; ++s) {
    feed.next(stages + s * Tile::STAGE);
    async_commit();
  }
  int now = 0;
  const auto turn = [&]() -> const char* {
    async_wait<Tile::STAGES - 2>();
    __syncthreads();
    feed.next(stages + (now == 0 ? Tile::STAGES - 1 : now - 1) * Tile::STAGE);
    async_commit();
    const char* slice = stages + now * Tile::STAGE;
    now = now + 1 == Tile::STAGES ? 0 : now + 1;
    return slice;
  };
#pragma unroll 1
  for (ix key = task.first; key < task.last; key += Tile::KEYS) {
    tile.clear();
    const int slices = feed.slices();
#pragma unroll 1
    for (int s = 0; s < slices; ++s) {
      const char* slice = turn();
      tile.multiply(slices > Tile::HELD ? slice : pool + s * Tile::LEFT, slice + Tile::LEFT);
    }
    operands.with([&](const auto& rules) { tile.weigh(pool, rules, operands.sizes().rows, task, key); });
    const int parts = feed.parts(key);
#pragma unroll Tile::UNROLLED
    for (int s = 0; s < Tile::KEYS / Tile::DEPTH; ++s)
      if (s < parts) tile.mix_slice(pool, s, turn());
  }
  async_wait<0>();
  __syncthreads();
}

// Element (row, column) from the parts of its row; the second step where keys were cut into pieces.
template <class T, class With, class Out>
__device__ __forceinline__ void attend_pieces(const Extent& e, const Task& t, ix stats, const With& with, const Out& out) {
  if (t.row >= e.rows) return;
  T most = lowest<T>(), total = 0, sum = 0;
  for (ix piece = 0; piece < e.pieces; ++piece) most = maximum(most, *row_part<const T>(stats, e, piece, t.batch, t.row));
  for (ix piece = 0; piece < e.pieces; ++piece) {
    const T* part = row_part<const T>(stats, e, piece, t.batch, t.row);
    const T by = rescale(part[0], most);
    total += part[1] * by;
    sum += at<const T>(out.partial)[out.part(e, t, piece, t.row, t.column)] * by;
  }
  with([&](const auto& rules) {
    const auto row = rules.row_of(t.row);
    const T by = share(most, rules.base(row, most));
    sum = rules.result(row, most, total * by, sum * by);
  });
  out.template finish<1>(e, t.row, t.column, &sum);
}

// What is done to ROWS rows of a thread that it shares with LANES neighbours: sums over neighbours, the last step.
template <class T, int ROWS, int LANES> struct RowSums {
  T most[ROWS], total[ROWS];
  __device__ __forceinline__ void start() {
#pragma unroll
    for (int i = 0; i < ROWS; ++i) most[i] = lowest<T>(), total[i] = 0;
  }
  // Raise row i to the largest score seen; what its sums are to be multiplied by.
  __device__ __forceinline__ T raise(int i, T now) {
#pragma unroll
    for (int o = LANES / 2; o; o >>= 1) now = maximum(now, __shfl_xor_sync(~0u, now, o));
    now = maximum(most[i], now);
    const T by = rescale(most[i], now);
    most[i] = now, total[i] *= by;
    return by;
  }
  template <class Rules, class RowAt, class Change>
  __device__ __forceinline__ void finish(const Rules& rules, const Extent& e, const Task& task, ix stats, const RowAt& row_at, const Change& change) {
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
#pragma unroll
      for (int o = LANES / 2; o; o >>= 1) total[i] += __shfl_xor_sync(~0u, total[i], o);
      const ix row = task.row + row_at(i);
      if (row >= e.rows) continue;
      if (e.pieces > 1) {
        T* part = row_part<T>(stats, e, task.piece, task.batch, row);
        if (threadIdx.x % LANES == 0 && task.column == 0) part[0] = most[i], part[1] = total[i];
        continue;
      }
      const auto r = rules.row_of(row);
      const T by = share(most[i], rules.base(r, most[i])), whole = total[i] * by;
      change(i, [&](T sum) -> T { return e.depth ? rules.result(r, most[i], whole, sum * by) : (T)0; });
    }
  }
};

// ---- by FMA: a warp has whole rows, 8 lanes share one; weights go to shared memory as [key][row] ---------------------------------
template <class T, int BM, int BN, int BE> struct AttendSimt {
  typedef T raw;
  typedef T slot;
  enum { TM = 4, TN = BN / 8, THREADS = BM / TM * 8, HEIGHT = BM, WIDTH = BE, KEYS = BN, DEPTH = 64 / (int)sizeof(T), V = 16 / (int)sizeof(T) };
  typedef Simt<T, BM, BE, DEPTH, TM, BE / 8> Mix;
  enum { STAGES = 3, HELD = 4, LEFT = BM * 64, SCORES = LEFT + BN * 64, VALUES = DEPTH * Mix::RIGHT * (int)sizeof(T), UNROLLED = 1 };
  enum { STAGE = SCORES > VALUES ? SCORES : VALUES, WEIGHTS = HELD * LEFT + STAGES * STAGE };
  Mix mix;
  RowSums<T, TM, 8> rows;
  T scores[TM][TN];

  __device__ __forceinline__ void start() {
    rows.start();
#pragma unroll
    for (int i = 0; i < TM * (BE / 8); ++i) mix.sum[i / (BE / 8)][i % (BE / 8)] = 0;
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < TM * TN; ++i) scores[i / TN][i % TN] = 0;
  }
  static __device__ __forceinline__ T* weights(char* pool) { return (T*)(pool + WEIGHTS); }
  __device__ __forceinline__ void multiply(const char* left, const char* right) {
    typedef AlignedPack<Plain<T>, V> Chunk;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      Chunk a[TM];
#pragma unroll
      for (int i = 0; i < TM; ++i) a[i] = *(const Chunk*)(left + chunk_by_k(Mix::row(i), c));
#pragma unroll
      for (int j = 0; j < TN; ++j) {
        const Chunk b = *(const Chunk*)(right + chunk_by_k(j * 8 + (threadIdx.x & 7), c));
#pragma unroll
        for (int i = 0; i < TM; ++i)
#pragma unroll
          for (int v = 0; v < V; ++v) scores[i][j] += a[i].x[v] * b.x[v];
      }
    }
  }
  template <class Rules> __device__ __forceinline__ void weigh(char* pool, const Rules& rules, ix count, const Task& task, ix key) {
    const int lane = threadIdx.x & 7;
#pragma unroll
    for (int i = 0; i < TM; ++i) {
      const ix row = task.row + Mix::row(i);
      const auto r = rules.row_of(row);
      T now = lowest<T>();
#pragma unroll
      for (int j = 0; j < TN; ++j) {
        const ix column = key + j * 8 + lane;
        scores[i][j] = row < count && column < task.last ? rules.score(r, column, scores[i][j]) : lowest<T>();
        now = maximum(now, scores[i][j]);
      }
      const T by = rows.raise(i, now), from = finite(rows.most[i]);
#pragma unroll
      for (int j = 0; j < TN; ++j) rows.total[i] += scores[i][j] = g_exp(scores[i][j] - from);
#pragma unroll
      for (int j = 0; j < BE / 8; ++j) mix.sum[i][j] *= by;
    }
#pragma unroll
    for (int j = 0; j < TN; ++j)
#pragma unroll
      for (int i = 0; i < TM; i += V) {
        AlignedPack<Plain<T>, V> pack;
#pragma unroll
        for (int v = 0; v < V; ++v) pack.x[v] = scores[i + v][j];
        *(AlignedPack<Plain<T>, V>*)(weights(pool) + (j * 8 + lane) * Mix::LEFT + Mix::row(i)) = pack;
      }
  }
  __device__ __forceinline__ void mix_slice(char* pool, int s, const char* slice) { mix.slice(weights(pool) + s * DEPTH * Mix::LEFT, (const T*)slice); }
  template <class Rules> __device__ __forceinline__ void finish(const Rules& rules, const Extent& e, const Task& task, ix stats) {
    rows.finish(rules, e, task, stats, [](int i) { return Mix::row(i); }, [&](int i, const auto& last) {
#pragma unroll
      for (int j = 0; j < BE / 8; ++j) mix.sum[i][j] = last(mix.sum[i][j]);
    });
  }
  template <class Operands, class Out>
  __device__ __forceinline__ void store(char* pool, const Extent& e, const Task& task, const Out& out, ix stats, const Operands& operands) {
    operands.with([&](const auto& rules) { finish(rules, e, task, stats); });
    mix.store((T*)pool, e, task, out);
  }
};

// ---- by tensor cores: a warp has 16 rows, 4 lanes share two of them; weights stay in registers as halves, WIDE ones as sums of two
template <class Mma, class Stored, int BN, int BE, bool WIDE, bool LEFT_BY_K, bool RIGHT_BY_K, bool VALUES_BY_K> struct AttendTensor {
  typedef typename Mma::raw raw;
  typedef char slot;
  enum { BM = 64, PARTS = WIDE ? 2 : 1 };
  typedef Tensor<Mma, BM, BN, 16, BN, LEFT_BY_K, RIGHT_BY_K> First;
  typedef Tensor<Mma, BM, BE, 16, BE, true, VALUES_BY_K> Mix;
  enum { THREADS = 128, HEIGHT = BM, WIDTH = BE, KEYS = BN, DEPTH = 32, STAGES = 4, HELD = 4, LEFT = BM * 64, UNROLLED = BN / DEPTH };
  enum { SCORES = LEFT + BN * 64, VALUES = BE * 64, STAGE = SCORES > VALUES ? SCORES : VALUES };
  First first;
  Mix mix;
  RowSums<float, 2, 4> rows;
  unsigned weights[PARTS][BN / 16][4];

  __device__ __forceinline__ void start() {
    rows.start();
#pragma unroll
    for (int i = 0; i < BE / 2; ++i) mix.sum[0][i / 4][i % 4] = 0;
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < BN / 2; ++i) first.sum[0][i / 4][i % 4] = 0;
  }
  __device__ __forceinline__ void multiply(const char* left, const char* right) {
    first.half(left, right, 0);
    first.half(left, right, 1);
  }
  static __device__ __forceinline__ int row(int i) { return (threadIdx.x >> 5) * 16 + ((threadIdx.x & 31) >> 2) + i * 8; }
  template <class Rules> __device__ __forceinline__ void weigh(char*, const Rules& rules, ix count, const Task& task, ix key) {
    auto& scores = first.sum[0];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const ix at = task.row + row(i);
      const auto r = rules.row_of(at);
      float now = lowest<float>();
#pragma unroll
      for (int j = 0; j < BN / 4; ++j) {
        float& score = scores[j / 2][i * 2 + j % 2];
        const ix column = key + j / 2 * 8 + (threadIdx.x & 3) * 2 + j % 2;
        score = at < count && column < task.last ? rules.score(r, column, score) : lowest<float>();
        now = maximum(now, score);
      }
      const float by = rows.raise(i, now), from = finite(rows.most[i]);
#pragma unroll
      for (int j = 0; j < BN / 4; ++j) {
        float& score = scores[j / 2][i * 2 + j % 2];
        score = g_exp(score - from);
        rows.total[i] += score;
      }
#pragma unroll
      for (int j = 0; j < BE / 4; ++j) mix.sum[0][j / 2][i * 2 + j % 2] *= by;
    }
#pragma unroll
    for (int k = 0; k < BN / 4; ++k) {
      const float* two = scores[k / 4 * 2 + k % 4 / 2] + k % 2 * 2;
      const auto first = Stored::narrow(two[0]), second = Stored::narrow(two[1]);
      weights[0][k / 4][k % 4] = first | (unsigned)second << 16;
      if (WIDE)
        weights[PARTS - 1][k / 4][k % 4] = Stored::narrow(two[0] - Stored::widen(first)) | (unsigned)Stored::narrow(two[1] - Stored::widen(second)) << 16;
    }
  }
  __device__ __forceinline__ void mix_slice(char*, int s, const char* slice) {
    const int upper = threadIdx.x >> 4 & 1, lower = threadIdx.x >> 3 & 1;
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int j = 0; j < BE / 16; ++j) {
        unsigned b[4];
        load_fragment<VALUES_BY_K>(b, slice + fragment<BE, VALUES_BY_K>(j * 16, h, upper, lower));
#pragma unroll
        for (int p = 0; p < PARTS; ++p) {
          Mma::run(mix.sum[0][j * 2], weights[p][s * 2 + h], b[0], b[1]);
          Mma::run(mix.sum[0][j * 2 + 1], weights[p][s * 2 + h], b[2], b[3]);
        }
      }
  }
  template <class Rules> __device__ __forceinline__ void finish(const Rules& rules, const Extent& e, const Task& task, ix stats) {
    rows.finish(rules, e, task, stats, [](int i) { return row(i); }, [&](int i, const auto& last) {
#pragma unroll
      for (int j = 0; j < BE / 4; ++j) {
        float& sum = mix.sum[0][j / 2][i * 2 + j % 2];
        sum = last(sum);
      }
    });
  }
  template <class Operands, class Out>
  __device__ __forceinline__ void store(char* pool, const Extent& e, const Task& task, const Out& out, ix stats, const Operands& operands) {
    operands.with([&](const auto& rules) { finish(rules, e, task, stats); });
    mix.store(pool, e, task, out, NoZeros());
  }
};
