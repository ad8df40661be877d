// What is the same for all elements of an AdamW update, for every backend: the same bits
// everywhere. Nothing here needs more than the standard library: CUDA sources include it.
#pragma once

#include "kernels/shapes.h"

namespace perdure {

// Computed in double and rounded once, as PyTorch does it.
struct AdamWFactors {
  float gradient_scale = 1;
  float decay = 1;
  float gradient1 = 0;  // 1 - beta1.
  float beta2 = 0;
  float gradient2 = 0;  // 1 - beta2.
  float correction2 = 1;
  float eps = 0;
  float minus_rate = 0;
};

AdamWFactors FactorsOf(const AdamWStep& step);

}  // namespace perdure
