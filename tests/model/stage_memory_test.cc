// Stage::MemoryOf, which plans read, is what a stage allocates.
#include <gtest/gtest.h>

#include "model/parameters.h"
#include "model/stage.h"
#include "tests/model/counting_ops.h"
#include "tests/model/model_run.h"

namespace perdure {
namespace {

TEST(StageMemory, IsWhatIsAllocated) {
  const ModelConfig model = GoldenModel();
  const AtomTable table(ModelTensors(model, 4), 1000);
  const std::vector<std::vector<int64_t>> cuts = {{-1, 0, 1, 2, 3}, {-1, 0}, {1},
                                                  {2, 3},           {-1},    {3}};
  for (const DType dtype : {DType::kF32, DType::kBF16})
    for (const int64_t size : {1, 2, 4})
      for (const bool recompute : {false, true})
        for (const auto& layers : cuts) {
          const StageOptions options{.model = model,
                                     .dtype = dtype,
                                     .slot = {.shards = 4, .size = size, .index = size - 1},
                                     .micro_batch = 2,
                                     .context = 24,
                                     .recompute = recompute,
                                     .slots = 3};
          CountingOps ops;
          const std::vector<Bucket> buckets = MakeBuckets(table, model, options.slot, layers);
          const bool embedding = layers.front() == -1, head = layers.back() == model.layers;
          const Stage::Memory memory = Stage::MemoryOf(
              options, static_cast<int64_t>(layers.size()) - embedding - head, embedding, head);
          {
            const Stage stage(options, buckets, &table, &ops, nullptr, nullptr);
            EXPECT_EQ(static_cast<int64_t>(ops.bytes()), memory.activations + memory.work);
          }
          EXPECT_EQ(ops.bytes(), 0);
        }
}

TEST(StageMemory, RecomputationKeepsOnlyTheInputs) {
  StageOptions options{
      .model = GoldenModel(), .slot = {.shards = 4, .size = 2}, .context = 24, .slots = 3};
  const int64_t kept = Stage::MemoryOf(options, 3, false, false).activations;
  options.recompute = true;
  const int64_t recomputed = Stage::MemoryOf(options, 3, false, false).activations;
  // Three blocks' inputs and the output, own rows [12, 64] fp32, for each of three slots.
  EXPECT_EQ(recomputed, 3 * 4 * 12 * 64 * 4);
  EXPECT_GT(kept, 5 * recomputed);
}

}  // namespace
}  // namespace perdure
