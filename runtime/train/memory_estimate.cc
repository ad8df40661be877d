#include "runtime/train/memory_estimate.h"

#include <algorithm>
#include <vector>

#include "kernels/cudnn_memory.h"
#include "model/parameters.h"
#include "model/stage.h"
#include "runtime/base/check.h"
#include "runtime/train/checkpoint_saver.h"
#include "runtime/train/mesh.h"
#include "runtime/train/pipeline.h"
#include "runtime/train/sharded_state.h"
#include "runtime/train/snapshots.h"

namespace perdure {
namespace {

// Resident code and heap of a rank that has allocated nothing yet: oneDNN, UCX or libfabric, HDF5,
// their pools.
constexpr int64_t kRuntimeBytes = int64_t{48} << 20;

// The same of a rank on a GPU, in device memory: its context, and the libraries' work space.
constexpr int64_t kCudaRuntimeBytes = int64_t{640} << 20;

// What the CUDA backend computes in, beside what the model asks for.
int64_t CudaWorkBytes(const RunConfig& config, const PhaseConfig& phase) {
  const ModelConfig& model = config.model;
  const int64_t shards = config.numerics.tensor_shards;
  const AttentionShape attention{.batch = config.numerics.micro_batch,
                                 .sequence = phase.context,
                                 .q_heads = model.heads / shards,
                                 .kv_heads = model.kv_heads / shards,
                                 .head_dim = model.head_dim};
  return CudaAttentionWorkBytes(attention, DTypeOf(config.numerics));
}

// What a group keeps to receive partial sums in: the largest reduction of the tensor axis.
int64_t GroupBytes(const RunConfig& config, const PhaseConfig& phase) {
  if (config.layout.tensor == 1) return 0;
  return 4 * config.numerics.micro_batch * phase.context * config.model.hidden;
}

MemoryEstimate EstimateRank(const RunConfig& config, const PhaseConfig& phase,
                            const AtomTable& table, int stage) {
  const LayoutConfig& layout = config.layout;
  const int64_t stages = layout.pipeline * layout.virtual_stages;
  const std::vector<int> slots = SlotsOf(config, phase, stage);
  const bool cuda = config.numerics.backend == "cuda";
  MemoryEstimate memory{.runtime = cuda ? kCudaRuntimeBytes : kRuntimeBytes};
  memory.on_gpu = cuda;
  if (cuda) memory.buffers += CudaWorkBytes(config, phase);
  std::vector<int64_t> layers;
  for (int64_t chunk = 0; chunk < layout.virtual_stages; ++chunk) {
    const std::vector<int64_t> more =
        LayersOfStage(config.model.layers, stages, chunk * layout.pipeline + stage);
    const bool embedding = more.front() < 0, head = more.back() == config.model.layers;
    const StageOptions options =
        StageOptionsOf(config, phase, /*tensor_index=*/0, slots[static_cast<size_t>(chunk)]);
    const Stage::Memory needed = Stage::MemoryOf(
        options, static_cast<int64_t>(more.size()) - embedding - head, embedding, head);
    memory.activations += needed.activations;
    memory.buffers += needed.work;
    // Gradients on their way between stages: two in, two out.
    memory.buffers += 4 * config.numerics.micro_batch * phase.context / layout.tensor *
                      config.model.hidden * static_cast<int64_t>(SizeOf(options.dtype));
    layers.insert(layers.end(), more.begin(), more.end());
  }
  memory.buffers += GroupBytes(config, phase);

  const TensorSlot slot{.shards = config.numerics.tensor_shards, .size = layout.tensor, .index = 0};
  const std::vector<Bucket> buckets = MakeBuckets(table, config.model, slot, layers);
  const ShardedState::Options options{.dtype = DTypeOf(config.numerics),
                                      .zero = static_cast<int>(layout.zero)};
  ShardedState::Memory most;
  for (int replica = 0; replica < layout.data; ++replica) {
    const ShardedState::Memory state =
        ShardedState::MemoryOf(options, buckets, static_cast<int>(layout.data), replica);
    if (state.total() > most.total()) most = state;
  }
  memory.parameters = most.parameters;
  memory.gradients = most.gradients;
  memory.optimizer = most.optimizer;
  memory.buffers += most.buffers;
  memory.checkpoint = CheckpointSaver::MemoryOf(
      WriteOptionsOf(config.checkpoint),
      config.checkpoint.asynchronous || config.numerics.backend == "cuda", most.owned);
  SnapshotConfig snapshot = config.snapshot;
  snapshot.peers = snapshot.peers && layout.ranks() > config.job.ranks_per_node;
  memory.snapshots = Snapshots::MemoryOf(snapshot, most.owned);
  return memory;
}

}  // namespace

int64_t ReplicaMicroBatches(const NumericsConfig& numerics, int64_t data, int64_t batch) {
  const int64_t leaves = LeavesOf(numerics, batch);
  return (leaves + data - 1) / data * numerics.leaf;
}

MemoryEstimate EstimateMemory(const RunConfig& config, const LayoutConfig& layout,
                              const PhaseConfig& phase) {
  PERDURE_CHECK(layout.data > 0);
  RunConfig resolved = config;
  resolved.model = ResolveModel(config.model);
  resolved.layout = layout;
  const AtomTable table(ModelTensors(resolved.model, resolved.numerics.tensor_shards),
                        resolved.numerics.atom_elements);
  MemoryEstimate most;
  for (int stage = 0; stage < layout.pipeline; ++stage) {
    const MemoryEstimate memory = EstimateRank(resolved, phase, table, stage);
    if (memory.total() > most.total()) most = memory;
  }
  return most;
}

}  // namespace perdure
