// MT19937 by one block: the words are renewed in three stretches, each of which needs words of the one before only.
struct MersenneArgs {
  ix seed, out, count, step;
};
enum { STATE_WORDS = 624, MIDDLE_WORD = 397, STRETCH_WORDS = STATE_WORDS - MIDDLE_WORD };
__device__ __forceinline__ unsigned tempered(unsigned y) {
  y ^= y >> 11;
  y ^= (y << 7) & 0x9D2C5680u;
  y ^= (y << 15) & 0xEFC60000u;
  return y ^ (y >> 18);
}
__device__ void draw(ix* ctx, const ix* args) {
  const MersenneArgs a = *(const MersenneArgs*)args;
  __shared__ unsigned state[STATE_WORDS];
  const int t = threadIdx.x;
  if (t == 0) {
    unsigned word = (unsigned)*at<const ix>(a.seed);
    state[0] = word;
    for (unsigned i = 1; i < STATE_WORDS; ++i) state[i] = word = 1812433253u * (word ^ (word >> 30)) + i;
  }
  __syncthreads();
  for (ix base = 0; base < a.count; base += STATE_WORDS / 2) {
    for (int start = 0; start < STATE_WORDS; start += STRETCH_WORDS) {
      const int i = start + t;
      const bool mine = t < STRETCH_WORDS && i < STATE_WORDS;
      unsigned next = 0;
      if (mine) {
        const unsigned mixed = (state[i] & 0x80000000u) | (state[i + 1 < STATE_WORDS ? i + 1 : 0] & 0x7FFFFFFFu);
        next = state[(i + MIDDLE_WORD) % STATE_WORDS] ^ (mixed >> 1) ^ (mixed & 1 ? 0x9908B0DFu : 0u);
      }
      __syncthreads();
      if (mine) state[i] = next;
      __syncthreads();
    }
    for (int k = t; k < STATE_WORDS / 2 && base + k < a.count; k += blockDim.x) {
      const unsigned high = tempered(state[2 * k]) >> 5, low = tempered(state[2 * k + 1]) >> 6;
      at<double>(a.out)[(base + k) * a.step] = __dadd_rn(__dmul_rn(high, 67108864.0), low) / 9007199254740992.0;
    }
    __syncthreads();
  }
}
