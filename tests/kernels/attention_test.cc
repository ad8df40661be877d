#include <limits>
#include <memory>

#include "tests/kernels/kernel_test_util.h"

namespace perdure {
namespace {

// Attention in double, one query at a time.
class Reference {
 public:
  Reference(const Tensor& qkv, const AttentionShape& shape) : shape_(shape), qkv_(qkv) {
    out.resize(shape.rows() * shape.out_cols());
    lse.resize(shape.rows() * shape.q_heads);
    for (int64_t b = 0; b < shape.batch; ++b) {
      for (int64_t h = 0; h < shape.q_heads; ++h) {
        for (int64_t i = 0; i < shape.sequence; ++i) Forward(b, h, i);
      }
    }
  }

  void Backward(const Tensor& dout) {
    dqkv.assign(shape_.rows() * shape_.qkv_cols(), 0);
    for (int64_t b = 0; b < shape_.batch; ++b) {
      for (int64_t h = 0; h < shape_.q_heads; ++h) {
        for (int64_t i = 0; i < shape_.sequence; ++i) BackwardQuery(b, h, i, dout);
      }
    }
  }

  std::vector<double> out, lse, dqkv;

 private:
  int64_t Row(int64_t b, int64_t i) const { return b * shape_.sequence + i; }
  int64_t Query(int64_t h) const { return h * shape_.head_dim; }
  int64_t Key(int64_t h) const {
    return (shape_.q_heads + h / (shape_.q_heads / shape_.kv_heads)) * shape_.head_dim;
  }
  int64_t Value(int64_t h) const { return Key(h) + shape_.kv_heads * shape_.head_dim; }
  double Scale() const { return 1 / std::sqrt(static_cast<double>(shape_.head_dim)); }
  double& Dqkv(int64_t row, int64_t col) { return dqkv[row * shape_.qkv_cols() + col]; }

  double Score(int64_t b, int64_t h, int64_t i, int64_t j) const {
    double dot = 0;
    for (int64_t d = 0; d < shape_.head_dim; ++d) {
      dot += qkv_.Get(Row(b, i), Query(h) + d) * qkv_.Get(Row(b, j), Key(h) + d);
    }
    return dot * Scale();
  }
  void Forward(int64_t b, int64_t h, int64_t i) {
    double sum = 0;
    std::vector<double> weight(i + 1);
    for (int64_t j = 0; j <= i; ++j) sum += weight[j] = std::exp(Score(b, h, i, j));
    lse[(b * shape_.q_heads + h) * shape_.sequence + i] = std::log(sum);
    for (int64_t j = 0; j <= i; ++j) {
      for (int64_t d = 0; d < shape_.head_dim; ++d) {
        out[Row(b, i) * shape_.out_cols() + Query(h) + d] +=
            weight[j] / sum * qkv_.Get(Row(b, j), Value(h) + d);
      }
    }
  }
  void BackwardQuery(int64_t b, int64_t h, int64_t i, const Tensor& dout) {
    const double log_sum = lse[(b * shape_.q_heads + h) * shape_.sequence + i];
    double out_dot = 0;
    for (int64_t d = 0; d < shape_.head_dim; ++d) {
      out_dot +=
          dout.Get(Row(b, i), Query(h) + d) * out[Row(b, i) * shape_.out_cols() + Query(h) + d];
    }
    for (int64_t j = 0; j <= i; ++j) {
      const double weight = std::exp(Score(b, h, i, j) - log_sum);
      double dweight = 0;
      for (int64_t d = 0; d < shape_.head_dim; ++d) {
        const double grad = dout.Get(Row(b, i), Query(h) + d);
        dweight += grad * qkv_.Get(Row(b, j), Value(h) + d);
        Dqkv(Row(b, j), Value(h) + d) += weight * grad;
      }
      const double dscore = weight * (dweight - out_dot) * Scale();
      for (int64_t d = 0; d < shape_.head_dim; ++d) {
        Dqkv(Row(b, i), Query(h) + d) += dscore * qkv_.Get(Row(b, j), Key(h) + d);
        Dqkv(Row(b, j), Key(h) + d) += dscore * qkv_.Get(Row(b, i), Query(h) + d);
      }
    }
  }

  const AttentionShape shape_;
  const Tensor& qkv_;
};

// One call's operands, forward and backward.
struct Call {
  Call(DType dtype, const AttentionShape& attention_shape, Placement placement = {})
      : shape(attention_shape),
        qkv(dtype, shape.rows(), shape.qkv_cols(), placement),
        out(dtype, shape.rows(), shape.out_cols(), placement),
        dout(dtype, shape.rows(), shape.out_cols(), placement),
        dqkv(dtype, shape.rows(), shape.qkv_cols(), placement),
        lse(DType::kF32, shape.batch * shape.q_heads, shape.sequence) {
    qkv.Randomize(1, 2.0);
    dout.Randomize(2);
    dqkv.Randomize(3);  // To be overwritten.
  }
  void Forward(Ops& ops) { ops.AttentionForward(qkv, shape, out, lse.floats()); }
  void Backward(Ops& ops) { ops.AttentionBackward(dout, qkv, out, lse.floats(), shape, dqkv); }
  std::string Bits() const { return out.Bits() + lse.Bits() + dqkv.Bits(); }

  AttentionShape shape;
  Tensor qkv, out, dout, dqkv, lse;
};

class AttentionTest : public OpsTest {
 protected:
  void ExpectAgreement(DType dtype, const AttentionShape& shape, Placement placement = {});
};
INSTANTIATE_TEST_SUITE_P(Ops, AttentionTest, EveryBackend(), BackendName);
class AttentionDeathTest : public OpsTest {};
INSTANTIATE_TEST_SUITE_P(Ops, AttentionDeathTest, EveryBackend(), BackendName);

void AttentionTest::ExpectAgreement(DType dtype, const AttentionShape& shape, Placement placement) {
  SCOPED_TRACE(testing::Message() << "sequence " << shape.sequence << ", head_dim "
                                  << shape.head_dim << ", heads " << shape.q_heads << "/"
                                  << shape.kv_heads << ", offset " << placement.offset);
  Call call(dtype, shape, placement);
  Reference want(call.qkv, shape);
  want.Backward(call.dout);
  call.Forward(*ops_);
  call.Backward(*ops_);
  if (dtype == DType::kF32) {
    ExpectNear(call.out, want.out, 2e-6, 1, "out");
    ExpectNear(call.dqkv, want.dqkv, 8e-6, 1, "dqkv");
  } else {
    // Everybody rounds `out` before the backward pass reads it, and every result once. Tensor cores
    // take the probabilities and their gradients in bf16, too: an error of one rounding of a sum's
    // terms, and |values| < 2.
    const double rounding = 1.01 * Epsilon(dtype);
    ExpectNear(call.out, want.out, rounding, on_cpu() ? 1e-3 : 2, "out");
    ExpectNear(call.dqkv, want.dqkv, 4 * rounding, on_cpu() ? 0.3 : 1, "dqkv");
  }
  ExpectNear(call.lse, want.lse, on_cpu() ? 1e-6 : 2e-6, 1, "lse");
  call.out.ExpectEdgesIntact();
  call.dqkv.ExpectEdgesIntact();
  call.lse.ExpectEdgesIntact();
}

TEST_P(AttentionTest, AgreesWithTheNaiveSumAtEverySequenceNearATile) {
  for (int64_t sequence : {1, 2, 5, 6, 7, 15, 16, 17, 47, 48, 49, 63, 95, 96, 97, 130, 193}) {
    ExpectAgreement(
        DType::kF32,
        {.batch = 1, .sequence = sequence, .q_heads = 2, .kv_heads = 1, .head_dim = 16});
  }
}

TEST_P(AttentionTest, AgreesWithTheNaiveSumForEveryHeadDim) {
  for (int64_t head_dim : {8, 16, 24, 40, 64, 128, 256}) {
    ExpectAgreement(
        DType::kF32,
        {.batch = 2, .sequence = 50, .q_heads = 1, .kv_heads = 1, .head_dim = head_dim});
  }
}

TEST_P(AttentionTest, AgreesWithTheNaiveSumForGroups) {
  for (const auto& [q_heads, kv_heads] : {std::pair<int64_t, int64_t>{4, 4}, {4, 2}, {6, 1}}) {
    ExpectAgreement(
        DType::kF32,
        {.batch = 2, .sequence = 53, .q_heads = q_heads, .kv_heads = kv_heads, .head_dim = 8});
  }
}

TEST_P(AttentionTest, AgreesWithTheNaiveSumInStridedRows) {
  ExpectAgreement(DType::kF32,
                  {.batch = 2, .sequence = 21, .q_heads = 2, .kv_heads = 1, .head_dim = 24},
                  {7, 3});
}

TEST_P(AttentionTest, AgreesWithTheNaiveSumInBF16) {
  for (int64_t sequence : {1, 3, 48, 101, 130}) {
    for (int64_t head_dim : {8, 64, 128}) {
      for (const Placement placement : {Placement{5, 1}, {8, 8}}) {
        ExpectAgreement(
            DType::kBF16,
            {.batch = 1, .sequence = sequence, .q_heads = 2, .kv_heads = 1, .head_dim = head_dim},
            placement);
      }
    }
  }
}

TEST_P(AttentionTest, BackwardIsTheSlopeOfForward) {
  Call call(DType::kF32, {.batch = 2, .sequence = 9, .q_heads = 4, .kv_heads = 2, .head_dim = 8});
  call.qkv.Randomize(5);
  call.Forward(*ops_);
  call.Backward(*ops_);
  const auto loss = [&] {
    call.Forward(*ops_);
    return WeightedSum(call.out, call.dout);
  };
  ExpectGradient(loss, call.qkv, call.dqkv, 4e-3, 3e-4, "dqkv", 5);
}

TEST_P(AttentionTest, LargeScoresNeitherOverflowNorVanish) {
  Call call(DType::kF32, {.batch = 1, .sequence = 120, .q_heads = 1, .kv_heads = 1, .head_dim = 8});
  call.qkv.Randomize(4, 60.0);  // Scores up to some thousands.
  call.Forward(*ops_);
  call.Backward(*ops_);
  for (int64_t i = 0; i < call.out.size(); ++i) ASSERT_LE(std::abs(call.out.Get(i)), 60.001);
  for (int64_t i = 0; i < call.dqkv.size(); ++i) ASSERT_TRUE(std::isfinite(call.dqkv.Get(i)));
}

TEST_P(AttentionTest, ANaNReachesEveryLaterQueryAndNoEarlierOne) {
  Call call(DType::kF32, {.batch = 1, .sequence = 110, .q_heads = 1, .kv_heads = 1, .head_dim = 8});
  const int64_t bad = 50;
  call.qkv.Set(bad, 8, std::numeric_limits<double>::quiet_NaN());  // A key.
  call.Forward(*ops_);
  for (int64_t i = 0; i < call.out.rows(); ++i) {
    EXPECT_EQ(std::isnan(call.out.Get(i, 0)), i >= bad) << i;
    EXPECT_EQ(std::isnan(call.lse.Get(i)), i >= bad) << i;
  }
}

TEST_P(AttentionTest, BitsDependOnNothingButValuesAndShapes) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const AttentionShape shape{
        .batch = 2, .sequence = 101, .q_heads = 2, .kv_heads = 1, .head_dim = 24};
    std::string first;
    // Tensor cores load 16 bytes at once.
    const bool aligned = !on_cpu() && dtype == DType::kBF16;
    for (const Placement placement : aligned
                                         ? std::vector<Placement>{{}, {0, 8}, {8, 24}, {16, 8}}
                                         : std::vector<Placement>{{}, {0, 1}, {3, 5}, {16, 8}}) {
      Call call(dtype, shape, placement);
      call.Forward(*ops_);
      call.Backward(*ops_);
      if (first.empty()) first = call.Bits();
      EXPECT_TRUE(SameBits(call.Bits(), first)) << "offset " << placement.offset;
      // Leaves other values behind in the working memory.
      Call other(dtype, {.batch = 1, .sequence = 200, .q_heads = 1, .kv_heads = 1, .head_dim = 64});
      other.qkv.Randomize(9, 1e30);
      other.Forward(*ops_);
      other.Backward(*ops_);
    }
    if (!on_cpu()) continue;
    // On the CPU a sample's bits do not even depend on the batch it is in.
    Call both(dtype, shape);
    both.Forward(*ops_);
    AttentionShape one_shape = shape;
    one_shape.batch = 1;
    Call one(dtype, one_shape);
    for (int64_t i = 0; i < one.qkv.size(); ++i) one.qkv.Set(i, both.qkv.Get(one.qkv.size() + i));
    one.Forward(*ops_);
    EXPECT_TRUE(SameBits(both.out.Bits().substr(one.out.Bits().size()), one.out.Bits()));
  }
}

TEST_P(AttentionDeathTest, WrongShapesEndTheProcess) {
  const auto make = [](int64_t head_dim, int64_t q_heads, int64_t kv_heads) {
    return std::make_unique<Call>(DType::kF32, AttentionShape{.batch = 1,
                                                              .sequence = 3,
                                                              .q_heads = q_heads,
                                                              .kv_heads = kv_heads,
                                                              .head_dim = head_dim});
  };
  if (on_cpu()) {  // What its tiles take; others may take more.
    const auto odd = make(12, 1, 1), wide = make(264, 1, 1);
    EXPECT_DEATH(odd->Forward(*ops_), "head_dim");
    EXPECT_DEATH(wide->Forward(*ops_), "head_dim");
  }
  const auto ragged = make(8, 3, 2), call = make(8, 1, 1);
  EXPECT_DEATH(ragged->Forward(*ops_), Failed("kv_heads"));
  call->shape.batch = 2;
  EXPECT_DEATH(call->Forward(*ops_), Failed("rows"));
  EXPECT_DEATH(call->Backward(*ops_), Failed("rows"));
}

}  // namespace
}  // namespace perdure
