#include "launch/chain_queue.h"

#include <unistd.h>

#include <array>
#include <utility>

#include "absl/time/clock.h"
#include "launch/exit_codes.h"
#include "runtime/base/status.h"

namespace perdure {
absl::StatusOr<std::vector<JobView>> ChainQueue::Pending(int64_t but) {
  ASSIGN_OR_RETURN(const std::vector<JobView> jobs,
                   scheduler_->JobsNamed(chain_->common().job_name));
  std::vector<JobView> pending;
  for (const JobView& job : jobs)
    if (job.state == JobState::kPending && job.id != but) pending.push_back(job);
  return pending;
}

absl::StatusOr<std::vector<JobView>> ChainQueue::Running() {
  ASSIGN_OR_RETURN(std::vector<JobView> jobs, scheduler_->JobsNamed(chain_->common().job_name));
  std::erase_if(jobs, [](const JobView& job) {
    return job.state == JobState::kPending || IsOver(job.state);
  });
  return jobs;
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
  ASSIGN_OR_RETURN(const int64_t job, scheduler_->Submit(submission));
  RETURN_IF_ERROR(chain_->TellAsked(job, nodes));
  return job;
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
  if (chain_->stopped().has_value()) return CancelPending();
  ASSIGN_OR_RETURN(const std::vector<JobView> pending, Pending(job));
  for (const JobView& next : pending)
    if (chain_->Asked(next.id) == nodes) return absl::OkStatus();
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
