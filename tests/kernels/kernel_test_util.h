// What the kernel tests share: tensors with awkward addresses and guarded edges, random values, and
// comparisons against references written in double.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <memory_resource>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cpu/vector_math.h"
#include "kernels/ops.h"
#include "tests/backends.h"

namespace perdure {

// Where a test tensor lies: the distance between rows beyond its columns, and its start beyond a
// multiple of 64 bytes, both in elements.
struct Placement {
  int64_t row_gap = 0;
  int64_t offset = 0;
};

// An owning matrix, read and written as doubles, which every backend reaches (tests/backends.h).
// What surrounds its elements is filled with a pattern that ExpectEdgesIntact looks for.
class Tensor {
 public:
  Tensor(DType dtype, int64_t rows, int64_t cols, Placement placement = {});  // All zero.
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  Matrix view() const { return view_; }
  operator Matrix() const { return view_; }       // NOLINT: tests read better
  operator ConstMatrix() const { return view_; }  // NOLINT
  float* floats() const {
    EXPECT_EQ(view_.dtype, DType::kF32);
    return static_cast<float*>(view_.data);
  }
  int64_t rows() const { return view_.rows; }
  int64_t cols() const { return view_.cols; }
  int64_t size() const { return view_.size(); }

  // Element i in row-major order without gaps.
  double Get(int64_t i) const { return Get(i / view_.cols, i % view_.cols); }
  double Get(int64_t r, int64_t c) const {
    if (view_.dtype == DType::kF32) return static_cast<const float*>(view_.data)[Index(r, c)];
    return cpu::ToFloat(static_cast<const cpu::BFloat16*>(view_.data)[Index(r, c)]);
  }
  void Set(int64_t i, double value) { Set(i / view_.cols, i % view_.cols, value); }
  void Set(int64_t r, int64_t c, double value) {
    const float rounded = static_cast<float>(value);
    if (view_.dtype == DType::kF32) {
      static_cast<float*>(view_.data)[Index(r, c)] = rounded;
    } else {
      static_cast<cpu::BFloat16*>(view_.data)[Index(r, c)] = cpu::ToBFloat16(rounded);
    }
  }
  void CopyFrom(const Tensor& other) {
    ASSERT_EQ(size(), other.size());
    for (int64_t i = 0; i < size(); ++i) Set(i, other.Get(i));
  }

  // Uniform in [-range, range).
  Tensor& Randomize(uint64_t seed, double range = 1.0);

  std::vector<double> Values() const {
    std::vector<double> values(size());
    for (int64_t i = 0; i < size(); ++i) values[i] = Get(i);
    return values;
  }

  // The elements' bytes, gaps left out.
  std::string Bits() const;

  void ExpectEdgesIntact() const;

 private:
  static constexpr char kPattern = 0x5a;
  int64_t Index(int64_t r, int64_t c) const { return r * view_.stride + c; }

  std::pmr::vector<char> storage_;
  Matrix view_;
};

// Token ids where every backend reaches them.
using Tokens = std::pmr::vector<int32_t>;

// The relative rounding error of one number of a type.
inline double Epsilon(DType dtype) { return dtype == DType::kF32 ? 0x1p-24 : 0x1p-8; }

// |got - want| <= tolerance * (|want| + scale), element by element; NaN never passes. A failure
// tells how many elements are off, the first and the worst.
void ExpectNear(const Tensor& got, const std::vector<double>& want, double tolerance, double scale,
                const std::string& what);

// For EXPECT_TRUE: whether two Tensor::Bits() are equal, else how much of them is not.
testing::AssertionResult SameBits(std::string_view got, std::string_view want);
// Of two tensors; tells elements and their values.
testing::AssertionResult SameBits(const Tensor& got, const Tensor& want);

// Central differences of `loss` in every `every`-th element of x (fp32) against `gradient`.
void ExpectGradient(const std::function<double()>& loss, Tensor& x, const Tensor& gradient,
                    double step, double tolerance, const std::string& what, int64_t every = 1);

// sum of weights * values: a scalar whose gradient in the values is `weights`.
double WeightedSum(const Tensor& values, const Tensor& weights);

}  // namespace perdure
