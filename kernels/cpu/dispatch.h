// From a run-time DType to a compile-time element type.
#pragma once

#include "kernels/cpu/vector_math.h"
#include "kernels/tensor.h"
#include "runtime/base/check.h"

namespace perdure::cpu {

template <typename T>
struct TypeTag {
  using Type = T;
};

// Calls f(TypeTag<T>{}) with the element type of `dtype`.
template <typename F>
void WithType(DType dtype, F&& f) {
  PERDURE_CHECK(dtype == DType::kF32 || dtype == DType::kBF16);
  if (dtype == DType::kF32) {
    f(TypeTag<float>{});
  } else {
    f(TypeTag<BFloat16>{});
  }
}

// The start of a row, typed. The caller has chosen T by the dtype.
template <typename T>
const T* Row(const ConstMatrix& x, int64_t row) {
  return static_cast<const T*>(x.data) + row * x.stride;
}
template <typename T>
T* Row(const Matrix& x, int64_t row) {
  return static_cast<T*>(x.data) + row * x.stride;
}

}  // namespace perdure::cpu
