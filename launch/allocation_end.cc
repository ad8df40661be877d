#include "launch/allocation_end.h"

#include <signal.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "launch/agent_launcher.h"
#include "launch/batch_pulse.h"
#include "launch/chain.h"
#include "launch/chain_queue.h"
#include "launch/config.h"
#include "launch/exec_options.h"
#include "launch/job_bounds.h"
#include "launch/leave_chain.h"
#include "launch/slurm/scheduler.h"
#include "runtime/agent/job_start.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// A batch script that leaves no pulse for so long is to be asked after.
constexpr absl::Duration kSilent = absl::Seconds(10), kLook = absl::Milliseconds(250);
// Between questions to Slurm. Who did not coordinate begins when who did should be done.
constexpr absl::Duration kAskAgain = absl::Seconds(5), kOthersAsk = absl::Seconds(30);
// How long Slurm may take to notice that a node was lost; with its usual SlurmdTimeout of five
// minutes it takes up to seven.
constexpr absl::Duration kNotices = absl::Minutes(10);

class AllocationEnder {
 public:
  AllocationEnder(const AllocationEnd& end, const RunLog& log)
      : end_(end),
        log_(log),
        job_(JobStart(static_cast<uint64_t>(end.job), static_cast<uint64_t>(end.restarts))),
        scheduler_(RunCommand, {.inside_job = true}),
        pulse_(end.run_directory, end.job, end.restarts),
        pulse_before_(pulse_.Find()) {}

  void Run();

 private:
  // A file that cannot be read, or is gone, is no sign of life.
  bool BatchScriptLives() const {
    const std::string pulse = pulse_.Find();
    return !pulse.empty() && pulse != pulse_before_;
  }
  bool Coordinated() const;
  // Whether nothing is left to do.
  bool Ask();
  void LeaveForBatchScript();
  absl::Status Leave();

  const AllocationEnd& end_;
  const RunLog& log_;
  const uint64_t job_;
  Scheduler scheduler_;
  const BatchPulse pulse_;
  const std::string pulse_before_;
  absl::Time until_, stands_by_it_ = absl::InfiniteFuture();
  bool left_ = false, said_ = false;
};

// The kernel keeps signals back that came while agents still ran; one that comes now is Slurm's,
// which ends the allocation.
void DieOfSignals() {
  sigset_t term;
  ::sigemptyset(&term);
  ::sigaddset(&term, SIGTERM);
  ::signal(SIGTERM, SIG_IGN);  // Takes back those that came.
  ::signal(SIGTERM, SIG_DFL);
  ::sigprocmask(SIG_UNBLOCK, &term, nullptr);
}

void AllocationEnder::Run() {
  const absl::Time silent = absl::Now() + (pulse_before_.empty() ? absl::ZeroDuration() : kSilent);
  while (absl::Now() < silent) {
    if (BatchScriptLives()) return;
    absl::SleepFor(kLook);
  }
  DieOfSignals();
  until_ = end_.time_over;
  if (!Coordinated()) absl::SleepFor(kOthersAsk);
  while (!BatchScriptLives() && !Ask() && absl::Now() < until_)
    absl::SleepFor(Coordinated() ? kAskAgain : kOthersAsk);
}

// By the log, which all nodes read alike. Of a job without END nobody did.
bool AllocationEnder::Coordinated() const {
  for (const Record& record : log_.records())
    if (record.type == RecordType::kEnd && record.author.at.job == job_)
      return record.author.at.node == end_.node;
  return false;
}

bool AllocationEnder::Ask() {
  const absl::StatusOr<JobView> view = scheduler_.Job(JobText(end_.job));
  if (absl::IsUnavailable(view.status())) {
    if (!std::exchange(said_, true))
      end_.say("the batch script leaves no pulse, and Slurm is asked again until it answers: " +
               Message(view.status()));
    return false;
  }
  if (absl::IsNotFound(view.status())) return true;
  if (!view.ok()) {
    end_.say(Message(view.status()));
    return true;
  }
  if (IsOver(view->state) || view->state == JobState::kCompleting ||
      view->state == JobState::kPending)
    return true;
  until_ = view->end.value_or(until_);
  if (!view->batch_host_lost()) {
    if (pulse_before_.empty()) return true;
    stands_by_it_ = std::min(stands_by_it_, absl::Now() + kNotices);
    return absl::Now() >= stands_by_it_;
  }
  end_.say(fmt::format("the batch host {} was lost: ending the allocation", view->batch_host));
  if (Coordinated()) LeaveForBatchScript();
  const absl::Status cancelled = scheduler_.Cancel(JobText(end_.job));
  if (!cancelled.ok()) end_.say(Message(cancelled));
  return !absl::IsUnavailable(cancelled);
}

void AllocationEnder::LeaveForBatchScript() {
  if (std::exchange(left_, true)) return;
  if (const absl::Status left = Leave(); !left.ok())
    end_.say("warning: the next job finds out what became of this one: " + Message(left));
  pulse_.Remove();
}

absl::Status AllocationEnder::Leave() {
  const std::optional<EndRecord> end = EndOf(log_, job_);
  ASSIGN_OR_RETURN(const Chain chain, Chain::Open(end_.run_directory));
  JobBounds bounds{.speaker = "perdure node",
                   .config = {},
                   .run_directory = end_.run_directory,
                   .data_directory = end_.data_directory,
                   .slurm_job = end_.job};
  ASSIGN_OR_RETURN(bounds.config, LoadConfig(end_.run_directory + "/run.toml", {}));
  // What jobs are queued with is the chain's own.
  ASSIGN_OR_RETURN(const RunConfig queued, LoadConfig(chain.config_path(), {}));
  LeavingJob leaving{.run_directory = end_.run_directory,
                     .config = bounds.config,
                     .job = {.job = end_.job, .restarts = end_.restarts, .nodes = {}, .began = {}},
                     .say = end_.say};
  bool told = false;
  for (const ChainJob& job : chain.Jobs())
    if (job.job == end_.job && job.restarts == end_.restarts) {
      leaving.job = job;
      told = true;
    }
  if (!told) return NotFound("{}/chain/jobs does not have job {}", end_.run_directory, end_.job);
  ChainQueue queue(&scheduler_, &chain,
                   {.run_directory = end_.run_directory, .slurm = queued.slurm, .say = end_.say});
  LeaveChain(std::move(leaving), chain, queue, TellEnd(bounds, log_, *end),
             StepAtEnd(bounds.config, end_.run_directory, *end), end->reason);
  return absl::OkStatus();
}

}  // namespace

void SeeToAllocationEnd(const AllocationEnd& end, const RunLog& log) {
  AllocationEnder(end, log).Run();
}

}  // namespace perdure
