#include <cmath>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/kernels.h"

namespace perdure::cpu {
namespace {

// base^exponent by repeated squaring: libm's pow may differ in its last bit from one machine to the
// next.
double Power(double base, int64_t exponent) {
  double power = 1.0;
  for (; exponent > 0; exponent /= 2) {
    if (exponent % 2 != 0) power *= base;
    base *= base;
  }
  return power;
}

// Everything that is the same for all elements, in double and rounded once, as PyTorch does it.
struct Factors {
  explicit Factors(const AdamWStep& step)
      : gradient_scale(static_cast<float>(step.gradient_scale)),
        decay(static_cast<float>(1.0 - step.rate * step.weight_decay)),
        gradient1(static_cast<float>(1.0 - step.beta1)),
        beta2(static_cast<float>(step.beta2)),
        gradient2(static_cast<float>(1.0 - step.beta2)),
        correction2(static_cast<float>(std::sqrt(1.0 - Power(step.beta2, step.step)))),
        eps(static_cast<float>(step.eps)),
        minus_rate(static_cast<float>(-(step.rate / (1.0 - Power(step.beta1, step.step))))) {}

  float gradient_scale;
  float decay;
  float gradient1;
  float beta2;
  float gradient2;
  float correction2;
  float eps;
  float minus_rate;
};

}  // namespace

void AdamW(const AdamWStep& step, const float* gradient, float* master, float* exp_avg,
           float* exp_avg_sq, Matrix param) {
  PERDURE_CHECK(step.step >= 1);
  PERDURE_CHECK(param.contiguous());
  const Factors f(step);
  WithType(param.dtype, [&]<typename T>(TypeTag<T>) {
    T* rounded = static_cast<T*>(param.data);
    ForLanes(param.size(), [&](int64_t i, auto count) PERDURE_INLINE {
      const F16 g = Load(gradient + i, count) * f.gradient_scale;
      F16 m = Load(exp_avg + i, count);
      m = MulAdd(g - m, f.gradient1, m);  // PyTorch's lerp_.
      const F16 v = Load(exp_avg_sq + i, count) * f.beta2 + f.gradient2 * g * g;
      const F16 denominator = Sqrt(v) / f.correction2 + f.eps;
      const F16 value = Load(master + i, count) * f.decay + f.minus_rate * m / denominator;
      Store(exp_avg + i, m, count);
      Store(exp_avg_sq + i, v, count);
      Store(master + i, value, count);
      Store(rounded + i, value, count);
    });
  });
}

}  // namespace perdure::cpu
