// Zero, Copy, Add, TreeSum, SumsOfSquares and the embedding's lookups and scatter-add.
#include <algorithm>
#include <limits>
#include <memory>

#include "tests/kernels/kernel_test_util.h"

namespace perdure {
namespace {

constexpr DType kF32 = DType::kF32;
constexpr DType kBF16 = DType::kBF16;

TEST(ZeroTest, ZeroesTheElementsAndNoGap) {
  const auto ops = NewCpuOps(1);
  for (DType dtype : {kF32, kBF16}) {
    for (const Placement placement : {Placement{}, {3, 5}}) {
      Tensor x(dtype, 4, 19, placement);
      x.Randomize(1);
      ops->Zero(x);
      EXPECT_EQ(x.Values(), std::vector<double>(x.size(), 0.0));
      x.ExpectEdgesIntact();
    }
  }
  ops->Zero(Matrix());
}

TEST(CopyTest, RoundsOnceToNearestEven) {
  const auto ops = NewCpuOps(1);
  for (DType from : {kF32, kBF16}) {
    for (DType to : {kF32, kBF16}) {
      for (int64_t cols : {1, 16, 37}) {
        Tensor src(from, 3, cols, {.row_gap = 2, .offset = 1}), dst(to, 3, cols, {5, 3});
        src.Randomize(1);
        std::vector<double> want;
        for (int64_t i = 0; i < src.size(); ++i) {
          const auto value = static_cast<float>(src.Get(i));
          want.push_back(to == kF32 ? value : cpu::ToFloat(cpu::ToBFloat16(value)));
        }
        ops->Copy(src, dst);
        EXPECT_EQ(dst.Values(), want);
        dst.ExpectEdgesIntact();
      }
    }
  }
}

TEST(AddTest, AddsInPlace) {
  const auto ops = NewCpuOps(1);
  for (int64_t cols : {1, 16, 37}) {
    Tensor x(kF32, 3, cols, {2, 1}), acc(kF32, 3, cols, {5, 7});
    x.Randomize(1);
    acc.Randomize(2);
    std::vector<double> want;
    for (int64_t i = 0; i < x.size(); ++i) {
      want.push_back(static_cast<float>(acc.Get(i)) + static_cast<float>(x.Get(i)));
    }
    ops->Add(x, acc);
    EXPECT_EQ(acc.Values(), want);
    acc.ExpectEdgesIntact();
  }
}

// The contract's own recursion, on floats.
float Tree(std::span<const float> parts) {
  if (parts.size() == 1) return parts[0];
  const size_t half = parts.size() / 2;
  return Tree(parts.first(half)) + Tree(parts.subspan(half));
}

TEST(TreeSumTest, EqualsTheTreeBitForBit) {
  const auto ops = NewCpuOps(1);
  for (int count : {1, 2, 4, 8, 16, 32, 64}) {
    for (const auto& [residual_type, out_type] :
         {std::pair{kF32, kF32}, {kBF16, kBF16}, {kBF16, kF32}}) {
      for (bool has_residual : {false, true}) {
        const int64_t cols = 37;
        std::vector<std::unique_ptr<Tensor>> tensors;
        std::vector<ConstMatrix> parts;
        for (int p = 0; p < count; ++p) {
          tensors.push_back(std::make_unique<Tensor>(kF32, 3, cols, Placement{p, p}));
          parts.push_back(tensors.back()->Randomize(p + 10, 1 + p));
        }
        Tensor residual(residual_type, 3, cols, {1, 1}), out(out_type, 3, cols, {4, 9});
        residual.Randomize(1);
        std::vector<double> want;
        for (int64_t i = 0; i < out.size(); ++i) {
          std::vector<float> values;
          for (const auto& tensor : tensors) values.push_back(static_cast<float>(tensor->Get(i)));
          float sum = Tree(values);
          if (has_residual) sum = static_cast<float>(residual.Get(i)) + sum;
          want.push_back(out_type == kF32 ? sum : cpu::ToFloat(cpu::ToBFloat16(sum)));
        }
        ops->TreeSum(parts, has_residual ? ConstMatrix(residual) : ConstMatrix(), out);
        EXPECT_EQ(out.Values(), want) << count << " parts";
        out.ExpectEdgesIntact();
      }
    }
  }
}

// The tree of parts is the tree of its halves' trees: what lets ranks share it.
TEST(TreeSumTest, SubtreesFirstChangesNothing) {
  const auto ops = NewCpuOps(1);
  std::vector<std::unique_ptr<Tensor>> tensors;
  std::vector<ConstMatrix> parts;
  for (int p = 0; p < 8; ++p) {
    tensors.push_back(std::make_unique<Tensor>(kF32, 2, 33));
    parts.push_back(tensors.back()->Randomize(p, 1e3));
  }
  Tensor whole(kF32, 2, 33), left(kF32, 2, 33), right(kF32, 2, 33), joined(kF32, 2, 33);
  ops->TreeSum(parts, ConstMatrix(), whole);
  ops->TreeSum(std::span(parts).first(4), ConstMatrix(), left);
  ops->TreeSum(std::span(parts).subspan(4), ConstMatrix(), right);
  const std::vector<ConstMatrix> halves = {left, right};
  ops->TreeSum(halves, ConstMatrix(), joined);
  EXPECT_EQ(joined.Bits(), whole.Bits());
}

TEST(TreeSumTest, ResidualMayBeTheResult) {
  const auto ops = NewCpuOps(1);
  Tensor part(kF32, 2, 21), residual(kF32, 2, 21), out(kF32, 2, 21);
  const std::vector<ConstMatrix> parts = {part.Randomize(1), part};
  residual.Randomize(2);
  ops->TreeSum(parts, residual, out);
  ops->TreeSum(parts, residual, residual);
  EXPECT_EQ(residual.Bits(), out.Bits());
}

TEST(SumOfSquaresTest, SumsSixteenLanesInDoubleBitForBit) {
  const auto ops = NewCpuOps(1);
  for (int64_t count : {0, 1, 15, 16, 17, 1000}) {
    for (int64_t offset : {0, 1, 7}) {
      Tensor x(kF32, 1, count, {.row_gap = 0, .offset = offset});
      x.Randomize(1, 1e15);
      double lanes[16] = {};
      for (int64_t i = 0; i < count; ++i) lanes[i % 16] += x.Get(i) * x.Get(i);
      for (int half : {8, 4, 2, 1}) {
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
      }
      double sum = -1;
      const ElementRun run{.begin = 0, .count = count};
      ops->SumsOfSquares(x.floats(), {&run, 1}, &sum);
      EXPECT_EQ(sum, lanes[0]) << count;
    }
  }
}

class EmbeddingTest : public testing::TestWithParam<DType> {
 protected:
  const std::unique_ptr<Ops> ops_ = NewCpuOps(1);
  const std::vector<int32_t> tokens_ = {5, 2, 9, 5, 4, 0, 5};  // 0, 2 and 9 are not in rows [3, 9).
};
INSTANTIATE_TEST_SUITE_P(All, EmbeddingTest, testing::Values(kF32, kBF16));

TEST_P(EmbeddingTest, LooksUpItsRowsAndZeroesTheOthers) {
  for (int64_t hidden : {1, 16, 37}) {
    Tensor table(GetParam(), 6, hidden, {2, 1}), out(GetParam(), 7, hidden, {3, 5});
    table.Randomize(1);
    table.Set(5 - 3, 0, -0.0);
    out.Randomize(2);
    ops_->EmbeddingForward(tokens_.data(), table, 3, out);
    for (int64_t t = 0; t < 7; ++t) {
      const int64_t row = tokens_[t] - 3;
      for (int64_t c = 0; c < hidden; ++c) {
        EXPECT_EQ(out.Get(t, c), row >= 0 && row < 6 ? table.Get(row, c) : 0);
        EXPECT_FALSE(out.Get(t, c) == 0 && std::signbit(out.Get(t, c))) << "-0 became +0";
      }
    }
    out.ExpectEdgesIntact();
  }
}

TEST_P(EmbeddingTest, AddsGradientsInTokenOrder) {
  for (int64_t hidden : {1, 16, 37}) {
    Tensor dout(GetParam(), 7, hidden, {3, 5}), dtable(kF32, 6, hidden, {2, 1});
    dout.Randomize(1);
    dtable.Randomize(2, 100.0);
    std::vector<double> want = dtable.Values();
    for (int64_t t = 0; t < 7; ++t) {
      const int64_t row = tokens_[t] - 3;
      if (row < 0 || row >= 6) continue;
      for (int64_t c = 0; c < hidden; ++c) {
        double& sum = want[row * hidden + c];
        sum = static_cast<float>(sum) + static_cast<float>(dout.Get(t, c));
      }
    }
    ops_->EmbeddingBackward(tokens_.data(), dout, 3, dtable);
    EXPECT_EQ(dtable.Values(), want);
    dtable.ExpectEdgesIntact();
  }
}

TEST(SumsDeathTest, WrongOperandsEndTheProcess) {
  const auto ops = NewCpuOps(1);
  const Tensor x(kF32, 2, 3), wide(kF32, 2, 4), half(kBF16, 2, 3);
  EXPECT_DEATH(ops->Copy(x, wide), "SameShape");
  EXPECT_DEATH(ops->Add(x, wide), "SameShape");
  EXPECT_DEATH(ops->Add(half, x), "dtype");
  const std::vector<ConstMatrix> three(3, x), one(1, x), odd(1, half);
  EXPECT_DEATH(ops->TreeSum(three, ConstMatrix(), x), "power of two");
  EXPECT_DEATH(ops->TreeSum({}, ConstMatrix(), x), "power of two");
  EXPECT_DEATH(ops->TreeSum(one, wide, x), "SameShape");
  EXPECT_DEATH(ops->TreeSum(one, x, half), "dtype");
  EXPECT_DEATH(ops->TreeSum(odd, ConstMatrix(), x), "dtype");
  const int32_t tokens[] = {0, 1};
  EXPECT_DEATH(ops->EmbeddingForward(tokens, x, 0, wide), "cols");
  EXPECT_DEATH(ops->EmbeddingForward(tokens, x, 0, half), "dtype");
  EXPECT_DEATH(ops->EmbeddingBackward(tokens, half, 0, half), "dtype");
}

}  // namespace
}  // namespace perdure
