// Decision trees: a thread takes one row through the trees of one segment, in their order; then the segments of a row are added in order.
// Keys are compared instead of numbers, so that denormals count; a NaN has the largest key.
struct TreesArgs {
  ix x, nodes, roots, targets, weights, out, work, rows, trees, count, x_row, x_step, out_row, out_step, segments, fits, average;
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
  const ix row = (ix)blockIdx.x * per + line, piece = (a.trees + a.segments - 1) / a.segments, first = segment * piece;
  const ix last = row >= a.rows ? first : first + piece < a.trees ? first + piece : a.trees;
  real* cells = a.fits ? (real*)room : at<real>(a.work) + (ix)blockIdx.x * a.count * THREADS;
  const real neutral = FOLD == SUM ? (real)0 : (real)NAN_F64;
  real sum = neutral;
  if (!ONE)
    for (ix c = 0; c < a.count; ++c) cells[c * THREADS + threadIdx.x] = neutral;
  const typename T::raw* x = at<const typename T::raw>(a.x) + row * a.x_row;
  const Node<K>* nodes = at<const Node<K> >(a.nodes);
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
        real* cell = cells + (ix)at<const int>(a.targets)[e] * THREADS + threadIdx.x;
        *cell = folded<FOLD>(*cell, weight);
      }
    }
  }
  if (ONE) cells[threadIdx.x] = sum;
  __syncthreads();
  for (ix o = threadIdx.x; o < per * a.count; o += THREADS) {
    const ix c = o / per, r = o - c * per, number = (ix)blockIdx.x * per + r;
    if (number >= a.rows) continue;
    real total = cells[c * THREADS + r];
    for (int s = 1; s < a.segments; ++s) total = folded<FOLD>(total, cells[c * THREADS + s * per + r]);
    if (FOLD != SUM && total != total) total = 0;
    if (a.average) total /= (real)a.trees;
    at<real>(a.out)[number * a.out_row + c * a.out_step] = total;
  }
}
