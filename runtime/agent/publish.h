// The last steps of a checkpoint and of its life: manifest, COMMIT, VERIFIED; RETIRE, deletion.
//
// Whoever owns the run log calls, in one thread; nobody else appends meanwhile.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "ckpt/checkpoint.h"
#include "runtime/agent/run_log.h"

namespace perdure {

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

// Writes the manifest of RUN/ckpt/<name> and records that the checkpoint exists and was read back.
// REQUIRES: every part was synced by its writers and then read back by somebody else.
Publication PublishCheckpoint(const std::string& run_directory, const std::string& name,
                              const AtomTable& table, Manifest manifest, RunLog& log);

// Which checkpoints stay; see ChooseRetired.
struct KeepRule {
  int64_t keep_last = 3;
  int64_t keep_every_steps = 0;
  std::vector<int64_t> phase_end_steps;
  std::vector<std::string> in_use;  // Names that somebody reads or will read.
};

struct Retirement {
  absl::Status status;  // Of the log; nothing was deleted unless OK.
  bool lost = false;    // As in Publication.
  std::vector<std::pair<std::string, absl::Status>> deleted;
};

// Records which checkpoints may go and deletes them, and what an earlier job left half deleted.
Retirement RetireCheckpoints(const std::string& run_directory, uint64_t generation,
                             const KeepRule& rule, RunLog& log);

}  // namespace perdure
