// One rank of a run: builds its part of the model and state, takes steps, writes its part of
// checkpoints.
//
// The host (a process that supervises ranks; in tests, a plain object) is told what happened and
// answers what to do next. Decisions that all ranks must share (checkpoint now, stop now) reach
// rank 0 alone and travel to the others inside the step's statistics gather, so all act at the same
// step boundary.
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
#include "runtime/comm/group.h"
#include "runtime/data/sample_order.h"
#include "runtime/train/mesh.h"
#include "runtime/train/run_config.h"
#include "runtime/train/schedule_math.h"

namespace perdure {

// Where a job begins. Fresh runs: step 0 and no checkpoint.
struct StartPoint {
  int64_t step = 0;  // Steps finished.
  Digest sample_chain;
  std::string checkpoint;            // Directory; empty: initialise.
  std::optional<Manifest> manifest;  // Of that checkpoint.
};

// What one finished step amounted to; equal on every rank, but for the seconds.
struct StepReport {
  int64_t step = 0;  // Steps finished, this one included.
  int phase = 0;
  int64_t samples = 0;  // Consumed by the run so far.
  int64_t tokens = 0;   // Likewise.
  int64_t step_tokens = 0;
  double loss = 0;       // Mean over the step's tokens.
  double grad_norm = 0;  // Before clipping.
  double rate = 0;
  int64_t batch = 0;
  int64_t context = 0;
  double seconds = 0;
  double wait_seconds = 0;  // Of them, inside communication.
  int64_t first_sample =
      0;                // The step's samples are [first_sample, first_sample + batch) of its phase.
  Digest sample_chain;  // After this step; computed by rank 0 only.
};

enum class Command : int { kNone = 0, kCheckpoint = 1, kStop = 2 };  // kStop: checkpoint, then end.

class RankHost {
 public:
  virtual ~RankHost() = default;
  // All atoms that this rank is responsible for, as loaded or initialised: the host compares the
  // certificate. Returns when the host says go.
  virtual absl::Status Loaded(std::span<const int64_t> atoms, std::span<const Digest> digests) = 0;
  // Rank 0 only: a step is finished. Returns what to do after the next one.
  virtual Command StepFinished(const StepReport& report) = 0;
  // This rank's part of the checkpoint of `step` is durable; no part when it is responsible for no
  // atom.
  virtual absl::Status PartWritten(int64_t step, const PartReport* part) = 0;
};

struct TrainerOptions {
  RunConfig config;            // Validated; layout resolved.
  std::string data_directory;  // Mixture paths are relative to it.
  std::string run_directory;
  uint64_t generation = 1;
  uint32_t nonce = 0;  // Of this job's checkpoints.
  std::string run_id;
  int64_t until_step = -1;  // Stop after that step, with a checkpoint; negative: go to the end.
};

class Trainer {
 public:
  // Allocates and fills the state; Run opens the data, phase by phase. `transport` and `host` must
  // outlive the trainer.
  static absl::StatusOr<std::unique_ptr<Trainer>> Create(const TrainerOptions& options,
                                                         const StartPoint& start,
                                                         Transport* transport, RankHost* host);
  ~Trainer();

  // Steps until the run is complete, until_step, or a stop command; the last act is a checkpoint.
  // True: complete.
  absl::StatusOr<bool> Run();

 private:
  struct Impl;
  explicit Trainer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace perdure
