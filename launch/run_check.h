// Whether a run gets on by itself, or somebody must look: what perdure status --check says, made of
// what perdure status --json shows.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "absl/time/time.h"

namespace perdure {

struct RunVerdict {
  bool look = false;  // Somebody must.
  std::string cause;  // The same as long as it is the same trouble; empty: none.
  std::string line;   // For people.
};

// `since_step`: how long ago the newest step, or the job's begin, was; one that runs and has got no
// further for `stalled` needs somebody. What is not known (the scheduler is away) is no trouble.
RunVerdict JudgeRun(const nlohmann::ordered_json& status, absl::Duration since_step,
                    absl::Duration stalled);

}  // namespace perdure
