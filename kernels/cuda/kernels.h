// The CUDA kernels, one function per operation of kernels/ops.h, which states their contracts. Each
// checks its operands, enqueues on the stream and returns.
//
// Orders of sums follow from shapes alone, never from the device, the grid's scheduling or
// addresses: no atomics on floating-point numbers, no split that depends on the number of
// multiprocessors.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cuda/device.h"
#include "kernels/shapes.h"
#include "kernels/tensor.h"

namespace perdure::cuda {

// move.cu
void Zero(const Stream& stream, Matrix x);
void Copy(const Stream& stream, ConstMatrix src, Matrix dst);

// sums.cu
void Add(const Stream& stream, ConstMatrix x, Matrix acc);
void Max(const Stream& stream, ConstMatrix x, Matrix acc);
void TreeSum(const Stream& stream, std::span<const ConstMatrix> parts, ConstMatrix residual,
             Matrix out);
// The runs are read before this returns.
void SumsOfSquares(const Stream& stream, Workspace& work, const float* x,
                   std::span<const ElementRun> runs, double* sums);

// word_sums.cu
// The runs are read before this returns.
void WordSums(const Stream& stream, Workspace& work, const void* data,
              std::span<const WordRun> runs, uint64_t* sums);

// embedding.cu
void EmbeddingForward(const Stream& stream, const int32_t* tokens, ConstMatrix table,
                      int64_t row_begin, Matrix out);
void EmbeddingBackward(const Stream& stream, Workspace& work, const int32_t* tokens,
                       ConstMatrix dout, int64_t row_begin, Matrix dtable);

// rms_norm.cu
void RmsNormForward(const Stream& stream, ConstMatrix x, ConstMatrix weight, float eps, Matrix y,
                    float* rstd);
void RmsNormBackward(const Stream& stream, Workspace& work, ConstMatrix dy, ConstMatrix x,
                     ConstMatrix weight, const float* rstd, ConstMatrix dresidual, Matrix dx,
                     Matrix dweight);

// rope.cu
void Rope(const Stream& stream, Matrix qkv, const AttentionShape& shape, const float* cos,
          const float* sin, bool inverse);

// attention_plain.cu: any shape and dtype, without tensor cores.
void PlainAttentionForward(const Stream& stream, ConstMatrix qkv, const AttentionShape& shape,
                           Matrix out, float* lse);
void PlainAttentionBackward(const Stream& stream, Workspace& work, ConstMatrix dout,
                            ConstMatrix qkv, ConstMatrix out, const float* lse,
                            const AttentionShape& shape, Matrix dqkv);

// swiglu.cu
void SwiGluForward(const Stream& stream, ConstMatrix gate_up, Matrix out);
void SwiGluBackward(const Stream& stream, ConstMatrix dout, ConstMatrix gate_up, Matrix dgate_up,
                    Matrix out);

// cross_entropy.cu
void CrossEntropyMax(const Stream& stream, ConstMatrix logits, float* row_max);
void CrossEntropySum(const Stream& stream, Matrix logits, const float* row_max,
                     const int32_t* targets, int64_t column_begin, float* row_sum,
                     float* target_logit);
void CrossEntropyLoss(const Stream& stream, const float* row_sum, const float* target_logit,
                      int64_t rows, double* loss);
void CrossEntropyGradient(const Stream& stream, ConstMatrix exp_logits, const float* row_sum,
                          const int32_t* targets, int64_t column_begin, float scale,
                          Matrix dlogits);

// adamw.cu
void AdamW(const Stream& stream, const AdamWStep& step, const float* gradient, float* master,
           float* exp_avg, float* exp_avg_sq, Matrix param);

}  // namespace perdure::cuda
