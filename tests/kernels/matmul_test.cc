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

// How failures and lists of tests show them: "bf16_to_fp32".
std::string NameOf(const Types& types) {
  return perdure::NameOf(types.operands) + "_to_" + perdure::NameOf(types.result);
}
void PrintTo(const Types& types, std::ostream* out) { *out << NameOf(types); }

using Param = std::tuple<Backend, Types>;

class MatmulTest : public testing::TestWithParam<Param> {
 protected:
  void SetUp() override {
    if (const std::string why = WhyMissing(backend_); !why.empty()) GTEST_SKIP() << why;
  }
  Operands Make(Transpose ta, Transpose tb, int64_t m, int64_t n, int64_t k,
                Placement placement = {}) const {
    return Operands(ta, tb, types_.operands, types_.result, m, n, k, placement);
  }
  // f(ta, tb, accumulate) for all eight.
  template <typename F>
  static void ForEachForm(const F& f) {
    for (Transpose ta : {kNo, kYes}) {
      for (Transpose tb : {kNo, kYes}) {
        for (bool accumulate : {false, true}) {
          SCOPED_TRACE(testing::Message() << (ta == kNo ? "N" : "T") << (tb == kNo ? "N" : "T")
                                          << (accumulate ? ", accumulated" : ""));
          f(ta, tb, accumulate);
        }
      }
    }
  }
  // Starts, beyond a multiple of 64 bytes, among which bits must not change. CUDA's library loads
  // 16 bytes at once where addresses allow.
  std::vector<int64_t> Offsets() const {
    return backend_ == Backend::kCpu ? std::vector<int64_t>{0, 1, 3, 8, 15}
                                     : std::vector<int64_t>{0, 8, 16, 24};
  }

  const Backend backend_ = std::get<0>(GetParam());
  const Types types_ = std::get<1>(GetParam());
  Ops* const ops_ = TestOps(backend_);
};
INSTANTIATE_TEST_SUITE_P(Ops, MatmulTest,
                         testing::Combine(EveryBackend(), testing::ValuesIn(kTypes)),
                         [](const testing::TestParamInfo<Param>& test) {
                           return perdure::NameOf(std::get<0>(test.param)) + "_" +
                                  NameOf(std::get<1>(test.param));
                         });

TEST_P(MatmulTest, AgreesWithTheNaiveSum) {
  const std::tuple<int64_t, int64_t, int64_t> shapes[] = {
      {1, 1, 1}, {3, 5, 7}, {16, 16, 16}, {33, 1, 65}, {1, 40, 3}, {64, 48, 100}, {7, 130, 257}};
  const Placement placements[] = {{0, 0}, {5, 3}, {64, 1}};
  ForEachForm([&](Transpose ta, Transpose tb, bool accumulate) {
    for (const auto& [m, n, k] : shapes) {
      for (const Placement& placement : placements) {
        SCOPED_TRACE(testing::Message() << m << " x " << n << " x " << k << ", row gap "
                                        << placement.row_gap << ", offset " << placement.offset);
        Operands x = Make(ta, tb, m, n, k, placement);
        const std::vector<double> want = x.Reference(accumulate);
        x.Run(*ops_, accumulate);
        // fp32 sums of k products of size <= 1, then one rounding to the result's type. Tensor
        // cores cut sums off where others round them.
        // CUDA's library may round the product before it adds to it, too.
        const bool twice = accumulate && backend_ == Backend::kCuda;
        const double rounding = (twice ? 2.02 : 1.01) * Epsilon(types_.result);
        const double summing =
            static_cast<double>(k + 1) * Epsilon(DType::kF32) * (backend_ == Backend::kCpu ? 1 : 4);
        const double product = twice && types_.result == DType::kBF16 ? static_cast<double>(k) : 0;
        ExpectNear(x.c, want, rounding, summing / rounding + product / 4, "matmul");
        x.c.ExpectEdgesIntact();
      }
    }
  });
}

TEST_P(MatmulTest, BitsDependOnNothingButValuesAndShapes) {
  const std::tuple<int64_t, int64_t, int64_t> shapes[] = {
      {96, 80, 130}, {5, 33, 17}, {128, 512, 384}};
  const auto other_ops = NewTestOps(backend_);
  ForEachForm([&](Transpose ta, Transpose tb, bool accumulate) {
    std::vector<std::string> first;
    for (const auto& [m, n, k] : shapes) {
      for (int64_t offset : Offsets()) {
        Operands x = Make(ta, tb, m, n, k, {.row_gap = 16, .offset = offset});
        x.Run(*ops_, accumulate);
        if (offset == 0) first.push_back(x.c.Bits());
        EXPECT_TRUE(SameBits(x.c.Bits(), first.back())) << "offset " << offset;

        Operands other = Make(ta, tb, k, m, n);
        other.Run(*ops_, accumulate);
        Operands again = Make(ta, tb, m, n, k, {.row_gap = 16});
        again.Run(*ops_, accumulate);
        EXPECT_TRUE(SameBits(again.c.Bits(), first.back())) << "after other work";
      }
    }
    std::thread([&] {
      for (size_t i = first.size(); i-- > 0;) {
        const auto& [m, n, k] = shapes[i];
        Operands x = Make(ta, tb, m, n, k, {.row_gap = 16});
        x.Run(*other_ops, accumulate);
        EXPECT_TRUE(SameBits(x.c.Bits(), first[i])) << "in another object, in another thread";
      }
    }).join();
  });
}

TEST_P(MatmulTest, EmptyShapes) {
  ForEachForm([&](Transpose ta, Transpose tb, bool accumulate) {
    Operands no_depth = Make(ta, tb, 3, 4, 0);
    const std::vector<double> before = no_depth.c.Values();
    no_depth.Run(*ops_, accumulate);
    for (int64_t i = 0; i < no_depth.c.size(); ++i) {
      EXPECT_EQ(no_depth.c.Get(i), accumulate ? before[i] : 0.0);
    }
    Make(ta, tb, 0, 4, 3).Run(*ops_, accumulate);
    Make(ta, tb, 4, 0, 3).Run(*ops_, accumulate);
  });
}

class MatmulLargeTest : public OpsTest {};
INSTANTIATE_TEST_SUITE_P(Ops, MatmulLargeTest, EveryBackend(), BackendName);
class MatmulDeathTest : public OpsTest {};
INSTANTIATE_TEST_SUITE_P(Ops, MatmulDeathTest, EveryBackend(), BackendName);

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
      EXPECT_TRUE(SameBits(x.c.Bits(), first));
    }
  }
}

// Large enough for the path that multiplies without the primitive although nothing is transposed.
TEST_P(MatmulLargeTest, AgreesWithTheNaiveSum) {
  for (Placement placement : {Placement{}, Placement{.row_gap = 4, .offset = 5}}) {
    Operands x(kNo, kNo, DType::kF32, DType::kF32, 9, 1024, 520, placement);
    const std::vector<double> want = x.Reference(true);
    x.Run(*ops_, true);
    ExpectNear(x.c, want, 1e-5, 1, "matmul");
  }
}

// The shapes of a small model's layer, forward, backward and weight gradient.
TEST_P(MatmulLargeTest, BitsDoNotDependOnAddresses) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const auto& [ta, tb] : {std::pair{kNo, kYes}, {kNo, kNo}, {kYes, kNo}}) {
      Operands x(ta, tb, dtype, DType::kF32, 512, 256, 512);
      Operands y(ta, tb, dtype, DType::kF32, 512, 256, 512,
                 {.row_gap = 0, .offset = on_cpu() ? 3 : 8});
      x.Run(*ops_, ta == kYes);
      y.Run(*ops_, ta == kYes);
      EXPECT_TRUE(SameBits(x.c, y.c));
    }
  }
}

TEST_P(MatmulDeathTest, WrongOperandsEndTheProcess) {
  const Tensor a(DType::kF32, 3, 4), b(DType::kF32, 4, 5), c(DType::kF32, 3, 5);
  const Tensor half_b(DType::kBF16, 4, 5), half_c(DType::kBF16, 3, 5);
  EXPECT_DEATH(ops_->Matmul(kYes, kNo, a, b, c, false), Failed("c.rows"));
  EXPECT_DEATH(ops_->Matmul(kNo, kYes, a, b, c, false), Failed("c.cols"));
  EXPECT_DEATH(ops_->Matmul(kNo, kNo, a, b, b, false), Failed("c.rows"));
  EXPECT_DEATH(ops_->Matmul(kNo, kNo, a, half_b, c, false), Failed("dtype"));
  EXPECT_DEATH(ops_->Matmul(kNo, kNo, a, b, half_c, false), Failed("dtype"));
}

TEST(CpuDeathTest, NoThreadsEndTheProcess) { EXPECT_DEATH(NewCpuOps(0), "threads"); }

TEST(CpuIsaTest, IsNamed) {
  EXPECT_FALSE(CpuIsa().empty());
  // bf16 matmuls are right with and without hardware (MatmulTest); the flag only says which it is.
  EXPECT_EQ(CpuHasBF16(), CpuIsa() == "avx512_core_bf16" || CpuIsa() == "avx512_core_amx");
}

}  // namespace
}  // namespace perdure
