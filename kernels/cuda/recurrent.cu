// Recurrent cells: a block takes a direction and a batch entry (or all of them, where their states share one scale) through time. The
// gates of x come in computed. A thread has a hidden unit and a part of the sums over the state; parts are added in order.
enum { RNN, GRU, LSTM };
enum { RELU, TANH, SIGMOID, AFFINE, LEAKY_RELU, THRESHOLDED_RELU, SCALED_TANH, HARD_SIGMOID, ELU, SOFTSIGN, SOFTPLUS };
enum { FORWARD_ONLY, REVERSE_ONLY, BOTH };
struct RecurrentArgs {
  ix x, r, h0, c0, peepholes, extra, lens, y, yh, yc, work, numbers, length, batch, hidden, directions;
  ix x_time, x_batch, x_step, h0_direction, h0_batch, h0_step, c0_direction, c0_batch, c0_step, peephole_direction, peephole_step;
  ix extra_direction, extra_step, lens_step, y_time, y_direction, y_batch, y_step, yh_direction, yh_batch, yh_step, yc_direction, yc_batch, yc_step;
  ix direction, group, fits, reset_after, input_forget, codes[6], scales;
};
template <class real> struct Function {
  int code;
  real alpha, beta;
  __device__ __noinline__ real operator()(real x) const {
    switch (code) {
      case SIGMOID: return (real)1 / ((real)1 + g_exp(-x));
      case TANH: return g_tanh(x);
      case RELU: return x > 0 ? x : x * 0;
      case AFFINE: return alpha * x + beta;
      case LEAKY_RELU: return x >= 0 ? x : alpha * x;
      case THRESHOLDED_RELU: return x > alpha ? x : x * 0;
      case SCALED_TANH: return alpha * g_tanh(beta * x);
      case HARD_SIGMOID: return minimum(maximum(alpha * x + beta, (real)0), (real)1);
      case ELU: return x >= 0 ? x : alpha * (g_exp(x) - (real)1);
      case SOFTSIGN: return x / ((real)1 + g_abs(x));
    }
    return x < 30 ? g_log((real)1 + g_exp(x)) : x;
  }
};
template <class real> __device__ __forceinline__ real clipped(real x, real limit) { return limit <= 0 ? x : minimum(maximum(x, -limit), limit); }

// A state times its weights [k][gate * hidden + j], element by element.
template <class real> struct RealWeights {
  typedef real Sum;
  const real *r, *v;
  ix hidden;
  __device__ __forceinline__ ix length() const { return hidden; }
  __device__ __forceinline__ real state(ix k) const { return v[k]; }
  __device__ __forceinline__ real add(real sum, real state, ix at) const { return sum + r[at] * state; }
  __device__ __forceinline__ real whole(real sum, ix) const { return sum; }
};
// In bytes, four of k to a word: the state as codes less 128, which stand for (code - zero) * scale; the weights with a scale a column.
template <class real> struct ByteWeights {
  typedef int Sum;
  const int *r, *v;
  const real* scales;
  ix hidden;
  real scale;
  int lift;
  __device__ __forceinline__ ix length() const { return (hidden + 3) >> 2; }
  __device__ __forceinline__ int state(ix k) const { return v[k]; }
  __device__ __forceinline__ int add(int sum, int state, ix at) const { return __dp4a(r[at], state, sum) + lift * __dp4a(r[at], 0x01010101, 0); }
  __device__ __forceinline__ real whole(int sum, ix column) const { return (real)sum * (scale * scales[column]); }
};

// use(j, sums): for every unit j, by one thread, the state times the weights of gates FIRST .. FIRST + COUNT - 1.
template <int THREADS, int GATES, int FIRST, int COUNT, class Weights, class real, class Use>
__device__ __forceinline__ void swept(const Weights& w, ix hidden, real* partial, const Use& use) {
  typedef typename Weights::Sum Sum;
  const int units = hidden < THREADS ? ((int)hidden + 31) / 32 * 32 : THREADS, parts = THREADS / units;
  const int part = threadIdx.x / units, unit = threadIdx.x - part * units;
  Sum* shared = (Sum*)partial;
  for (ix base = 0; base < hidden; base += units) {
    const ix j = base + unit, column = FIRST * hidden + j, length = w.length();
    const bool live = j < hidden && part < parts;
    Sum sums[COUNT];
#pragma unroll
    for (int g = 0; g < COUNT; ++g) sums[g] = 0;
    if (live) {
#pragma unroll 4
      for (ix k = part; k < length; k += parts) {
        const Sum value = w.state(k);
#pragma unroll
        for (int g = 0; g < COUNT; ++g) sums[g] = w.add(sums[g], value, (k * GATES + g) * hidden + column);
      }
    }
    if (parts > 1) {
#pragma unroll
      for (int g = 0; g < COUNT; ++g) shared[g * THREADS + threadIdx.x] = sums[g];
      __syncthreads();
      if (live && part == 0)
        for (int p = 1; p < parts; ++p)
#pragma unroll
          for (int g = 0; g < COUNT; ++g) sums[g] += shared[g * THREADS + p * units + unit];
    }
    if (live && part == 0) {
      real whole[COUNT];
#pragma unroll
      for (int g = 0; g < COUNT; ++g) whole[g] = w.whole(sums[g], g * hidden + column);
      use(j, whole);
    }
    if (parts > 1) __syncthreads();
  }
  __syncthreads();
}

// The states of all entries through 8 bits, scale and zero point from their range (as DynamicQuantizeLinear).
template <class real> struct Range {
  real scale, zero;
  __device__ __forceinline__ real code(real x) const { return minimum(maximum(g_rint(x / scale) + zero, (real)0), (real)255); }
};
template <int THREADS, class real, class State> __device__ __forceinline__ Range<real> range_of(const State& state, ix entries, ix hidden, real* partial) {
  real low = 0, high = 0;
  for (ix i = threadIdx.x; i < entries * hidden; i += THREADS) {
    const real x = state(i);
    low = minimum(low, x), high = maximum(high, x);
  }
  for (int o = 16; o; o >>= 1) low = minimum(low, __shfl_xor_sync(~0u, low, o)), high = maximum(high, __shfl_xor_sync(~0u, high, o));
  if ((threadIdx.x & 31) == 0) partial[threadIdx.x >> 5] = low, partial[THREADS / 32 + (threadIdx.x >> 5)] = high;
  __syncthreads();
  for (int w = 0; w < THREADS / 32; ++w) low = minimum(low, partial[w]), high = maximum(high, partial[THREADS / 32 + w]);
  const real scale = high > low ? (high - low) / (real)255 : (real)1;
  return Range<real>{scale, minimum(maximum(g_rint(-low / scale), (real)0), (real)255)};
}
template <int THREADS, class real, class State>
__device__ __forceinline__ void quantize(const Range<real>& range, const State& state, real* q, ix entries, ix hidden) {
  for (ix i = threadIdx.x; i < entries * hidden; i += THREADS) q[i] = (range.code(state(i)) - range.zero) * range.scale;
  __syncthreads();
}
template <int THREADS, class real, class State>
__device__ __forceinline__ void quantize(const Range<real>& range, const State& state, signed char* q, ix entries, ix hidden) {
  const ix line = (hidden + 3) & ~3ll;
  for (ix i = threadIdx.x; i < entries * line; i += THREADS) {
    const ix e = quotient(i, line), j = i - e * line;
    q[i] = j < hidden ? (signed char)((int)range.code(state(e * hidden + j)) - 128) : (signed char)0;
  }
  __syncthreads();
}
// The weights as `recur` reads them: by QUANTIZED, in reals or in bytes.
enum { STATE_REAL, STATE_BYTES, ALL_BYTES };
template <class real, int QUANTIZED> struct WeightsOf {
  typedef real code;
  static __device__ __forceinline__ RealWeights<real> at_entry(ix r, ix direction, const real*, const Range<real>&, const real* v, ix, ix hidden, int gates) {
    return RealWeights<real>{at<const real>(r) + direction * hidden * gates * hidden, v, hidden};
  }
};
template <class real> struct WeightsOf<real, ALL_BYTES> {
  typedef signed char code;
  static __device__ __forceinline__ ByteWeights<real> at_entry(ix r, ix direction, const real* scales, const Range<real>& range, const real* q, ix e, ix hidden,
                                                               int gates) {
    const ix words = (hidden + 3) >> 2;
    return ByteWeights<real>{at<const int>(r) + direction * words * gates * hidden, (const int*)q + e * words, scales + direction * gates * hidden, hidden,
                             range.scale, 128 - (int)range.zero};
  }
};

template <class T, int CELL, int THREADS, int QUANTIZED> __device__ void recur(ix* ctx, const ix* args) {
  typedef typename T::wide real;
  const int GATES = CELL == LSTM ? 4 : CELL == GRU ? 3 : 1, FUNCTIONS = CELL == LSTM ? 3 : CELL == GRU ? 2 : 1;
  const RecurrentArgs& a = *(const RecurrentArgs*)args;
  extern __shared__ __align__(16) double room[];
  const ix hidden = a.hidden, group = a.group, groups = (a.batch + group - 1) / group;
  const ix direction = blockIdx.x / groups, first = (blockIdx.x - direction * groups) * group;
  const ix entries = a.batch - first < group ? a.batch - first : group, block = group * hidden;
  real* partial = (real*)room;
  real* state = a.fits ? partial + THREADS * GATES : at<real>(a.work) + blockIdx.x * 4 * block;
  real *c = state + 2 * block, *q = state + 3 * block;
  const real* numbers = at<const real>(a.numbers);
  const real limit = numbers[2 * a.directions * FUNCTIONS];
  Function<real> f[FUNCTIONS];
#pragma unroll
  for (int k = 0; k < FUNCTIONS; ++k) {
    const ix number = direction * FUNCTIONS + k;
    f[k].code = (int)a.codes[number], f[k].alpha = numbers[2 * number], f[k].beta = numbers[2 * number + 1];
  }
  typedef WeightsOf<real, QUANTIZED> Weights;
  const real* scales = at<const real>(a.scales);
  Range<real> range{(real)1, (real)0};
  const real* peephole = a.peepholes ? at<const real>(a.peepholes) + direction * a.peephole_direction : 0;
  const real* extra = a.extra ? at<const real>(a.extra) + direction * a.extra_direction : 0;
  const bool backwards = a.direction == REVERSE_ONLY || (a.direction == BOTH && direction == 1);
  const auto steps_of = [&](ix e) {
    if (!a.lens) return a.length;
    const ix given = at<const int>(a.lens)[(first + e) * a.lens_step];
    return given < 0 ? (ix)0 : given < a.length ? given : a.length;
  };
  const auto state_at = [&](ix e, ix number) {
    const ix steps = steps_of(e);
    return state + ((number < steps ? number : steps) & 1) * block + e * hidden;
  };
  for (ix i = threadIdx.x; i < entries * hidden; i += THREADS) {
    const ix e = quotient(i, hidden), j = i - e * hidden, b = first + e;
    state[i] = a.h0 ? at<const real>(a.h0)[direction * a.h0_direction + b * a.h0_batch + j * a.h0_step] : (real)0;
    c[i] = a.c0 ? at<const real>(a.c0)[direction * a.c0_direction + b * a.c0_batch + j * a.c0_step] : (real)0;
  }
  __syncthreads();
  for (ix number = 0; number < a.length; ++number) {
    if (QUANTIZED) {
      const auto was = [&](ix i) { return state_at(quotient(i, hidden), number)[i - quotient(i, hidden) * hidden]; };
      range = range_of<THREADS>(was, entries, hidden, partial);
      quantize<THREADS>(range, was, (typename Weights::code*)q, entries, hidden);
    }
    for (ix e = 0; e < entries; ++e) {
      const ix b = first + e, steps = steps_of(e);
      real* y = a.y ? at<real>(a.y) + direction * a.y_direction + b * a.y_batch : 0;
      if (number >= steps) {
        if (y)
          for (ix j = threadIdx.x; j < hidden; j += THREADS) y[number * a.y_time + j * a.y_step] = 0;
        continue;
      }
      const ix t = backwards ? steps - 1 - number : number;
      const real* x = at<const real>(a.x) + t * a.x_time + b * a.x_batch + direction * GATES * hidden * a.x_step;
      const real* h = state_at(e, number);
      real *next = state_at(e, number + 1), *own = c + e * hidden, *gate_z = q + e * hidden;
      const auto gate = [&](int g, ix j, real sum) { return x[(g * hidden + j) * a.x_step] + sum; };
      const auto weights = [&](const real* v) { return Weights::at_entry(a.r, direction, scales, range, v, e, hidden, GATES); };
      const auto finish = [&](ix j, real value) {
        next[j] = value;
        if (y) y[t * a.y_time + j * a.y_step] = value;
      };
      if (CELL == RNN) {
        swept<THREADS, GATES, 0, 1>(weights(h), hidden, partial, [&](ix j, const real* s) { finish(j, f[0](clipped(gate(0, j, s[0]), limit))); });
      } else if (CELL == GRU) {
        const int last = FUNCTIONS - 1, blend = GATES - 1;
        if (a.reset_after) {
          swept<THREADS, GATES, 0, GATES>(weights(h), hidden, partial, [&](ix j, const real* s) {
            const real z = f[0](clipped(gate(0, j, s[0]), limit)), reset = f[0](clipped(gate(1, j, s[1 % GATES]), limit));
            const real after = s[blend] + (extra ? extra[j * a.extra_step] : (real)0);
            finish(j, ((real)1 - z) * f[last](clipped(gate(blend, j, reset * after), limit)) + z * h[j]);
          });
        } else {
          swept<THREADS, GATES, 0, GATES == 3 ? 2 : 1>(weights(h), hidden, partial, [&](ix j, const real* s) {
            gate_z[j] = f[0](clipped(gate(0, j, s[0]), limit));
            own[j] = f[0](clipped(gate(1, j, s[GATES == 3 ? 1 : 0]), limit)) * h[j];
          });
          swept<THREADS, GATES, GATES - 1, 1>(weights(own), hidden, partial, [&](ix j, const real* s) {
            finish(j, ((real)1 - gate_z[j]) * f[last](clipped(gate(blend, j, s[0]), limit)) + gate_z[j] * h[j]);
          });
        }
      } else {
        const int last = FUNCTIONS - 1, middle = FUNCTIONS / 2;
        swept<THREADS, GATES, 0, GATES>(weights(QUANTIZED == ALL_BYTES ? q : QUANTIZED ? q + e * hidden : h), hidden, partial, [&](ix j, const real* s) {
          real in = gate(0, j, s[0]), out = gate(1, j, s[1 % GATES]), forget = gate(2, j, s[2 % GATES]);
          const real was = own[j];
          if (peephole) in += peephole[j * a.peephole_step] * was, forget += peephole[(2 * hidden + j) * a.peephole_step] * was;
          in = f[0](clipped(in, limit));
          forget = a.input_forget ? (real)1 - in : f[0](clipped(forget, limit));
          const real cell = forget * was + in * f[middle](clipped(gate(3, j, s[3 % GATES]), limit));
          own[j] = cell;
          if (peephole) out += peephole[(hidden + j) * a.peephole_step] * cell;
          finish(j, f[0](clipped(out, limit)) * f[last](cell));
        });
      }
    }
  }
  for (ix i = threadIdx.x; i < entries * hidden; i += THREADS) {
    const ix e = quotient(i, hidden), j = i - e * hidden, b = first + e;
    if (a.yh) at<real>(a.yh)[direction * a.yh_direction + b * a.yh_batch + j * a.yh_step] = state_at(e, a.length)[j];
    if (CELL == LSTM && a.yc) at<real>(a.yc)[direction * a.yc_direction + b * a.yc_batch + j * a.yc_step] = c[i];
  }
}

struct TurnArgs {
  ix source, target, directions, rows, columns, source_direction, source_row, source_column;
};
// target[direction][column][row] = source[direction][row][column], by tiles of 32 x 32.
template <class T> __device__ void turn(ix* ctx, const ix* args) {
  typedef typename T::raw raw;
  const TurnArgs a = *(const TurnArgs*)args;
  __shared__ raw tile[32][33];
  const ix across = (a.columns + 31) / 32, down = (a.rows + 31) / 32;
  const ix rest = quotient(blockIdx.x, across), column0 = (blockIdx.x - rest * across) * 32, direction = quotient(rest, down);
  const ix row0 = (rest - direction * down) * 32;
  const int lane = threadIdx.x & 31;
  for (int i = threadIdx.x >> 5; i < 32; i += 8)
    if (row0 + i < a.rows && column0 + lane < a.columns)
      tile[i][lane] = at<const raw>(a.source)[direction * a.source_direction + (row0 + i) * a.source_row + (column0 + lane) * a.source_column];
  __syncthreads();
  for (int i = threadIdx.x >> 5; i < 32; i += 8)
    if (column0 + i < a.columns && row0 + lane < a.rows)
      at<raw>(a.target)[(direction * a.columns + column0 + i) * a.rows + row0 + lane] = tile[lane][i];
}
