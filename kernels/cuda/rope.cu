// A thread rotates one vector of pairs of a few neighbouring heads of a row: it reads the cosines
// and sines once, and has all its loads under way before it rotates. A block takes a few whole
// rows, so that rows and positions are counted in 32 bits within it.
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/vector.cuh"

namespace perdure::cuda {
namespace {

constexpr int kThreads = 128;

// (x, y) <- (x cos - y sin, y cos + x sin), x in the first half of the head and y in the second.
// REQUIRES: kHeads divides `heads`.
template <bool kWhole, typename T, int kHeads>
__global__ void __launch_bounds__(kThreads)
    Rotate(RowsOf<T> qkv, const float* cos, const float* sin, float sign, int64_t rows,
           int64_t sequence, int heads, int half, int block_rows) {
  constexpr int N = kVectorSize<T>;
  const unsigned vectors = (half + N - 1) / N;      // Of half a head.
  const unsigned items = heads / kHeads * vectors;  // Of a row.
  const int64_t step = int64_t{gridDim.x} * block_rows;
  for (int64_t first = int64_t{blockIdx.x} * block_rows; first < rows; first += step) {
    const unsigned first_position = static_cast<unsigned>(first % sequence);
    const unsigned count = static_cast<unsigned>(min(int64_t{block_rows}, rows - first)) * items;
    for (unsigned item = threadIdx.x; item < count; item += blockDim.x) {
      const unsigned row = item / items;
      const unsigned head = item % items / vectors * kHeads;
      const int64_t i = int64_t{item % vectors} * N;
      const int64_t angle =
          (first_position + row) % static_cast<unsigned>(sequence) * int64_t{half};
      T* const low = qkv[first + row] + int64_t{head} * 2 * half;
      T* const high = low + half;
      Vector<T> lows[kHeads], highs[kHeads];
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        lows[h] = Load<kWhole>(low + h * 2 * half, i, half);
        highs[h] = Load<kWhole>(high + h * 2 * half, i, half);
      }
      float c[N], s[N];
      LoadFloats<kWhole>(cos + angle, i, half, c);
      LoadFloats<kWhole>(sin + angle, i, half, s);
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        float x[N], y[N];
        Unpack(lows[h], x);
        Unpack(highs[h], y);
#pragma unroll
        for (int j = 0; j < N; ++j) {
          const float turn = sign * s[j];
          const float rotated = __fmaf_rn(x[j], c[j], -__fmul_rn(y[j], turn));
          y[j] = __fmaf_rn(y[j], c[j], __fmul_rn(x[j], turn));
          x[j] = rotated;
        }
        StoreFloats<kWhole>(low + h * 2 * half, i, half, x);
        StoreFloats<kWhole>(high + h * 2 * half, i, half, y);
      }
    }
  }
}

// Calls f with the most heads that a thread can take.
template <typename F>
void WithHeads(int64_t heads, F&& f) {
  if (heads % 5 == 0) return f(std::integral_constant<int, 5>{});
  if (heads % 4 == 0) return f(std::integral_constant<int, 4>{});
  if (heads % 3 == 0) return f(std::integral_constant<int, 3>{});
  if (heads % 2 == 0) return f(std::integral_constant<int, 2>{});
  f(std::integral_constant<int, 1>{});
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
    const bool whole = WholeVectors(qkv, N) && half % N == 0 && Aligned16(cos) && Aligned16(sin);
    WithHeads(heads, [&]<int kHeads>(std::integral_constant<int, kHeads>) {
      const int64_t items = heads / kHeads * DivCeil(half, N);
      const int64_t block_rows = std::max<int64_t>(1, kThreads / items);
      const int64_t threads =
          std::min<int64_t>(kThreads, DivCeil(block_rows * items, kWarp) * kWarp);
      const auto kernel = whole ? Rotate<true, T, kHeads> : Rotate<false, T, kHeads>;
      kernel<<<GridOf(DivCeil(qkv.rows, block_rows)), static_cast<unsigned>(threads), 0,
               stream.stream>>>(RowsOf<T>(qkv), cos, sin, inverse ? -1.0f : 1.0f, qkv.rows,
                                shape.sequence, static_cast<int>(heads), static_cast<int>(half),
                                static_cast<int>(block_rows));
    });
  });
  stream.Launched("Rope");
}

}  // namespace perdure::cuda
