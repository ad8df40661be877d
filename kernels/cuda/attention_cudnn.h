// Attention by cuDNN's fused kernels, through its graph interface: the operation is written as a
// graph of products, reductions and element-wise steps, which cuDNN matches with one of its fused
// kernels. A plan (graph, engine, work space) is made once per shape and set of strides, and kept.
//
// Bits: the engine is the library's first proposal that takes the graph, never timed: it depends on
// the shape, the library and the device, which numerics.isa names. Backward takes the form of the
// graph that does not add up dQ by atomics; engines that call themselves nondeterministic are
// passed over.
//
// Memory: on Hopper that form keeps the gradients of a block of scores in the work space, batch *
// q_heads * sequence^2 elements of bf16. Backward therefore goes over the samples and key/value
// heads in slices of at most 1 GiB of them, or of one key/value head with its queries where that
// takes more.
#pragma once

#include <memory>

#include "kernels/cuda/device.h"
#include "kernels/cudnn_memory.h"
#include "kernels/shapes.h"
#include "kernels/tensor.h"

namespace perdure::cuda {

// Whether it can read and write this matrix: rows begin at multiples of 16 bytes.
bool CudnnReads(ConstMatrix x);

class CudnnAttention {
 public:
  // `work` is for this object's use alone while it works.
  CudnnAttention(const Stream* stream, Workspace* work);
  ~CudnnAttention();
  CudnnAttention(const CudnnAttention&) = delete;
  CudnnAttention& operator=(const CudnnAttention&) = delete;

  // As Ops::AttentionForward and AttentionBackward. REQUIRES: CudnnTakes(shape, qkv.dtype), and
  // CudnnReads() of each matrix.
  void Forward(ConstMatrix qkv, const AttentionShape& shape, Matrix out, float* lse);
  void Backward(ConstMatrix dout, ConstMatrix qkv, ConstMatrix out, const float* lse,
                const AttentionShape& shape, Matrix dqkv);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace perdure::cuda
