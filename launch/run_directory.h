// A run directory and what is known of the run: the frozen configuration, the run log, the newest
// checkpoint that verifies. Opening it for a job checks everything before anything is written.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/checkpoint.h"
#include "launch/local_lock.h"
#include "runtime/agent/records.h"
#include "runtime/agent/run_log.h"
#include "runtime/train/run_config.h"
#include "runtime/train/trainer.h"

namespace perdure {

// What run and submit read: run.toml, or a command that is to run in place of our ranks (`exec`, as
// PrintCommand has it; empty: none), or both. A run without a file is named by its directory.
absl::StatusOr<RunConfig> LoadRun(const std::string& config_path, std::vector<std::string> settings,
                                  const std::string& exec, const std::string& run_directory);

// What was said on the command line, absolute; where nothing was: runs/NAME, run.toml's folder.
std::string RunDirectoryOf(const std::string& said, const std::string& run_name);
std::string DataDirectoryOf(const std::string& said, const std::string& config_path);

struct OpenedRun {
  RunConfig config;  // With what the run has frozen ("auto" values) filled in.
  LocalLock lock;    // Taken before anything of the run was changed.
  RunLog log;
  StartPoint start;  // Where a job continues.
};

// Refuses (InvalidArgument, FailedPrecondition) what cannot continue this run: another
// configuration, another instruction set, a live job on it. A directory without a run becomes one.
// The newest checkpoint is taken: bad ones go to quarantine/ with a line on stderr, here those
// whose manifest or files' lengths are wrong, later (QuarantineCheckpoint) those whose state is.
// One that was loaded twice without a good step behind it is passed over, unless `retry`.
absl::StatusOr<OpenedRun> OpenRun(const std::string& run_directory, const RunConfig& asked,
                                  bool retry);

}  // namespace perdure
