// Row numbers sorted by their rows (stable), then numbered group by group: each block counts where groups begin in its stretch of the
// sorted order, one block adds the counts up, then every block numbers its own. Without `sorted`, groups get the rank of their first row.
struct UniqueArgs {
  ix x, first, inverse, counts, found, order, group_of, first_of, start_of, rank_of, parts, rows, wide, x_row, x_step;
  ix first_step, inverse_step, counts_step, width, second;
};
template <class T> struct ByRow {
  ix x, wide, row, step;
  __device__ __forceinline__ typename Ordered<T>::key key(unsigned i, ix k) const { return Ordered<T>::of(at<const typename T::raw>(x)[i * row + k * step]); }
  __device__ __noinline__ bool before(unsigned i, unsigned j) const {
    for (ix k = 0; k < wide; ++k)
      if (key(i, k) != key(j, k)) return key(i, k) < key(j, k);
    return false;
  }
  __device__ __noinline__ bool equal(unsigned i, unsigned j) const {
    for (ix k = 0; k < wide; ++k)
      if (key(i, k) != key(j, k)) return false;
    return true;
  }
};
template <class T> __device__ __forceinline__ ByRow<T> by_row(const UniqueArgs& a) { return ByRow<T>{a.x, a.wide, a.x_row, a.x_step}; }

template <class T> __device__ void tiles(ix* ctx, const ix* args) {
  const UniqueArgs a = *(const UniqueArgs*)args;
  __shared__ unsigned tile[SORT_TILE];
  if (a.rows >> 32) raise_error(ctx, ERROR_DOMAIN, a.rows, (ix)1 << 32);
  const ix first = (ix)blockIdx.x * SORT_TILE;
  const int count = a.rows - first < SORT_TILE ? (int)(a.rows - first) : SORT_TILE;
  for (int i = threadIdx.x; i < count; i += 256) tile[i] = (unsigned)(first + i);
  __syncthreads();
  sort_tile<256>(by_row<T>(a), tile, count);
  for (int i = threadIdx.x; i < count; i += 256) at<unsigned>(a.order)[first + i] = tile[i];
}
template <class T> __device__ void pass(ix* ctx, const ix* args) {
  const UniqueArgs a = *(const UniqueArgs*)args;
  unsigned *one = at<unsigned>(a.order), *two = one + a.rows;
  merge_pass<256>(by_row<T>(a), a.second ? two : one, a.second ? one : two, a.rows, a.width, blockIdx.x);
}

template <class T> struct Begins {
  ByRow<T> rows;
  const unsigned* order;
  __device__ __forceinline__ bool at_place(ix k) const { return k == 0 || !rows.equal(order[k - 1], order[k]); }
};
template <class T> __device__ __forceinline__ Begins<T> begins(const UniqueArgs& a) {
  return Begins<T>{by_row<T>(a), at<const unsigned>(a.order) + (sorted_in_second(a.rows) ? a.rows : 0)};
}
struct IsFirst {
  const unsigned *group_of, *first_of;
  __device__ __forceinline__ bool at_place(ix row) const { return first_of[group_of[row]] == row; }
};
__device__ __forceinline__ IsFirst is_first(const UniqueArgs& a) { return IsFirst{at<const unsigned>(a.group_of), at<const unsigned>(a.first_of)}; }

template <class Flags> __device__ __forceinline__ void counted(const UniqueArgs& a, const Flags& flags) {
  __shared__ unsigned scratch[8];
  unsigned mine = 0, total;
  for (int i = threadIdx.x; i < SORT_TILE; i += 256) {
    const ix k = (ix)blockIdx.x * SORT_TILE + i;
    mine += k < a.rows && flags.at_place(k);
  }
  block_sum_before(mine, scratch, total);
  if (threadIdx.x == 0) at<unsigned>(a.parts)[blockIdx.x] = total;
}
template <class T> __device__ void count_groups(ix* ctx, const ix* args) {
  const UniqueArgs a = *(const UniqueArgs*)args;
  counted(a, begins<T>(a));
}
__device__ void count_firsts(ix* ctx, const ix* args) {
  const UniqueArgs a = *(const UniqueArgs*)args;
  counted(a, is_first(a));
}
// One block: the counts of the blocks become sums of what is before them; the whole is how many groups there are.
__device__ void add_up(ix* ctx, const ix* args) {
  const UniqueArgs a = *(const UniqueArgs*)args;
  __shared__ unsigned scratch[8];
  const ix blocks = (a.rows + SORT_TILE - 1) / SORT_TILE;
  unsigned* parts = at<unsigned>(a.parts);
  unsigned sum = 0;
  for (ix start = 0; start < blocks; start += 256) {
    const ix k = start + threadIdx.x;
    unsigned total;
    const unsigned before = block_sum_before(k < blocks ? parts[k] : 0, scratch, total);
    if (k < blocks) parts[k] = sum + before;
    sum += total;
  }
  if (threadIdx.x == 0) *at<ix>(a.found) = sum;
}
template <class T> __device__ void number_groups(ix* ctx, const ix* args) {
  const UniqueArgs a = *(const UniqueArgs*)args;
  __shared__ unsigned scratch[8];
  const Begins<T> flags = begins<T>(a);
  unsigned sum = at<const unsigned>(a.parts)[blockIdx.x];
  for (int i = threadIdx.x; i < SORT_TILE; i += 256) {
    const ix k = (ix)blockIdx.x * SORT_TILE + i;
    const bool begin = k < a.rows && flags.at_place(k);
    unsigned total;
    const unsigned group = sum + block_sum_before(begin, scratch, total) + begin - 1;
    sum += total;
    if (k < a.rows) at<unsigned>(a.group_of)[flags.order[k]] = group;
    if (begin) {
      at<unsigned>(a.first_of)[group] = flags.order[k];
      at<unsigned>(a.start_of)[group] = (unsigned)k;
    }
  }
}
__device__ void rank_groups(ix* ctx, const ix* args) {
  const UniqueArgs a = *(const UniqueArgs*)args;
  __shared__ unsigned scratch[8];
  const IsFirst flags = is_first(a);
  unsigned sum = at<const unsigned>(a.parts)[blockIdx.x];
  for (int i = threadIdx.x; i < SORT_TILE; i += 256) {
    const ix row = (ix)blockIdx.x * SORT_TILE + i;
    const bool first = row < a.rows && flags.at_place(row);
    unsigned total;
    const unsigned rank = sum + block_sum_before(first, scratch, total);
    sum += total;
    if (first) at<unsigned>(a.rank_of)[flags.group_of[row]] = rank;
  }
}
template <int RANKED> __device__ void write(ix* ctx, const ix* args) {
  const UniqueArgs a = *(const UniqueArgs*)args;
  const unsigned *group_of = at<const unsigned>(a.group_of), *rank_of = at<const unsigned>(a.rank_of), *start_of = at<const unsigned>(a.start_of);
  const ix found = *at<const ix>(a.found);
  for (ix i = (ix)blockIdx.x * blockDim.x + threadIdx.x; i < a.rows; i += (ix)gridDim.x * blockDim.x) {
    at<ix>(a.inverse)[i * a.inverse_step] = RANKED ? rank_of[group_of[i]] : group_of[i];
    const ix place = RANKED && i < found ? rank_of[i] : i;
    at<ix>(a.first)[place * a.first_step] = i < found ? at<const unsigned>(a.first_of)[i] : 0;
    at<ix>(a.counts)[place * a.counts_step] = i < found ? (i + 1 < found ? start_of[i + 1] : a.rows) - start_of[i] : 0;
  }
}
