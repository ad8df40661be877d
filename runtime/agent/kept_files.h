// The files that a run keeps for months, on file systems that delete what nobody touches: which
// checkpoints have lost some, and, where that is wanted, accesses that say they are in use.
//
// Whoever owns the run log calls, and nobody deletes checkpoints meanwhile. May take long.
#pragma once

#include <string>
#include <vector>

#include "runtime/agent/run_log.h"

namespace perdure {

struct KeptFilesOptions {
  std::string run_directory;
  bool refresh = false;
  std::vector<std::string> data_files;  // Refreshed, too.
};

// A checkpoint that lacks a file, or has one of another length, goes to quarantine/, as at a start.
// Returns lines for people about those, and one when none that was read back is left whole.
// `refresh`: reads a byte of each file of the others, of run.toml, log/, control/, metrics/, the
// journal and the data, and sets its access time (its own modification time stays).
std::vector<std::string> TendKeptFiles(const RunLog& log, const KeptFilesOptions& options);

}  // namespace perdure
