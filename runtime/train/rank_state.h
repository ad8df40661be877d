// What a rank's state begins as: filled from snapshots, from a checkpoint or anew, digested, and
// certified by all ranks; and who keeps its snapshots. The trainer's, on its thread.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "runtime/base/atoms.h"
#include "runtime/base/digest.h"
#include "runtime/comm/group.h"
#include "runtime/train/mesh.h"
#include "runtime/train/rank_host.h"
#include "runtime/train/sharded_state.h"
#include "runtime/train/snapshots.h"
#include "runtime/train/statistics.h"
#include "runtime/train/trainer.h"

namespace perdure {

// Pointers outlive the calls.
struct RankState {
  const TrainerOptions* options = nullptr;
  const StartPoint* start = nullptr;
  const AtomTable* table = nullptr;
  Mesh mesh;
  MeshPoint at;
  ShardedState* state = nullptr;
  Ops* ops = nullptr;
  RankHost* host = nullptr;

  int rank() const { return mesh.Rank(at); }
  // Of `atoms`, those that this rank answers for.
  std::vector<AtomState> Answered(std::vector<AtomState> atoms) const;
};

// Fills and shares the state. Returns what was consumed; rank 0's alone means something where the
// start is from snapshots.
absl::StatusOr<StepHistory> FillState(const RankState& rank);

// Digests what the device now has, compares the certificate of all ranks' with the checkpoint's,
// tells the host and waits for its go. `samples`: consumed at the start.
absl::Status CertifyState(const RankState& rank, int64_t samples, StatisticsGather* statistics);

// Null where there are to be none. `group`: all ranks.
absl::StatusOr<std::unique_ptr<Snapshots>> MakeSnapshots(const RankState& rank, Group* group);

}  // namespace perdure
