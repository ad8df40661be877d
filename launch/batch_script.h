// The script of a chain's jobs, for sbatch. It loads what the site wants loaded and becomes
// perdure job, so that what ends the job is that program's exit code and no pipe's.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "launch/chain.h"
#include "runtime/train/run_config.h"

namespace perdure {

struct BatchScript {
  RunConfig config;
  Chain::Common common;
  std::string run_directory;  // Absolute.
  std::string program;        // perdure's path.
};

// InvalidArgument: what cannot be put into a line of a script.
absl::StatusOr<std::string> WriteBatchScript(const BatchScript& script);

}  // namespace perdure
