// The operands of kernels/ops.h that are no matrices. Nothing here needs more than the standard
// library: CUDA sources include it.
#pragma once

#include <cstdint>

namespace perdure {

enum class Transpose : uint8_t { kNo, kYes };

// Shape of a packed attention call: rows are batch * sequence, row-major by (sample, position); a
// row of qkv holds q_heads query heads, then kv_heads key heads, then kv_heads value heads,
// head_dim elements each.
struct AttentionShape {
  int64_t batch = 0;
  int64_t sequence = 0;
  int64_t q_heads =
      0;  // A multiple of kv_heads: head i reads key/value head i / (q_heads / kv_heads).
  int64_t kv_heads = 0;
  int64_t head_dim = 0;

  int64_t rows() const { return batch * sequence; }
  int64_t qkv_cols() const { return (q_heads + 2 * kv_heads) * head_dim; }
  int64_t out_cols() const { return q_heads * head_dim; }
};

// Elements [begin, begin + count) of an array.
struct ElementRun {
  int64_t begin = 0;
  int64_t count = 0;
};

// A piece of memory whose words are summed (word_sum.h) into one of several sums.
struct WordRun {
  int64_t begin = 0;  // Bytes, from the array's beginning; even.
  int64_t bytes = 0;  // Even.
  int64_t first = 0;  // The place of its first word in what the sum is of.
  int64_t sum = 0;    // Which one.
};

// One AdamW update (Loshchilov & Hutter 2019, decoupled decay, as torch.optim.AdamW computes it).
struct AdamWStep {
  int64_t step = 1;  // Counted from 1: bias corrections are 1 - beta^step.
  double rate = 0;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0;    // 0 for parameters that do not decay.
  double gradient_scale = 1;  // Multiplies the gradient first: clipping.
};

}  // namespace perdure
