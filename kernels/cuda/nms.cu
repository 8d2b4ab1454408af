// Candidates of every batch entry and class are sorted, best first; then a block takes 256 of them at a time: each against all boxes
// chosen before, then those of the stretch against each other as bits, and one warp walks the bits.
enum { STRETCH = 256, WORDS = STRETCH / 32 };
const unsigned NO_CANDIDATE = 0xffffffffu;
struct NmsArgs {
  ix boxes, scores, overlap, least, chosen, work, count, classes, room, segments;
  ix box_batch, box_row, box_step, score_batch, score_class, score_step, chosen_batch, chosen_class, chosen_step, centred, width, second;
};
struct Edges {
  float low, left, high, right, area;
};
__device__ __forceinline__ float lesser(float a, float b) { return b < a ? b : a; }
__device__ __forceinline__ float greater(float a, float b) { return b > a ? b : a; }

__device__ __forceinline__ Edges edges_of(const NmsArgs& a, ix batch, ix box) {
  const float* p = at<const float>(a.boxes) + batch * a.box_batch + box * a.box_row;
  float y = p[0], x = p[a.box_step], v = p[2 * a.box_step], u = p[3 * a.box_step];
  if (a.centred) {
    const float half_v = v * 0.5f, half_u = u * 0.5f, middle_y = y, middle_x = x;
    y = middle_y - half_v, v = middle_y + half_v;
    x = middle_x - half_u, u = middle_x + half_u;
  }
  Edges e;
  e.low = lesser(y, v), e.left = lesser(x, u), e.high = greater(y, v), e.right = greater(x, u);
  e.area = __fmul_rn(e.high - e.low, e.right - e.left);
  return e;
}
__device__ __forceinline__ bool overlap(const Edges& a, const Edges& b, float limit) {
  const float high = lesser(a.high, b.high) - greater(a.low, b.low), wide = lesser(a.right, b.right) - greater(a.left, b.left);
  if (high <= 0 || wide <= 0 || a.area <= 0 || b.area <= 0) return false;
  const float shared = __fmul_rn(high, wide);
  return shared / (a.area + b.area - shared) > limit;
}

__device__ void tiles(ix* ctx, const ix* args) {
  const NmsArgs a = *(const NmsArgs*)args;
  __shared__ Entry<unsigned> tile[SORT_TILE];
  if (a.count >> 32) raise_error(ctx, ERROR_DOMAIN, a.count, (ix)1 << 32);
  const ix each = (a.count + SORT_TILE - 1) / SORT_TILE, segment = blockIdx.x / each, first = (blockIdx.x - segment * each) * SORT_TILE;
  const ix batch = segment / a.classes, row = segment - batch * a.classes;
  const float* scores = at<const float>(a.scores) + batch * a.score_batch + row * a.score_class;
  const int count = a.count - first < SORT_TILE ? (int)(a.count - first) : SORT_TILE;
  for (int i = threadIdx.x; i < count; i += 256) {
    const float score = scores[(first + i) * a.score_step];
    const bool good = score == score && (a.least == 0 || score > *at<const float>(a.least));
    tile[i] = Entry<unsigned>{good ? ~Ordered<f32>::of(score) : NO_CANDIDATE, (unsigned)(first + i)};
  }
  __syncthreads();
  sort_tile<256>(ByKey(), tile, count);
  for (int i = threadIdx.x; i < count; i += 256) at<Entry<unsigned> >(a.work)[segment * a.count + first + i] = tile[i];
}
__device__ void pass(ix* ctx, const ix* args) {
  const NmsArgs a = *(const NmsArgs*)args;
  const ix each = (a.count + SORT_TILE - 1) / SORT_TILE, segment = blockIdx.x / each;
  Entry<unsigned>*one = at<Entry<unsigned> >(a.work) + segment * a.count, *two = one + a.segments * a.count;
  merge_pass<256>(ByKey(), a.second ? two : one, a.second ? one : two, a.count, a.width, blockIdx.x - segment * each);
}

__device__ void choose(ix* ctx, const ix* args) {
  const NmsArgs a = *(const NmsArgs*)args;
  __shared__ Edges kept[STRETCH];
  __shared__ Edges stretch[STRETCH];
  __shared__ unsigned bits[STRETCH][WORDS + 1];
  __shared__ unsigned places[STRETCH];
  __shared__ unsigned char alive[STRETCH];
  __shared__ ix chosen;
  const ix segment = blockIdx.x, batch = segment / a.classes, row = segment - batch * a.classes;
  const int t = threadIdx.x;
  const Entry<unsigned>* sorted = at<const Entry<unsigned> >(a.work) + ((sorted_in_second(a.count) ? a.segments : 0) + segment) * a.count;
  ix* out = at<ix>(a.chosen) + batch * a.chosen_batch + row * a.chosen_class;
  const float limit = a.overlap == 0 ? 0.f : *at<const float>(a.overlap);
  ix count = 0;
  for (ix start = 0; start < a.count && count < a.room; start += STRETCH) {
    const bool there = start + t < a.count && sorted[start + t].key != NO_CANDIDATE;
    if (!__syncthreads_or(there)) break;
    const unsigned place = there ? sorted[start + t].at : 0;
    const Edges mine = edges_of(a, batch, place);
    bool free = there;
    for (ix first = 0; first < count; first += STRETCH) {
      const int some = count - first < STRETCH ? (int)(count - first) : STRETCH;
      if (t < some) kept[t] = edges_of(a, batch, out[(first + t) * a.chosen_step]);
      __syncthreads();
      for (int k = 0; k < some && free; ++k) free = !overlap(mine, kept[k], limit);
      __syncthreads();
    }
    stretch[t] = mine, places[t] = place, alive[t] = free;
    __syncthreads();
    for (int w = 0; w < WORDS; ++w) {
      unsigned found = 0;
      for (int k = w * 32; k < w * 32 + 32 && k < t; ++k)
        if (free && alive[k] && overlap(mine, stretch[k], limit)) found |= 1u << (k & 31);
      bits[t][w] = found;
    }
    __syncthreads();
    if (t < 32) {
      unsigned taken = 0;
      for (int k = 0; k < STRETCH && count < a.room; ++k) {
        if (!alive[k] || __any_sync(~0u, t < WORDS && (bits[k][t] & taken))) continue;
        if (t == k >> 5) taken |= 1u << (k & 31);
        if (t == 0) out[count * a.chosen_step] = places[k];
        ++count;
      }
      if (t == 0) chosen = count;
    }
    __syncthreads();
    count = chosen;
  }
  for (ix k = count + t; k < a.room; k += STRETCH) out[k * a.chosen_step] = -1;
}
