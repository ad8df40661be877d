// Runs a program to its end, for tests that say in what environment, as whom, and for how long.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "tests/launch/command_result.h"

namespace perdure {

struct RunProgramOptions {
  std::vector<std::string> environment;  // "NAME=value", all of it.
  std::string directory = "/";
  std::string input;          // Standard input.
  std::optional<uid_t> user;  // As whom, in no group but the one of that number; only root may ask.
  absl::Duration timeout = absl::Minutes(1);
};

// argv[0] is searched for in our PATH; 127: it is not there. Who is not done in time is killed with
// its process group, and so is who outlives the calling thread. Output is read whole, from memory.
CommandResult RunProgram(const std::vector<std::string>& argv, const RunProgramOptions& options);

}  // namespace perdure
