// One rank of a run: builds its part of the model and state, takes steps, writes its part of
// checkpoints.
//
// Its host (rank_host.h) is told what happened and answers what to do next.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/checkpoint.h"
#include "kernels/ops.h"
#include "runtime/base/digest.h"
#include "runtime/base/gaps.h"
#include "runtime/base/trail.h"
#include "runtime/comm/transport.h"
#include "runtime/data/sample_order.h"
#include "runtime/train/held_state.h"
#include "runtime/train/mesh.h"
#include "runtime/train/rank_host.h"
#include "runtime/train/run_config.h"
#include "runtime/train/schedule_math.h"

namespace perdure {

// Where a generation begins. Fresh runs: step 0 and no checkpoint.
struct StartPoint {
  int64_t step = 0;  // Steps finished.
  Trail trail;
  std::string checkpoint;            // Directory; empty: initialise.
  std::optional<Manifest> manifest;  // Of that checkpoint.
  // From snapshots: then `checkpoint` is empty, `step` is held->step, and the trail comes from rank
  // 0's snapshot. REQUIRES: who owned what followed from this configuration and held's layout.
  std::optional<HeldStart> held;
};

struct TrainerOptions {
  RunConfig config;            // Validated; layout resolved.
  std::string data_directory;  // Mixture paths are relative to it.
  std::string run_directory;
  uint64_t generation = 1;
  uint32_t nonce = 0;          // Of this job's checkpoints.
  int64_t ranks_per_file = 1;  // Of a checkpoint.
  int host_threads = 1;        // For filling and digesting the state.
  std::string run_id;
  int64_t until_step = -1;  // Stop after that step, with a checkpoint; negative: go to the end.
  Gaps gaps;                // Of the run.
  int64_t begins = 0;       // The step that the run began with: it goes back no further.
  std::string snapshot_directory;  // Of this rank's node; empty: no snapshots.
  // By rank: who keeps its snapshot, on another node (PlaceSnapshots). Empty: nobody.
  std::vector<int32_t> snapshot_peers;
};

// What ended a trainer's steps.
enum class Outcome {
  kComplete,  // The run has all its steps, and a checkpoint of the last.
  kStopped,   // Told to stop, or until_step: a checkpoint is written.
  kLeft,      // Told to leave: the snapshots of the last step are whole.
  kFoundBad,  // A step for which the run goes back; the host knows. The snapshots likewise.
};

class Trainer {
 public:
  // Allocates and fills the state; Run opens the data, phase by phase. `ops` are of the calling
  // thread, as NewOps makes them; shared, because a device may serve one trainer after another.
  // `transport` and `host` must outlive the trainer.
  static absl::StatusOr<std::unique_ptr<Trainer>> Create(const TrainerOptions& options,
                                                         const StartPoint& start,
                                                         std::shared_ptr<Ops> ops,
                                                         Transport* transport, RankHost* host);
  ~Trainer();

  // Steps until the run is complete, until_step, or a stop or leave command. Cancelled: Stop was
  // called. Unavailable: a peer is lost.
  absl::StatusOr<Outcome> Run();

  // From any thread, as long as the trainer lives: Run ends as soon as it can, wherever it is. What
  // waits inside the host (AwaitLease, NextOrder, FindHeld) the host must end itself. The transport
  // is of no use afterwards.
  void Stop();

 private:
  struct Impl;
  explicit Trainer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace perdure
