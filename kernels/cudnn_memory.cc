#include "kernels/cudnn_memory.h"

#include <algorithm>

namespace perdure {
namespace {

// What a slice may keep of the gradients of scores.
constexpr int64_t kScoreBytes = int64_t{1} << 30;

int64_t LargestDivisor(int64_t x, int64_t limit) {
  int64_t divisor = x;
  while (divisor > 1 && (divisor > limit || x % divisor != 0)) --divisor;
  return divisor;
}

}  // namespace

bool CudnnTakes(const AttentionShape& shape, DType dtype) {
  // One position alone is refused.
  return dtype == DType::kBF16 && shape.head_dim % 8 == 0 && shape.head_dim <= 128 &&
         shape.sequence > 1;
}

AttentionShape CudnnBackwardSlice(const AttentionShape& shape) {
  const int64_t group = shape.q_heads / shape.kv_heads;
  const int64_t of_head = group * shape.sequence * shape.sequence * 2;
  const int64_t heads = LargestDivisor(shape.kv_heads, kScoreBytes / of_head);
  const int64_t samples =
      heads == shape.kv_heads ? LargestDivisor(shape.batch, kScoreBytes / of_head / heads) : 1;
  return {.batch = samples,
          .sequence = shape.sequence,
          .q_heads = heads * group,
          .kv_heads = heads,
          .head_dim = shape.head_dim};
}

int64_t CudaAttentionWorkBytes(const AttentionShape& shape, DType dtype) {
  const int64_t dots = shape.rows() * shape.q_heads * 4;
  if (!CudnnTakes(shape, dtype)) return dots;
  const AttentionShape slice = CudnnBackwardSlice(shape);
  const int64_t scores = slice.rows() * slice.q_heads * slice.sequence * 2;
  // Beside the scores' gradients cuDNN keeps those of keys and values by query head, in bf16.
  return scores + slice.rows() * slice.q_heads * (4 + 2 * slice.head_dim * 2);
}

}  // namespace perdure
