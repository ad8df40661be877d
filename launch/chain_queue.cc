#include "launch/chain_queue.h"

#include <unistd.h>

#include <array>
#include <utility>

#include "absl/time/clock.h"
#include "launch/exit_codes.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// "4" or "2-4", as a pending job asks for them.
std::string NodesOf(const JobView& job) {
  return job.nodes_max == 0 || job.nodes_max == job.nodes_min
             ? std::to_string(job.nodes_min)
             : fmt::format("{}-{}", job.nodes_min, job.nodes_max);
}

}  // namespace

absl::StatusOr<std::vector<JobView>> ChainQueue::Pending(int64_t but) {
  ASSIGN_OR_RETURN(const std::vector<JobView> jobs,
                   scheduler_->JobsNamed(chain_->common().job_name));
  std::vector<JobView> pending;
  for (const JobView& job : jobs)
    if (job.state == JobState::kPending && job.id != but) pending.push_back(job);
  return pending;
}

absl::StatusOr<int64_t> ChainQueue::Submit(int64_t behind, const std::string& nodes) {
  Submission submission{.options = chain_->common().options,
                        .script = {},
                        .script_path = chain_->script_path(),
                        .arguments = {}};
  submission.options.emplace_back("--nodes=" + nodes);
  submission.options.emplace_back(behind > 0
                                      ? fmt::format("--dependency=afterany:{},singleton", behind)
                                      : "--dependency=singleton");
  return scheduler_->Submit(submission);
}

absl::Status ChainQueue::EnsureNext(int64_t job, const std::string& nodes) {
  ASSIGN_OR_RETURN(const std::vector<JobView> pending, Pending(job));
  return pending.empty() ? Submit(job, nodes).status() : absl::OkStatus();
}

absl::Status ChainQueue::CancelPending() {
  return scheduler_->CancelPendingNamed(chain_->common().job_name);
}

absl::Status ChainQueue::After(int exit_code, const std::string& nodes, int64_t job,
                               const std::string& why) {
  if (exit_code == kExitComplete) return CancelPending();
  if (exit_code == kExitNoRestart || exit_code == kExitUsage) {
    absl::Status done = chain_->StopFor({.why = why, .job = job, .time = absl::Now()});
    done.Update(CancelPending());
    return done;
  }
  ASSIGN_OR_RETURN(const std::vector<JobView> pending, Pending(job));
  for (const JobView& next : pending) {
    // Its size may not be told from outside before it was asked for by itself.
    ASSIGN_OR_RETURN(const JobView whole, scheduler_->Job(JobText(next.id)));
    if (NodesOf(whole) == nodes) return absl::OkStatus();
  }
  // Other nodes than are asked for, as where the next phase has its own: another job.
  RETURN_IF_ERROR(Submit(job, nodes).status());
  for (const JobView& next : pending) RETURN_IF_ERROR(scheduler_->Cancel(JobText(next.id)));
  return absl::OkStatus();
}

absl::StatusOr<std::string> ThisProgram() {
  std::array<char, 4096> path{};
  const ssize_t length = ::readlink("/proc/self/exe", path.data(), path.size());
  if (length <= 0 || static_cast<size_t>(length) == path.size())
    return ErrnoStatus(length < 0 ? errno : ENAMETOOLONG, "read /proc/self/exe");
  return std::string(path.data(), static_cast<size_t>(length));
}

}  // namespace perdure
