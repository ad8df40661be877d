// Exports that a run writes by itself: RUN/export/step0005000 and so on, of committed checkpoints.
// Where the run has gone back for bad steps the name says how many samples it has left out.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runtime/agent/records.h"
#include "runtime/agent/run_log.h"
#include "runtime/train/run_config.h"

namespace perdure {

// "step0005000", "step0005000-without24".
std::string ExportName(const CheckpointEntry& entry);

// Checkpoints that are still there, whose steps `config` wants exported and which are not yet;
// oldest first.
std::vector<CheckpointEntry> MissingExports(const RunLog& log, const std::string& run_directory,
                                            const CheckpointConfig& config);

// RUN/export/<name> appears when it is whole. What a dead job left half made is deleted.
absl::Status ExportFromRun(const std::string& run_directory, const CheckpointEntry& entry,
                           const RunConfig& config);

}  // namespace perdure
