// job.hook: people's own program, which is told what becomes of a run, and may send a mail or call
// a web service.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace perdure {

struct HookNews {
  std::string hook;   // Its path; empty: nobody is told.
  std::string event;  // "began", "left", "complete", "stopped", "look".
  std::string run_name;
  std::string run_directory;
  int64_t job = 0;  // Slurm's; 0: none.
  int64_t step = 0;
  std::string why;
};

// Runs it for at most a minute. Not OK: it could not be run, or what it ended with and said; nobody
// waits for what it thinks.
absl::Status TellHook(const HookNews& news);

}  // namespace perdure
