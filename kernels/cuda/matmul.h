// Matrix products by cuBLASLt. A plan (layouts, algorithm) is made once per shape and kept.
//
// Bits: the algorithm is the library's first choice for (shape, dtypes, strides, 16-byte
// alignment), asked for in one way only, and never timed: it depends on the shape, the library and
// the device, which numerics.isa names. Reductions across thread blocks are only those whose order
// is fixed.
#pragma once

#include <memory>

#include "kernels/cuda/device.h"
#include "kernels/shapes.h"
#include "kernels/tensor.h"

namespace perdure::cuda {

class MatmulLibrary {
 public:
  explicit MatmulLibrary(const Stream* stream);
  ~MatmulLibrary();
  MatmulLibrary(const MatmulLibrary&) = delete;
  MatmulLibrary& operator=(const MatmulLibrary&) = delete;

  // c = addend + op(a) op(b). addend: null data (left out), c itself, or a matrix of c's shape,
  // dtype and stride that does not overlap c. The product is complete before the addition, which
  // is in fp32; the library may round it to c's dtype first, as the shape decides.
  void Multiply(Transpose transpose_a, Transpose transpose_b, ConstMatrix a, ConstMatrix b,
                ConstMatrix addend, Matrix c);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace perdure::cuda
