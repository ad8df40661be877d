// What every job in an allocation of Slurm's does, whoever began it (a chain: slurm_job; a person:
// allocation_job): one srun step with a launcher on each node, and what it must know before.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "launch/slurm/allocation.h"
#include "launch/slurm/scheduler.h"
#include "runtime/agent/supervised_process.h"
#include "runtime/train/run_config.h"
#include "runtime/wire/event_loop.h"

namespace perdure {

struct SlurmStep {
  std::string speaker;  // Who says its lines: "perdure job".
  RunConfig config;     // As the run has frozen it.
  Allocation allocation;
  std::string run_directory;
  std::string data_directory;  // Absolute.
  int restarts = 0;            // Which start of the Slurm job it is, as JobStart has it.
  int64_t ranks_per_node = 1;
  int64_t until_step = -1;  // Negative: to the end.
  absl::Time end;           // Of the allocation's time.
  bool quiet = false;       // No progress lines.
  bool retry = false;       // As of perdure run.
  std::string log;          // Of each task, as srun --output has it; empty: to where ours goes.
  // Whether it is a person's command: SIGTERM, which Slurm sends the tasks itself, is then for them
  // to hear of, and SIGQUIT or a second SIGINT means at once.
  bool of_person = false;
  std::function<void(EventLoop* loop)> begins = {};  // What else is to happen until it ends.
};

// Until it ends: how srun did. Errors: it could not be started.
absl::StatusOr<ProcessEnd> RunSlurmStep(const SlurmStep& step);

// The end of the allocation's time, by the time of day. Where the controller is away, or does not
// know: `otherwise` from now on, which is said; agents ask again later.
absl::Time EndOfAllocation(const std::string& speaker, Scheduler& scheduler,
                           const Allocation& allocation, absl::Duration otherwise);

// Whether that job of Slurm's has begun and not ended; nothing: the scheduler does not answer.
std::optional<bool> SlurmJobRuns(int64_t job, absl::Duration timeout);

// Another Slurm job that runs this run and goes on doing so for a minute. What the run log has of
// jobs that are gone the agents settle among themselves.
absl::StatusOr<std::optional<int64_t>> OtherJobOf(const std::string& run_directory,
                                                  Scheduler& scheduler, int64_t job);

}  // namespace perdure
