// What a rank tells the process that supervises it, and what that answers. In tests, a plain
// object.
//
// Decisions that all ranks must share (checkpoint now, stop now) reach rank 0 alone and travel to
// the others inside the step's statistics gather, so all act at the same step boundary.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/part_plan.h"
#include "runtime/base/digest.h"
#include "runtime/base/gaps.h"
#include "runtime/base/trail.h"
#include "runtime/train/activity.h"
#include "runtime/train/flip.h"
#include "runtime/train/own_work.h"
#include "runtime/train/snapshot_file.h"

namespace perdure {

// What one finished step amounted to; equal on every rank, but for the seconds.
struct StepReport {
  int64_t step = 0;  // Steps finished, this one included.
  int phase = 0;
  int64_t samples = 0;  // Trained on by the run so far; those of gaps do not count.
  int64_t tokens = 0;   // Likewise.
  int64_t step_tokens = 0;
  double loss = 0;       // Mean over the step's tokens.
  double grad_norm = 0;  // Before clipping.
  double rate = 0;
  int64_t batch = 0;
  int64_t context = 0;
  double seconds = 0;       // 0: it is told again, by whoever resumed behind it.
  double wait_seconds = 0;  // Of them, inside communication.
  int64_t first_sample =
      0;                // The step's samples are [first_sample, first_sample + batch) of its phase.
  Digest sample_chain;  // After this step; computed by rank 0 only.
};

// The greatest of those that are asked for before they are shared is what happens.
enum class Command : int {
  kNone = 0,
  kCheckpoint = 1,
  kPause = 2,  // Checkpoint, and take no step before it is settled.
  kStop = 3,   // Checkpoint, then end.
  kLeave = 4,  // End at this boundary, without a checkpoint: the snapshots are whole.
};

// What a rank needs of the snapshot of an old generation's rank.
struct HeldNeed {
  int32_t rank = 0;
  std::vector<ByteRange> ranges;  // Ascending; the head is always the first.
};

// A rank's share of a checkpoint is durable, or why not.
struct SavedRun {
  int64_t step = 0;
  uint32_t nonce = 0;  // Of the checkpoint's name.
  absl::Status status;
  std::optional<RunReport> run;  // None where the rank is responsible for no atom.
  std::optional<Trail> trail;    // Behind that step; rank 0's alone.
  double wait_seconds = 0;       // Training waited for the save before,
  double freeze_seconds = 0;     // and for the copy to begin, or to end where nothing runs behind;
  double copy_seconds = 0;       // how long that took.
  double write_seconds = 0;
};

// What a rank that has frozen its state, or has reported a SavedRun, does next.
struct SaveOrder {
  enum class Kind : int { kVerify = 0, kWrite = 1, kSettled = 2 };
  Kind kind = Kind::kSettled;
  uint32_t nonce = 0;  // Of the checkpoint to read, or of the new name.
  PartReport part;     // kVerify: what to read and compare.
};

class RankHost {
 public:
  virtual ~RankHost() = default;
  // Rank 0 only: a line for people, about something that they did not choose themselves.
  virtual void Remark(const std::string&) {}
  // All atoms that this rank is responsible for, as loaded or initialised: the host compares the
  // certificate. Returns when the host says go.
  virtual absl::Status Loaded(std::span<const int64_t> atoms, std::span<const Digest> digests) = 0;
  // Rank 0 only, before Loaded: the certificate of what all ranks have loaded or initialised.
  virtual void Certificate(const Digest& /*certificate*/) {}
  // Rank 0 only: a step is finished. Returns what to do after the next one.
  virtual Command StepFinished(const StepReport& report) = 0;

  // Paths of files that hold those ranges of those ranks' snapshots of the generation and step of
  // HeldStart, by need; other bytes of them are not looked at. On the trainer's thread; blocks.
  virtual absl::StatusOr<std::vector<std::string>> FindHeld(std::span<const HeldNeed> /*needs*/) {
    return absl::UnimplementedError("this host finds no snapshots");
  }
  // Before `step` begins; blocks while the rank may not step. An error: it never will (Cancelled:
  // told to stop).
  virtual absl::Status AwaitLease(int64_t /*step*/) { return absl::OkStatus(); }
  // Every rank: bits that are to be flipped in `step`, which begins. For drills and tests.
  virtual std::vector<Flip> Planted(int64_t /*step*/) { return {}; }
  // Every rank: so many steps are finished, and the snapshot of the last one, if it has one, is on
  // its way; and what the rank has worked itself. Cheap.
  virtual void Progress(int64_t /*step*/, const WorkDone& /*work*/) {}
  // Every rank, from the trainer's thread: what it does now. Cheap, no lock.
  virtual void Doing(const Activity& /*activity*/) {}
  // Every rank, once: the first gather of this generation has passed, so it has whole snapshots of
  // its own; those of older ones may go.
  virtual void OlderMayGo() {}
  // Every rank, once, before Loaded or later: from here on it keeps no snapshots.
  virtual void NoSnapshots() {}

  // Every rank: all have come to a step that is bad, for which the run goes back. Its gap from then
  // on, and why.
  virtual void FoundBad(const Gap& /*gap*/, const std::string& /*why*/) {}

  // Training waits with the state of `step` until the save before is settled, or, behind the last
  // step and where it pauses, that of `step` itself.
  virtual void Waiting(int64_t /*step*/) {}

  // From here on called by the saver's thread. Errors: the host is gone.
  // The rank has a frozen state of `step` and would write it to `file` (empty: none of it is its to
  // write) under `nonce`; returns the first order. Whoever is not asked wants it written.
  virtual absl::StatusOr<SaveOrder> Frozen(int64_t /*step*/, const std::string& /*file*/,
                                           uint32_t nonce) {
    return SaveOrder{.kind = SaveOrder::Kind::kWrite, .nonce = nonce, .part = {}};
  }
  virtual absl::Status Saved(const SavedRun& saved) = 0;
  // Blocks until there is one for the checkpoint of `step`.
  virtual absl::StatusOr<SaveOrder> NextOrder(int64_t step) = 0;
  virtual absl::Status Verified(int64_t step, const std::string& file,
                                const absl::Status& vote) = 0;
};

}  // namespace perdure
