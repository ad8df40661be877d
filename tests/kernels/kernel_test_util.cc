#include "tests/kernels/kernel_test_util.h"

#include <iomanip>
#include <random>
#include <sstream>

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

namespace {

// Elements that are not as they should be: how many, the first, and the worst.
class Mismatches {
 public:
  explicit Mismatches(int64_t cols) : cols_(cols) {}

  // `excess` orders them; NaN is the worst.
  void Add(int64_t element, double got, double want, double excess) {
    const Mismatch mismatch = {element, got, want, std::isnan(excess) ? HUGE_VAL : excess};
    if (count_++ == 0) first_ = worst_ = mismatch;
    if (mismatch.excess > worst_.excess) worst_ = mismatch;
  }
  int64_t count() const { return count_; }
  void Print(std::ostream& out, int64_t size) const {
    out << count_ << " of " << size << " elements differ; first ";
    Print(out, first_);
    if (worst_.element == first_.element) return;
    out << "; worst ";
    Print(out, worst_);
  }

 private:
  struct Mismatch {
    int64_t element = 0;
    double got = 0, want = 0, excess = 0;
  };
  void Print(std::ostream& out, const Mismatch& mismatch) const {
    out << "(" << mismatch.element / cols_ << ", " << mismatch.element % cols_
        << "): " << std::setprecision(9) << mismatch.got << ", not " << mismatch.want;
  }

  int64_t cols_;
  int64_t count_ = 0;
  Mismatch first_, worst_;
};

}  // namespace

void ExpectNear(const Tensor& got, const std::vector<double>& want, double tolerance, double scale,
                const std::string& what) {
  ASSERT_EQ(got.size(), static_cast<int64_t>(want.size())) << what;
  Mismatches wrong(got.cols());
  for (int64_t i = 0; i < got.size(); ++i) {
    const double allowed = tolerance * (std::abs(want[i]) + scale);
    const double error = std::abs(got.Get(i) - want[i]);
    if (!(error <= allowed)) wrong.Add(i, got.Get(i), want[i], error / allowed);
  }
  if (wrong.count() == 0) return;
  std::ostringstream text;
  wrong.Print(text, got.size());
  GTEST_FAIL() << what << ": " << text.str();
}

testing::AssertionResult SameBits(std::string_view got, std::string_view want) {
  if (got == want) return testing::AssertionSuccess();
  if (got.size() != want.size())
    return testing::AssertionFailure() << got.size() << " bytes, not " << want.size();
  size_t differ = 0, first = 0;
  for (size_t i = got.size(); i-- > 0;) {
    if (got[i] == want[i]) continue;
    ++differ;
    first = i;
  }
  return testing::AssertionFailure()
         << differ << " of " << got.size() << " bytes differ, the first at " << first;
}

testing::AssertionResult SameBits(const Tensor& got, const Tensor& want) {
  const std::string got_bits = got.Bits(), want_bits = want.Bits();
  if (got_bits == want_bits) return testing::AssertionSuccess();
  if (got.rows() != want.rows() || got.cols() != want.cols() ||
      got.view().dtype != want.view().dtype)
    return testing::AssertionFailure() << "other shape or type";
  const size_t element = SizeOf(got.view().dtype);
  Mismatches wrong(got.cols());
  for (int64_t i = 0; i < got.size(); ++i) {
    const size_t at = static_cast<size_t>(i) * element;
    if (std::string_view(got_bits).substr(at, element) !=
        std::string_view(want_bits).substr(at, element))
      wrong.Add(i, got.Get(i), want.Get(i), std::abs(got.Get(i) - want.Get(i)));
  }
  std::ostringstream text;
  wrong.Print(text, got.size());
  return testing::AssertionFailure() << text.str();
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
