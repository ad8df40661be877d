#include "tests/kernels/kernel_test_util.h"

#include <random>

namespace perdure {

Tensor::Tensor(DType dtype, int64_t rows, int64_t cols, Placement placement)
    : storage_((rows * (cols + placement.row_gap) + 64 + placement.offset) * SizeOf(dtype) + 192,
               kPattern) {
  const size_t past_aligned = reinterpret_cast<uintptr_t>(storage_.data()) % 64;
  view_ = Matrix(storage_.data() + (128 - past_aligned) + placement.offset * SizeOf(dtype), dtype,
                 rows, cols);
  view_.stride = cols + placement.row_gap;
  for (int64_t i = 0; i < size(); ++i) Set(i, 0);
}

Tensor& Tensor::Randomize(uint64_t seed, double range) {
  std::mt19937_64 random(seed);
  for (int64_t i = 0; i < size(); ++i) {
    Set(i, range * (std::ldexp(static_cast<double>(random() >> 11), -52) - 1.0));
  }
  return *this;
}

std::string Tensor::Bits() const {
  std::string bits;
  const size_t element = SizeOf(view_.dtype);
  for (int64_t r = 0; r < rows(); ++r) {
    bits.append(static_cast<const char*>(view_.data) + r * view_.stride * element,
                cols() * element);
  }
  return bits;
}

void Tensor::ExpectEdgesIntact() const {
  const size_t element = SizeOf(view_.dtype);
  std::vector<bool> ours(storage_.size(), false);
  for (int64_t r = 0; r < rows(); ++r) {
    const char* row = static_cast<const char*>(view_.data) + r * view_.stride * element;
    for (size_t b = 0; b < cols() * element; ++b) ours[row - storage_.data() + b] = true;
  }
  for (size_t b = 0; b < storage_.size(); ++b) {
    ASSERT_TRUE(ours[b] || storage_[b] == kPattern) << "written outside, at byte " << b;
  }
}

void ExpectNear(const Tensor& got, const std::vector<double>& want, double tolerance, double scale,
                const std::string& what) {
  ASSERT_EQ(got.size(), static_cast<int64_t>(want.size())) << what;
  for (int64_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(got.Get(i) - want[i]);
    ASSERT_TRUE(error <= tolerance * (std::abs(want[i]) + scale))
        << what << ": element " << i << " (row " << i / got.cols() << ", column " << i % got.cols()
        << ") is " << got.Get(i) << ", not " << want[i];
  }
}

void ExpectGradient(const std::function<double()>& loss, Tensor& x, const Tensor& gradient,
                    double step, double tolerance, const std::string& what, int64_t every) {
  ASSERT_EQ(x.size(), gradient.size());
  for (int64_t i = 0; i < x.size(); i += every) {
    const double value = x.Get(i);
    x.Set(i, value + step);
    const double above = x.Get(i);
    const double loss_above = loss();
    x.Set(i, value - step);
    const double below = x.Get(i);
    const double loss_below = loss();
    x.Set(i, value);
    const double slope = (loss_above - loss_below) / (above - below);
    ASSERT_NEAR(gradient.Get(i), slope, tolerance * (1 + std::abs(slope)))
        << what << ": element " << i;
  }
}

double WeightedSum(const Tensor& values, const Tensor& weights) {
  double sum = 0;
  for (int64_t i = 0; i < values.size(); ++i) sum += values.Get(i) * weights.Get(i);
  return sum;
}

}  // namespace perdure
