// The bits must not depend on how many tensor ranks share the V slices.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/model/model_run.h"

namespace perdure {
namespace {

// As the golden model, with rows of the embedding that hold -0: a sum over slices turns it into +0.
float WithNegativeZeros(const TensorSpec& spec, int64_t tensor, int64_t element) {
  if (tensor == 0 && Mix(77, static_cast<uint32_t>(element)) % 5 == 0) return -0.0F;
  return GoldenWeight(spec, tensor, element);
}

class TensorAxisTest : public testing::TestWithParam<Backend> {
 protected:
  void SetUp() override {
    if (const std::string why = WhyMissing(GetParam()); !why.empty()) GTEST_SKIP() << why;
  }
};
INSTANTIATE_TEST_SUITE_P(Ops, TensorAxisTest, EveryBackend(), BackendName);

TEST_P(TensorAxisTest, RanksKeepTheBits) {
  for (const DType dtype : {DType::kF32, DType::kBF16})
    for (const int64_t vocab : {101, 104, 97})  // V = 4: slices of 26, 26, 26, 23; 26; 25 and 22.
      for (const bool recompute : {false, true}) {
        ModelRun run{.backend = GetParam(),
                     .dtype = dtype,
                     .shards = 4,
                     .tensor_ranks = 1,
                     .recompute = recompute,
                     .weight = WithNegativeZeros};
        run.model.vocab = vocab;
        const ModelGradients one = RunModel(run);
        for (const int64_t ranks : {2, 4}) {
          SCOPED_TRACE(testing::Message()
                       << "T " << ranks << ", vocab " << vocab << ", recompute " << recompute);
          run.tensor_ranks = ranks;
          ExpectSame(RunModel(run), one);
        }
      }
}

TEST_P(TensorAxisTest, RanksKeepTheBitsInAPipelineOfLargerMicroBatches) {
  ModelRun run{.backend = GetParam(), .shards = 4, .samples = 6, .context = 16, .micro_batch = 2};
  const ModelGradients one = RunModel(run);
  run.stages = {{-1}, {0, 1}, {2, 3}};
  for (const int64_t ranks : {1, 2, 4}) {
    SCOPED_TRACE(ranks);
    run.tensor_ranks = ranks;
    ExpectSame(RunModel(run), one);
  }
}

TEST_P(TensorAxisTest, WithoutPositionsTheBitsAreKeptToo) {
  ModelRun run{.backend = GetParam(), .shards = 4};
  run.model.position = "none";
  const ModelGradients one = RunModel(run);
  run.tensor_ranks = 4;
  ExpectSame(RunModel(run), one);
}

// V is part of the numbers: were this not so, the tests above could not fail.
TEST_P(TensorAxisTest, ShardsAreNotRanks) {
  const ModelGradients one = RunModel({.backend = GetParam(), .shards = 1});
  const ModelGradients four = RunModel({.backend = GetParam(), .shards = 4});
  EXPECT_NEAR(one.loss, four.loss, 1e-6 * one.loss);
  size_t differ = 0;
  for (size_t t = 0; t < one.values.size(); ++t)
    for (size_t i = 0; i < one.values[t].size(); ++i)
      differ += one.values[t][i] != four.values[t][i];
  EXPECT_GT(differ, 1000);
}

}  // namespace
}  // namespace perdure
