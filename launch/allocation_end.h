// Who ends a job's allocation when its agents have left. As a rule the batch script, once the step
// that runs them has ended. Where its node was lost Slurm would keep the allocation until the job's
// time is over (the job has --no-kill), and nobody would do for the chain what a job does last:
// then the node that coordinated does both, and the others should it fail, too.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "runtime/agent/run_log.h"
#include "runtime/control/ids.h"

namespace perdure {

struct AllocationEnd {
  std::string run_directory, data_directory;
  int64_t job = 0;  // Slurm's.
  int restarts = 0;
  NodeId node = 0;                                   // This one.
  absl::Time time_over = absl::InfiniteFuture();     // Of the job, by the time of day.
  std::function<void(const std::string& line)> say;  // What is done, and what cannot be.
};

// Returns as soon as the batch script is seen to live; otherwise when the allocation is ending, or
// Slurm stands by it for as long as it may take to notice a loss. A controller that does not answer
// is asked again until the job's time is over. `log` is as the agents left it.
void SeeToAllocationEnd(const AllocationEnd& end, const RunLog& log);

}  // namespace perdure
