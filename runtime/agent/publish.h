// The last steps of a checkpoint and of its life: the manifest, before its COMMIT; what may go,
// before its RETIRE, and deletion behind it. By whoever leads the run, one at a time.
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

// Which checkpoints stay; see ChooseRetired.
struct KeepRule {
  int64_t keep_last = 3;
  int64_t keep_every_steps = 0;
  std::vector<int64_t> phase_end_steps;
  int64_t rollback_steps = 0;
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

}  // namespace perdure
