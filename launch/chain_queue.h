// The jobs of a chain in the scheduler's queue: whoever begins has the next one queued behind it,
// whoever leaves changes or cancels it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "launch/chain.h"
#include "launch/slurm/scheduler.h"

namespace perdure {

class ChainQueue {
 public:
  // Both outlive it.
  ChainQueue(Scheduler* scheduler, const Chain* chain, std::string run_directory)
      : scheduler_(scheduler), chain_(chain), run_directory_(std::move(run_directory)) {}

  // Pending jobs of this chain but `but`, by id.
  absl::StatusOr<std::vector<JobView>> Pending(int64_t but = 0);
  // Those that have begun and not ended.
  absl::StatusOr<std::vector<JobView>> Running();
  // Queues one on `nodes` (as --nodes has them), behind job `behind`; 0: behind whatever job of the
  // chain there is.
  absl::StatusOr<int64_t> Submit(int64_t behind, const std::string& nodes);
  // Unless one is.
  absl::Status EnsureNext(int64_t job, const std::string& nodes);
  // `job` is leaving with that exit code. Where the run goes on, a job is pending behind it that
  // asks for `nodes`; where it does not, none is, and the chain says why it stopped.
  absl::Status After(int exit_code, const std::string& nodes, int64_t job, const std::string& why);
  absl::Status CancelPending();

 private:
  Scheduler* const scheduler_;
  const Chain* const chain_;
  const std::string run_directory_;
};

// The path of this program, as other nodes see it, too.
absl::StatusOr<std::string> ThisProgram();

}  // namespace perdure
