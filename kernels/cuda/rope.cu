// A thread rotates one vector of pairs of one head. A block takes a few whole rows, so that rows
// and positions are counted in 32 bits within it, and its heads read cos and sin from the cache.
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/vector.cuh"

namespace perdure::cuda {
namespace {

constexpr int kThreads = 256;

// (x, y) <- (x cos - y sin, y cos + x sin), x in the first half of the head and y in the second.
template <bool kWhole, typename T>
__global__ void __launch_bounds__(kThreads)
    Rotate(RowsOf<T> qkv, const float* cos, const float* sin, float sign, int64_t rows,
           int64_t sequence, int heads, int half, int block_rows) {
  constexpr int N = kVectorSize<T>;
  const unsigned vectors = (half + N - 1) / N;  // Of half a head.
  const unsigned items = heads * vectors;       // Of a row.
  const int64_t step = int64_t{gridDim.x} * block_rows;
  for (int64_t first = int64_t{blockIdx.x} * block_rows; first < rows; first += step) {
    const unsigned first_position = static_cast<unsigned>(first % sequence);
    const unsigned count = static_cast<unsigned>(min(int64_t{block_rows}, rows - first)) * items;
    for (unsigned item = threadIdx.x; item < count; item += kThreads) {
      const unsigned row = item / items;
      const unsigned head = item % items / vectors;
      const int64_t i = int64_t{item % vectors} * N;
      const int64_t angle =
          (first_position + row) % static_cast<unsigned>(sequence) * int64_t{half};
      T* low = qkv[first + row] + int64_t{head} * 2 * half;
      T* high = low + half;
      float x[N], y[N], c[N], s[N];
      LoadFloats<kWhole>(low, i, half, x);
      LoadFloats<kWhole>(high, i, half, y);
      LoadFloats<kWhole>(cos + angle, i, half, c);
      LoadFloats<kWhole>(sin + angle, i, half, s);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float turn = sign * s[j];
        const float rotated = __fmaf_rn(x[j], c[j], -__fmul_rn(y[j], turn));
        y[j] = __fmaf_rn(y[j], c[j], __fmul_rn(x[j], turn));
        x[j] = rotated;
      }
      StoreFloats<kWhole>(low, i, half, x);
      StoreFloats<kWhole>(high, i, half, y);
    }
  }
}

}  // namespace

void Rope(const Stream& stream, Matrix qkv, const AttentionShape& shape, const float* cos,
          const float* sin, bool inverse) {
  PERDURE_CHECK(qkv.rows == shape.rows() && qkv.cols == shape.qkv_cols());
  PERDURE_CHECK(shape.head_dim % 2 == 0);
  const int64_t half = shape.head_dim / 2;
  const int64_t heads = shape.q_heads + shape.kv_heads;  // The value heads are not rotated.
  if (qkv.rows == 0 || heads * half == 0) return;
  // What the kernel counts in 32 bits: twice the positions, and the elements of a row.
  PERDURE_CHECK(shape.sequence <= INT32_MAX / 2 && qkv.cols <= INT32_MAX / 2);
  WithType(qkv.dtype, [&]<typename T>(TypeTag<T>) {
    constexpr int N = kVectorSize<T>;
    const int64_t items = heads * DivCeil(half, N);
    // Two items for a thread, or a row.
    const int64_t block_rows = std::max<int64_t>(1, 2 * kThreads / items);
    const bool whole = WholeVectors(qkv, N) && half % N == 0 && Aligned16(cos) && Aligned16(sin);
    const auto kernel = whole ? Rotate<true, T> : Rotate<false, T>;
    kernel<<<GridOf(DivCeil(qkv.rows, block_rows)), kThreads, 0, stream.stream>>>(
        RowsOf<T>(qkv), cos, sin, inverse ? -1.0f : 1.0f, qkv.rows, shape.sequence,
        static_cast<int>(heads), static_cast<int>(half), static_cast<int>(block_rows));
  });
  stream.Launched("Rope");
}

}  // namespace perdure::cuda
