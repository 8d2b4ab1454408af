// Convolutions as products: rows are output channels, columns output positions of all images, k the channels and taps of a window.
// No patch is ever written to memory: a slice is gathered from the image, with what lies in the padding left at `outside`.
#include "gemm.cu"
// Three spatial axes; those a convolution lacks have size 1. Steps in elements.
struct Image {
  ix base, image, channel, step0, step1, step2;
  int size0, size1, size2, out0, out1, out2, stride0, stride1, stride2, dilation0, dilation1, dilation2, pad0, pad1, pad2;
};
// One output position's window; K0 x K1 x K2 taps.
template <class T, int K0, int K1, int K2> struct Window {
  const T* start;
  ix channel, step0, step1, step2;
  int at0, at1, at2, size0, size1, size2, dilation0, dilation1, dilation2;
  bool live;
  __device__ __forceinline__ Window(const Image& x, ix column, ix columns) {
    live = column < columns;
    const ix above = quotient(live ? column : 0, (ix)x.out0 * x.out1 * x.out2);
    const int p = (int)((live ? column : 0) - above * x.out0 * x.out1 * x.out2), q = p / x.out2, p0 = q / x.out1;
    at0 = p0 * x.stride0 - x.pad0, at1 = (q - p0 * x.out1) * x.stride1 - x.pad1, at2 = (p - q * x.out2) * x.stride2 - x.pad2;
    channel = x.channel, step0 = x.step0, step1 = x.step1, step2 = x.step2;
    size0 = x.size0, size1 = x.size1, size2 = x.size2;
    dilation0 = x.dilation0, dilation1 = x.dilation1, dilation2 = x.dilation2;
    start = at<const T>(x.base) + above * x.image;
  }
  // The address of element k of the window, or null where it lies in the padding.
  __device__ __forceinline__ const T* element(int k) const {
    const int c = k / (K0 * K1 * K2), t = k % (K0 * K1 * K2);
    const int y0 = at0 + t / (K1 * K2) * dilation0, y1 = at1 + t / K2 % K1 * dilation1, y2 = at2 + t % K2 * dilation2;
    const bool inside = (unsigned)y0 < (unsigned)size0 && (unsigned)y1 < (unsigned)size1 && (unsigned)y2 < (unsigned)size2;
    return inside ? start + (c * channel + y0 * step0 + y1 * step1 + y2 * step2) : nullptr;
  }
};

// A slice as [k][column] for Simt: each thread stays with one column.
template <class Tile, int K0, int K1, int K2> struct WindowSlice {
  typedef typename Tile::raw T;
  enum { ROWS = Tile::WIDTH, BK = Tile::DEPTH, PITCH = Tile::RIGHT, THREADS = Tile::THREADS };
  Window<T, K0, K1, K2> window;
  int k, last;
  __device__ __forceinline__ WindowSlice(const Image& x, const Extent& e, const Task& task)
      : window(x, task.column + threadIdx.x % ROWS, e.columns), k((int)task.first), last((int)task.last) {}
  __device__ __forceinline__ void fill(T* to) {
#pragma unroll
    for (int kk = threadIdx.x / ROWS; kk < BK; kk += THREADS / ROWS) {
      const T* from = window.live && k + kk < last ? window.element(k + kk) : nullptr;
      async_copy<sizeof(T)>(to + kk * PITCH + threadIdx.x % ROWS, from, from ? (int)sizeof(T) : 0);
    }
    k += BK;
  }
};

// A slice by k for Tensor: a thread gathers 16 bytes of k of its column; neighbouring lanes read neighbouring positions.
template <class Tile, int K0, int K1, int K2> struct WindowChunks {
  typedef typename Tile::raw Raw;
  enum { ROWS = Tile::WIDTH, V = 16 / (int)sizeof(Raw), THREADS = Tile::THREADS };
  Window<Raw, K0, K1, K2> window;
  int k, last;
  Raw outside;
  __device__ __forceinline__ WindowChunks(const Image& x, const Extent& e, const Task& task, Raw value)
      : window(x, task.column + threadIdx.x % ROWS, e.columns), k((int)task.first), last((int)task.last), outside(value) {}
  __device__ __forceinline__ void fill(char* to) {
    const int r = threadIdx.x % ROWS;
#pragma unroll
    for (int chunk = threadIdx.x / ROWS; chunk < 4; chunk += THREADS / ROWS) {
      AlignedPack<Plain<Raw>, V> pack;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const int at = k + chunk * V + j;
        pack.x[j] = 0;
        if (window.live && at < last) {
          const Raw* from = window.element(at);
          pack.x[j] = from ? *from : outside;
        }
      }
      *(AlignedPack<Plain<Raw>, V>*)(to + chunk_by_k(r, chunk)) = pack;
    }
    k += Tile::DEPTH;
  }
};
