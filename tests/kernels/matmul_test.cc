#include <omp.h>

#include <thread>
#include <tuple>

#include "tests/kernels/kernel_test_util.h"

namespace perdure {
namespace {

constexpr Transpose kNo = Transpose::kNo;
constexpr Transpose kYes = Transpose::kYes;

struct Operands {
  Operands(Transpose ta, Transpose tb, DType dtype, DType c_dtype, int64_t m, int64_t n, int64_t k,
           Placement placement = {}, uint64_t seed = 1)
      : transpose_a(ta),
        transpose_b(tb),
        a(dtype, ta == kNo ? m : k, ta == kNo ? k : m, placement),
        b(dtype, tb == kNo ? k : n, tb == kNo ? n : k, placement),
        c(c_dtype, m, n, placement),
        depth(k) {
    a.Randomize(3 * seed);
    b.Randomize(3 * seed + 1);
    c.Randomize(3 * seed + 2);
  }

  void Run(Ops& ops, bool accumulate) { ops.Matmul(transpose_a, transpose_b, a, b, c, accumulate); }

  std::vector<double> Reference(bool accumulate) const {
    std::vector<double> want(c.size());
    for (int64_t i = 0; i < c.rows(); ++i) {
      for (int64_t j = 0; j < c.cols(); ++j) {
        double sum = accumulate ? c.Get(i, j) : 0;
        for (int64_t p = 0; p < depth; ++p) {
          sum += (transpose_a == kNo ? a.Get(i, p) : a.Get(p, i)) *
                 (transpose_b == kNo ? b.Get(p, j) : b.Get(j, p));
        }
        want[i * c.cols() + j] = sum;
      }
    }
    return want;
  }

  Transpose transpose_a;
  Transpose transpose_b;
  Tensor a, b, c;
  int64_t depth;
};

struct Types {
  DType operands;
  DType result;
};
constexpr Types kTypes[] = {
    {DType::kF32, DType::kF32}, {DType::kBF16, DType::kF32}, {DType::kBF16, DType::kBF16}};

class MatmulTest : public testing::TestWithParam<std::tuple<Transpose, Transpose, Types, bool>> {};

TEST_P(MatmulTest, AgreesWithTheNaiveSum) {
  const auto [ta, tb, types, accumulate] = GetParam();
  const auto ops = NewCpuOps(1);
  const std::tuple<int64_t, int64_t, int64_t> shapes[] = {
      {1, 1, 1}, {3, 5, 7}, {16, 16, 16}, {33, 1, 65}, {1, 40, 3}, {64, 48, 100}, {7, 130, 257}};
  const Placement placements[] = {{0, 0}, {5, 3}, {64, 1}};
  for (const auto& [m, n, k] : shapes) {
    for (const Placement& placement : placements) {
      Operands x(ta, tb, types.operands, types.result, m, n, k, placement);
      const std::vector<double> want = x.Reference(accumulate);
      x.Run(*ops, accumulate);
      // fp32 sums of k products of size <= 1, then one rounding to the result's type.
      const double rounding = 1.01 * Epsilon(types.result);
      const double summing = static_cast<double>(k + 1) * Epsilon(DType::kF32);
      ExpectNear(x.c, want, rounding, summing / rounding, "matmul");
      x.c.ExpectEdgesIntact();
    }
  }
}

TEST_P(MatmulTest, BitsDependOnNothingButValuesAndShapes) {
  const auto [ta, tb, types, accumulate] = GetParam();
  const auto ops = NewCpuOps(1);
  const std::tuple<int64_t, int64_t, int64_t> shapes[] = {
      {96, 80, 130}, {5, 33, 17}, {128, 512, 384}};
  for (const auto& [m, n, k] : shapes) {
    std::string first;
    for (int64_t offset : {0, 1, 3, 8, 15}) {
      Operands x(ta, tb, types.operands, types.result, m, n, k, {.row_gap = 16, .offset = offset});
      x.Run(*ops, accumulate);
      if (first.empty()) first = x.c.Bits();
      EXPECT_EQ(x.c.Bits(), first) << "offset " << offset;

      // After other work, in another object, in another thread.
      Operands other(ta, tb, types.operands, types.result, k, m, n);
      other.Run(*ops, accumulate);
      Operands again(ta, tb, types.operands, types.result, m, n, k, {.row_gap = 16});
      again.Run(*ops, accumulate);
      EXPECT_EQ(again.c.Bits(), first);
      Operands elsewhere(ta, tb, types.operands, types.result, m, n, k, {.row_gap = 16});
      std::thread([&, accumulate = accumulate] {
        elsewhere.Run(*NewCpuOps(1), accumulate);
      }).join();
      EXPECT_EQ(elsewhere.c.Bits(), first);
    }
  }
}

TEST_P(MatmulTest, EmptyShapes) {
  const auto [ta, tb, types, accumulate] = GetParam();
  const auto ops = NewCpuOps(1);
  Operands no_depth(ta, tb, types.operands, types.result, 3, 4, 0);
  const std::vector<double> before = no_depth.c.Values();
  no_depth.Run(*ops, accumulate);
  for (int64_t i = 0; i < no_depth.c.size(); ++i) {
    EXPECT_EQ(no_depth.c.Get(i), accumulate ? before[i] : 0.0);
  }
  Operands no_rows(ta, tb, types.operands, types.result, 0, 4, 3);
  no_rows.Run(*ops, accumulate);
  Operands no_cols(ta, tb, types.operands, types.result, 4, 0, 3);
  no_cols.Run(*ops, accumulate);
}

INSTANTIATE_TEST_SUITE_P(All, MatmulTest,
                         testing::Combine(testing::Values(kNo, kYes), testing::Values(kNo, kYes),
                                          testing::ValuesIn(kTypes), testing::Bool()));

// The library splits a matmul among threads by their number: the same number gives the same bits.
TEST(MatmulThreadsTest, SameThreadsSameBits) {
  for (int threads : {1, 2, 3}) {
    std::string first;
    for (int repeat = 0; repeat < 3; ++repeat) {
      const auto ops = NewCpuOps(threads);
      const auto interloper = NewCpuOps(4 - threads);  // Leaves its own setting in this thread.
      Operands x(kYes, kNo, DType::kF32, DType::kF32, 64, 48, 2000);
      x.Run(*ops, true);
      EXPECT_EQ(omp_get_max_threads(), threads);
      if (first.empty()) first = x.c.Bits();
      EXPECT_EQ(x.c.Bits(), first);
    }
  }
}

// Large enough for the path that multiplies without the primitive although nothing is transposed.
TEST(MatmulLargeTest, AgreesWithTheNaiveSum) {
  const auto ops = NewCpuOps(1);
  for (Placement placement : {Placement{}, Placement{.row_gap = 4, .offset = 5}}) {
    Operands x(kNo, kNo, DType::kF32, DType::kF32, 9, 1024, 520, placement);
    const std::vector<double> want = x.Reference(true);
    x.Run(*ops, true);
    ExpectNear(x.c, want, 1e-5, 1, "matmul");
  }
}

// The shapes of a small model's layer, forward, backward and weight gradient.
TEST(MatmulLargeTest, BitsDoNotDependOnAddresses) {
  const auto ops = NewCpuOps(1);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const auto& [ta, tb] : {std::pair{kNo, kYes}, {kNo, kNo}, {kYes, kNo}}) {
      Operands x(ta, tb, dtype, DType::kF32, 512, 256, 512);
      Operands y(ta, tb, dtype, DType::kF32, 512, 256, 512, {.row_gap = 0, .offset = 3});
      x.Run(*ops, ta == kYes);
      y.Run(*ops, ta == kYes);
      EXPECT_EQ(x.c.Bits(), y.c.Bits());
    }
  }
}

TEST(MatmulDeathTest, WrongOperandsEndTheProcess) {
  const auto ops = NewCpuOps(1);
  const Tensor a(DType::kF32, 3, 4), b(DType::kF32, 4, 5), c(DType::kF32, 3, 5);
  const Tensor half_b(DType::kBF16, 4, 5), half_c(DType::kBF16, 3, 5);
  EXPECT_DEATH(ops->Matmul(kYes, kNo, a, b, c, false), "c.rows");
  EXPECT_DEATH(ops->Matmul(kNo, kYes, a, b, c, false), "c.cols");
  EXPECT_DEATH(ops->Matmul(kNo, kNo, a, b, b, false), "c.rows");
  EXPECT_DEATH(ops->Matmul(kNo, kNo, a, half_b, c, false), "dtype");
  EXPECT_DEATH(ops->Matmul(kNo, kNo, a, b, half_c, false), "dtype");
  EXPECT_DEATH(NewCpuOps(0), "threads");
}

TEST(CpuIsaTest, IsNamed) {
  EXPECT_FALSE(CpuIsa().empty());
  // bf16 matmuls are right with and without hardware (MatmulTest); the flag only says which it is.
  EXPECT_EQ(CpuHasBF16(), CpuIsa() == "avx512_core_bf16" || CpuIsa() == "avx512_core_amx");
}

}  // namespace
}  // namespace perdure
