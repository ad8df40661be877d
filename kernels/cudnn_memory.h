// What cuDNN's attention takes of a shape, and the work space that its backward pass needs: plain
// arithmetic, for kernels/cuda and for plans made where there is no GPU.
#pragma once

#include <cstdint>

#include "kernels/shapes.h"
#include "kernels/tensor.h"

namespace perdure {

// Whether cuDNN's kernels serve the shape, given operands that it can read; else ours do.
bool CudnnTakes(const AttentionShape& shape, DType dtype);

// What one execution of the backward pass takes: some samples, or some key/value heads of one, with
// the query heads that read them. Its deterministic form holds the gradients of all the slice's
// scores in bf16, so slices are cut to keep them within 1 GiB, or are one key/value head.
AttentionShape CudnnBackwardSlice(const AttentionShape& shape);

// Device memory that a backward pass of the CUDA backend works in beside its operands.
int64_t CudaAttentionWorkBytes(const AttentionShape& shape, DType dtype);

}  // namespace perdure
