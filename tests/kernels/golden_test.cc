// Every operation against PyTorch: the files of tests/golden, written by
// tests/golden/make_kernel_golden.py. They hold the exact values rounded to fp32 (AdamW: PyTorch's
// own fp32), so the tolerances are those of our arithmetic alone.
#include <fstream>
#include <map>
#include <memory>

#include "tests/kernels/kernel_test_util.h"

namespace perdure {
namespace {

// The tensors of one file, by name.
class Golden {
 public:
  explicit Golden(const std::string& op) {
    const std::string path = PERDURE_SOURCE_DIR "/tests/golden/kernels_" + op + ".txt";
    std::ifstream file(path);
    EXPECT_TRUE(file.is_open()) << path;
    std::string name;
    int64_t rows, cols;
    while (file >> name >> rows >> cols) {
      auto tensor = std::make_unique<Tensor>(DType::kF32, rows, cols);
      for (int64_t i = 0; i < tensor->size(); ++i) {
        double value;
        EXPECT_TRUE(file >> value) << path << ": " << name << " is short";
        tensor->Set(i, value);
      }
      tensors_.emplace(name, std::move(tensor));
    }
    EXPECT_TRUE(file.eof()) << path << ": not understood after " << name;
  }
  Tensor& operator[](const std::string& name) {
    const auto found = tensors_.find(name);
    EXPECT_NE(found, tensors_.end()) << "no tensor " << name;
    return *found->second;
  }
  // Token ids, stored as floats.
  Tokens Ints(const std::string& name) {
    Tokens ints;
    for (double value : (*this)[name].Values()) ints.push_back(static_cast<int32_t>(value));
    return ints;
  }

 private:
  std::map<std::string, std::unique_ptr<Tensor>> tensors_;
};

class GoldenTest : public OpsTest {
 protected:
  // Tolerances are the CPU's, measured; sums in another order and other ways to fuse may cost a few
  // roundings more.
  static double Tolerance(double on_the_cpu) { return on_cpu() ? on_the_cpu : 3 * on_the_cpu; }
};
INSTANTIATE_TEST_SUITE_P(Ops, GoldenTest, EveryBackend(), BackendName);

TEST_P(GoldenTest, RmsNorm) {
  Golden golden("rms_norm");
  const Tensor& x = golden["x"];
  Tensor y(DType::kF32, x.rows(), x.cols()), dx(DType::kF32, x.rows(), x.cols());
  Tensor rstd(DType::kF32, 1, x.rows()), dweight(DType::kF32, 1, x.cols());
  ops_->RmsNormForward(x, golden["weight"], 1e-5f, y, rstd.floats());
  ops_->RmsNormBackward(golden["dy"], x, golden["weight"], rstd.floats(), ConstMatrix(), dx,
                        dweight);
  ExpectNear(y, golden["y"].Values(), Tolerance(4e-7), 0, "y");
  ExpectNear(rstd, golden["rstd"].Values(), Tolerance(4e-7), 0, "rstd");
  ExpectNear(dx, golden["dx"].Values(), Tolerance(5e-7), 1, "dx");
  ExpectNear(dweight, golden["dweight"].Values(), Tolerance(5e-7), 1, "dweight");
}

TEST_P(GoldenTest, Rope) {
  Golden golden("rope");
  // The file's four heads are three of queries and one of keys; a value head of zeros follows.
  const AttentionShape shape{.batch = 2, .sequence = 7, .q_heads = 3, .kv_heads = 1, .head_dim = 8};
  const float* cos = golden["cos"].floats();
  const float* sin = golden["sin"].floats();
  for (const auto& [from, to, inverse] : {std::tuple{"x", "y", false}, {"dy", "dx", true}}) {
    Tensor qkv(DType::kF32, shape.rows(), shape.qkv_cols());
    Tensor rotated(DType::kF32, shape.rows(), golden[from].cols());
    ops_->Copy(golden[from], qkv.view().Cols(0, rotated.cols()));
    ops_->Rope(qkv, shape, cos, sin, inverse);
    ops_->Copy(qkv.view().Cols(0, rotated.cols()), rotated);
    ExpectNear(rotated, golden[to].Values(), Tolerance(1.2e-7), 1, to);
    for (int64_t r = 0; r < shape.rows(); ++r) EXPECT_EQ(qkv.Get(r, shape.qkv_cols() - 1), 0);
  }
}

TEST_P(GoldenTest, Attention) {
  Golden golden("attention");
  const AttentionShape shape{
      .batch = 2, .sequence = 19, .q_heads = 4, .kv_heads = 2, .head_dim = 8};
  Tensor out(DType::kF32, shape.rows(), shape.out_cols());
  Tensor lse(DType::kF32, shape.batch * shape.q_heads, shape.sequence);
  Tensor dqkv(DType::kF32, shape.rows(), shape.qkv_cols());
  ops_->AttentionForward(golden["qkv"], shape, out, lse.floats());
  ops_->AttentionBackward(golden["dout"], golden["qkv"], out, lse.floats(), shape, dqkv);
  ExpectNear(out, golden["out"].Values(), Tolerance(4e-7), 1, "out");
  ExpectNear(lse, golden["lse"].Values(), Tolerance(4e-7), 1, "lse");
  ExpectNear(dqkv, golden["dqkv"].Values(), Tolerance(1.5e-6), 1, "dqkv");
}

TEST_P(GoldenTest, SwiGlu) {
  Golden golden("swiglu");
  const Tensor& gate_up = golden["gate_up"];
  Tensor out(DType::kF32, gate_up.rows(), gate_up.cols() / 2),
      again(DType::kF32, out.rows(), out.cols());
  Tensor dgate_up(DType::kF32, gate_up.rows(), gate_up.cols());
  ops_->SwiGluForward(gate_up, out);
  ops_->SwiGluBackward(golden["dout"], gate_up, dgate_up, again);
  ExpectNear(out, golden["out"].Values(), Tolerance(5e-7), 0, "out");
  ExpectNear(dgate_up, golden["dgate_up"].Values(), Tolerance(6e-7), 1, "dgate_up");
}

TEST_P(GoldenTest, CrossEntropy) {
  Golden golden("cross_entropy");
  Tensor& logits = golden["logits"];
  const Tokens targets = golden.Ints("targets");
  const int64_t rows = logits.rows();
  Tensor largest(DType::kF32, 1, rows), sum(DType::kF32, 1, rows), at(DType::kF32, 1, rows);
  ops_->CrossEntropyMax(logits, largest.floats());
  ops_->CrossEntropySum(logits, largest.floats(), targets.data(), 0, sum.floats(), at.floats());
  Tensor loss(DType::kF32, 1, rows);
  for (int64_t t = 0; t < rows; ++t) loss.Set(t, std::log(sum.Get(t)) - at.Get(t));
  ExpectNear(loss, golden["loss"].Values(), Tolerance(4e-7), 1, "loss");
  ops_->CrossEntropyGradient(logits, sum.floats(), targets.data(), 0, 0.125f, logits);
  ExpectNear(logits, golden["dlogits"].Values(), Tolerance(1e-6), 0.01, "dlogits");
}

TEST_P(GoldenTest, Embedding) {
  Golden golden("embedding");
  const Tokens tokens = golden.Ints("tokens");
  const Tensor& table = golden["table"];
  Tensor out(DType::kF32, golden["out"].rows(), table.cols());
  Tensor dtable(DType::kF32, table.rows(), table.cols());
  ops_->EmbeddingForward(tokens.data(), table, 0, out);
  EXPECT_EQ(out.Values(), golden["out"].Values());
  ops_->EmbeddingBackward(tokens.data(), golden["dout"], 0, dtable);
  ExpectNear(dtable, golden["dtable"].Values(), Tolerance(1.2e-7), 1, "dtable");
}

// torch.optim.AdamW in fp32, six steps: the same up to how a compiler fuses multiply-add.
TEST_P(GoldenTest, AdamW) {
  Golden golden("adamw");
  Tensor& param = golden["param0"];
  Tensor m(DType::kF32, 1, param.cols()), v(DType::kF32, 1, param.cols());
  AdamWStep step{.rate = 3e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1};
  for (step.step = 1; step.step <= 6; ++step.step) {
    const std::string number = std::to_string(step.step);
    ops_->AdamW(step, golden["gradient" + number].floats(), param.floats(), m.floats(), v.floats(),
                param);
    ExpectNear(param, golden["param" + number].Values(), Tolerance(1.2e-7), 0.01,
               "param after " + number);
  }
  ExpectNear(m, golden["exp_avg"].Values(), Tolerance(3e-7), 1e-8, "exp_avg");
  ExpectNear(v, golden["exp_avg_sq"].Values(), Tolerance(3e-7), 0, "exp_avg_sq");
}

}  // namespace
}  // namespace perdure
