#include "kernels/adamw_factors.h"

#include <cmath>

namespace perdure {
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

}  // namespace

AdamWFactors FactorsOf(const AdamWStep& step) {
  return {.gradient_scale = static_cast<float>(step.gradient_scale),
          .decay = static_cast<float>(1.0 - step.rate * step.weight_decay),
          .gradient1 = static_cast<float>(1.0 - step.beta1),
          .beta2 = static_cast<float>(step.beta2),
          .gradient2 = static_cast<float>(1.0 - step.beta2),
          .correction2 = static_cast<float>(std::sqrt(1.0 - Power(step.beta2, step.step))),
          .eps = static_cast<float>(step.eps),
          .minus_rate = static_cast<float>(-(step.rate / (1.0 - Power(step.beta1, step.step))))};
}

}  // namespace perdure
