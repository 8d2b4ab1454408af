// The best k of every row, in order. A row whose candidates fit a tile is sorted by one block; of a long row, the k best are
// found by their digits first. More candidates than a tile are sorted in passes, with the entries in the work area.
struct TopkArgs {
  ix x, values, places, work, rows, n, k, x_row, x_step, values_row, values_step, places_row, places_step, width, second;
};
template <class T, int LARGEST> __device__ __forceinline__ typename Ordered<T>::key ranked(ix base, ix at) {
  typedef typename Ordered<T>::key K;
  const K key = Ordered<T>::of(((const typename T::raw*)(u64)base)[at]);
  return LARGEST ? (K)(~key & (K)(~0ull >> (64 - Ordered<T>::BITS))) : key;
}

// The key of the wanted-th smallest of a row; `wanted` becomes how many equal to it belong to the best.
template <class T, int LARGEST> __device__ typename Ordered<T>::key limit_of(const TopkArgs& a, ix first, ix& wanted, unsigned* counts, unsigned* scratch) {
  typedef typename Ordered<T>::key K;
  __shared__ ix left;
  __shared__ unsigned digit;
  K prefix = 0;
  for (int shift = Ordered<T>::BITS - 8; shift >= 0; shift -= 8) {
    if (threadIdx.x < 256) counts[threadIdx.x] = 0;
    __syncthreads();
    const K mask = shift + 8 >= (int)(8 * sizeof(K)) ? 0 : (K)(~(K)0 << (shift + 8));
    for (ix i = threadIdx.x; i < a.n; i += blockDim.x) {
      const K key = ranked<T, LARGEST>(a.x, first + i * a.x_step);
      if ((key & mask) == prefix) atomicAdd(&counts[(unsigned)(key >> shift) & 255], 1u);
    }
    __syncthreads();
    const unsigned mine = threadIdx.x < 256 ? counts[threadIdx.x] : 0;
    unsigned total;
    const unsigned before = block_sum_before(mine, scratch, total);
    if ((ix)before < wanted && wanted <= (ix)before + mine) {
      digit = threadIdx.x;
      left = wanted - before;
    }
    __syncthreads();
    prefix |= (K)digit << shift;
    wanted = left;
    __syncthreads();
  }
  return prefix;
}

template <class T, int LARGEST, int THREADS> __device__ void best(ix* ctx, const ix* args) {
  typedef typename Ordered<T>::key K;
  const TopkArgs a = *(const TopkArgs*)args;
  __shared__ Entry<K> tile[SORT_TILE];
  __shared__ unsigned counts[256];
  __shared__ unsigned scratch[32];
  const ix row = blockIdx.x, first = row * a.x_row;
  const bool fits = sizeof(K) == 8 || a.n >> 32 == 0;
  if (!fits) raise_error(ctx, ERROR_DOMAIN, a.n, (ix)1 << 32);
  if (a.k == 0 || !fits) return;
  Entry<K>* found = a.k <= SORT_TILE ? tile : at<Entry<K> >(a.work) + row * a.k;
  ix kept = a.k;
  if (a.n <= SORT_TILE || a.k == a.n) {
    kept = a.n;
    for (ix i = threadIdx.x; i < a.n; i += THREADS) found[i] = Entry<K>{ranked<T, LARGEST>(a.x, first + i * a.x_step), (K)i};
  } else {
    ix ties = a.k;
    const K limit = limit_of<T, LARGEST>(a, first, ties, counts, scratch);
    ix less = 0, equal = a.k - ties;
    for (ix start = 0; start < a.n && (less < a.k - ties || equal < a.k); start += THREADS) {
      const ix i = start + threadIdx.x;
      const K key = i < a.n ? ranked<T, LARGEST>(a.x, first + i * a.x_step) : 0;
      const bool is_less = i < a.n && key < limit, is_equal = i < a.n && key == limit;
      unsigned total;
      const unsigned before = block_sum_before(is_less | (unsigned)is_equal << 16, scratch, total);
      if (is_less) found[less + (before & 0xffff)] = Entry<K>{key, (K)i};
      if (is_equal && equal + (before >> 16) < a.k) found[equal + (before >> 16)] = Entry<K>{key, (K)i};
      less += total & 0xffff;
      equal += total >> 16;
    }
  }
  if (a.k > SORT_TILE) return;
  __syncthreads();
  sort_tile<THREADS>(ByKey(), tile, (int)kept);
  for (ix i = threadIdx.x; i < a.k; i += THREADS) {
    const ix from = tile[i].at;
    at<typename T::raw>(a.values)[row * a.values_row + i * a.values_step] = at<const typename T::raw>(a.x)[first + from * a.x_step];
    at<ix>(a.places)[row * a.places_row + i * a.places_step] = from;
  }
}

// More than a tile: one block a tile of the candidates of a row.
template <class T> __device__ void tiles(ix* ctx, const ix* args) {
  typedef Entry<typename Ordered<T>::key> E;
  const TopkArgs a = *(const TopkArgs*)args;
  __shared__ E tile[SORT_TILE];
  const ix each = (a.k + SORT_TILE - 1) / SORT_TILE, row = blockIdx.x / each, first = (blockIdx.x - row * each) * SORT_TILE;
  E* own = at<E>(a.work) + row * a.k + first;
  const int count = a.k - first < SORT_TILE ? (int)(a.k - first) : SORT_TILE;
  for (int i = threadIdx.x; i < count; i += 256) tile[i] = own[i];
  __syncthreads();
  sort_tile<256>(ByKey(), tile, count);
  for (int i = threadIdx.x; i < count; i += 256) own[i] = tile[i];
}
template <class T> __device__ void pass(ix* ctx, const ix* args) {
  typedef Entry<typename Ordered<T>::key> E;
  const TopkArgs a = *(const TopkArgs*)args;
  const ix each = (a.k + SORT_TILE - 1) / SORT_TILE, row = blockIdx.x / each;
  E *one = at<E>(a.work) + row * a.k, *two = one + a.rows * a.k;
  merge_pass<256>(ByKey(), a.second ? two : one, a.second ? one : two, a.k, a.width, blockIdx.x - row * each);
}
template <class T> __device__ void write(ix* ctx, const ix* args) {
  typedef Entry<typename Ordered<T>::key> E;
  const TopkArgs a = *(const TopkArgs*)args;
  const E* entries = at<const E>(a.work) + (sorted_in_second(a.k) ? a.rows * a.k : 0);
  for (ix i = (ix)blockIdx.x * blockDim.x + threadIdx.x; i < a.rows * a.k; i += (ix)gridDim.x * blockDim.x) {
    const ix row = quotient(i, a.k), place = i - row * a.k, from = entries[i].at;
    at<typename T::raw>(a.values)[row * a.values_row + place * a.values_step] = at<const typename T::raw>(a.x)[row * a.x_row + from * a.x_step];
    at<ix>(a.places)[row * a.places_row + place * a.places_step] = from;
  }
}
