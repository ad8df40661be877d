// Cross-entropy in its three passes, and AdamW.
#include <algorithm>
#include <limits>

#include "tests/kernels/kernel_test_util.h"

namespace perdure {
namespace {

// The passes over `slices` equal slices of a vocabulary, joined as ranks join them.
struct Loss {
  Loss(const Tensor& all_logits, const Tokens& all_targets)
      : logits(all_logits), targets(all_targets), losses(all_logits.rows()) {}

  void Run(Ops& ops, int64_t slices, DType dtype, float scale, bool in_place = false,
           Placement placement = {}) {
    const int64_t rows = logits.rows(), width = logits.cols() / slices;
    std::vector<std::unique_ptr<Tensor>> parts;
    std::pmr::vector<float> largest(rows, -std::numeric_limits<float>::infinity());
    std::pmr::vector<float> sum(rows), at_target(rows), one(rows), other(rows);
    for (int64_t s = 0; s < slices; ++s) {
      parts.push_back(std::make_unique<Tensor>(DType::kF32, rows, width, placement));
      for (int64_t i = 0; i < rows * width; ++i) {
        parts[s]->Set(i, logits.Get(i / width, s * width + i % width));
      }
      ops.CrossEntropyMax(*parts[s], one.data());
      for (int64_t t = 0; t < rows; ++t) largest[t] = std::max(largest[t], one[t]);
    }
    for (int64_t s = 0; s < slices; ++s) {
      ops.CrossEntropySum(*parts[s], largest.data(), targets.data(), s * width, one.data(),
                          other.data());
      for (int64_t t = 0; t < rows; ++t) sum[t] += one[t];
      for (int64_t t = 0; t < rows; ++t) at_target[t] += other[t];
      parts[s]->ExpectEdgesIntact();
    }
    for (int64_t t = 0; t < rows; ++t) losses[t] = std::log(double{sum[t]}) - at_target[t];
    gradient.assign(rows * logits.cols(), 0);
    bits.clear();
    for (int64_t s = 0; s < slices; ++s) {
      Tensor separate(dtype, rows, width, placement);
      const Tensor& out = in_place ? *parts[s] : separate;
      ops.CrossEntropyGradient(*parts[s], sum.data(), targets.data(), s * width, scale, out);
      for (int64_t i = 0; i < rows * width; ++i) {
        gradient[i / width * logits.cols() + s * width + i % width] = out.Get(i);
      }
      out.ExpectEdgesIntact();
      bits += out.Bits();
    }
  }

  const Tensor& logits;
  const Tokens& targets;
  std::vector<double> losses, gradient;
  std::string bits;
};

class CrossEntropyTest : public OpsTest {
 protected:
  CrossEntropyTest() { logits_.Randomize(1, 20.0); }

  Tensor logits_{DType::kF32, 5, 74};
  const Tokens targets_ = {0, 36, 37, 73, 11};
};
INSTANTIATE_TEST_SUITE_P(Ops, CrossEntropyTest, EveryBackend(), BackendName);
class CpuCrossEntropyTest : public CrossEntropyTest {};
INSTANTIATE_TEST_SUITE_P(Ops, CpuCrossEntropyTest, testing::Values(Backend::kCpu), BackendName);
class AdamWTest : public OpsTest {};
INSTANTIATE_TEST_SUITE_P(Ops, AdamWTest, EveryBackend(), BackendName);
class LossAndOptimizerDeathTest : public OpsTest {};
INSTANTIATE_TEST_SUITE_P(Ops, LossAndOptimizerDeathTest, EveryBackend(), BackendName);

TEST_P(CrossEntropyTest, AgreesWithTheFormulaInEverySlicing) {
  const float scale = 0.25;
  std::vector<double> losses, gradient;
  for (int64_t t = 0; t < 5; ++t) {
    double sum = 0;
    for (int64_t c = 0; c < 74; ++c) sum += std::exp(logits_.Get(t, c));
    losses.push_back(std::log(sum) - logits_.Get(t, targets_[t]));
    for (int64_t c = 0; c < 74; ++c) {
      gradient.push_back((std::exp(logits_.Get(t, c)) / sum - (c == targets_[t])) * scale);
    }
  }
  for (int64_t slices : {1, 2, 37}) {
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      Loss loss(logits_, targets_);
      loss.Run(*ops_, slices, dtype, scale, false, {.row_gap = 3, .offset = 5});
      for (int64_t t = 0; t < 5; ++t) EXPECT_NEAR(loss.losses[t], losses[t], 5e-6) << t;
      const double tolerance = dtype == DType::kF32 ? 1e-6 : 1.01 * Epsilon(dtype);
      for (int64_t i = 0; i < logits_.size(); ++i) {
        ASSERT_NEAR(loss.gradient[i], gradient[i], tolerance * (std::abs(gradient[i]) + 1e-3));
      }
    }
  }
}

TEST_P(CrossEntropyTest, InPlaceAndAnywhereGivesTheSameBits) {
  Loss loss(logits_, targets_);
  loss.Run(*ops_, 2, DType::kF32, 0.125);
  const std::string bits = loss.bits;
  loss.Run(*ops_, 2, DType::kF32, 0.125, /*in_place=*/true);
  EXPECT_TRUE(SameBits(loss.bits, bits)) << "in place";
  for (const Placement placement : {Placement{0, 1}, {5, 15}}) {
    loss.Run(*ops_, 2, DType::kF32, 0.125, false, placement);
    EXPECT_TRUE(SameBits(loss.bits, bits)) << "offset " << placement.offset;
  }
}

TEST_P(CrossEntropyTest, GradientIsTheSlopeOfTheLoss) {
  Loss loss(logits_, targets_);
  loss.Run(*ops_, 2, DType::kF32, 1.0);
  Tensor gradient(DType::kF32, 5, 74);
  for (int64_t i = 0; i < gradient.size(); ++i) gradient.Set(i, loss.gradient[i]);
  const auto sum = [&] {
    loss.Run(*ops_, 2, DType::kF32, 1.0);
    double total = 0;
    for (double value : loss.losses) total += value;
    return total;
  };
  ExpectGradient(sum, logits_, gradient, 2e-2, 2e-3, "dlogits", 3);
}

TEST_P(CpuCrossEntropyTest, SumIsSixteenLanesFoldedByHalves) {
  const std::pmr::vector<float> largest(5, 20.0f);
  std::pmr::vector<float> sum(5), at_target(5);
  ops_->CrossEntropySum(logits_, largest.data(), targets_.data(), 0, sum.data(), at_target.data());
  for (int64_t t = 0; t < 5; ++t) {  // logits_ now holds the exponentials.
    float lanes[16] = {};
    for (int64_t c = 0; c < 74; ++c) lanes[c % 16] += static_cast<float>(logits_.Get(t, c));
    for (int half : {8, 4, 2, 1}) {
      for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    EXPECT_EQ(sum[t], lanes[0]);
  }
}

TEST_P(CrossEntropyTest, LossIsAddedInDouble) {
  for (int64_t rows : {0, 1, 5, 31, 32, 33, 1000, 5000}) {
    Tensor row_sum(DType::kF32, 1, rows), target_logit(DType::kF32, 1, rows, {0, 3});
    row_sum.Randomize(1);
    target_logit.Randomize(2, 20.0);
    double want = 3.5;
    for (int64_t t = 0; t < rows; ++t) {
      row_sum.Set(t, 1.5 + row_sum.Get(t));
      want += std::log(row_sum.Get(t)) - target_logit.Get(t);
    }
    std::pmr::vector<double> loss = {7, 3.5, 7};
    ops_->CrossEntropyLoss(row_sum.floats(), target_logit.floats(), rows, &loss[1]);
    // Terms are below 21, so this is the rounding of their sum in fp64.
    EXPECT_NEAR(loss[1], want, 1e-14 * (1 + 21 * static_cast<double>(rows))) << rows;
    const double once = loss[1];
    loss[1] = 3.5;
    ops_->CrossEntropyLoss(row_sum.floats(), target_logit.floats(), rows, &loss[1]);
    EXPECT_EQ(loss[1], once) << rows;
    EXPECT_EQ(loss[0] + loss[2], 14) << "written outside";
  }
}

TEST_P(CrossEntropyTest, ExtremeLogitsAreFinite) {
  Tensor logits(DType::kF32, 2, 40);
  for (int64_t c = 0; c < 40; ++c) logits.Set(0, c, c == 7 ? 1e30 : -1e30);
  for (int64_t c = 0; c < 40; ++c) logits.Set(1, c, -1e30);
  const Tokens targets = {7, 39};
  std::pmr::vector<float> largest(2), sum(2), at_target(2);
  ops_->CrossEntropyMax(logits, largest.data());
  EXPECT_EQ(largest[0], 1e30f);
  EXPECT_EQ(largest[1], -1e30f);
  ops_->CrossEntropySum(logits, largest.data(), targets.data(), 0, sum.data(), at_target.data());
  EXPECT_EQ(sum[0], 1);
  EXPECT_EQ(sum[1], 40);
  EXPECT_EQ(at_target[0], 0);
  EXPECT_EQ(at_target[1], 0);
  Tensor gradient(DType::kF32, 2, 40);
  ops_->CrossEntropyGradient(logits, sum.data(), targets.data(), 0, 1, gradient);
  for (int64_t c = 0; c < 40; ++c) {
    EXPECT_EQ(gradient.Get(0, c), 0) << c;
    EXPECT_NEAR(gradient.Get(1, c), 1 / 40.0 - (c == 39), 1e-7) << c;
  }
}

// The update as the paper writes it, in double.
struct ReferenceAdamW {
  void Update(const AdamWStep& s, const std::vector<double>& gradient) {
    for (size_t i = 0; i < master.size(); ++i) {
      const double g = gradient[i] * s.gradient_scale;
      master[i] *= 1 - s.rate * s.weight_decay;
      m[i] = s.beta1 * m[i] + (1 - s.beta1) * g;
      v[i] = s.beta2 * v[i] + (1 - s.beta2) * g * g;
      const double t = static_cast<double>(s.step);
      const double m_hat = m[i] / (1 - std::pow(s.beta1, t));
      const double v_hat = v[i] / (1 - std::pow(s.beta2, t));
      master[i] -= s.rate * m_hat / (std::sqrt(v_hat) + s.eps);
    }
  }
  std::vector<double> master, m, v;
};

TEST_P(AdamWTest, AgreesWithThePaperOverManySteps) {
  for (int64_t count : {1, 16, 75}) {
    Tensor g(DType::kF32, 1, count, {0, 3}), master(DType::kF32, 1, count, {0, 1}),
        m(DType::kF32, 1, count, {0, 5}), v(DType::kF32, 1, count, {0, 7}),
        param(DType::kBF16, 1, count, {0, 9});
    master.Randomize(1);
    ReferenceAdamW want{master.Values(), m.Values(), v.Values()};
    AdamWStep step{.rate = 1e-2, .eps = 1e-6, .weight_decay = 0.1, .gradient_scale = 0.5};
    for (step.step = 1; step.step <= 50; ++step.step) {
      g.Randomize(100 + step.step, 3.0);
      ops_->AdamW(step, g.floats(), master.floats(), m.floats(), v.floats(), param);
      want.Update(step, g.Values());
    }
    ExpectNear(master, want.master, 1e-6, 1, "master");
    ExpectNear(m, want.m, 2e-6, 0.1, "m");
    ExpectNear(v, want.v, 2e-6, 0.1, "v");
    for (int64_t i = 0; i < count; ++i) {
      const auto rounded = cpu::ToBFloat16(static_cast<float>(master.Get(i)));
      EXPECT_EQ(param.Get(i), cpu::ToFloat(rounded));
    }
    for (const Tensor* tensor : {&master, &m, &v, &param}) tensor->ExpectEdgesIntact();
  }
}

TEST_P(AdamWTest, BitsDependOnNothingButValues) {
  std::string first;
  for (int64_t offset : {0, 1, 7}) {
    const Placement placement{0, offset};
    Tensor g(DType::kF32, 5, 15, placement), master(DType::kF32, 5, 15, placement),
        m(DType::kF32, 5, 15, placement), v(DType::kF32, 5, 15, placement);
    g.Randomize(1);
    master.Randomize(2);
    const AdamWStep step{.step = 3, .rate = 1e-2};
    // The parameter is the master itself.
    ops_->AdamW(step, g.floats(), master.floats(), m.floats(), v.floats(), master);
    const std::string bits = master.Bits() + m.Bits() + v.Bits();
    if (first.empty()) first = bits;
    EXPECT_TRUE(SameBits(bits, first)) << "offset " << offset;
    // An atom updated in two pieces is an atom updated at once.
    Tensor pieces(DType::kF32, 5, 15, placement), m2(DType::kF32, 5, 15), v2(DType::kF32, 5, 15);
    pieces.Randomize(2);
    for (const auto& [begin, count] : {std::pair<int64_t, int64_t>{0, 31}, {31, 44}}) {
      const Matrix param(pieces.floats() + begin, DType::kF32, 1, count);
      ops_->AdamW(step, g.floats() + begin, pieces.floats() + begin, m2.floats() + begin,
                  v2.floats() + begin, param);
    }
    EXPECT_TRUE(SameBits(pieces, master));
  }
}

TEST_P(LossAndOptimizerDeathTest, WrongOperandsEndTheProcess) {
  const Tensor x(DType::kF32, 2, 3), half(DType::kBF16, 2, 3), wide(DType::kF32, 2, 4);
  const Tensor gaps(DType::kF32, 2, 3, {.row_gap = 1});
  const Tokens targets = {0, 1};
  float* floats = x.floats();
  EXPECT_DEATH(ops_->CrossEntropyMax(half, floats), Failed("dtype"));
  EXPECT_DEATH(ops_->CrossEntropySum(half, floats, targets.data(), 0, floats, floats),
               Failed("dtype"));
  EXPECT_DEATH(ops_->CrossEntropyGradient(x, floats, targets.data(), 0, 1, wide),
               Failed("SameShape"));
  EXPECT_DEATH(ops_->AdamW({.step = 0}, floats, floats, floats, floats, x), Failed("step"));
  EXPECT_DEATH(ops_->AdamW({.step = 1}, floats, floats, floats, floats, gaps),
               Failed("contiguous"));
}

}  // namespace
}  // namespace perdure
