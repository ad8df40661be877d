#include <cmath>
#include <limits>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/kernels.h"

namespace perdure::cpu {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

void CrossEntropyMax(ConstMatrix logits, float* row_max) {
  PERDURE_CHECK(logits.dtype == DType::kF32);
  for (int64_t t = 0; t < logits.rows; ++t) {
    const float* row = Row<float>(logits, t);
    F16 largest = F16::Broadcast(kMinusInfinity);
    ForLanes(logits.cols, [&](int64_t i, auto count) PERDURE_INLINE {
      largest = Max(largest, Load(row + i, count, kMinusInfinity));
    });
    row_max[t] = MaxHalves(largest);
  }
}

void CrossEntropySum(Matrix logits, const float* row_max, const int32_t* targets,
                     int64_t column_begin, float* row_sum, float* target_logit) {
  PERDURE_CHECK(logits.dtype == DType::kF32);
  for (int64_t t = 0; t < logits.rows; ++t) {
    float* row = Row<float>(logits, t);
    const float largest = row_max[t];
    const int64_t target = targets[t] - column_begin;
    target_logit[t] = target >= 0 && target < logits.cols ? row[target] - largest : 0.0f;
    F16 sum = F16::Zero();
    ForLanes(logits.cols, [&](int64_t i, auto count) PERDURE_INLINE {
      const F16 e = Exp(Load(row + i, count, kMinusInfinity) - largest);
      Store(row + i, e, count);
      sum = sum + e;
    });
    row_sum[t] = SumHalves(sum);
  }
}

void CrossEntropyLoss(const float* row_sum, const float* target_logit, int64_t rows, double* loss) {
  for (int64_t t = 0; t < rows; ++t)
    *loss += std::log(static_cast<double>(row_sum[t])) - static_cast<double>(target_logit[t]);
}

void CrossEntropyGradient(ConstMatrix exp_logits, const float* row_sum, const int32_t* targets,
                          int64_t column_begin, float scale, Matrix dlogits) {
  PERDURE_CHECK(exp_logits.dtype == DType::kF32);
  PERDURE_CHECK(SameShape(exp_logits, dlogits));
  WithType(dlogits.dtype, [&]<typename T>(TypeTag<T>) {
    for (int64_t t = 0; t < dlogits.rows; ++t) {
      const float* row = Row<float>(exp_logits, t);
      T* to = Row<T>(dlogits, t);
      const int64_t target = targets[t] - column_begin;
      const bool here = target >= 0 && target < dlogits.cols;
      // Read before the loop: dlogits may be exp_logits.
      const float at_target = here ? (row[target] / row_sum[t] - 1.0f) * scale : 0.0f;
      ForLanes(dlogits.cols, [&](int64_t i, auto count) PERDURE_INLINE {
        Store(to + i, Load(row + i, count) / row_sum[t] * scale, count);
      });
      if (here) to[target] = FromFloat<T>(at_target);
    }
  });
}

}  // namespace perdure::cpu
