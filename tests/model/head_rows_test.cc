// Long sequence slices go through the head in parts.
#include <gtest/gtest.h>

#include <cmath>

#include "model/stage.h"
#include "tests/model/model_run.h"

namespace perdure {
namespace {

int64_t WorkOf(int64_t context, int64_t shards) {
  StageOptions options{
      .model = GoldenModel(), .slot = {.shards = shards}, .micro_batch = 1, .context = context};
  options.model.vocab = 65536;
  const int64_t with = Stage::MemoryOf(options, 1, false, true).work;
  return with - Stage::MemoryOf(options, 1, false, false).work;
}

TEST(HeadRows, LogitsOfAFewRowsExistAtOnce) {
  constexpr int64_t kLogits = int64_t{2048} * 65536 * 4;
  EXPECT_NEAR(static_cast<double>(WorkOf(2048, 1)), kLogits, 0.02 * kLogits);
  // Four times and, in parts of 1,366 rows, twice as many; what grows is the norm's input.
  EXPECT_NEAR(static_cast<double>(WorkOf(8192, 1)), kLogits, 0.03 * kLogits);
  EXPECT_LT(WorkOf(4098, 1), kLogits);
  EXPECT_NEAR(static_cast<double>(WorkOf(8192, 4)), kLogits, 0.03 * kLogits);
  // 4,099 rows have no parts.
  EXPECT_GT(WorkOf(4099, 1), 2 * kLogits);
}

ModelRun Long(int64_t shards) {
  ModelRun run;
  run.model = {.layers = 1,
               .hidden = 16,
               .heads = 2,
               .kv_heads = 2,
               .head_dim = 8,
               .ffn = 16,
               .vocab = 101,
               .norm_eps = 1e-5};
  run.shards = shards;
  run.samples = 1;
  run.context = 4096;
  return run;
}

// One slice in two parts computes what two slices of the same rows do.
TEST(HeadRows, PartsAreRowsOfTheSameWhole) {
  const ModelGradients parts = RunModel(Long(1)), slices = RunModel(Long(2));
  EXPECT_NEAR(parts.loss, slices.loss, 1e-6 * slices.loss);
  for (size_t t = 0; t < parts.values.size(); ++t) {
    double error = 0, size = 0;
    for (size_t i = 0; i < parts.values[t].size(); ++i) {
      error += std::pow(parts.values[t][i] - slices.values[t][i], 2);
      size += std::pow(slices.values[t][i], 2);
    }
    EXPECT_LT(std::sqrt(error), 1e-5 * std::sqrt(size)) << parts.tensors[t].name;
  }
}

TEST(HeadRows, PartsDoNotDependOnTheTensorAxis) {
  ModelRun run = Long(2);
  run.context = 8192;
  const ModelGradients one = RunModel(run);
  run.tensor_ranks = 2;
  ExpectSame(RunModel(run), one);
}

}  // namespace
}  // namespace perdure
