// Matrix products by oneDNN, which no other file of the CPU backend knows.
//
// Every product is a plain function of shapes, strides, types and thread count to a library kernel:
// nothing is timed, and nothing is packed ahead. Measured on Zen 4, one thread: plain layouts reach
// 92-99 % of packed ones, so packing would buy nothing.
#pragma once

#include <memory>
#include <string>

#include "kernels/ops.h"

namespace perdure::cpu {

class MatmulLibrary {
 public:
  explicit MatmulLibrary(int threads);
  ~MatmulLibrary();
  MatmulLibrary(const MatmulLibrary&) = delete;
  MatmulLibrary& operator=(const MatmulLibrary&) = delete;

  // As Ops::Matmul.
  void Multiply(Transpose transpose_a, Transpose transpose_b, ConstMatrix a, ConstMatrix b,
                Matrix c, bool accumulate);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace perdure::cpu
