#include <cmath>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/kernels.h"

namespace perdure::cpu {

void RmsNormForward(ConstMatrix x, ConstMatrix weight, float eps, Matrix y, float* rstd) {
  PERDURE_CHECK(SameShape(x, y));
  PERDURE_CHECK(weight.rows == 1 && weight.cols == x.cols);
  PERDURE_CHECK(x.dtype == y.dtype && x.dtype == weight.dtype);
  WithType(x.dtype, [&]<typename T>(TypeTag<T>) {
    const T* scale = Row<T>(weight, 0);
    for (int64_t r = 0; r < x.rows; ++r) {
      const T* from = Row<T>(x, r);
      T* to = Row<T>(y, r);
      F16 squares = F16::Zero();
      ForLanes(x.cols, [&](int64_t i, auto count) PERDURE_INLINE {
        const F16 value = Load(from + i, count);
        squares = MulAdd(value, value, squares);
      });
      const float mean = SumHalves(squares) / static_cast<float>(x.cols);
      const float inverse = 1.0f / std::sqrt(mean + eps);
      rstd[r] = inverse;
      ForLanes(x.cols, [&](int64_t i, auto count) PERDURE_INLINE {
        Store(to + i, Load(from + i, count) * inverse * Load(scale + i, count), count);
      });
    }
  });
}

// With u = x * rstd and g = dy * weight: dx = rstd * (g - u * mean(g * u)), dweight = sum over a
// slice's rows of dy * u.
void RmsNormBackward(ConstMatrix dy, ConstMatrix x, ConstMatrix weight, const float* rstd,
                     ConstMatrix dresidual, Matrix dx, Matrix dweight) {
  PERDURE_CHECK(SameShape(dy, x) && SameShape(dx, x));
  PERDURE_CHECK(weight.rows == 1 && weight.cols == x.cols);
  PERDURE_CHECK(dweight.cols == x.cols && dweight.rows > 0 && x.rows % dweight.rows == 0);
  PERDURE_CHECK(dy.dtype == x.dtype && weight.dtype == x.dtype && dx.dtype == x.dtype);
  PERDURE_CHECK(dweight.dtype == DType::kF32);
  const bool has_residual = dresidual.data != nullptr;
  if (has_residual) PERDURE_CHECK(SameShape(dresidual, x) && dresidual.dtype == x.dtype);
  WithType(x.dtype, [&]<typename T>(TypeTag<T>) {
    const T* scale = Row<T>(weight, 0);
    const int64_t slice_rows = x.rows / dweight.rows;
    for (int64_t r = 0; r < x.rows; ++r) {
      float* dscale = Row<float>(dweight, r / slice_rows);
      const T* dout = Row<T>(dy, r);
      const T* from = Row<T>(x, r);
      const T* base = has_residual ? Row<T>(dresidual, r) : nullptr;
      T* to = Row<T>(dx, r);
      const float inverse = rstd[r];
      F16 dot = F16::Zero();
      ForLanes(x.cols, [&](int64_t i, auto count) PERDURE_INLINE {
        const F16 d = Load(dout + i, count);
        const F16 unit = Load(from + i, count) * inverse;
        dot = MulAdd(d * Load(scale + i, count), unit, dot);
        Store(dscale + i, MulAdd(d, unit, Load(dscale + i, count)), count);
      });
      const float mean = SumHalves(dot) / static_cast<float>(x.cols);
      ForLanes(x.cols, [&](int64_t i, auto count) PERDURE_INLINE {
        const F16 unit = Load(from + i, count) * inverse;
        F16 grad = (Load(dout + i, count) * Load(scale + i, count) - unit * mean) * inverse;
        if (base != nullptr) grad = Load(base + i, count) + grad;
        Store(to + i, grad, count);
      });
    }
  });
}

}  // namespace perdure::cpu
