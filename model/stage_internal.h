// The memory of a Stage, shared by stage.cc, block.cc and head.cc. Not for other folders.
#pragma once

#include <vector>

#include "model/stage.h"

namespace perdure {

// Hands out 64-byte aligned pieces of one allocation, or, without a base, only counts.
class Bump {
 public:
  explicit Bump(void* base) : base_(static_cast<char*>(base)) {}

  Matrix Take(DType dtype, int64_t rows, int64_t cols) {
    return Matrix(TakeBytes(static_cast<size_t>(rows * cols) * SizeOf(dtype)), dtype, rows, cols);
  }
  float* TakeFloats(int64_t count) {
    return static_cast<float*>(TakeBytes(static_cast<size_t>(count) * sizeof(float)));
  }
  size_t used() const { return used_; }

 private:
  void* TakeBytes(size_t bytes) {
    void* piece = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (bytes + 63) / 64 * 64;
    return piece;
  }
  char* base_;
  size_t used_ = 0;
};

// What one block keeps of one micro-batch for its backward pass. Vectors are per local slice.
struct Stage::Block {
  Matrix x;                       // [Mt, h] input.
  Matrix n1;                      // [Mt, h] normalised input.
  Matrix x2;                      // [Mt, h] after attention.
  Matrix n2;                      // [Mt, h] its norm.
  float* rstd1 = nullptr;         // [Mt]
  float* rstd2 = nullptr;         // [Mt]
  std::vector<Matrix> qkv;        // [M, c], rotated.
  std::vector<Matrix> attention;  // [M, a]
  std::vector<float*> lse;        // [micro_batch, q heads, context]
  std::vector<Matrix> gate_up;    // [M, 2f]; overwritten by its gradient.

  void TakeAll(Bump& bump, const Stage& stage);
};

struct Stage::Work {
  std::vector<float> cos, sin;  // [context, head_dim / 2]; host: being copied to rope_*.
  float* rope_cos = nullptr;
  float* rope_sin = nullptr;
  Matrix gathered_a, gathered_b;   // [M, h]; only when T > 1.
  std::vector<Matrix> parts;       // Per local slice [M, h] fp32.
  Matrix local_sum;                // [M, h] fp32; only when T > 1.
  Matrix reduced;                  // [Mt, h] fp32; only when T > 1.
  Matrix dnorm, dx2;               // [Mt, h]
  Matrix dblock[2];                // [Mt, h]: gradients between blocks.
  Matrix activation, dactivation;  // [M, f]
  Matrix dattention;               // [M, a]
  Matrix dqkv;                     // [M, c]
  std::vector<float*>
      norm_partials;          // Per bucket [V/T][norms of the bucket][h]; null where it has none.
  float* norm_sum = nullptr;  // [2h]
  Block scratch;              // Recomputation: the block at hand.
  Matrix scratch_out;         // [Mt, h]
  // Head.
  Matrix final_norm;               // [Mt, h]
  float* final_rstd = nullptr;     // [Mt]
  Matrix final_rows;               // [M, h]: all rows of final_norm.
  std::vector<Matrix> logits;      // Per local slice [chunk, slice width] fp32; HeadRows() rows.
  Matrix dlogits;                  // [chunk, widest slice] when the dtype is not fp32.
  std::vector<float*> row_stats;   // Per local slice [2][chunk]: sum and target logit.
  float* row_max = nullptr;        // [T][chunk]
  float* row_max_slice = nullptr;  // [chunk]
  float* row_total = nullptr;      // [2][chunk]

  void TakeAll(Bump& bump, const Stage& stage);
};

// A block's matrices inside a bucket, weights or gradients alike. Vectors are per local slice.
struct Stage::BlockWeights {
  std::vector<Matrix> qkv;      // [c, h]
  std::vector<Matrix> o;        // [h, a]
  std::vector<Matrix> gate_up;  // [2f, h]
  std::vector<Matrix> down;     // [h, f]
  Matrix norm1, norm2;          // [1, h]
};

inline constexpr int kNormsPerBlock = 2;

}  // namespace perdure
