// The CUDA backend against the CPU's, which is the meaning, at sizes where every kernel has several
// blocks and a ragged end: equal bits where the order is the contract's, else within rounding.
#include <algorithm>
#include <cmath>

#include "tests/kernels/kernel_test_util.h"

namespace perdure {
namespace {

constexpr DType kF32 = DType::kF32;
constexpr DType kBF16 = DType::kBF16;
constexpr Placement kOdd = {.row_gap = 5, .offset = 3};

class CudaAgainstCpuTest : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (const std::string why = WhyMissing(Backend::kCuda); !why.empty()) GTEST_SKIP() << why;
  }
  static DType dtype() { return GetParam(); }

  Ops* const cuda_ = TestOps(Backend::kCuda);
  Ops* const cpu_ = TestOps(Backend::kCpu);
};
INSTANTIATE_TEST_SUITE_P(Ops, CudaAgainstCpuTest, testing::Values(kF32, kBF16), TypeName);

// A result of each backend, of equal contents at first.
struct Pair {
  Pair(DType dtype, int64_t rows, int64_t cols, uint64_t seed, Placement placement = {})
      : cuda(dtype, rows, cols, placement), cpu(dtype, rows, cols, placement) {
    cuda.Randomize(seed);
    cpu.Randomize(seed);
  }
  void ExpectSame(const std::string& what) const {
    EXPECT_TRUE(SameBits(cuda, cpu)) << what;
    cuda.ExpectEdgesIntact();
  }
  // Both compute in fp32, to within tolerance * (|value| + scale). bf16 results then are the same
  // but for the few that lie near the middle of two, and those are neighbours.
  void ExpectAlike(double tolerance, double scale, const std::string& what) const {
    cuda.ExpectEdgesIntact();
    if (cpu.view().dtype == kF32) return ExpectNear(cuda, cpu.Values(), tolerance, scale, what);
    const double step = 2.02 * Epsilon(kBF16);
    ExpectNear(cuda, cpu.Values(), step, tolerance * scale / step, what);
    int64_t apart = 0;
    for (int64_t i = 0; i < cpu.size(); ++i) apart += cuda.Get(i) != cpu.Get(i);
    EXPECT_LE(apart, cpu.size() / 50 + 1) << what << ": elements that round apart";
  }
  // The error's norm by the result's.
  void ExpectNorm(double tolerance, const std::string& what) const {
    cuda.ExpectEdgesIntact();
    double error = 0, size = 0;
    for (int64_t i = 0; i < cpu.size(); ++i) {
      error += std::pow(cuda.Get(i) - cpu.Get(i), 2);
      size += std::pow(cpu.Get(i), 2);
    }
    EXPECT_LE(std::sqrt(error / size), tolerance) << what;
  }

  Tensor cuda, cpu;
};

TEST_P(CudaAgainstCpuTest, CopiesAreEqual) {
  for (DType to : {kF32, kBF16}) {
    Tensor from(dtype(), 130, 1031, {7, 1});
    from.Randomize(1, 100.0);
    Pair pair(to, 130, 1031, 2, kOdd);
    cuda_->Copy(from, pair.cuda);
    cpu_->Copy(from, pair.cpu);
    pair.ExpectSame("copy to " + NameOf(to));
  }
}

TEST_P(CudaAgainstCpuTest, SumsAreEqual) {
  const int64_t rows = 130, cols = 1031;
  Tensor x(kF32, rows, cols, {7, 1});
  x.Randomize(1);
  Pair sum(kF32, rows, cols, 2, kOdd), largest(kF32, rows, cols, 3, kOdd);
  cuda_->Add(x, sum.cuda);
  cpu_->Add(x, sum.cpu);
  sum.ExpectSame("add");
  cuda_->Max(x, largest.cuda);
  cpu_->Max(x, largest.cpu);
  largest.ExpectSame("max");
  std::vector<std::unique_ptr<Tensor>> tensors;
  std::vector<ConstMatrix> parts;
  for (int p = 0; p < 16; ++p) {
    tensors.push_back(std::make_unique<Tensor>(kF32, rows, cols, Placement{p, p}));
    parts.push_back(tensors.back()->Randomize(p, 1 + p));
  }
  Tensor residual(dtype(), rows, cols);
  residual.Randomize(17);
  for (size_t count : {1, 2, 16}) {
    Pair tree(dtype(), rows, cols, 3, kOdd);
    const std::span<const ConstMatrix> first = std::span(parts).first(count);
    cuda_->TreeSum(first, residual, tree.cuda);
    cpu_->TreeSum(first, residual, tree.cpu);
    tree.ExpectSame("tree sum of " + std::to_string(count));
  }
}

TEST_P(CudaAgainstCpuTest, EmbeddingsAreEqualWithManyRepeatedTokens) {
  // Whole vectors, and not; lists of tokens that are ranked, full ones too, and a longer one.
  struct Shape {
    int64_t rows, hidden;
    Placement placement;
  };
  for (const auto& [rows, hidden, placement] :
       {Shape{2048, 519, kOdd}, Shape{1999, 1032, {}}, Shape{8192, 24, {}}, Shape{8193, 24, {}}}) {
    SCOPED_TRACE(testing::Message() << rows << " x " << hidden);
    const int64_t words = 300;
    Tokens tokens(rows);
    for (int64_t t = 0; t < rows; ++t) {  // Nine in ten are one of three; some in other slices.
      const auto hash = static_cast<int32_t>(static_cast<uint32_t>(t) * 2654435761u >> 16);
      tokens[t] = hash % 10 < 9 ? 107 + hash % 3 : hash % 500;
    }
    Tensor table(dtype(), words, hidden, placement), dout(dtype(), rows, hidden, placement);
    table.Randomize(1);
    dout.Randomize(2);
    Pair out(dtype(), rows, hidden, 3, placement), dtable(kF32, words, hidden, 4, placement);
    cuda_->EmbeddingForward(tokens.data(), table, 100, out.cuda);
    cpu_->EmbeddingForward(tokens.data(), table, 100, out.cpu);
    out.ExpectSame("forward");
    cuda_->EmbeddingBackward(tokens.data(), dout, 100, dtable.cuda);
    cpu_->EmbeddingBackward(tokens.data(), dout, 100, dtable.cpu);
    dtable.ExpectSame("backward");
  }
}

TEST_P(CudaAgainstCpuTest, EmbeddingGradientsAreEqualWithFewRepeatedTokens) {
  const int64_t rows = 3001, words = 20000, hidden = 1032;
  Tokens tokens(rows);
  for (int64_t t = 0; t < rows; ++t)
    tokens[t] = static_cast<int32_t>(static_cast<uint32_t>(t) * 2654435761u >> 17);
  Tensor dout(dtype(), rows, hidden);
  dout.Randomize(1);
  Pair dtable(kF32, words, hidden, 2);
  cuda_->EmbeddingBackward(tokens.data(), dout, 6000, dtable.cuda);
  cpu_->EmbeddingBackward(tokens.data(), dout, 6000, dtable.cpu);
  dtable.ExpectSame("backward");
}

TEST_P(CudaAgainstCpuTest, RmsNorm) {
  for (const auto& [rows, hidden] :
       {std::pair<int64_t, int64_t>{257, 1024}, {33, 4104}, {33, 8192}, {9, 77}}) {
    SCOPED_TRACE(testing::Message() << rows << " x " << hidden);
    Tensor x(dtype(), rows, hidden), weight(dtype(), 1, hidden), dy(dtype(), rows, hidden),
        dresidual(dtype(), rows, hidden);
    x.Randomize(1, 3.0);
    weight.Randomize(2);
    dy.Randomize(3);
    dresidual.Randomize(4);
    Pair y(dtype(), rows, hidden, 5), rstd(kF32, 1, rows, 6), dx(dtype(), rows, hidden, 7),
        dweight(kF32, 1, hidden, 8);
    cuda_->RmsNormForward(x, weight, 1e-5f, y.cuda, rstd.cuda.floats());
    cpu_->RmsNormForward(x, weight, 1e-5f, y.cpu, rstd.cpu.floats());
    y.ExpectAlike(1e-6, 0, "y");
    rstd.ExpectAlike(1e-6, 0, "rstd");  // The CPU adds a sixteenth of a row one by one, in fp32.
    cuda_->RmsNormBackward(dy, x, weight, rstd.cpu.floats(), dresidual, dx.cuda, dweight.cuda);
    cpu_->RmsNormBackward(dy, x, weight, rstd.cpu.floats(), dresidual, dx.cpu, dweight.cpu);
    dx.ExpectAlike(1e-6, 1, "dx");
    dweight.ExpectAlike(1e-6, 10, "dweight");
  }
}

TEST_P(CudaAgainstCpuTest, Rope) {
  Tensor cos(kF32, 129, 64), sin(kF32, 129, 64);
  for (int64_t i = 0; i < cos.size(); ++i) {
    cos.Set(i, std::cos(0.01 * static_cast<double>(i)));
    sin.Set(i, std::sin(0.01 * static_cast<double>(i)));
  }
  // Five heads at a time, three, four, two and one.
  for (const auto& [q_heads, kv_heads] :
       {std::pair<int64_t, int64_t>{8, 2}, {4, 2}, {2, 2}, {12, 2}, {4, 3}})
    for (bool inverse : {false, true})
      for (const Placement& placement : {kOdd, Placement{}}) {
        SCOPED_TRACE(testing::Message() << q_heads << " + " << kv_heads << " heads");
        const AttentionShape shape{
            .batch = 2, .sequence = 129, .q_heads = q_heads, .kv_heads = kv_heads, .head_dim = 128};
        Pair qkv(dtype(), shape.rows(), shape.qkv_cols(), 1, placement);
        cuda_->Rope(qkv.cuda, shape, cos.floats(), sin.floats(), inverse);
        cpu_->Rope(qkv.cpu, shape, cos.floats(), sin.floats(), inverse);
        qkv.ExpectAlike(2e-7, 1, inverse ? "inverse" : "forward");
      }
}

TEST_P(CudaAgainstCpuTest, SwiGlu) {
  const int64_t rows = 130, width = 1031;
  Tensor gate_up(dtype(), rows, 2 * width, {7, 1}), dout(dtype(), rows, width, {1, 7});
  gate_up.Randomize(1, 8.0);
  dout.Randomize(2);
  Pair out(dtype(), rows, width, 3, kOdd), again(dtype(), rows, width, 4, kOdd),
      dgate_up(dtype(), rows, 2 * width, 5, kOdd);
  cuda_->SwiGluForward(gate_up, out.cuda);
  cpu_->SwiGluForward(gate_up, out.cpu);
  out.ExpectAlike(1e-6, 1e-3, "out");
  cuda_->SwiGluBackward(dout, gate_up, dgate_up.cuda, again.cuda);
  cpu_->SwiGluBackward(dout, gate_up, dgate_up.cpu, again.cpu);
  dgate_up.ExpectAlike(1e-6, 1, "dgate_up");
  EXPECT_TRUE(SameBits(again.cuda, out.cuda)) << "forward again";
}

TEST_P(CudaAgainstCpuTest, CrossEntropy) {
  const int64_t rows = 67, width = 5003, begin = 5003;
  Tokens targets(rows);
  for (int64_t t = 0; t < rows; ++t) targets[t] = static_cast<int32_t>(t * 223);
  Pair logits(kF32, rows, width, 1, kOdd), largest(kF32, 1, rows, 2), sum(kF32, 1, rows, 3),
      at_target(kF32, 1, rows, 4), dlogits(dtype(), rows, width, 5, kOdd);
  logits.cuda.Randomize(6, 12.0);
  logits.cpu.Randomize(6, 12.0);
  cuda_->CrossEntropyMax(logits.cuda, largest.cuda.floats());
  cpu_->CrossEntropyMax(logits.cpu, largest.cpu.floats());
  largest.ExpectSame("max");
  cuda_->CrossEntropySum(logits.cuda, largest.cuda.floats(), targets.data(), begin,
                         sum.cuda.floats(), at_target.cuda.floats());
  cpu_->CrossEntropySum(logits.cpu, largest.cpu.floats(), targets.data(), begin, sum.cpu.floats(),
                        at_target.cpu.floats());
  logits.ExpectAlike(5e-7, 1e-6, "exponentials");
  sum.ExpectAlike(1e-6, 0, "sum");
  at_target.ExpectSame("target logit");
  std::pmr::vector<double> loss = {1, 1};
  cuda_->CrossEntropyLoss(sum.cpu.floats(), at_target.cpu.floats(), rows, &loss[0]);
  cpu_->CrossEntropyLoss(sum.cpu.floats(), at_target.cpu.floats(), rows, &loss[1]);
  EXPECT_NEAR(loss[0], loss[1], 1e-13 * loss[1]);
  cuda_->CrossEntropyGradient(logits.cpu, sum.cpu.floats(), targets.data(), begin, 0.125f,
                              dlogits.cuda);
  cpu_->CrossEntropyGradient(logits.cpu, sum.cpu.floats(), targets.data(), begin, 0.125f,
                             dlogits.cpu);
  dlogits.ExpectAlike(5e-7, 1e-6, "gradient");
}

// Operands are parts of larger matrices.
TEST_P(CudaAgainstCpuTest, MatmulOfSlicedOperands) {
  constexpr Transpose kNo = Transpose::kNo, kYes = Transpose::kYes;
  const int64_t m = 130, n = 264, k = 1031;
  for (const auto& [ta, tb] : {std::pair{kNo, kYes}, {kNo, kNo}, {kYes, kNo}, {kYes, kYes}}) {
    for (DType to : {kF32, dtype()}) {
      for (bool accumulate : {false, true}) {
        SCOPED_TRACE(testing::Message()
                     << (ta == kNo ? "N" : "T") << (tb == kNo ? "N" : "T") << " to " << NameOf(to)
                     << (accumulate ? ", accumulated" : ""));
        const auto sliced = [](const Tensor& whole, Transpose t, int64_t rows, int64_t cols) {
          return t == kNo ? whole.view().Rows(3, rows).Cols(16, cols)
                          : whole.view().Rows(3, cols).Cols(16, rows);
        };
        Tensor a(dtype(), 1040, 1056), b(dtype(), 1040, 1056);
        a.Randomize(1);
        b.Randomize(2);
        Pair c(to, m + 5, n + 24, 3);
        for (const auto& [ops, result] : {std::pair{cuda_, &c.cuda}, {cpu_, &c.cpu}})
          ops->Matmul(ta, tb, sliced(a, ta, m, k), sliced(b, tb, k, n),
                      result->view().Rows(4, m).Cols(8, n), accumulate);
        // fp32 sums of products below 1; outside the slice nothing is touched.
        c.ExpectAlike(1e-6, std::sqrt(static_cast<double>(k)), "c");
      }
    }
  }
}

TEST_P(CudaAgainstCpuTest, Attention) {
  const AttentionShape shape{
      .batch = 2, .sequence = 333, .q_heads = 8, .kv_heads = 2, .head_dim = 128};
  Tensor qkv(dtype(), shape.rows(), shape.qkv_cols()),
      dout(dtype(), shape.rows(), shape.out_cols());
  qkv.Randomize(1, 2.0);
  dout.Randomize(2);
  Pair out(dtype(), shape.rows(), shape.out_cols(), 3),
      lse(kF32, shape.batch * shape.q_heads, shape.sequence, 4),
      dqkv(dtype(), shape.rows(), shape.qkv_cols(), 5);
  cuda_->AttentionForward(qkv, shape, out.cuda, lse.cuda.floats());
  cpu_->AttentionForward(qkv, shape, out.cpu, lse.cpu.floats());
  // Measured by norms: tensor cores take probabilities and their gradients in bf16.
  out.ExpectNorm(dtype() == kF32 ? 1e-6 : 5e-3, "out");
  lse.ExpectAlike(1e-6, 1, "lse");
  cuda_->AttentionBackward(dout, qkv, out.cpu, lse.cpu.floats(), shape, dqkv.cuda);
  cpu_->AttentionBackward(dout, qkv, out.cpu, lse.cpu.floats(), shape, dqkv.cpu);
  dqkv.ExpectNorm(dtype() == kF32 ? 2e-6 : 1e-2, "dqkv");
}

TEST_P(CudaAgainstCpuTest, AdamW) {
  const int64_t count = 100003;
  Tensor gradient(kF32, 1, count, {0, 1});
  Pair master(kF32, 1, count, 1, {0, 3}), m(kF32, 1, count, 2, {0, 5}), v(kF32, 1, count, 3),
      param(dtype(), 1, count, 4, {0, 1});
  for (Tensor* tensor : {&v.cuda, &v.cpu})  // Squares.
    for (int64_t i = 0; i < count; ++i) tensor->Set(i, std::abs(tensor->Get(i)));
  AdamWStep step{.rate = 3e-3, .eps = 1e-8, .weight_decay = 0.1, .gradient_scale = 0.3};
  for (step.step = 1; step.step <= 3; ++step.step) {
    gradient.Randomize(10 + static_cast<uint64_t>(step.step));
    cuda_->AdamW(step, gradient.floats(), master.cuda.floats(), m.cuda.floats(), v.cuda.floats(),
                 param.cuda);
    cpu_->AdamW(step, gradient.floats(), master.cpu.floats(), m.cpu.floats(), v.cpu.floats(),
                param.cpu);
  }
  // An ulp each step, where terms do not cancel.
  master.ExpectAlike(1.2e-7, 0.05, "master");
  m.ExpectAlike(2e-7, 0.1, "exp_avg");
  v.ExpectAlike(2e-7, 0.01, "exp_avg_sq");
  param.ExpectAlike(1.2e-7, 0.05, "param");
}

TEST(CudaSumsOfSquaresTest, AgreeAtTheLengthsOfRunsAndDependOnThemAlone) {
  if (const std::string why = WhyMissing(Backend::kCuda); !why.empty()) GTEST_SKIP() << why;
  Ops* const cuda = TestOps(Backend::kCuda);
  Ops* const cpu = TestOps(Backend::kCpu);
  Tensor x(kF32, 1, 700001, {0, 1});
  x.Randomize(1, 1e3);
  std::vector<ElementRun> runs;
  int64_t begin = 0;
  for (int64_t count : {0, 1, 15, 16, 17, 16383, 16384, 16385, 300000, 1, 300000, 17, 0}) {
    runs.push_back({begin, count});
    begin += count;
  }
  const size_t long_runs = runs.size();
  for (int64_t i = 0; i < 3000; ++i) runs.push_back({i * 200, i % 150});
  std::pmr::vector<double> sums(runs.size()), want(runs.size()), alone(1);
  cuda->SumsOfSquares(x.floats(), runs, sums.data());
  cpu->SumsOfSquares(x.floats(), runs, want.data());
  for (size_t k = 0; k < runs.size(); ++k) {
    SCOPED_TRACE(testing::Message() << "run " << k << " of " << runs[k].count);
    ASSERT_NEAR(sums[k], want[k], 1e-12 * want[k]);
    if (k >= long_runs && k % 100 != 0) continue;
    cuda->SumsOfSquares(x.floats(), std::span(runs).subspan(k, 1), alone.data());
    ASSERT_EQ(alone[0], sums[k]) << "alone";
    // The same elements at another place.
    Tensor moved(kF32, 1, runs[k].count, {0, static_cast<int64_t>(k % 4)});
    for (int64_t i = 0; i < runs[k].count; ++i) moved.Set(i, x.Get(runs[k].begin + i));
    const ElementRun all = {0, runs[k].count};
    cuda->SumsOfSquares(moved.floats(), {&all, 1}, alone.data());
    ASSERT_EQ(alone[0], sums[k]) << "moved";
  }
}

}  // namespace
}  // namespace perdure
