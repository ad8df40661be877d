// Runs a replica's micro-batches through this rank's stages, in the order of a PipelineSchedule,
// and moves activations and their gradients between pipeline ranks. Made anew for each phase (the
// context fixes its memory).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/ops.h"
#include "model/stage.h"
#include "runtime/comm/collectives.h"
#include "runtime/comm/sync_watching.h"
#include "runtime/data/sample_order.h"
#include "runtime/train/mesh.h"
#include "runtime/train/pipeline_schedule.h"
#include "runtime/train/run_config.h"
#include "runtime/train/schedule_math.h"
#include "runtime/train/sharded_state.h"

namespace perdure {

class Pipeline {
 public:
  // A micro-batch's way through one chunk, about to begin.
  struct PassBegin {
    bool backward = false;
    int64_t micro_batch = 0;  // Of the step, in this replica.
    int peer = -1;  // The pipeline member whose message it may have to wait for; -1: none.
  };
  struct Options {
    RunConfig config;
    int phase = 0;
    MeshPoint at;
    SyncCall sync;  // Waits for the device; empty: as ops->Sync().
    std::function<absl::Status(const PassBegin&)> before_pass;  // Its error ends the step.
  };
  Pipeline(const Options& options, const AtomTable* table, Ops* ops, ShardedState* state,
           Collectives* tensor, Collectives* pipeline, const SampleOrder* samples);
  ~Pipeline();
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;

  // Forward and backward of all the step's leaves that fall to replica at.data: enqueued, but for
  // the waits of messages.
  absl::Status RunStep(const StepInfo& step);
  // Forward and backward of one leaf of the step again: that of replica (at.data + shift) mod D in
  // `round`, which must exist for all of them. losses() stays what it is. REQUIRES: the device has
  // been waited for since RunStep.
  absl::Status RunLeaf(const StepInfo& step, int64_t round, int shift);
  // Of the latest step, by round: sum of token losses of the leaf (last pipeline rank; 0 where the
  // replica has none). Valid from the first Ops::Sync behind RunStep until the next RunStep.
  std::span<const double> losses() const { return losses_; }

 private:
  struct Message;
  struct Chunk;
  class Axis;

  // A micro-batch of the step: which leaf, which samples; not real where this replica has nothing
  // to do.
  struct MicroBatch {
    bool real = false;
    bool leaf_is_real = false;
    bool first_of_leaf = false;
    bool last_of_leaf = false;
    int64_t round = 0;
    int64_t first_sample = 0;  // Within the phase.
  };
  absl::Status RunPasses(const StepInfo& step, int64_t rounds);
  MicroBatch Describe(const StepInfo& step, int64_t micro_batch) const;
  absl::Status UploadTokens(int64_t first_sample);
  void PostReceive(const StepInfo& step, const Pass& pass, const Pass* running);
  PassBegin Begins(const Pass& pass) const;
  absl::Status Forward(const StepInfo& step, const Pass& pass);
  absl::Status Backward(const StepInfo& step, const Pass& pass);
  int VirtualStage(int chunk) const;
  int SlotOf(const Pass& pass) const;
  void Post(Message& message, uint32_t operation, const Transfer& transfer);
  absl::Status Finish(Message& message);

  Options options_;
  Ops* ops_;
  const SyncCall sync_;
  ShardedState* state_;
  Collectives* pipeline_;
  const SampleOrder* samples_;
  int64_t first_round_ = 0, shift_ = 0;  // Which leaves are computed: see RunLeaf.
  std::unique_ptr<Axis> axis_;
  int stages_ = 1, chunks_count_ = 1;
  DType dtype_;
  int64_t rows_ = 0, own_rows_ = 0;
  std::vector<std::unique_ptr<Chunk>> chunks_;
  int32_t* tokens_ = nullptr;    // [2][M], device: tokens, then targets.
  int32_t* staging_ = nullptr;   // [kStagedBatches][2][M], host: on their way to tokens_.
  int staged_ = 0;               // Of them, perhaps not yet read: since the latest Sync known here.
  std::vector<int32_t> sample_;  // context + 1.
  double* round_losses_ = nullptr;  // [most rounds], device.
  double* host_losses_ = nullptr;   // Likewise, host.
  std::span<const double> losses_;  // Of host_losses_.
};

// Stage options of one chunk, shared with `plan`'s memory arithmetic.
StageOptions StageOptionsOf(const RunConfig& config, const PhaseConfig& phase, int tensor_index,
                            int slots);
// Micro-batches in flight that each chunk of pipeline rank `stage` must have room for, over all
// steps of the phase.
std::vector<int> SlotsOf(const RunConfig& config, const PhaseConfig& phase, int stage);
// Leaves of a step of `batch` samples.
int64_t LeavesOf(const NumericsConfig& numerics, int64_t batch);
DType DTypeOf(const NumericsConfig& numerics);

}  // namespace perdure
