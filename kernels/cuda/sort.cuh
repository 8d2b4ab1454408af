// Stable sorting: tiles of SORT_TILE elements in shared memory, then passes that merge neighbouring runs in global memory.
// Order::before(a, b): a must come before b.
enum { SORT_TILE = 2048 };

// Elements first .. first + count - 1 of the merge of a[0, na) and b[0, nb); of equals those of a come first.
template <int COUNT, class E, class Order>
__device__ __forceinline__ void merged(const Order& order, const E* a, ix na, const E* b, ix nb, ix first, int count, E* out) {
  ix low = first > nb ? first - nb : 0, high = first < na ? first : na;
  while (low < high) {
    const ix middle = (low + high) >> 1;
    if (order.before(b[first - 1 - middle], a[middle])) high = middle;
    else low = middle + 1;
  }
  ix i = low, j = first - low;
#pragma unroll
  for (int k = 0; k < COUNT; ++k)
    if (k < count) {
      const bool right = i >= na || (j < nb && order.before(b[j], a[i]));
      out[k] = right ? b[j] : a[i];
      right ? ++j : ++i;
    }
}

// Sort tile[0, count), count <= SORT_TILE, by a block of THREADS.
template <int THREADS, class E, class Order> __device__ __forceinline__ void sort_tile(const Order& order, E* tile, int count) {
  const int EACH = SORT_TILE / THREADS, first = threadIdx.x * EACH;
  const int mine = count - first < 0 ? 0 : count - first < EACH ? count - first : EACH;
  E own[EACH];
#pragma unroll
  for (int k = 0; k < EACH; ++k)
    if (k < mine) own[k] = tile[first + k];
#pragma unroll
  for (int round = 0; round < EACH; ++round)
#pragma unroll
    for (int k = round & 1; k + 1 < EACH; k += 2)
      if (k + 1 < mine && order.before(own[k + 1], own[k])) {
        const E swapped = own[k];
        own[k] = own[k + 1];
        own[k + 1] = swapped;
      }
  for (int width = EACH;; width *= 2) {
    __syncthreads();
#pragma unroll
    for (int k = 0; k < EACH; ++k)
      if (k < mine) tile[first + k] = own[k];
    __syncthreads();
    if (width >= count) return;
    const int low = first / (2 * width) * (2 * width), middle = low + width < count ? low + width : count;
    const int high = low + 2 * width < count ? low + 2 * width : count;
    if (mine) merged<EACH>(order, tile + low, (ix)(middle - low), tile + middle, (ix)(high - middle), (ix)(first - low), mine, own);
  }
}

// One pass over segments of n elements: runs of `width` in `from` become runs of 2 * width in `to`. Block `tile` makes SORT_TILE elements.
template <int THREADS, class E, class Order>
__device__ __forceinline__ void merge_pass(const Order& order, const E* from, E* to, ix n, ix width, ix tile) {
  const int EACH = SORT_TILE / THREADS;
  const ix first = tile * SORT_TILE + (ix)threadIdx.x * EACH;
  if (first >= n) return;
  const int mine = n - first < EACH ? (int)(n - first) : EACH;
  const ix low = first / (2 * width) * (2 * width), middle = low + width < n ? low + width : n, high = low + 2 * width < n ? low + 2 * width : n;
  E out[EACH];
  merged<EACH>(order, from + low, middle - low, from + middle, high - middle, first - low, mine, out);
#pragma unroll
  for (int k = 0; k < EACH; ++k)
    if (k < mine) to[first + k] = out[k];
}

// Whether the sorted elements of segments of n lie in the second half of the work area after all passes.
__device__ __forceinline__ bool sorted_in_second(ix n) {
  bool second = false;
  for (ix width = SORT_TILE; width < n; width *= 2) second = !second;
  return second;
}

// Keys whose unsigned order is the order of the values: -0 equals 0, NaN is the largest and equal to itself.
template <class T> struct Ordered;
#define ORDERED_INTEGER(tag, wide, width, flip)          \
  template <> struct Ordered<tag> {                      \
    typedef wide key;                                    \
    enum { BITS = width };                               \
    static __device__ __forceinline__ wide of(tag::raw x) { return ((wide)x ^ (wide)(flip)) & (wide)(~0ull >> (64 - width)); } \
  };
ORDERED_INTEGER(i8, unsigned, 8, 0x80)
ORDERED_INTEGER(u8, unsigned, 8, 0)
ORDERED_INTEGER(i16, unsigned, 16, 0x8000)
ORDERED_INTEGER(u16, unsigned, 16, 0)
ORDERED_INTEGER(i32, unsigned, 32, 0x80000000)
ORDERED_INTEGER(u32, unsigned, 32, 0)
ORDERED_INTEGER(i64, u64, 64, 0x8000000000000000ull)
ORDERED_INTEGER(u64t, u64, 64, 0)
#define ORDERED_REAL(tag, wide, bits_of, width, infinity)                      \
  template <> struct Ordered<tag> {                                            \
    typedef wide key;                                                          \
    enum { BITS = width };                                                     \
    static __device__ __forceinline__ wide of(tag::raw x) {                    \
      const wide bits = (wide)bits_of(x), sign = (wide)1 << (width - 1);       \
      if ((wide)(bits << 1) > (wide)infinity << 1) return ~(wide)0;            \
      if ((wide)(bits << 1) == 0) return sign;                                 \
      return bits & sign ? ~bits : bits | sign;                                \
    }                                                                          \
  };
ORDERED_REAL(f32, unsigned, __float_as_uint, 32, 0x7f800000)
ORDERED_REAL(f64, u64, __double_as_longlong, 64, 0x7ff0000000000000ull)
// What is sorted where a key says all: the key, and where its value stands.
template <class K> struct Entry {
  K key, at;
};
struct ByKey {
  template <class E> __device__ __forceinline__ bool before(const E& a, const E& b) const { return a.key < b.key; }
};

// Exclusive sum over the threads of a block; `total` is the whole. scratch: one word a warp.
__device__ __forceinline__ unsigned block_sum_before(unsigned value, unsigned* scratch, unsigned& total) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  unsigned sum = value;
  for (int o = 1; o < 32; o *= 2) {
    const unsigned left = __shfl_up_sync(~0u, sum, o);
    if (lane >= o) sum += left;
  }
  if (lane == 31) scratch[warp] = sum;
  __syncthreads();
  unsigned before = 0;
  total = 0;
  for (int k = 0; k < warps; ++k) {
    if (k == warp) before = total;
    total += scratch[k];
  }
  __syncthreads();
  return before + sum - value;
}
