#include "launch/slurm_job.h"

#include <cstdio>
#include <optional>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "launch/agent_launcher.h"
#include "launch/agent_record.h"
#include "launch/batch_pulse.h"
#include "launch/chain.h"
#include "launch/chain_queue.h"
#include "launch/config.h"
#include "launch/exec_options.h"
#include "launch/exit_codes.h"
#include "launch/hook.h"
#include "launch/job_bounds.h"
#include "launch/leave_chain.h"
#include "launch/slurm/allocation.h"
#include "launch/slurm/hostlist.h"
#include "launch/slurm/scheduler.h"
#include "launch/slurm_step.h"
#include "runtime/agent/job_start.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

void Say(const std::string& line) { std::fprintf(stderr, "perdure job: %s\n", line.c_str()); }

// How far a run is that goes on; nothing: its trainer is not ours and does not say it.
std::optional<int64_t> StepOf(const OpenedRun& run, const std::string& run_directory) {
  return run.config.foreign() ? ToldStep(run_directory) : std::optional(run.start.step);
}

class SlurmJob {
 public:
  SlurmJob(SlurmJobOptions options, Allocation allocation, Chain chain, RunConfig config)
      : options_(std::move(options)),
        allocation_(std::move(allocation)),
        chain_(std::move(chain)),
        config_(std::move(config)),
        scheduler_(RunCommand, {.inside_job = true}),
        queue_(&scheduler_, &chain_,
               {.run_directory = options_.run_directory, .slurm = config_.slurm, .say = Say}),
        pulse_(options_.run_directory, allocation_.job_id, allocation_.restarts) {}

  int Run();

 private:
  absl::StatusOr<ProcessEnd> RunStep(int64_t until_step, absl::Time end);
  void LeavePulse(EventLoop* loop);
  LeavingJob Leaving() const {
    return {.run_directory = options_.run_directory, .config = config_, .job = told_, .say = Say};
  }
  int Leave(int exit_code, int64_t step, const std::string& why);

  const SlurmJobOptions options_;
  const Allocation allocation_;
  const Chain chain_;
  RunConfig config_;
  Scheduler scheduler_;
  ChainQueue queue_;
  BatchPulse pulse_;
  bool pulse_warned_ = false;
  ChainJob told_;
};

// From time to time, for the nodes of the step.
void SlurmJob::LeavePulse(EventLoop* loop) {
  if (const absl::Status left = pulse_.Leave(); !left.ok() && !std::exchange(pulse_warned_, true))
    Say("warning: the job's nodes do not see that this script lives: " + Message(left));
  loop->AddTimer(MonotonicNow() + BatchPulse::kBeat, [this, loop] { LeavePulse(loop); });
}

absl::StatusOr<ProcessEnd> SlurmJob::RunStep(int64_t until_step, absl::Time end) {
  return RunSlurmStep(
      {.speaker = "perdure job",
       .config = config_,
       .allocation = allocation_,
       .run_directory = options_.run_directory,
       .data_directory = chain_.common().data_directory,
       .restarts = allocation_.restarts,
       .ranks_per_node = config_.job.ranks_per_node,
       .until_step = until_step,
       .end = end,
       .retry = options_.retry,
       .log = fmt::format("{}/jobs/slurm-{}-%n.log", options_.run_directory, allocation_.job_id),
       .begins = [this](EventLoop* loop) { LeavePulse(loop); }});
}

// What becomes of the chain.
int SlurmJob::Leave(int exit_code, int64_t step, const std::string& why) {
  LeaveChain(Leaving(), chain_, queue_, exit_code, step, why);
  pulse_.Remove();
  return exit_code == kExitStopped ? kExitComplete : exit_code;
}

int SlurmJob::Run() {
  JobBounds bounds{
      .speaker = "perdure job",
      .config = config_,
      .run_directory = options_.run_directory,
      .data_directory = chain_.common().data_directory,
      .ranks = static_cast<int64_t>(allocation_.nodes.size()) * config_.job.ranks_per_node,
      .slurm_job = allocation_.job_id,
      .retry = options_.retry};
  Say(fmt::format("job {} (start {}) on {} nodes: {}", JobText(allocation_.job_id),
                  allocation_.restarts + 1, allocation_.nodes.size(),
                  CompressHostlist(allocation_.nodes)));
  if (const std::optional<Chain::Stop> stop = chain_.stopped()) {
    Say(fmt::format("the chain was stopped: {}; perdure submit begins another", stop->why));
    if (const absl::Status cancelled = queue_.CancelPending(); !cancelled.ok())
      Say("warning: " + Message(cancelled));
    return kExitNoRestart;
  }
  const std::vector<ChainJob> before = chain_.Jobs();
  told_ = {.job = allocation_.job_id,
           .restarts = allocation_.restarts,
           .nodes = allocation_.nodes,
           .began = absl::Now()};
  const absl::StatusOr<std::optional<int64_t>> other =
      OtherJobOf(options_.run_directory, scheduler_, allocation_.job_id);
  if (!other.ok()) return Leave(RefuseJob(bounds, other.status()), 0, Message(other.status()));
  if (other->has_value()) {
    Say(fmt::format("job {} runs this run: nothing is left to do here", **other));
    return kExitComplete;
  }
  BegunJob begun = BeginJob(bounds);
  if (!begun.run.has_value()) return Leave(begun.exit_code, 0, "nothing was begun");
  config_ = bounds.config = begun.run->config;
  const std::optional<int64_t> known = StepOf(*begun.run, options_.run_directory);
  const int64_t step = known.value_or(0);
  told_.first_step = step;
  if (known.has_value() && NoProgress(before, step, config_.job.no_progress_jobs))
    return Leave(kExitNoRestart, step,
                 fmt::format("the last {} jobs began at step {} and left no new checkpoint",
                             config_.job.no_progress_jobs, step));
  told_.time_over = EndOfAllocation("perdure job", scheduler_, allocation_, config_.job.time_limit);
  if (const absl::Status told = chain_.Tell(told_); !told.ok()) Say("warning: " + Message(told));
  if (const absl::Status queued = queue_.EnsureNext(allocation_.job_id, NodesFor(config_, step));
      !queued.ok())
    Say("warning: no job is queued behind this one: " + Message(queued));
  TellHook(Leaving(), "began", step, "");
  RunLog log = std::move(begun.run->log);
  begun.run.reset();  // The lock, too: the run log decides among machines.
  if (const absl::Status told =
          RecordState(options_.run_directory, config_, "starting", allocation_.job_id);
      !told.ok())
    Say("warning: " + Message(told));
  const absl::StatusOr<ProcessEnd> ended = RunStep(OtherNodesFrom(config_, step), told_.time_over);
  if (!ended.ok()) return Leave(RefuseJob(bounds, ended.status()), step, Message(ended.status()));
  if (const absl::Status read = log.Refresh(); !read.ok())
    return Leave(RefuseJob(bounds, read), step, Message(read));
  const uint64_t start = JobStart(static_cast<uint64_t>(allocation_.job_id),
                                  static_cast<uint64_t>(allocation_.restarts));
  const std::optional<EndRecord> end = EndOf(log, start);
  if (!end.has_value()) {
    const std::string why =
        fmt::format("srun {}, and the job has no end in the run log", ended->Text());
    Say(why);
    return Leave(kExitFailed, step, why);
  }
  return Leave(TellEnd(bounds, log, *end), StepAtEnd(config_, options_.run_directory, *end),
               end->reason);
}

}  // namespace

int RunSlurmJob(const SlurmJobOptions& options) {
  const auto refuse = [](const absl::Status& status) {
    Say(Message(status));
    return kExitUsage;
  };
  absl::StatusOr<std::optional<Allocation>> allocation = ReadAllocation(ProcessEnvironment());
  if (!allocation.ok()) return refuse(allocation.status());
  if (!allocation->has_value())
    return refuse(FailedPrecondition(
        "this is no Slurm job: perdure submit queues one, perdure run runs one here"));
  absl::StatusOr<Chain> chain = Chain::Open(options.run_directory);
  if (!chain.ok()) return refuse(chain.status());
  absl::StatusOr<RunConfig> config = LoadConfig(chain->config_path(), {});
  if (!config.ok()) return refuse(config.status());
  return SlurmJob(options, **std::move(allocation), *std::move(chain), *std::move(config)).Run();
}

}  // namespace perdure
