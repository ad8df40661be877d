// Attention: cuDNN's fused kernels where they take the shape and dtype (bf16, head dimensions that
// are multiples of 8, at most 128, more than one position) and the rows begin at multiples of 16
// bytes, as rows of whole matrices do there; the plain kernels of attention_plain.cu for the rest.
// Where cuDNN should have a kernel but refuses, that is an error, not another choice.
#pragma once

#include <memory>

#include "kernels/cuda/device.h"
#include "kernels/shapes.h"
#include "kernels/tensor.h"

namespace perdure::cuda {

class CudnnAttention;

class Attention {
 public:
  explicit Attention(const Stream* stream);
  ~Attention();
  Attention(const Attention&) = delete;
  Attention& operator=(const Attention&) = delete;

  // As Ops::AttentionForward and AttentionBackward.
  void Forward(ConstMatrix qkv, const AttentionShape& shape, Matrix out, float* lse);
  void Backward(ConstMatrix dout, ConstMatrix qkv, ConstMatrix out, const float* lse,
                const AttentionShape& shape, Matrix dqkv);

 private:
  // Made at first need: it takes time and memory.
  CudnnAttention& Cudnn();

  const Stream* stream_;
  Workspace work_;
  std::unique_ptr<CudnnAttention> cudnn_;
};

}  // namespace perdure::cuda
