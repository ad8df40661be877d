// Zero, Copy, Add, Max, TreeSum, SumsOfSquares and the embedding's lookups and scatter-add.
#include <algorithm>
#include <limits>
#include <memory>

#include "tests/kernels/kernel_test_util.h"

namespace perdure {
namespace {

constexpr DType kF32 = DType::kF32;
constexpr DType kBF16 = DType::kBF16;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

class SumsTest : public OpsTest {};
INSTANTIATE_TEST_SUITE_P(Ops, SumsTest, EveryBackend(), BackendName);
class SumsDeathTest : public OpsTest {};
INSTANTIATE_TEST_SUITE_P(Ops, SumsDeathTest, EveryBackend(), BackendName);

TEST_P(SumsTest, ZeroZeroesTheElementsAndNoGap) {
  for (DType dtype : {kF32, kBF16}) {
    for (const Placement placement : {Placement{}, {3, 5}}) {
      Tensor x(dtype, 4, 19, placement);
      x.Randomize(1);
      ops_->Zero(x);
      EXPECT_EQ(x.Values(), std::vector<double>(x.size(), 0.0));
      x.ExpectEdgesIntact();
    }
  }
  ops_->Zero(Matrix());
}

TEST_P(SumsTest, CopyRoundsOnceToNearestEven) {
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
        ops_->Copy(src, dst);
        EXPECT_EQ(dst.Values(), want);
        dst.ExpectEdgesIntact();
      }
    }
  }
}

TEST_P(SumsTest, CopyKeepsWhatIsNoOrdinaryNumber) {
  Tensor src(kF32, 1, 9), half(kBF16, 1, 9), back(kF32, 1, 9);
  const std::vector<double> values = {0.0,         -0.0,  kInfinity, -kInfinity, kNaN,
                                      0x1.fffp127, 1e-40, 0x1.01p0,  0x1.03p0};
  for (int64_t i = 0; i < src.size(); ++i) src.Set(i, values[i]);
  ops_->Copy(src, half);
  ops_->Copy(half, back);
  for (int64_t i = 0; i < src.size(); ++i) {
    const auto want = cpu::ToFloat(cpu::ToBFloat16(static_cast<float>(values[i])));
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(half.Get(i)) && std::isnan(back.Get(i))) << i;
    } else {
      EXPECT_EQ(half.Get(i), want) << i;
      EXPECT_EQ(back.Get(i), want) << i;
      EXPECT_EQ(std::signbit(back.Get(i)), std::signbit(want)) << i;
    }
  }
}

TEST_P(SumsTest, MaxKeepsTheLargerInPlace) {
  for (int64_t cols : {1, 16, 37, 300}) {
    Tensor x(kF32, 3, cols, {2, 1}), acc(kF32, 3, cols, {5, 7});
    x.Randomize(1);
    acc.Randomize(2);
    x.Set(0, kInfinity);
    acc.Set(cols, -kInfinity);
    std::vector<double> want;
    for (int64_t i = 0; i < x.size(); ++i) want.push_back(std::max(acc.Get(i), x.Get(i)));
    ops_->Max(x, acc);
    EXPECT_EQ(acc.Values(), want);
    acc.ExpectEdgesIntact();
  }
}

TEST_P(SumsTest, AddAddsInPlace) {
  for (int64_t cols : {1, 16, 37}) {
    Tensor x(kF32, 3, cols, {2, 1}), acc(kF32, 3, cols, {5, 7});
    x.Randomize(1);
    acc.Randomize(2);
    std::vector<double> want;
    for (int64_t i = 0; i < x.size(); ++i) {
      want.push_back(static_cast<float>(acc.Get(i)) + static_cast<float>(x.Get(i)));
    }
    ops_->Add(x, acc);
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

TEST_P(SumsTest, TreeSumEqualsTheTreeBitForBit) {
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
        ops_->TreeSum(parts, has_residual ? ConstMatrix(residual) : ConstMatrix(), out);
        EXPECT_EQ(out.Values(), want) << count << " parts";
        out.ExpectEdgesIntact();
      }
    }
  }
}

// The tree of parts is the tree of its halves' trees: what lets ranks share it.
TEST_P(SumsTest, SubtreesFirstChangeNothing) {
  std::vector<std::unique_ptr<Tensor>> tensors;
  std::vector<ConstMatrix> parts;
  for (int p = 0; p < 8; ++p) {
    tensors.push_back(std::make_unique<Tensor>(kF32, 2, 33));
    parts.push_back(tensors.back()->Randomize(p, 1e3));
  }
  Tensor whole(kF32, 2, 33), left(kF32, 2, 33), right(kF32, 2, 33), joined(kF32, 2, 33);
  ops_->TreeSum(parts, ConstMatrix(), whole);
  ops_->TreeSum(std::span(parts).first(4), ConstMatrix(), left);
  ops_->TreeSum(std::span(parts).subspan(4), ConstMatrix(), right);
  const std::vector<ConstMatrix> halves = {left, right};
  ops_->TreeSum(halves, ConstMatrix(), joined);
  EXPECT_TRUE(SameBits(joined, whole));
}

TEST_P(SumsTest, ResidualMayBeTheResult) {
  Tensor part(kF32, 2, 21), residual(kF32, 2, 21), out(kF32, 2, 21);
  const std::vector<ConstMatrix> parts = {part.Randomize(1), part};
  residual.Randomize(2);
  ops_->TreeSum(parts, residual, out);
  ops_->TreeSum(parts, residual, residual);
  EXPECT_TRUE(SameBits(residual, out));
}

double SumOfSquares(Ops& ops, const Tensor& x, ElementRun run) {
  std::pmr::vector<double> sum = {-1};
  ops.SumsOfSquares(x.floats(), {&run, 1}, sum.data());
  return sum[0];
}

TEST_P(SumsTest, SumsOfSquaresAgreeWithTheFormula) {
  for (int64_t count : {0, 1, 15, 16, 17, 1000, 16383, 16384, 16385, 70000}) {
    Tensor x(kF32, 1, count, {.row_gap = 0, .offset = 1});
    x.Randomize(1, 1e15);
    double want = 0;
    for (int64_t i = 0; i < count; ++i) want += x.Get(i) * x.Get(i);
    // No term is negative: every addition costs half an fp64 ulp at most.
    EXPECT_NEAR(SumOfSquares(*ops_, x, {0, count}), want,
                0x1p-53 * want * static_cast<double>(count + 1))
        << count;
  }
}

// What lets every layout sum its pieces of a tensor.
TEST_P(SumsTest, SumsOfSquaresDependOnTheRunAlone) {
  Tensor x(kF32, 1, 60000, {.row_gap = 0, .offset = 3});
  x.Randomize(1, 1e3);
  std::vector<ElementRun> runs;
  int64_t begin = 0;
  for (int64_t count : {16384, 0, 1, 15, 16, 17, 16385, 16383, 1, 10000}) {
    runs.push_back({begin, count});
    begin += count;
  }
  runs.push_back({5, 300});  // They may overlap.
  std::swap(runs[0], runs[5]);
  std::pmr::vector<double> sums(runs.size() + 1, -1);
  ops_->SumsOfSquares(x.floats(), runs, sums.data());
  EXPECT_EQ(sums.back(), -1) << "written outside";
  for (size_t k = 0; k < runs.size(); ++k) {
    EXPECT_EQ(sums[k], SumOfSquares(*ops_, x, runs[k])) << "alone: run " << k;
    for (int64_t offset : {0, 1, 6}) {
      Tensor moved(kF32, 1, runs[k].count, {.row_gap = 0, .offset = offset});
      for (int64_t i = 0; i < runs[k].count; ++i) moved.Set(i, x.Get(runs[k].begin + i));
      EXPECT_EQ(sums[k], SumOfSquares(*ops_, moved, {0, runs[k].count})) << "moved: run " << k;
    }
  }
}

TEST(CpuSumsOfSquaresTest, AreSixteenLanesInDoubleBitForBit) {
  for (int64_t count : {0, 1, 15, 16, 17, 1000}) {
    for (int64_t offset : {0, 1, 7}) {
      Tensor x(kF32, 1, count, {.row_gap = 0, .offset = offset});
      x.Randomize(1, 1e15);
      double lanes[16] = {};
      for (int64_t i = 0; i < count; ++i) lanes[i % 16] += x.Get(i) * x.Get(i);
      for (int half : {8, 4, 2, 1}) {
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
      }
      EXPECT_EQ(SumOfSquares(*NewCpuOps(1), x, {0, count}), lanes[0]) << count;
    }
  }
}

class EmbeddingTest : public TypedOpsTest {
 protected:
  const Tokens tokens_ = {5, 2, 9, 5, 4, 0, 5};  // 0, 2 and 9 are not in rows [3, 9).
};
INSTANTIATE_TEST_SUITE_P(Ops, EmbeddingTest, EveryBackendAndType(), BackendAndTypeName);

TEST_P(EmbeddingTest, LooksUpItsRowsAndZeroesTheOthers) {
  for (int64_t hidden : {1, 16, 37}) {
    Tensor table(dtype(), 6, hidden, {2, 1}), out(dtype(), 7, hidden, {3, 5});
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
    Tensor dout(dtype(), 7, hidden, {3, 5}), dtable(kF32, 6, hidden, {2, 1});
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

TEST_P(SumsDeathTest, WrongOperandsEndTheProcess) {
  const Tensor x(kF32, 2, 3), wide(kF32, 2, 4), half(kBF16, 2, 3);
  EXPECT_DEATH(ops_->Copy(x, wide), Failed("SameShape"));
  EXPECT_DEATH(ops_->Add(x, wide), Failed("SameShape"));
  EXPECT_DEATH(ops_->Add(half, x), Failed("dtype"));
  const std::vector<ConstMatrix> three(3, x), one(1, x), odd(1, half);
  EXPECT_DEATH(ops_->TreeSum(three, ConstMatrix(), x), Failed("power of two"));
  EXPECT_DEATH(ops_->TreeSum({}, ConstMatrix(), x), Failed("power of two"));
  EXPECT_DEATH(ops_->TreeSum(one, wide, x), Failed("SameShape"));
  EXPECT_DEATH(ops_->TreeSum(one, x, half), Failed("dtype"));
  EXPECT_DEATH(ops_->TreeSum(odd, ConstMatrix(), x), Failed("dtype"));
  const Tokens tokens = {0, 1};
  EXPECT_DEATH(ops_->EmbeddingForward(tokens.data(), x, 0, wide), Failed("cols"));
  EXPECT_DEATH(ops_->EmbeddingForward(tokens.data(), x, 0, half), Failed("dtype"));
  EXPECT_DEATH(ops_->EmbeddingBackward(tokens.data(), half, 0, half), Failed("dtype"));
}

}  // namespace
}  // namespace perdure
