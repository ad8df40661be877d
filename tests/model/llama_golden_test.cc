// The whole model against transformers' LlamaForCausalLM in float64
// (tests/golden/make_model_golden.py), at every way to cut it.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <utility>

#include "tests/model/model_run.h"

namespace perdure {
namespace {

struct GoldenTensor {
  size_t count = 0;
  double sum = 0;
  double norm = 0;
  std::vector<std::pair<size_t, double>> sampled;
};

struct Golden {
  double loss = 0;
  std::map<std::string, GoldenTensor> tensors;
};

Golden ReadGolden() {
  const std::string path = PERDURE_SOURCE_DIR "/tests/golden/model_llama.txt";
  std::ifstream file(path);
  EXPECT_TRUE(file.is_open()) << path;
  Golden golden;
  std::string word;
  EXPECT_TRUE(file >> word >> golden.loss && word == "loss") << path;
  GoldenTensor* tensor = nullptr;
  while (file >> word) {
    if (word == "tensor") {
      std::string name;
      file >> name;
      tensor = &golden.tensors[name];
      EXPECT_TRUE(file >> tensor->count >> tensor->sum >> tensor->norm) << path << ": " << name;
    } else {
      double value = 0;
      EXPECT_TRUE(file >> value && tensor != nullptr) << path << ": element " << word;
      tensor->sampled.emplace_back(std::stoull(word), value);
    }
  }
  return golden;
}

struct Tolerance {
  double loss;      // Relative.
  double gradient;  // Of an element: times the tensor's norm. Of the norm: relative.
};

// Elements are compared on the scale of their tensor's norm: the rounding of a small element is
// that of the large activations it is a difference of.
void ExpectGolden(const ModelRun& run, const Tolerance& tolerance) {
  static const Golden golden = ReadGolden();
  const ModelGradients got = RunModel(run);
  EXPECT_NEAR(got.loss, golden.loss, tolerance.loss * golden.loss);
  ASSERT_EQ(got.tensors.size(), golden.tensors.size());
  for (size_t t = 0; t < got.tensors.size(); ++t) {
    const std::string& name = got.tensors[t].name;
    ASSERT_TRUE(golden.tensors.contains(name)) << name;
    const GoldenTensor& expected = golden.tensors.at(name);
    const std::vector<float>& values = got.values[t];
    ASSERT_EQ(values.size(), expected.count) << name;
    ASSERT_GE(expected.sampled.size(), 40) << name;
    double sum = 0, squares = 0;
    for (float value : values) {
      sum += value;
      squares += static_cast<double>(value) * value;
    }
    const double allowed = tolerance.gradient * expected.norm;
    EXPECT_NEAR(std::sqrt(squares), expected.norm, allowed) << name;
    // |sum of errors| <= sqrt(count) |errors|.
    EXPECT_NEAR(sum, expected.sum, allowed * std::sqrt(static_cast<double>(expected.count)))
        << name;
    for (const auto& [index, value] : expected.sampled)
      EXPECT_NEAR(values[index], value, allowed) << name << '[' << index << ']';
  }
}

// Measured at the worst: 3.8e-7 of the norm in fp32, 1.5e-2 in bf16 (whose unit roundoff is 4e-3).
constexpr Tolerance kF32 = {1e-6, 1e-6};
constexpr Tolerance kCudaF32 = {1e-6, 3e-6};
constexpr Tolerance kBF16 = {1e-2 / 5.4, 0.04};

struct Cut {
  const char* name;
  std::vector<std::vector<int64_t>> stages;
};
class LlamaGoldenTest : public testing::TestWithParam<Backend> {
 protected:
  static Tolerance F32() { return GetParam() == Backend::kCpu ? kF32 : kCudaF32; }
  void SetUp() override {
    if (const std::string why = WhyMissing(GetParam()); !why.empty()) GTEST_SKIP() << why;
  }
};
INSTANTIATE_TEST_SUITE_P(Ops, LlamaGoldenTest, EveryBackend(), BackendName);

const Cut kCuts[] = {{"one", {}},
                     {"two", {{-1, 0}, {1, 2, 3}}},
                     {"three", {{-1, 0}, {1}, {2, 3}}},
                     // Ends of the pipeline without a block.
                     {"bare", {{-1}, {0, 1, 2}, {3}}}};

TEST_P(LlamaGoldenTest, EveryCutAgreesWithTransformers) {
  for (const int64_t shards : {1, 2, 4})
    for (const int64_t micro_batch : {1, 2})
      for (const bool recompute : {false, true})
        for (const Cut& cut : kCuts) {
          SCOPED_TRACE(testing::Message()
                       << "V " << shards << ", micro-batch " << micro_batch << ", recompute "
                       << recompute << ", stages " << cut.name);
          ExpectGolden({.backend = GetParam(),
                        .shards = shards,
                        .stages = cut.stages,
                        .micro_batch = micro_batch,
                        .recompute = recompute},
                       F32());
        }
}

TEST_P(LlamaGoldenTest, TensorRanksAgreeWithTransformers) {
  for (const int64_t ranks : {2, 4}) {
    SCOPED_TRACE(ranks);
    ExpectGolden(
        {.backend = GetParam(), .shards = 4, .tensor_ranks = ranks, .stages = kCuts[2].stages},
        F32());
  }
}

TEST_P(LlamaGoldenTest, BF16IsClose) {
  for (const int64_t shards : {1, 4}) {
    SCOPED_TRACE(shards);
    ExpectGolden({.backend = GetParam(), .dtype = DType::kBF16, .shards = shards}, kBF16);
  }
}

// What must not change a bit of one (V, micro-batch): stages and recomputation.
TEST_P(LlamaGoldenTest, StagesAndRecomputationKeepTheBits) {
  for (const DType dtype : {DType::kF32, DType::kBF16})
    for (const int64_t micro_batch : {1, 2}) {
      const ModelGradients whole = RunModel(
          {.backend = GetParam(), .dtype = dtype, .shards = 2, .micro_batch = micro_batch});
      for (const Cut& cut : kCuts)
        for (const bool recompute : {false, true}) {
          SCOPED_TRACE(testing::Message() << cut.name << ", recompute " << recompute);
          ExpectSame(RunModel({.backend = GetParam(),
                               .dtype = dtype,
                               .shards = 2,
                               .stages = cut.stages,
                               .micro_batch = micro_batch,
                               .recompute = recompute}),
                     whole);
        }
    }
}

// Of the golden model and of one whose attention has the head dimension of large ones. In bf16
// the fused attention rounds probabilities and their gradients, too, and what differs there is
// carried through the blocks: 2.3 % of the norm of a query weight's gradient was seen.
TEST(LlamaCudaTest, AgreesWithTheCpu) {
  if (const std::string why = WhyMissing(Backend::kCuda); !why.empty()) GTEST_SKIP() << why;
  for (const DType dtype : {DType::kF32, DType::kBF16})
    for (const int64_t head_dim : {16, 128}) {
      SCOPED_TRACE(testing::Message() << NameOf(dtype) << ", head dimension " << head_dim);
      ModelRun run{.dtype = dtype, .shards = 2, .context = 40, .micro_batch = 2};
      run.model.head_dim = head_dim;
      const ModelGradients cpu = RunModel(run);
      run.backend = Backend::kCuda;
      const bool exact = dtype == DType::kF32;
      ExpectClose(RunModel(run), cpu, exact ? 1e-6 : 5e-3, exact ? 1e-5 : 3e-2);
    }
}

TEST(LlamaCudaTest, RepeatsItsBits) {
  if (const std::string why = WhyMissing(Backend::kCuda); !why.empty()) GTEST_SKIP() << why;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const ModelRun run{
        .backend = Backend::kCuda, .dtype = dtype, .shards = 2, .context = 40, .micro_batch = 2};
    const ModelGradients first = RunModel(run);
    for (int i = 0; i < 5; ++i) ExpectSame(RunModel(run), first);
  }
}

}  // namespace
}  // namespace perdure
