// RMSNorm, rotary embedding and SwiGLU.
#include "tests/kernels/kernel_test_util.h"

namespace perdure {
namespace {

constexpr float kEps = 1e-5f;

// fp32 results of a few operations, or one rounding to bf16.
double Tolerance(DType dtype) { return dtype == DType::kF32 ? 2e-6 : 1.01 * Epsilon(dtype); }

class ActivationsTest : public TypedOpsTest {};
INSTANTIATE_TEST_SUITE_P(Ops, ActivationsTest, EveryBackendAndType(), BackendAndTypeName);
class ActivationsF32Test : public OpsTest {};
INSTANTIATE_TEST_SUITE_P(Ops, ActivationsF32Test, EveryBackend(), BackendName);
class ActivationsDeathTest : public OpsTest {};
INSTANTIATE_TEST_SUITE_P(Ops, ActivationsDeathTest, EveryBackend(), BackendName);

struct Norm {
  Norm(DType dtype, int64_t rows, int64_t cols, Placement placement = {})
      : x(dtype, rows, cols, placement),
        weight(dtype, 1, cols, placement),
        y(dtype, rows, cols, placement),
        rstd(DType::kF32, 1, rows),
        dy(dtype, rows, cols, placement),
        dresidual(dtype, rows, cols, placement),
        dx(dtype, rows, cols, placement),
        dweight(DType::kF32, 1, cols, placement) {
    x.Randomize(1, 3.0);
    weight.Randomize(2);
    dy.Randomize(3);
    dresidual.Randomize(4);
    dweight.Randomize(5);  // To be added to.
  }
  void Forward(Ops& ops) { ops.RmsNormForward(x, weight, kEps, y, rstd.floats()); }
  void Backward(Ops& ops, ConstMatrix residual, Matrix to) {
    ops.RmsNormBackward(dy, x, weight, rstd.floats(), residual, to, dweight);
  }

  Tensor x, weight, y, rstd, dy, dresidual, dx, dweight;
};

TEST_P(ActivationsTest, RmsNormAgreesWithTheFormula) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1},
                                   {3, 16},
                                   {7, 37},
                                   {2, 512},
                                   {70, 24},
                                   {3, 1030},
                                   {0, 16}}) {
    Norm norm(dtype(), rows, cols, {.row_gap = 3, .offset = 1});
    std::vector<double> y, rstd, dx, dweight = norm.dweight.Values();
    for (int64_t r = 0; r < rows; ++r) {
      double squares = 0;
      for (int64_t c = 0; c < cols; ++c) squares += norm.x.Get(r, c) * norm.x.Get(r, c);
      rstd.push_back(1 / std::sqrt(squares / static_cast<double>(cols) + kEps));
      double dot = 0;
      for (int64_t c = 0; c < cols; ++c) {
        const double unit = norm.x.Get(r, c) * rstd[r];
        y.push_back(unit * norm.weight.Get(c));
        dot += norm.dy.Get(r, c) * norm.weight.Get(c) * unit;
        dweight[c] += norm.dy.Get(r, c) * unit;
      }
      for (int64_t c = 0; c < cols; ++c) {
        const double unit = norm.x.Get(r, c) * rstd[r];
        dx.push_back(norm.dresidual.Get(r, c) + rstd[r] * (norm.dy.Get(r, c) * norm.weight.Get(c) -
                                                           unit * dot / static_cast<double>(cols)));
      }
    }
    norm.Forward(*ops_);
    ExpectNear(norm.y, y, Tolerance(dtype()), 1e-3, "y");
    ExpectNear(norm.rstd, rstd, 1e-6, 0, "rstd");
    norm.Backward(*ops_, norm.dresidual, norm.dx);
    ExpectNear(norm.dx, dx, Tolerance(dtype()), 1, "dx");
    ExpectNear(norm.dweight, dweight, 2e-6, 1, "dweight");
    norm.y.ExpectEdgesIntact();
    norm.dx.ExpectEdgesIntact();
    norm.dweight.ExpectEdgesIntact();
  }
}

TEST_P(ActivationsTest, RmsNormBackwardInPlaceAndWithoutResidual) {
  Norm norm(dtype(), 5, 37);
  norm.Forward(*ops_);
  norm.Backward(*ops_, norm.dresidual, norm.dx);
  const std::string separate = norm.dx.Bits();
  norm.Backward(*ops_, norm.dresidual, norm.dresidual);
  EXPECT_TRUE(SameBits(norm.dresidual.Bits(), separate));

  norm.dresidual.Randomize(1, 0.0);
  norm.Backward(*ops_, norm.dresidual, norm.dx);
  const std::vector<double> of_zero = norm.dx.Values();
  norm.Backward(*ops_, ConstMatrix(), norm.dx);
  EXPECT_EQ(norm.dx.Values(), of_zero);
}

TEST_P(ActivationsF32Test, RmsNormBackwardIsTheSlopeOfForward) {
  Norm norm(DType::kF32, 3, 21);
  norm.Forward(*ops_);
  norm.dweight.Randomize(1, 0.0);
  norm.Backward(*ops_, ConstMatrix(), norm.dx);
  const auto loss = [&] {
    norm.Forward(*ops_);
    return WeightedSum(norm.y, norm.dy);
  };
  ExpectGradient(loss, norm.x, norm.dx, 4e-3, 3e-4, "dx");
  ExpectGradient(loss, norm.weight, norm.dweight, 1e-2, 1e-4, "dweight");
}

// Rows of dweight are sums over slices, with the bits of a call on each slice alone: a rank that
// has one of them must agree with a rank that has them all.
TEST_P(ActivationsTest, RmsNormBackwardOfSlicesIsThatOfEachAlone) {
  struct Shape {
    int64_t rows, slices, cols;
    Placement placement;
  };
  for (const auto& [rows, slices, cols, placement] :
       {Shape{6, 3, 37, {.row_gap = 3, .offset = 1}}, Shape{4, 4, 16, {}}, Shape{84, 4, 64, {}},
        Shape{1100, 2, 48, {.row_gap = 16}}, Shape{0, 2, 16, {}}}) {
    SCOPED_TRACE(testing::Message() << rows << " x " << cols << " of " << slices << " slices");
    Norm norm(dtype(), rows, cols, placement);
    norm.Forward(*ops_);
    Tensor dweight(DType::kF32, slices, cols, placement), one(DType::kF32, slices, cols, placement);
    Tensor dx(dtype(), rows, cols, placement);
    dweight.Randomize(6);
    one.Randomize(6);
    ops_->RmsNormBackward(norm.dy, norm.x, norm.weight, norm.rstd.floats(), norm.dresidual, norm.dx,
                          dweight);
    const int64_t each = rows / slices;
    for (int64_t s = 0; s < slices; ++s) {
      const auto part = [&](const Tensor& all) { return all.view().Rows(s * each, each); };
      ops_->RmsNormBackward(part(norm.dy), part(norm.x), norm.weight, norm.rstd.floats() + s * each,
                            part(norm.dresidual), part(dx), one.view().Rows(s, 1));
    }
    EXPECT_TRUE(SameBits(dweight, one));
    EXPECT_TRUE(SameBits(norm.dx, dx));
    dweight.ExpectEdgesIntact();
  }
}

// On the CPU dweight is summed over rows in order: one call equals two calls on halves.
TEST(CpuRmsNormTest, WeightGradientIsSummedInRowOrder) {
  const auto ops = NewCpuOps(1);
  Norm norm(DType::kF32, 8, 37), halves(DType::kF32, 8, 37);
  norm.Forward(*ops);
  norm.Backward(*ops, ConstMatrix(), norm.dx);
  for (int64_t begin : {0, 4}) {
    ops->RmsNormBackward(halves.dy.view().Rows(begin, 4), halves.x.view().Rows(begin, 4),
                         halves.weight, norm.rstd.floats() + begin, ConstMatrix(),
                         halves.dx.view().Rows(begin, 4), halves.dweight);
  }
  EXPECT_TRUE(SameBits(halves.dweight, norm.dweight));
  EXPECT_TRUE(SameBits(halves.dx, norm.dx));
}

TEST_P(ActivationsF32Test, RowsOfZerosHaveNoNorm) {
  Norm norm(DType::kF32, 3, 37);
  norm.x.Randomize(1, 0.0);
  norm.Forward(*ops_);
  norm.Backward(*ops_, norm.dresidual, norm.dx);
  for (int64_t i = 0; i < norm.y.size(); ++i) EXPECT_EQ(norm.y.Get(i), 0);
  for (int64_t r = 0; r < 3; ++r) EXPECT_NEAR(norm.rstd.Get(r), 1 / std::sqrt(kEps), 1e-4);
  for (int64_t i = 0; i < norm.dx.size(); ++i) {
    const double slope = norm.dy.Get(i) * norm.weight.Get(i % 37) / std::sqrt(double{kEps});
    ASSERT_NEAR(norm.dx.Get(i), norm.dresidual.Get(i) + slope, 1e-4);
  }
}

struct Rotation {
  Rotation(DType dtype, const AttentionShape& s, Placement placement = {})
      : shape(s),
        qkv(dtype, s.rows(), s.qkv_cols(), placement),
        cos(DType::kF32, s.sequence, s.head_dim / 2),
        sin(DType::kF32, s.sequence, s.head_dim / 2) {
    qkv.Randomize(1);
    for (int64_t i = 0; i < cos.size(); ++i) {
      cos.Set(i, std::cos(0.7 * static_cast<double>(i)));
      sin.Set(i, std::sin(0.7 * static_cast<double>(i)));
    }
  }
  void Run(Ops& ops, bool inverse) { ops.Rope(qkv, shape, cos.floats(), sin.floats(), inverse); }

  AttentionShape shape;
  Tensor qkv, cos, sin;
};

TEST_P(ActivationsTest, RopeAgreesWithTheFormula) {
  for (int64_t head_dim : {2, 8, 16, 64, 70}) {
    for (bool inverse : {false, true}) {
      const AttentionShape shape{
          .batch = 2, .sequence = 5, .q_heads = 3, .kv_heads = 1, .head_dim = head_dim};
      Rotation x(dtype(), shape, {.row_gap = 5, .offset = 3});
      std::vector<double> want = x.qkv.Values();
      const int64_t half = head_dim / 2;
      for (int64_t r = 0; r < shape.rows(); ++r) {
        for (int64_t h = 0; h < shape.q_heads + shape.kv_heads; ++h) {
          for (int64_t i = 0; i < half; ++i) {
            const double cos = x.cos.Get(r % shape.sequence, i);
            const double sin = (inverse ? -1 : 1) * x.sin.Get(r % shape.sequence, i);
            const double a = x.qkv.Get(r, h * head_dim + i);
            const double b = x.qkv.Get(r, h * head_dim + half + i);
            want[r * shape.qkv_cols() + h * head_dim + i] = a * cos - b * sin;
            want[r * shape.qkv_cols() + h * head_dim + half + i] = b * cos + a * sin;
          }
        }
      }
      x.Run(*ops_, inverse);
      ExpectNear(x.qkv, want, Tolerance(dtype()), 0.1, "rope");
      x.qkv.ExpectEdgesIntact();
    }
  }
}

TEST_P(ActivationsF32Test, InverseRopeUndoesAndIsTheTranspose) {
  const AttentionShape shape{
      .batch = 1, .sequence = 6, .q_heads = 2, .kv_heads = 2, .head_dim = 16};
  Rotation x(DType::kF32, shape), grad(DType::kF32, shape);
  const std::vector<double> before = x.qkv.Values();
  x.Run(*ops_, false);
  Tensor weights(DType::kF32, shape.rows(), shape.qkv_cols());
  weights.Randomize(7);
  grad.qkv.CopyFrom(weights);
  grad.Run(*ops_, true);
  // <R x, w> = <x, R^T w>.
  double transposed = 0;
  for (int64_t i = 0; i < grad.qkv.size(); ++i) transposed += before[i] * grad.qkv.Get(i);
  EXPECT_NEAR(WeightedSum(x.qkv, weights), transposed, 1e-5);
  x.Run(*ops_, true);
  ExpectNear(x.qkv, before, 1e-6, 1, "there and back");
}

struct SwiGlu {
  SwiGlu(DType dtype, int64_t rows, int64_t width, Placement placement = {})
      : gate_up(dtype, rows, 2 * width, placement),
        out(dtype, rows, width, placement),
        dout(dtype, rows, width, placement),
        dgate_up(dtype, rows, 2 * width, placement) {
    gate_up.Randomize(1, 6.0);
    dout.Randomize(2);
  }
  Tensor gate_up, out, dout, dgate_up;
};

TEST_P(ActivationsTest, SwiGluAgreesWithTheFormula) {
  for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{1, 1}, {3, 16}, {5, 37}}) {
    SwiGlu x(dtype(), rows, width, {.row_gap = 2, .offset = 7});
    std::vector<double> out(rows * width), dgate_up(2 * rows * width);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < width; ++c) {
        const double gate = x.gate_up.Get(r, c), up = x.gate_up.Get(r, width + c);
        const double sigmoid = 1 / (1 + std::exp(-gate)), grad = x.dout.Get(r, c);
        out[r * width + c] = gate * sigmoid * up;
        dgate_up[2 * r * width + c] = grad * up * sigmoid * (1 + gate * (1 - sigmoid));
        dgate_up[2 * r * width + width + c] = grad * gate * sigmoid;
      }
    }
    ops_->SwiGluForward(x.gate_up, x.out);
    ExpectNear(x.out, out, Tolerance(dtype()), 1e-2, "out");
    const std::string forward = x.out.Bits();
    x.out.Randomize(3);
    ops_->SwiGluBackward(x.dout, x.gate_up, x.dgate_up, x.out);
    EXPECT_TRUE(SameBits(x.out.Bits(), forward));
    ExpectNear(x.dgate_up, dgate_up, Tolerance(dtype()), 0.5, "dgate_up");
    x.out.ExpectEdgesIntact();
    x.dgate_up.ExpectEdgesIntact();
    const std::string separate = x.dgate_up.Bits();
    ops_->SwiGluBackward(x.dout, x.gate_up, x.gate_up, x.out);
    EXPECT_TRUE(SameBits(x.gate_up.Bits(), separate)) << "in place";
  }
}

TEST_P(ActivationsF32Test, SwiGluBackwardIsTheSlopeOfForward) {
  SwiGlu x(DType::kF32, 3, 19);
  ops_->SwiGluBackward(x.dout, x.gate_up, x.dgate_up, x.out);
  const auto loss = [&] {
    ops_->SwiGluForward(x.gate_up, x.out);
    return WeightedSum(x.out, x.dout);
  };
  ExpectGradient(loss, x.gate_up, x.dgate_up, 1e-2, 3e-4, "dgate_up");
}

TEST_P(ActivationsF32Test, ExtremeGatesOfSwiGluAreFinite) {
  SwiGlu x(DType::kF32, 1, 4);
  for (int64_t i = 0; i < 4; ++i) {
    x.gate_up.Set(i, std::vector<double>{-1e30, -100, 100, 1e30}[i]);
    x.gate_up.Set(4 + i, 1);
  }
  ops_->SwiGluForward(x.gate_up, x.out);
  EXPECT_EQ(x.out.Get(0), 0);
  EXPECT_NEAR(x.out.Get(1), 0, 1e-37);
  EXPECT_EQ(x.out.Get(2), 100);
  EXPECT_EQ(x.out.Get(3), static_cast<double>(1e30f));
}

// Values in the middle of memory, and at its odd places.
TEST_P(ActivationsTest, BitsDoNotDependOnAddresses) {
  std::string first;
  for (const Placement placement : {Placement{}, {0, 1}, {3, 7}, {16, 15}}) {
    Norm norm(dtype(), 4, 53, placement);
    norm.Forward(*ops_);
    norm.Backward(*ops_, norm.dresidual, norm.dx);
    SwiGlu glu(dtype(), 4, 53, placement);
    ops_->SwiGluBackward(glu.dout, glu.gate_up, glu.dgate_up, glu.out);
    Rotation rope(dtype(), {.batch = 1, .sequence = 4, .q_heads = 1, .kv_heads = 1, .head_dim = 22},
                  placement);
    rope.Run(*ops_, false);
    const std::string bits = norm.y.Bits() + norm.rstd.Bits() + norm.dx.Bits() +
                             norm.dweight.Bits() + glu.out.Bits() + glu.dgate_up.Bits() +
                             rope.qkv.Bits();
    if (first.empty()) first = bits;
    EXPECT_TRUE(SameBits(bits, first)) << "offset " << placement.offset;
  }
}

TEST_P(ActivationsDeathTest, WrongShapesEndTheProcess) {
  Norm norm(DType::kF32, 3, 5);
  const Tensor other(DType::kF32, 3, 6), half(DType::kBF16, 3, 5);
  EXPECT_DEATH(ops_->RmsNormForward(other, norm.weight, kEps, other, norm.rstd.floats()),
               Failed("weight"));
  EXPECT_DEATH(ops_->RmsNormForward(norm.x, norm.weight, kEps, half, norm.rstd.floats()),
               Failed("dtype"));
  EXPECT_DEATH(norm.Backward(*ops_, other, norm.dx), Failed("dresidual"));
  EXPECT_DEATH(ops_->RmsNormBackward(norm.dy, norm.x, norm.weight, norm.rstd.floats(), norm.dx,
                                     norm.dx, Tensor(DType::kF32, 2, 5)),
               Failed("dweight"));
  EXPECT_DEATH(ops_->SwiGluForward(other, other), Failed("cols"));
  Rotation rope(DType::kF32,
                {.batch = 1, .sequence = 2, .q_heads = 1, .kv_heads = 1, .head_dim = 8});
  rope.shape.head_dim = 7;
  EXPECT_DEATH(rope.Run(*ops_, false), Failed("cols"));
}

}  // namespace
}  // namespace perdure
