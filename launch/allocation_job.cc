#include "launch/allocation_job.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "launch/agent_launcher.h"
#include "launch/agent_record.h"
#include "launch/exit_codes.h"
#include "launch/job_bounds.h"
#include "launch/slurm/hostlist.h"
#include "launch/slurm/scheduler.h"
#include "launch/slurm_step.h"
#include "runtime/agent/job_start.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr char kSpeaker[] = "perdure run";

void Say(const std::string& line) { std::fprintf(stderr, "%s: %s\n", kSpeaker, line.c_str()); }

// A number for this start that no record has: an allocation may see many jobs of one run, and who
// has read END of one must not take it for his own.
int FreeStart(const RunLog& log, const Allocation& allocation) {
  uint64_t start = static_cast<uint64_t>(allocation.restarts);
  for (const Record& record : log.records())
    if (JobOf(record.author.at.job) == static_cast<uint64_t>(allocation.job_id))
      start = std::max(start, RestartOf(record.author.at.job) + 1);
  return static_cast<int>(start);
}

}  // namespace

absl::StatusOr<std::optional<Allocation>> AllocationToUse(const EnvironmentLookup& lookup,
                                                          bool of_one_machine) {
  absl::StatusOr<std::optional<Allocation>> allocation = ReadAllocation(lookup);
  if (of_one_machine) {
    if (allocation.ok() && allocation->has_value() && (*allocation)->nodes.size() > 1)
      Say(fmt::format("--nodes: this machine alone, not the nodes {} of Slurm's job {}",
                      CompressHostlist((*allocation)->nodes), (*allocation)->job_id));
    return std::nullopt;
  }
  if (!allocation.ok()) return InvalidArgument("{}; or give --nodes", Message(allocation.status()));
  if (!allocation->has_value() || (*allocation)->nodes.size() == 1) return std::nullopt;
  const std::string tasks = lookup("SLURM_STEP_NUM_TASKS").value_or("1");
  if ((*allocation)->step_id.has_value() && tasks != "1")
    return InvalidArgument(
        "it is one of {} tasks of a step: start perdure run once, without srun, and it starts a "
        "task on each node of the allocation itself; or give --nodes",
        tasks);
  Say(fmt::format("on the {} nodes of Slurm's job {}: {}", (*allocation)->nodes.size(),
                  (*allocation)->job_id, CompressHostlist((*allocation)->nodes)));
  return allocation;
}

int RunAllocationJob(const JobOptions& options, const Allocation& allocation) {
  JobBounds bounds{.speaker = kSpeaker,
                   .config = options.config,
                   .run_directory = options.run_directory,
                   .data_directory = options.data_directory,
                   .ranks = static_cast<int64_t>(allocation.nodes.size()) * options.ranks_per_node,
                   .until_step = options.until_step,
                   .slurm_job = allocation.job_id,
                   .retry = options.retry};
  Scheduler scheduler(RunCommand, {.inside_job = true});
  const absl::StatusOr<std::optional<int64_t>> other =
      OtherJobOf(options.run_directory, scheduler, allocation.job_id);
  if (!other.ok()) return RefuseJob(bounds, other.status());
  if (other->has_value())
    return RefuseJob(bounds, FailedPrecondition("Slurm's job {} runs this run: perdure stop {}, or "
                                                "wait",
                                                **other, options.run_directory));
  BegunJob begun = BeginJob(bounds);
  if (!begun.run.has_value()) return begun.exit_code;
  bounds.config = begun.run->config;
  RunLog log = std::move(begun.run->log);
  begun.run.reset();  // The lock, too: the run log decides among machines.
  const int start = FreeStart(log, allocation);
  const auto told = [&](const char* state) {
    const absl::Status done =
        RecordState(options.run_directory, bounds.config, state, allocation.job_id);
    if (!done.ok()) Say("warning: " + Message(done));
  };
  told("starting");
  const absl::StatusOr<ProcessEnd> ended = RunSlurmStep(
      {.speaker = kSpeaker,
       .config = bounds.config,
       .allocation = allocation,
       .run_directory = options.run_directory,
       .data_directory = options.data_directory,
       .restarts = start,
       .ranks_per_node = options.ranks_per_node,
       .until_step = options.until_step,
       .end = EndOfAllocation(kSpeaker, scheduler, allocation, bounds.config.job.time_limit),
       .quiet = options.quiet,
       .retry = options.retry,
       .log = "",
       .of_person = true});
  absl::Status read = ended.status();
  read.Update(log.Refresh());
  const std::optional<EndRecord> end =
      read.ok() ? EndOf(log, JobStart(static_cast<uint64_t>(allocation.job_id),
                                      static_cast<uint64_t>(start)))
                : std::nullopt;
  if (end.has_value()) return TellEnd(bounds, log, *end);
  told("failed");
  if (!read.ok()) return RefuseJob(bounds, read);
  Say(fmt::format("srun {}, and the job has no end in the run log", ended->Text()));
  return kExitFailed;
}

}  // namespace perdure
