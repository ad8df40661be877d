#include "runtime/train/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/cudnn_memory.h"
#include "model/parameters.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using ::testing::HasSubstr;

RunConfig Tiny() {
  RunConfig config;
  config.name = "tiny";
  config.model.layers = 2;
  config.model.hidden = 64;
  config.model.heads = 8;
  config.model.ffn = 96;
  config.model.vocab = 16;
  config.numerics.tensor_shards = 2;
  PhaseConfig phase;
  phase.name = "only";
  phase.samples = 120;
  phase.context = 16;
  phase.batch.final = 12;
  phase.rate.peak = 1e-3;
  phase.mixture = {{"data/en", 1}};
  config.phases = {phase};
  return config;
}

int64_t CountAtoms(const RunConfig& config) {
  const ModelConfig model = ResolveModel(config.model);
  const NumericsConfig& numerics = config.numerics;
  const AtomTable table(ModelTensors(model, numerics.tensor_shards), numerics.atom_elements);
  return static_cast<int64_t>(table.atoms().size());
}

RunConfig Deep(int64_t tensor, int64_t pipeline, int64_t data) {
  RunConfig config = Tiny();
  config.model.layers = 32;
  config.numerics.tensor_shards = 4;
  config.layout.tensor = tensor;
  config.layout.pipeline = pipeline;
  config.layout.data = data;
  return config;
}

// ---- Nodes and layouts --------------------------------------------------------------------------

TEST(ParseNodeRange, NumbersAndRanges) {
  const auto one = ParseNodeRange("4");
  ASSERT_TRUE(one.ok());
  EXPECT_EQ(one->least, 4);
  EXPECT_EQ(one->most, 4);
  const auto range = ParseNodeRange("64-128");
  ASSERT_TRUE(range.ok());
  EXPECT_EQ(range->least, 64);
  EXPECT_EQ(range->most, 128);
}

TEST(ParseNodeRange, RefusesAnythingElse) {
  for (const char* text : {"", "0", "-1", "4-", "-4", "8-4", "0-4", "4-8-9", "four", "4 - 8", "4x",
                           "99999999999999999999", "1048577"}) {
    const auto range = ParseNodeRange(text);
    EXPECT_EQ(range.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(Message(range.status()), HasSubstr("\"2-8\"")) << text;
  }
}

TEST(ResolveLayout, AutoTakesWhatIsLeft) {
  const auto layout = ResolveLayout(Deep(4, 4, 0), 512);
  ASSERT_TRUE(layout.ok());
  EXPECT_EQ(layout->data, 32);
  EXPECT_EQ(layout->ranks(), 512);
  const auto odd = ResolveLayout(Deep(1, 1, 0), 92);
  ASSERT_TRUE(odd.ok());
  EXPECT_EQ(odd->data, 92);
}

TEST(ResolveLayout, RanksBeyondWholeReplicasAreLeft) {
  const auto layout = ResolveLayout(Deep(4, 4, 0), 92);
  ASSERT_TRUE(layout.ok());
  EXPECT_EQ(layout->data, 5);
  const auto fixed = ResolveLayout(Deep(2, 1, 3), 8);
  ASSERT_TRUE(fixed.ok());
  EXPECT_EQ(fixed->data, 3);
}

TEST(ResolveLayout, NamesTheNearestLayoutsWhereNoReplicaFits) {
  const auto layout = ResolveLayout(Deep(4, 4, 0), 10);
  EXPECT_EQ(layout.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Message(layout.status()),
            "10 ranks cannot hold tensor 4 x pipeline 4 = 16 ranks a replica; nearest: tensor 2 x "
            "pipeline 1 x data 5, tensor 1 x pipeline 2 x data 5, tensor 1 x pipeline 1 x data 10; "
            "or use at least 16 ranks");
}

TEST(ResolveLayout, EverySuggestionCanBeUsed) {
  for (int64_t ranks = 1; ranks < 16; ++ranks) {
    const std::string message = Message(ResolveLayout(Deep(4, 4, 0), ranks).status());
    const size_t at = message.find("nearest: ");
    ASSERT_NE(at, std::string::npos) << message;
    long tensor = 0, pipeline = 0, data = 0;
    ASSERT_EQ(std::sscanf(message.c_str() + at, "nearest: tensor %ld x pipeline %ld x data %ld",
                          &tensor, &pipeline, &data),
              3);
    EXPECT_TRUE(ResolveLayout(Deep(tensor, pipeline, data), ranks).ok()) << message;
    EXPECT_LE(tensor * pipeline * data, ranks);
  }
}

TEST(ResolveLayout, TooManyReplicasAskedFor) {
  const auto layout = ResolveLayout(Deep(2, 2, 5), 16);
  EXPECT_EQ(layout.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(layout.status()),
              HasSubstr("16 ranks cannot hold tensor 2 x pipeline 2 x data 5 = 20 ranks; with data "
                        "= \"auto\" it would be tensor 2 x pipeline 2 x data 4"));
  EXPECT_THAT(Message(layout.status()), HasSubstr("at least 20 ranks"));
}

TEST(ResolveLayout, NoRanks) {
  EXPECT_THAT(Message(ResolveLayout(Deep(1, 1, 0), 0).status()), HasSubstr("at least 1"));
}

TEST(ResolveLayout, InterleavedLayoutsKeepAPipeline) {
  RunConfig config = Deep(4, 4, 0);
  config.layout.virtual_stages = 2;
  EXPECT_THAT(Message(ResolveLayout(config, 6).status()), HasSubstr("pipeline 2"));
  EXPECT_EQ(Message(ResolveLayout(config, 1).status()),
            "1 ranks cannot hold tensor 4 x pipeline 4 = 16 ranks a replica; it takes at least 16 "
            "ranks");
}

// ---- Memory -------------------------------------------------------------------------------------

LayoutConfig Layout(const RunConfig& config, int64_t data, int64_t zero) {
  LayoutConfig layout = config.layout;
  layout.data = data;
  layout.zero = zero;
  return layout;
}

TEST(EstimateMemory, OneRankByHand) {
  const RunConfig config = Tiny();
  const int64_t elements = CountParameters(config.model);
  const MemoryEstimate memory = EstimateMemory(config, Layout(config, 1, 1), config.phases[0]);
  EXPECT_EQ(memory.parameters, 4 * elements);
  EXPECT_EQ(memory.gradients, 8 * elements);
  EXPECT_EQ(memory.optimizer, 8 * elements);
  // A block: 4 [16, 64], 2 [16], qkv [16, 192], attention [16, 64], gate and up [16, 192], lse
  // [16, 8]; and the output [16, 64].
  EXPECT_EQ(memory.activations, 2 * (16384 + 128 + 12288 + 4096 + 12288 + 512) + 4096);
  EXPECT_GT(memory.buffers, 8192 + 16384 + 14336);  // Partial sums, gradients, a slice's work.
  EXPECT_EQ(memory.total(), memory.parameters + memory.gradients + memory.optimizer +
                                memory.activations + memory.buffers + memory.checkpoint +
                                memory.snapshots + memory.runtime);
  // The frozen state, and as much on its way to disk, with room for what HDF5 writes.
  EXPECT_EQ(memory.checkpoint, 2 * 12 * elements + (2 << 20));
  RunConfig synchronous = config;
  synchronous.checkpoint.asynchronous = false;
  EXPECT_EQ(EstimateMemory(synchronous, Layout(config, 1, 1), config.phases[0]).checkpoint,
            12 * elements + (2 << 20));
}

// Two files of its own; and two of a ward's, where there is another node to have one.
TEST(EstimateMemory, SnapshotsByHand) {
  RunConfig config = Tiny();
  const int64_t elements = CountParameters(config.model);
  const auto snapshots = [&](int64_t data, int64_t zero) {
    return EstimateMemory(config, Layout(config, data, zero), config.phases[0]).snapshots;
  };
  config.job.ranks_per_node = 2;
  EXPECT_EQ(snapshots(1, 1), 2 * 12 * elements);
  EXPECT_EQ(snapshots(2, 1) % 24, 0);
  EXPECT_NEAR(static_cast<double>(snapshots(2, 0)), 12.0 * static_cast<double>(elements),
              0.1 * 12.0 * static_cast<double>(elements));
  config.job.ranks_per_node = 1;
  EXPECT_NEAR(static_cast<double>(snapshots(2, 3)), 24.0 * static_cast<double>(elements),
              0.1 * 24.0 * static_cast<double>(elements));
  config.snapshot.peers = false;
  EXPECT_NEAR(static_cast<double>(snapshots(2, 3)), 12.0 * static_cast<double>(elements),
              0.1 * 12.0 * static_cast<double>(elements));
  config.snapshot.every = 0;
  EXPECT_EQ(snapshots(2, 3), 0);
}

TEST(EstimateMemory, ZeroShardsWhatItSays) {
  const RunConfig config = Tiny();
  const int64_t n = CountParameters(config.model);
  const auto at = [&](int64_t zero) {
    return EstimateMemory(config, Layout(config, 3, zero), config.phases[0]);
  };
  // The fullest replica owns a third, give or take an atom per bucket.
  const int64_t owned = at(1).optimizer / 8;
  EXPECT_NEAR(static_cast<double>(owned), static_cast<double>(n) / 3, static_cast<double>(n) / 12);
  EXPECT_EQ(at(0).gradients, 4 * (2 * n + owned));
  EXPECT_EQ(at(0).optimizer, 8 * n);
  EXPECT_EQ(at(1).gradients, 4 * (2 * n + owned));
  EXPECT_EQ(at(2).gradients, 4 * (n + owned));
  EXPECT_EQ(at(2).parameters, 4 * n);
  const int64_t block = 2 * 8 * 64 * 16 + 3 * 96 * 64 + 2 * 64;
  EXPECT_EQ(at(3).parameters, 4 * 2 * block);
  EXPECT_EQ(at(3).optimizer, 12 * owned);  // The masters are the only whole values.
  // The gradients of the other two replicas are received.
  const int64_t alone = EstimateMemory(config, Layout(config, 1, 1), config.phases[0]).buffers;
  const int64_t squares = 8 * CountAtoms(config);  // A double per owned atom: fewer than alone.
  EXPECT_LE(at(1).buffers - alone, 2 * owned * 4);
  EXPECT_GT(at(1).buffers - alone, 2 * owned * 4 - squares);
}

TEST(EstimateMemory, ReceivesAFewBucketsAtATime) {
  const auto received = [](int64_t layers) {
    RunConfig config = Tiny();
    config.model.layers = layers;
    return EstimateMemory(config, Layout(config, 3, 1), config.phases[0]).buffers -
           EstimateMemory(config, Layout(config, 1, 1), config.phases[0]).buffers;
  };
  // Cuts come round every 3 blocks, places every 4. An owned atom has a double besides.
  RunConfig deep = Tiny();
  deep.model.layers = 48;
  EXPECT_LE(received(48), received(12));
  EXPECT_GT(received(48), received(12) - 8 * CountAtoms(deep));
}

TEST(EstimateMemory, Bf16HalvesWeightsAndAddsMasters) {
  RunConfig config = Tiny();
  const LayoutConfig layout = Layout(config, 1, 1);
  const MemoryEstimate fp32 = EstimateMemory(config, layout, config.phases[0]);
  config.numerics.dtype = "bf16";
  const MemoryEstimate bf16 = EstimateMemory(config, layout, config.phases[0]);
  EXPECT_EQ(2 * bf16.parameters, fp32.parameters);
  EXPECT_EQ(2 * bf16.optimizer, 3 * fp32.optimizer);
  EXPECT_EQ(bf16.gradients, fp32.gradients);
}

TEST(EstimateMemory, RecomputationKeepsInputsOnly) {
  RunConfig config = Tiny();
  LayoutConfig layout = Layout(config, 1, 1);
  layout.recompute = "full";
  // Two inputs and the output [16, 64]; the one block's set that is recomputed is work space.
  const MemoryEstimate full = EstimateMemory(config, layout, config.phases[0]);
  EXPECT_EQ(full.activations, 3 * 4096);
  layout.recompute = "none";
  EXPECT_GT(full.buffers, EstimateMemory(config, layout, config.phases[0]).buffers);
}

// On a GPU cuDNN's backward pass keeps the gradients of scores of a few heads; the frozen state is
// the host's.
TEST(EstimateMemory, OnAGpu) {
  RunConfig config = Tiny();
  config.numerics.dtype = "bf16";
  const LayoutConfig layout = Layout(config, 1, 1);
  const MemoryEstimate cpu = EstimateMemory(config, layout, config.phases[0]);
  config.numerics.backend = "cuda";
  const MemoryEstimate gpu = EstimateMemory(config, layout, config.phases[0]);
  const ModelConfig model = ResolveModel(config.model);
  const AttentionShape attention{.batch = config.numerics.micro_batch,
                                 .sequence = config.phases[0].context,
                                 .q_heads = model.heads / config.numerics.tensor_shards,
                                 .kv_heads = model.kv_heads / config.numerics.tensor_shards,
                                 .head_dim = model.head_dim};
  EXPECT_EQ(gpu.buffers - cpu.buffers, CudaAttentionWorkBytes(attention, DType::kBF16));
  EXPECT_EQ(gpu.checkpoint, cpu.checkpoint);
  EXPECT_EQ(gpu.snapshots, cpu.snapshots);
  EXPECT_EQ(gpu.host(), gpu.checkpoint + gpu.snapshots);
  EXPECT_EQ(gpu.total(), gpu.parameters + gpu.gradients + gpu.optimizer + gpu.activations +
                             gpu.buffers + gpu.runtime);
  EXPECT_EQ(cpu.total(), cpu.parameters + cpu.gradients + cpu.optimizer + cpu.activations +
                             cpu.buffers + cpu.runtime + cpu.checkpoint + cpu.snapshots);
}

TEST(CudnnMemory, SlicesKeepWithinAGibibyteOrAreOneKeyHead) {
  const AttentionShape lucie{
      .batch = 2, .sequence = 4096, .q_heads = 32, .kv_heads = 8, .head_dim = 128};
  AttentionShape slice = CudnnBackwardSlice(lucie);
  EXPECT_EQ(slice.batch, 1);
  EXPECT_EQ(slice.kv_heads, 8);
  // 1.14 GB is what cuDNN 9.19 asks for on an H200.
  EXPECT_NEAR(static_cast<double>(CudaAttentionWorkBytes(lucie, DType::kBF16)), 1.14e9, 1e7);
  slice = CudnnBackwardSlice(
      {.batch = 1, .sequence = 32000, .q_heads = 32, .kv_heads = 8, .head_dim = 128});
  EXPECT_EQ(slice.kv_heads, 1);
  EXPECT_EQ(slice.q_heads, 4);
  slice = CudnnBackwardSlice(
      {.batch = 6, .sequence = 1024, .q_heads = 32, .kv_heads = 8, .head_dim = 128});
  EXPECT_EQ(slice.batch, 6);
  EXPECT_FALSE(CudnnTakes(lucie, DType::kF32));
  EXPECT_EQ(CudaAttentionWorkBytes(lucie, DType::kF32), lucie.rows() * 32 * 4);
}

TEST(EstimateMemory, FirstPipelineStageKeepsMostMicroBatches) {
  RunConfig config = Tiny();
  config.phases[0].batch.final = 1;
  LayoutConfig layout = Layout(config, 1, 1);
  layout.pipeline = 2;
  const auto activations = [&](int64_t batch) {
    config.phases[0].batch.final = batch;
    return EstimateMemory(config, layout, config.phases[0]).activations;
  };
  EXPECT_EQ(activations(2), 2 * activations(1));
  EXPECT_EQ(activations(12), activations(2));
}

TEST(EstimateMemory, TensorAxisDividesMatrices) {
  RunConfig config = Tiny();
  LayoutConfig layout = Layout(config, 1, 1);
  layout.tensor = 2;
  const MemoryEstimate memory = EstimateMemory(config, layout, config.phases[0]);
  const int64_t norms = 5 * 64;
  EXPECT_EQ(memory.parameters, 4 * ((CountParameters(config.model) - norms) / 2 + norms));
}

TEST(ReplicaMicroBatches, CountsTheFullestReplica) {
  NumericsConfig numerics;
  numerics.micro_batch = 2;
  numerics.leaf = 2;
  EXPECT_EQ(ReplicaMicroBatches(numerics, 1, 48), 24);
  EXPECT_EQ(ReplicaMicroBatches(numerics, 4, 48), 6);  // 12 leaves, 3 rounds.
  EXPECT_EQ(ReplicaMicroBatches(numerics, 5, 48), 6);  // 3 rounds, some have 2 leaves.
  EXPECT_EQ(ReplicaMicroBatches(numerics, 64, 48), 2);
  EXPECT_EQ(ReplicaMicroBatches(numerics, 1, 2), 2);  // A leaf that is not full, and a phantom.
}

// ---- The whole ----------------------------------------------------------------------------------

TEST(ForecastRun, CountsAtomsAsTheTableDoes) {
  RunConfig config = Tiny();
  config.numerics.atom_elements = 1000;
  const auto run = ForecastRun(config, {});
  ASSERT_TRUE(run.ok());
  const AtomTable table(ModelTensors(config.model, 2), 1000);
  EXPECT_EQ(run->atoms, static_cast<int64_t>(table.atoms().size()));
  EXPECT_EQ(run->parameters, table.parameters());
}

TEST(ForecastRun, BubbleOfAPipeline) {
  RunConfig config = Tiny();
  config.layout.pipeline = 2;
  config.job.ranks_per_node = 2;
  const auto run = ForecastRun(config, {});
  ASSERT_TRUE(run.ok());
  EXPECT_DOUBLE_EQ(run->phases[0].bubble, 1.0 / 13);
  config.model.layers = 4;
  config.layout.virtual_stages = 2;
  const auto interleaved = ForecastRun(config, {});
  ASSERT_TRUE(interleaved.ok());
  EXPECT_DOUBLE_EQ(interleaved->phases[0].bubble, 0.5 / 12.5);
}

TEST(ForecastRun, PhasesMayHaveTheirOwnNodes) {
  RunConfig config = Tiny();
  config.job.nodes = "2-4";
  config.job.ranks_per_node = 3;
  config.phases.push_back(config.phases[0]);
  config.phases[1].name = "second";
  config.phases[1].nodes = "1";
  const auto run = ForecastRun(config, {});
  ASSERT_TRUE(run.ok());
  EXPECT_EQ(run->phases[0].layout.data, 12);
  EXPECT_EQ(run->phases[1].layout.data, 3);
  EXPECT_EQ(run->heaviest, 1);  // Fewer replicas, larger shares.
  const auto forced = ForecastRun(config, {.nodes = 2, .ranks_per_node = 1});
  ASSERT_TRUE(forced.ok());
  EXPECT_EQ(forced->phases[0].layout.data, 2);
  EXPECT_EQ(forced->phases[1].layout.data, 2);
}

TEST(ForecastRun, WarnsOfIdleRanksAndUnevenLeaves) {
  RunConfig config = Tiny();
  const auto warnings = [&](int64_t ranks) {
    const auto run = ForecastRun(config, {.nodes = 1, .ranks_per_node = ranks});
    EXPECT_TRUE(run.ok());
    return run.ok() ? run->warnings : std::vector<std::string>();
  };
  EXPECT_TRUE(warnings(12).empty());
  EXPECT_TRUE(warnings(4).empty());
  ASSERT_EQ(warnings(8).size(), 1);
  EXPECT_THAT(warnings(8)[0], HasSubstr("12 leaves over 8 replicas take 2 rounds, 75 %"));
  ASSERT_EQ(warnings(16).size(), 1);
  EXPECT_THAT(warnings(16)[0], HasSubstr("12 leaves for 16 replicas, so 4 without work"));
  config.layout.tensor = 2;
  ASSERT_EQ(warnings(9).size(), 1);
  EXPECT_THAT(warnings(9)[0], HasSubstr("1 of 9 ranks are beyond"));
}

TEST(ForecastRun, NamesThePhaseWhoseLayoutIsImpossible) {
  RunConfig config = Tiny();
  config.layout.tensor = 2;
  config.layout.pipeline = 2;
  const auto run = ForecastRun(config, {.nodes = 3, .ranks_per_node = 1});
  EXPECT_EQ(run.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(run.status()),
              HasSubstr("phase \"only\" on 3 nodes of 1 ranks: 3 ranks cannot hold"));
}

}  // namespace
}  // namespace perdure
