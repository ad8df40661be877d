#include "kernels/cpu/vector_math.h"

namespace perdure::cpu {

float Log(float x) {
  if (!(x < std::numeric_limits<float>::infinity())) return x;
  // x = 2^n * (1 + f), sqrt(1/2) <= 1 + f < sqrt(2).
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  constexpr uint32_t kSqrtHalf = 0x3f3504f3u;
  const int32_t n = std::bit_cast<int32_t>(bits - kSqrtHalf) >> 23;
  const double f = double{std::bit_cast<float>(bits - (static_cast<uint32_t>(n) << 23))} - 1.0;
  // log(1 + f) = 2 atanh(s), s = f / (2 + f): |s| < 0.1716, so six terms leave 1e-11.
  const double s = f / (2.0 + f);
  const double z = s * s;
  const double series =
      1.0 + z * (1.0 / 3 + z * (1.0 / 5 + z * (1.0 / 7 + z * (1.0 / 9 + z * (1.0 / 11)))));
  return static_cast<float>(n * 0.693147180559945309 + 2.0 * s * series);
}

}  // namespace perdure::cpu
