// The CUDA backend repeats its bits at the sizes of training: whatever ran before, whatever lies in
// its work space, however blocks are scheduled. And a matmul that adds to its result is the matmul
// and an Add, which is what lets the first of several gradients be written instead of added.
//
// Unlike in the tests of every backend, operands lie in device memory and nobody waits between
// operations.
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "tests/kernels/kernel_test_util.h"

namespace perdure {
namespace {

constexpr DType kF32 = DType::kF32;
constexpr DType kBF16 = DType::kBF16;
constexpr Transpose kNo = Transpose::kNo;
constexpr Transpose kYes = Transpose::kYes;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// Uniform in [-1, 1). A list as long as a prime, so that rows of a matrix filled from it differ;
// the generator alone would take seconds for the matrices below.
const std::vector<float>& Noise() {
  static const std::vector<float> noise = [] {
    std::vector<float> values(1000003);
    uint32_t state = 1;
    for (float& value : values) {
      state = state * 1664525u + 1013904223u;
      value = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
    }
    return values;
  }();
  return noise;
}

// A matrix in device memory.
class DeviceTensor {
 public:
  DeviceTensor(Ops* ops, DType dtype, int64_t rows, int64_t cols, uint64_t seed, double range = 1)
      : ops_(ops), view_(nullptr, dtype, rows, cols), initial_(view_.bytes(), '\0') {
    view_.data = ops_->Allocate(view_.bytes());
    const std::vector<float>& noise = Noise();
    size_t next = seed * 7919 % noise.size();
    for (int64_t i = 0; i < view_.size(); ++i) {
      const float value = noise[next] * static_cast<float>(range);
      if (++next == noise.size()) next = 0;
      if (dtype == kF32)
        reinterpret_cast<float*>(initial_.data())[i] = value;
      else
        reinterpret_cast<cpu::BFloat16*>(initial_.data())[i] = cpu::ToBFloat16(value);
    }
    Reset();
  }
  ~DeviceTensor() {
    EXPECT_TRUE(ops_->Sync().ok());  // Uploads read initial_ until then.
    ops_->Free(view_.data);
  }
  DeviceTensor(const DeviceTensor&) = delete;
  DeviceTensor& operator=(const DeviceTensor&) = delete;

  Matrix view() const { return view_; }
  operator Matrix() const { return view_; }       // NOLINT: tests read better
  operator ConstMatrix() const { return view_; }  // NOLINT
  float* floats() const { return static_cast<float*>(view_.data); }

  // Back to the contents it was made with.
  void Reset() { ops_->Upload(initial_.data(), initial_.size(), view_.data); }
  std::string Bits() const {
    std::string bits(view_.bytes(), '\0');
    ops_->Download(view_.data, bits.size(), bits.data());
    const absl::Status status = ops_->Sync();
    EXPECT_TRUE(status.ok()) << status;
    return bits;
  }

 private:
  Ops* ops_;
  Matrix view_;
  std::string initial_;
};

int64_t CountNotFinite(const std::string& bits, DType dtype) {
  int64_t count = 0;
  if (dtype == kF32) {
    for (size_t i = 0; i + 4 <= bits.size(); i += 4) {
      float value;
      std::memcpy(&value, &bits[i], 4);
      count += !std::isfinite(value);
    }
  } else {
    for (size_t i = 0; i + 2 <= bits.size(); i += 2) {
      cpu::BFloat16 value;
      std::memcpy(&value, &bits[i], 2);
      count += !std::isfinite(cpu::ToFloat(value));
    }
  }
  return count;
}

class CudaBitsTest : public testing::TestWithParam<DType> {
 protected:
  static void SetUpTestSuite() {
    if (!WhyMissing(Backend::kCuda).empty()) return;
    auto ops = NewCudaOps(0);
    ASSERT_TRUE(ops.ok()) << ops.status();
    ops_ = *std::move(ops);
  }
  static void TearDownTestSuite() { ops_.reset(); }
  void SetUp() override {
    if (const std::string why = WhyMissing(Backend::kCuda); !why.empty()) GTEST_SKIP() << why;
    ASSERT_NE(ops_, nullptr);
  }
  static DType dtype() { return GetParam(); }
  static Ops* ops() { return ops_.get(); }

  // Runs `run` again and again from the same contents of `written`, after other work each time.
  static void ExpectRepeats(const std::vector<DeviceTensor*>& written,
                            const std::function<void()>& run, int runs = 3) {
    std::vector<std::string> first;
    for (int i = 0; i < runs; ++i) {
      for (DeviceTensor* tensor : written) tensor->Reset();
      run();
      for (size_t t = 0; t < written.size(); ++t) {
        const std::string bits = written[t]->Bits();
        if (i == 0) {
          EXPECT_EQ(CountNotFinite(bits, written[t]->view().dtype), 0) << "result " << t;
          first.push_back(bits);
        } else {
          EXPECT_TRUE(SameBits(bits, first[t])) << "result " << t << ", run " << i;
        }
      }
      LeaveNaNsBehind();
    }
  }

  static std::unique_ptr<Ops> ops_;

 private:
  // Every operation that has work space leaves NaNs there.
  static void LeaveNaNsBehind() {
    const AttentionShape shape{
        .batch = 1, .sequence = 300, .q_heads = 4, .kv_heads = 2, .head_dim = 64};
    for (DType dtype : {kF32, kBF16}) {
      DeviceTensor x(ops(), dtype, 300, 512, 1, kNaN), out(ops(), dtype, 300, 256, 2, kNaN),
          dx(ops(), dtype, 300, 512, 3), weight(ops(), dtype, 1, 512, 4);
      DeviceTensor floats(ops(), kF32, 300, 512, 5, kNaN), lse(ops(), kF32, 4, 300, 6, kNaN);
      ops()->RmsNormBackward(x, x, weight, floats.floats(), ConstMatrix(), dx,
                             floats.view().Rows(0, 1));
      ops()->Matmul(kYes, kNo, x, x, DeviceTensor(ops(), kF32, 512, 512, 7), true);
      ops()->AttentionForward(x, shape, out, lse.floats());
      ops()->AttentionBackward(out, x, out, lse.floats(), shape, dx);
      const ElementRun run = {0, 300 * 512};
      DeviceTensor sum(ops(), kF32, 1, 2, 8);
      ops()->SumsOfSquares(floats.floats(), {&run, 1}, static_cast<double*>(sum.view().data));
      EXPECT_TRUE(ops()->Sync().ok());
    }
  }
};
std::unique_ptr<Ops> CudaBitsTest::ops_;
INSTANTIATE_TEST_SUITE_P(Ops, CudaBitsTest, testing::Values(kF32, kBF16), TypeName);

TEST_P(CudaBitsTest, RmsNormRepeats) {
  const int64_t rows = 2048, hidden = 4096;
  DeviceTensor x(ops(), dtype(), rows, hidden, 1, 3), weight(ops(), dtype(), 1, hidden, 2),
      dy(ops(), dtype(), rows, hidden, 3), dx(ops(), dtype(), rows, hidden, 4),
      y(ops(), dtype(), rows, hidden, 5), rstd(ops(), kF32, 1, rows, 6),
      dweight(ops(), kF32, 4, hidden, 7);  // Of four slices.
  ExpectRepeats({&y, &rstd, &dx, &dweight}, [&] {
    ops()->RmsNormForward(x, weight, 1e-5f, y, rstd.floats());
    ops()->RmsNormBackward(dy, x, weight, rstd.floats(), dx, dx, dweight);
  });
}

TEST_P(CudaBitsTest, SwiGluRepeats) {
  const int64_t rows = 512, width = 12288;
  DeviceTensor gate_up(ops(), dtype(), rows, 2 * width, 1, 8), out(ops(), dtype(), rows, width, 2),
      dout(ops(), dtype(), rows, width, 3), dgate_up(ops(), dtype(), rows, 2 * width, 4);
  ExpectRepeats({&out, &dgate_up}, [&] { ops()->SwiGluBackward(dout, gate_up, dgate_up, out); });
}

TEST_P(CudaBitsTest, RopeRepeats) {
  const AttentionShape shape{
      .batch = 2, .sequence = 1024, .q_heads = 8, .kv_heads = 2, .head_dim = 128};
  DeviceTensor qkv(ops(), dtype(), shape.rows(), shape.qkv_cols(), 1),
      cos(ops(), kF32, shape.sequence, 64, 2), sin(ops(), kF32, shape.sequence, 64, 3);
  ExpectRepeats({&qkv}, [&] { ops()->Rope(qkv, shape, cos.floats(), sin.floats(), false); });
}

TEST_P(CudaBitsTest, AttentionRepeats) {
  const AttentionShape shape{.batch = dtype() == kBF16 ? 2 : 1,
                             .sequence = 1024,
                             .q_heads = 8,
                             .kv_heads = 2,
                             .head_dim = 128};
  DeviceTensor qkv(ops(), dtype(), shape.rows(), shape.qkv_cols(), 1, 2),
      dout(ops(), dtype(), shape.rows(), shape.out_cols(), 2),
      out(ops(), dtype(), shape.rows(), shape.out_cols(), 3),
      lse(ops(), kF32, shape.batch * shape.q_heads, shape.sequence, 4),
      dqkv(ops(), dtype(), shape.rows(), shape.qkv_cols(), 5);
  // A sum whose order is left to the blocks' scheduling differs now and then only.
  ExpectRepeats(
      {&out, &lse, &dqkv},
      [&] {
        ops()->AttentionForward(qkv, shape, out, lse.floats());
        ops()->AttentionBackward(dout, qkv, out, lse.floats(), shape, dqkv);
      },
      5);
}

TEST_P(CudaBitsTest, EmbeddingRepeats) {
  const int64_t rows = 2048, words = 16256, hidden = 1024;
  const std::vector<float>& noise = Noise();
  std::vector<int32_t> host(rows);  // Half of them are one token.
  for (int64_t t = 0; t < rows; ++t)
    host[t] = t % 2 == 0 ? 17 : static_cast<int32_t>((noise[t] + 1) * words);
  auto* tokens = static_cast<int32_t*>(ops()->Allocate(rows * sizeof(int32_t)));
  ops()->Upload(host.data(), rows * sizeof(int32_t), tokens);
  DeviceTensor table(ops(), dtype(), words, hidden, 1), dout(ops(), dtype(), rows, hidden, 2),
      out(ops(), dtype(), rows, hidden, 3), dtable(ops(), kF32, words, hidden, 4);
  ExpectRepeats({&out, &dtable}, [&] {
    ops()->EmbeddingForward(tokens, table, 0, out);
    ops()->EmbeddingBackward(tokens, dout, 0, dtable);
  });
  ops()->Free(tokens);
}

TEST_P(CudaBitsTest, CrossEntropyRepeats) {
  const int64_t rows = 512, width = 16256;
  std::vector<int32_t> host(rows);
  for (int64_t t = 0; t < rows; ++t) host[t] = static_cast<int32_t>(t * 61);
  auto* targets = static_cast<int32_t*>(ops()->Allocate(rows * sizeof(int32_t)));
  ops()->Upload(host.data(), rows * sizeof(int32_t), targets);
  auto* loss = static_cast<double*>(ops()->Allocate(sizeof(double)));
  DeviceTensor logits(ops(), kF32, rows, width, 1, 12), largest(ops(), kF32, 1, rows, 2),
      sum(ops(), kF32, 1, rows, 3), at_target(ops(), kF32, 1, rows, 4),
      dlogits(ops(), dtype(), rows, width, 5);
  std::vector<double> losses;
  ExpectRepeats({&logits, &largest, &sum, &at_target, &dlogits}, [&] {
    ops()->CrossEntropyMax(logits, largest.floats());
    ops()->CrossEntropySum(logits, largest.floats(), targets, 0, sum.floats(), at_target.floats());
    ops()->Zero(Matrix(loss, kF32, 1, 2));
    ops()->CrossEntropyLoss(sum.floats(), at_target.floats(), rows, loss);
    ops()->CrossEntropyGradient(logits, sum.floats(), targets, 0, 1.0f / rows, dlogits);
    losses.push_back(0);
    ops()->Download(loss, sizeof(double), &losses.back());
    EXPECT_TRUE(ops()->Sync().ok());
    EXPECT_EQ(losses.back(), losses.front());
    EXPECT_GT(losses.back(), 0);
  });
  ops()->Free(targets);
  ops()->Free(loss);
}

TEST_P(CudaBitsTest, SumsRepeat) {
  const int64_t rows = 1024, hidden = 4096;
  std::vector<std::unique_ptr<DeviceTensor>> tensors;
  std::vector<ConstMatrix> parts;
  for (uint64_t p = 0; p < 8; ++p) {
    tensors.push_back(std::make_unique<DeviceTensor>(ops(), kF32, rows, hidden, p));
    parts.push_back(*tensors.back());
  }
  DeviceTensor out(ops(), dtype(), rows, hidden, 10), sum(ops(), kF32, rows, hidden, 11),
      largest(ops(), kF32, rows, hidden, 12), copy(ops(), dtype(), rows, hidden, 13);
  std::vector<ElementRun> runs = {{0, rows * hidden}};
  for (int64_t k = 0; k < 64; ++k) runs.push_back({k * 60000, 16384 + k});
  const size_t bytes = runs.size() * sizeof(double);
  auto* squares = static_cast<double*>(ops()->Allocate(bytes));
  std::vector<std::vector<double>> all_squares;
  ExpectRepeats({&out, &sum, &largest, &copy}, [&] {
    ops()->TreeSum(parts, out, out);
    ops()->Add(parts[0], sum);
    ops()->Max(parts[1], largest);
    ops()->Copy(parts[2], copy);
    // The list of runs is gone before the device reads it.
    std::vector<ElementRun> list = runs;
    ops()->SumsOfSquares(tensors[3]->floats(), list, squares);
    list.assign(list.size(), {0, 1});
    ops()->Download(squares, bytes, all_squares.emplace_back(runs.size()).data());
    EXPECT_TRUE(ops()->Sync().ok());
    EXPECT_EQ(all_squares.back(), all_squares.front());
    EXPECT_GT(all_squares.back()[64], 0);
  });
  ops()->Free(squares);
}

TEST_P(CudaBitsTest, AdamWRepeats) {
  const int64_t rows = 1024, hidden = 4096;
  DeviceTensor gradient(ops(), kF32, rows, hidden, 1), master(ops(), kF32, rows, hidden, 2),
      m(ops(), kF32, rows, hidden, 3), v(ops(), kF32, rows, hidden, 4, 0),
      param(ops(), dtype(), rows, hidden, 5);
  const AdamWStep step{.step = 7, .rate = 1e-3, .weight_decay = 0.1, .gradient_scale = 0.5};
  ExpectRepeats({&master, &m, &v, &param}, [&] {
    ops()->AdamW(step, gradient.floats(), master.floats(), m.floats(), v.floats(), param);
  });
}

struct MatmulShape {
  Transpose ta, tb;
  int64_t m, n, k;
};
// A block's and the head's, forward, backward and weight gradient; and few results of long sums,
// which a library likes to split.
constexpr MatmulShape kMatmuls[] = {
    {kNo, kYes, 2048, 1536, 4096},  {kNo, kNo, 2048, 4096, 1536},  {kYes, kNo, 1536, 4096, 2048},
    {kNo, kYes, 1024, 12288, 4096}, {kNo, kNo, 512, 4096, 12288},  {kYes, kNo, 4096, 1536, 1024},
    {kNo, kYes, 512, 16256, 2048},  {kYes, kNo, 16256, 1024, 512}, {kYes, kNo, 64, 64, 16384},
    {kNo, kYes, 128, 256, 8192},    {kNo, kNo, 1, 4096, 4096},     {kYes, kNo, 96, 80, 131},
    {kNo, kYes, 33, 57, 1029},
};

TEST_P(CudaBitsTest, MatmulRepeatsAndAccumulatingIsAdding) {
  for (const auto& [ta, tb, m, n, k] : kMatmuls) {
    SCOPED_TRACE(testing::Message() << (ta == kNo ? "N" : "T") << (tb == kNo ? "N" : "T") << " "
                                    << m << " x " << n << " x " << k);
    DeviceTensor a(ops(), dtype(), ta == kNo ? m : k, ta == kNo ? k : m, 1),
        b(ops(), dtype(), tb == kNo ? k : n, tb == kNo ? n : k, 2);
    DeviceTensor product(ops(), kF32, m, n, 3), added(ops(), kF32, m, n, 4),
        accumulated(ops(), kF32, m, n, 4), narrow(ops(), dtype(), m, n, 5);
    ExpectRepeats(
        {&product, &added, &accumulated, &narrow},
        [&, ta = ta, tb = tb] {
          ops()->Matmul(ta, tb, a, b, product, false);
          ops()->Add(product, added);
          ops()->Matmul(ta, tb, a, b, accumulated, true);
          ops()->Matmul(ta, tb, a, b, narrow, false);
        },
        2);
    EXPECT_TRUE(SameBits(accumulated.Bits(), added.Bits())) << "accumulated, not added";
  }
}

}  // namespace
}  // namespace perdure
