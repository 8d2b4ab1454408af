// Decision trees: the trees are cut into parts, whose leaves are added in order; the sums of the parts are added in order too, whether a thread
// takes one part of a row (few rows) or all of them: a row has the same answer in every batch. Keys are compared instead of numbers, so that
// denormals count; a NaN has the largest key.
struct TreesArgs {
  ix x, nodes, roots, targets, weights, out, work, rows, trees, count, x_row, x_step, out_row, out_step, parts, segments, fits, average;
};
template <class K> struct Node;
template <> struct __align__(16) Node<unsigned> {
  int column, yes, no;
  unsigned limit;
};
template <> struct __align__(8) Node<u64> {
  u64 limit;
  int column, yes, no, unused;
};
enum { SUM, MIN, MAX };
template <int FOLD, class real> __device__ __forceinline__ real folded(real total, real value) {
  if (FOLD == SUM) return total + value;
  return total != total || (FOLD == MIN ? total > value : total < value) ? value : total;
}

// ONE: the forest has one target, whose sum stays in a register.
template <class T, int FOLD, int ONE> __device__ void walk(ix* ctx, const ix* args) {
  typedef typename T::wide real;
  typedef typename Ordered<T>::key K;
  const TreesArgs a = *(const TreesArgs*)args;
  extern __shared__ __align__(16) double room[];
  const int THREADS = 256, per = THREADS / (int)a.segments, segment = threadIdx.x / per, line = threadIdx.x - segment * per;
  const ix row = (ix)blockIdx.x * per + line, piece = (a.trees + a.parts - 1) / a.parts, mine = a.parts / a.segments;
  real *cells = (a.fits ? (real*)room : at<real>(a.work) + (ix)blockIdx.x * 2 * a.count * THREADS) + threadIdx.x, *totals = cells + a.count * THREADS;
  const real neutral = FOLD == SUM ? (real)0 : (real)NAN_F64;
  const typename T::raw* x = at<const typename T::raw>(a.x) + row * a.x_row;
  const Node<K>* nodes = at<const Node<K> >(a.nodes);
  for (ix c = 0; c < a.count; ++c) totals[c * THREADS] = neutral;
  for (ix part = segment * mine; part < (segment + 1) * mine; ++part) {
    const ix first = part * piece, last = row >= a.rows ? first : first + piece < a.trees ? first + piece : a.trees;
    real sum = neutral;
    if (!ONE)
      for (ix c = 0; c < a.count; ++c) cells[c * THREADS] = neutral;
    for (ix tree = first; tree < last; ++tree) {
      Node<K> node = nodes[at<const int>(a.roots)[tree]];
      while (node.column >= 0) {
        const K key = Ordered<T>::of(x[(ix)(node.column >> 1) * a.x_step]);
        const bool way = key <= node.limit || ((node.column & 1) && key == (K)~(K)0);
        node = nodes[way ? node.yes : node.no];
      }
      for (int e = node.yes; e < node.no; ++e) {
        const real weight = at<const real>(a.weights)[e];
        if (ONE) {
          sum = folded<FOLD>(sum, weight);
        } else {
          real* cell = cells + (ix)at<const int>(a.targets)[e] * THREADS;
          *cell = folded<FOLD>(*cell, weight);
        }
      }
    }
    for (ix c = 0; c < a.count; ++c) totals[c * THREADS] = folded<FOLD>(totals[c * THREADS], ONE ? sum : cells[c * THREADS]);
  }
  __syncthreads();
  for (ix o = threadIdx.x; o < per * a.count; o += THREADS) {
    const ix c = o / per, r = o - c * per, number = (ix)blockIdx.x * per + r;
    if (number >= a.rows) continue;
    const real* found = totals - threadIdx.x + c * THREADS + r;
    real total = neutral;
    for (int s = 0; s < a.segments; ++s) total = folded<FOLD>(total, found[s * per]);
    if (FOLD != SUM && total != total) total = 0;
    if (a.average) total /= (real)a.trees;
    at<real>(a.out)[number * a.out_row + c * a.out_step] = total;
  }
}
