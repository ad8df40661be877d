// The CPU kernels, one function per operation of kernels/ops.h, which states their contracts. Each
// checks its operands; none allocates, except where it takes a Scratch.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/scratch.h"
#include "kernels/ops.h"

namespace perdure::cpu {

// copy.cc
void Zero(Matrix x);
void Copy(ConstMatrix src, Matrix dst);

// sums.cc
void Add(ConstMatrix x, Matrix acc);
void TreeSum(std::span<const ConstMatrix> parts, ConstMatrix residual, Matrix out);
double SumOfSquares(const float* x, int64_t count);
void Max(ConstMatrix x, Matrix acc);

// embedding.cc
void EmbeddingForward(const int32_t* tokens, ConstMatrix table, int64_t row_begin, Matrix out);
void EmbeddingBackward(const int32_t* tokens, ConstMatrix dout, int64_t row_begin, Matrix dtable);

// rms_norm.cc
void RmsNormForward(ConstMatrix x, ConstMatrix weight, float eps, Matrix y, float* rstd);
void RmsNormBackward(ConstMatrix dy, ConstMatrix x, ConstMatrix weight, const float* rstd,
                     ConstMatrix dresidual, Matrix dx, Matrix dweight);

// rope.cc
void Rope(Matrix qkv, const AttentionShape& shape, const float* cos, const float* sin,
          bool inverse);

// attention.cc, attention_backward.cc
void AttentionForward(ConstMatrix qkv, const AttentionShape& shape, Matrix out, float* lse,
                      Scratch& scratch);
void AttentionBackward(ConstMatrix dout, ConstMatrix qkv, ConstMatrix out, const float* lse,
                       const AttentionShape& shape, Matrix dqkv, Scratch& scratch);

// swiglu.cc
void SwiGluForward(ConstMatrix gate_up, Matrix out);
void SwiGluBackward(ConstMatrix dout, ConstMatrix gate_up, Matrix dgate_up, Matrix out);

// cross_entropy.cc
void CrossEntropyMax(ConstMatrix logits, float* row_max);
void CrossEntropySum(Matrix logits, const float* row_max, const int32_t* targets,
                     int64_t column_begin, float* row_sum, float* target_logit);
void CrossEntropyLoss(const float* row_sum, const float* target_logit, int64_t rows, double* loss);
void CrossEntropyGradient(ConstMatrix exp_logits, const float* row_sum, const int32_t* targets,
                          int64_t column_begin, float scale, Matrix dlogits);

// adamw.cc
void AdamW(const AdamWStep& step, const float* gradient, float* master, float* exp_avg,
           float* exp_avg_sq, Matrix param);

}  // namespace perdure::cpu
