// The last steps of a checkpoint and of its life: manifest, COMMIT, VERIFIED; RETIRE, deletion.
//
// The steps between the records may be done by anybody, one at a time; what appends, by whoever
// owns the run log, in one thread, while nobody else appends.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/checkpoint.h"
#include "runtime/agent/records.h"
#include "runtime/agent/run_log.h"

namespace perdure {

// Writes the manifest of RUN/ckpt/<name>, durable with all names that lead to it, and says what its
// COMMIT says. Once per name: AlreadyExists. REQUIRES: every part was synced by its writers and
// then read back by somebody else.
absl::StatusOr<CommitRecord> WriteCheckpointManifest(const std::string& run_directory,
                                                     const std::string& name,
                                                     const AtomTable& table, Manifest manifest);

// What publishing came to.
struct Publication {
  absl::Status status;   // OK: the checkpoint counts.
  absl::Status warning;  // It counts, but what should stand beside it does not.
  // Not of the checkpoint but of the run: another job has taken it over, or nobody can say what the
  // log holds.
  bool lost = false;
  Digest certificate;
  uint64_t bytes = 0;
};

// WriteCheckpointManifest, and records that the checkpoint exists and was read back.
Publication PublishCheckpoint(const std::string& run_directory, const std::string& name,
                              const AtomTable& table, Manifest manifest, RunLog& log);

// Which checkpoints stay; see ChooseRetired.
struct KeepRule {
  int64_t keep_last = 3;
  int64_t keep_every_steps = 0;
  std::vector<int64_t> phase_end_steps;
  std::vector<std::string> in_use;  // Names that somebody reads or will read.
};

struct RetirementPlan {
  std::vector<std::string> names;  // For the next RETIRE; none: there is nothing to record.
  std::vector<std::string> left;   // Named by an earlier one, and still there.
};
// Of those of `log` that are there. An error is the file system's: then all of them stay.
absl::StatusOr<RetirementPlan> PlanRetirement(const std::string& run_directory,
                                              const KeepRule& rule, const RunLog& log);

// By name, what became of it.
using Deletions = std::vector<std::pair<std::string, absl::Status>>;
// Deletes those that a RETIRE in the log names; see DeleteCheckpoint.
Deletions DeleteRetired(const std::string& run_directory, const std::vector<std::string>& names);

struct Retirement {
  absl::Status status;  // Of the log; nothing was deleted unless OK.
  bool lost = false;    // As in Publication.
  Deletions deleted;
};

// Records which checkpoints may go and deletes them, and what an earlier job left half deleted.
Retirement RetireCheckpoints(const std::string& run_directory, uint64_t generation,
                             const KeepRule& rule, RunLog& log);

}  // namespace perdure
