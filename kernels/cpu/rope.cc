#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/kernels.h"

namespace perdure::cpu {
namespace {

// (x, y) <- (x cos - y sin, y cos + x sin), pair by pair, x in the first half of the head and y in
// the second. Each element is computed alone, so the compiler may vectorise the loop without
// touching the bits.
template <typename T>
void RotateHead(T* __restrict head, const float* __restrict cos, const float* __restrict sin,
                float sign, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float x = ToFloat(head[i]);
    const float y = ToFloat(head[half + i]);
    const float s = sign * sin[i];
    head[i] = FromFloat<T>(x * cos[i] - y * s);
    head[half + i] = FromFloat<T>(y * cos[i] + x * s);
  }
}

}  // namespace

void Rope(Matrix qkv, const AttentionShape& shape, const float* cos, const float* sin,
          bool inverse) {
  PERDURE_CHECK(qkv.rows == shape.rows() && qkv.cols == shape.qkv_cols());
  PERDURE_CHECK(shape.head_dim % 2 == 0);
  const int64_t half = shape.head_dim / 2;
  const int64_t heads = shape.q_heads + shape.kv_heads;  // The value heads are not rotated.
  const float sign = inverse ? -1.0f : 1.0f;
  WithType(qkv.dtype, [&]<typename T>(TypeTag<T>) {
    for (int64_t r = 0; r < qkv.rows; ++r) {
      const int64_t position = r % shape.sequence;
      T* row = Row<T>(qkv, r);
      for (int64_t h = 0; h < heads; ++h) {
        RotateHead(row + h * shape.head_dim, cos + position * half, sin + position * half, sign,
                   half);
      }
    }
  });
}

}  // namespace perdure::cpu
