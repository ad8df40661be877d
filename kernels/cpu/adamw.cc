#include "kernels/adamw_factors.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/kernels.h"

namespace perdure::cpu {

void AdamW(const AdamWStep& step, const float* gradient, float* master, float* exp_avg,
           float* exp_avg_sq, Matrix param) {
  PERDURE_CHECK(step.step >= 1);
  PERDURE_CHECK(param.contiguous());
  const AdamWFactors f = FactorsOf(step);
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
