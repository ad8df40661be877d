// One job on this machine: starts the rank processes, wires them, follows them, commits their
// checkpoints, and ends them all when one dies, saying which and why. "Nodes" are process groups of
// ranks_per_node ranks.
//
// What a job decides about a run (where it resumes, what a generation is, which checkpoint counts)
// goes through the run log; what people read (status.json, loss.csv, journal.jsonl, jobs/) is
// written here too.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "launch/run_directory.h"
#include "runtime/train/run_config.h"

namespace perdure {

// Exit codes of a job, documented in docs/operating.md.
inline constexpr int kExitComplete = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitStopped = 75;    // Stopped cleanly; more to do.
inline constexpr int kExitNoRestart = 93;  // A person must look.

struct LocalJobOptions {
  RunConfig config;  // Validated; layout as asked for ("auto" not yet resolved).
  std::string run_directory;
  std::string data_directory;  // Absolute.
  int64_t nodes = 1;
  int64_t ranks_per_node = 1;
  int64_t until_step = 0;  // 0: to the end.
  bool quiet = false;      // No progress lines.
  bool retry = false;      // Attempts to load a checkpoint that failed before do not count.
};

// Prints why the job does not begin; the exit code that fits.
int RefuseRun(const absl::Status& status);
// The exit code of a run that has nothing to do, which is said.
std::optional<int> NothingToDo(const LocalJobOptions& options, const OpenedRun& run);

// Runs the job to its end and returns its exit code; errors have been printed.
int RunLocalJob(const LocalJobOptions& options);

}  // namespace perdure
