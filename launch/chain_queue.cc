#include "launch/chain_queue.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <optional>
#include <set>
#include <utility>

#include "absl/time/clock.h"
#include "launch/exit_codes.h"
#include "launch/node_book.h"
#include "launch/sbatch_options.h"
#include "launch/slurm/allocation.h"
#include "launch/slurm/hostlist.h"
#include "launch/slurm/slurm_words.h"
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
  const absl::StatusOr<Exclusion> exclusion = ExclusionFor(nodes);
  if (!exclusion.ok())
    options_.say("warning: the book of nodes is not heeded: " + Message(exclusion.status()));
  else if (exclusion->of_book)
    submission.options.emplace_back("--exclude=" + CompressHostlist(exclusion->nodes));
  submission.options.emplace_back(behind > 0
                                      ? fmt::format("--dependency=afterany:{},singleton", behind)
                                      : "--dependency=singleton");
  ASSIGN_OR_RETURN(const int64_t job, scheduler_->Submit(submission));
  RETURN_IF_ERROR(chain_->TellAsked(job, nodes));
  return job;
}

absl::Status ChainQueue::EnsureNext(int64_t job, const std::string& nodes) {
  ASSIGN_OR_RETURN(const std::vector<JobView> pending, Pending(job));
  if (pending.empty()) return Submit(job, nodes).status();
  if (const absl::Status done = ExcludeOfPending(nodes, job); !done.ok())
    options_.say("warning: the book of nodes is not heeded: " + Message(done));
  return absl::OkStatus();
}

absl::Status ChainQueue::CancelPending() {
  return scheduler_->CancelPendingNamed(chain_->common().job_name);
}

absl::Status ChainQueue::After(int exit_code, const std::string& nodes, int64_t job,
                               const std::string& why) {
  const NextJob next_job = NextJobAfter(exit_code);
  if (next_job == NextJob::kNone) return CancelPending();
  if (next_job == NextJob::kStopped) {
    absl::Status done = chain_->StopFor({.why = why, .job = job, .time = absl::Now()});
    done.Update(CancelPending());
    return done;
  }
  if (chain_->stopped().has_value()) return CancelPending();
  ASSIGN_OR_RETURN(const std::vector<JobView> pending, Pending(job));
  for (const JobView& next : pending)
    if (chain_->Asked(next.id) == nodes) {
      ASSIGN_OR_RETURN(const JobView whole, scheduler_->Job(JobText(next.id)));
      return ExcludeOf(whole, nodes);
    }
  // Other nodes than are asked for, as where the next phase has its own: another job.
  RETURN_IF_ERROR(Submit(job, nodes).status());
  for (const JobView& next : pending) RETURN_IF_ERROR(scheduler_->Cancel(JobText(next.id)));
  return absl::OkStatus();
}

// ---- nodes that are done without

std::vector<std::string> ChainQueue::SbatchOptions() const {
  std::vector<std::string> options = options_.slurm.options;
  const std::vector<std::string>& more = chain_->common().options;
  options.insert(options.end(), more.begin(), more.end());
  return options;
}

absl::StatusOr<std::set<std::string>> ChainQueue::NodesOfPartition() {
  const std::string named = CountingValueOf(kPartitionOption, chain_->common().options,
                                            ProcessEnvironment(), options_.slurm.options)
                                .value_or(options_.slurm.partition);
  ASSIGN_OR_RETURN(const std::vector<PartitionView> partitions, scheduler_->Partitions());
  std::set<std::string> nodes;
  for (const PartitionView& partition : partitions)
    // Of several with commas Slurm takes whichever starts first.
    if (named.empty() ? partition.is_default
                      : ("," + named + ",").find("," + partition.name + ",") != std::string::npos)
      nodes.insert(partition.nodes.begin(), partition.nodes.end());
  if (nodes.empty())
    return FailedPrecondition("Slurm knows no nodes of partition \"{}\" to do without", named);
  return nodes;
}

absl::StatusOr<ChainQueue::Exclusion> ChainQueue::ExclusionFor(const std::string& nodes) {
  ASSIGN_OR_RETURN(const std::vector<std::string> users, ExcludedByOptions(SbatchOptions()));
  ASSIGN_OR_RETURN(const NodeRange range, ParseNodeRange(nodes));
  ASSIGN_OR_RETURN(EvidenceBook::Options options, BookOptionsFor(nodes));
  ASSIGN_OR_RETURN(const NodeBook::Contents contents,
                   NodeBook(options_.run_directory).Read(options));
  const absl::Time now = absl::Now();
  DoneWithout without;
  if (!contents.book.Excluded(now).empty()) {
    ASSIGN_OR_RETURN(std::set<std::string> choice, NodesOfPartition());
    for (const std::string& node : users) choice.erase(node);
    ASSIGN_OR_RETURN(without,
                     JudgeForJob(contents.book, std::move(options), choice, range.least, now));
  }
  std::string lines;
  for (const EvidenceBook::Verdict& verdict : without.excluded)
    lines += "\n  the next job does without " + verdict.reason;
  if (without.kept > 0)
    lines += fmt::format("\n  {} more would be done without, but {} nodes are needed",
                         without.kept, range.least);
  if (!lines.empty() && lines != said_) options_.say(lines.substr(3));
  said_ = lines;
  std::set<std::string> both(users.begin(), users.end());
  for (const EvidenceBook::Verdict& verdict : without.excluded) both.insert(verdict.node);
  return Exclusion{.of_book = both.size() > users.size(), .nodes = {both.begin(), both.end()}};
}

absl::Status ChainQueue::ExcludeOf(const JobView& job, const std::string& nodes) {
  ASSIGN_OR_RETURN(const Exclusion exclusion, ExclusionFor(nodes));
  const std::set<std::string> has(job.excluded.begin(), job.excluded.end());
  if (std::equal(has.begin(), has.end(), exclusion.nodes.begin(), exclusion.nodes.end()))
    return absl::OkStatus();
  return scheduler_->SetExcludedNodes(JobText(job.id), exclusion.nodes);
}

absl::Status ChainQueue::ExcludeOfPending(const std::string& nodes, int64_t but) {
  ASSIGN_OR_RETURN(const std::vector<JobView> pending, Pending(but));
  for (const JobView& next : pending) RETURN_IF_ERROR(ExcludeOf(next, nodes));
  return absl::OkStatus();
}

absl::StatusOr<EvidenceBook::Options> BookOptionsFor(const std::string& nodes) {
  ASSIGN_OR_RETURN(const NodeRange range, ParseNodeRange(nodes));
  return EvidenceBook::Options{.nodes = std::max({1, range.least, range.most})};
}

absl::StatusOr<DoneWithout> JudgeForJob(const EvidenceBook& book, EvidenceBook::Options options,
                                        const std::set<std::string>& choice, int64_t least,
                                        absl::Time now) {
  // Slurm refuses names that it does not know, and they must not use up how many may be excluded.
  std::vector<EvidenceEntry> entries = book.Entries();
  std::erase_if(entries, [&](const EvidenceEntry& entry) { return !choice.contains(entry.node); });
  const auto judge = [&]() -> absl::StatusOr<std::vector<EvidenceBook::Verdict>> {
    ASSIGN_OR_RETURN(const EvidenceBook among,
                     EvidenceBook::Restore(options, entries, book.pins()));
    return among.Excluded(now);
  };
  DoneWithout without;
  ASSIGN_OR_RETURN(without.excluded, judge());
  without.kept = std::ssize(without.excluded);
  // A job that would get too few nodes is refused, or waits for ever.
  options.excluded_max =
      static_cast<int>(std::clamp<int64_t>(std::ssize(choice) - least, 0, options.excluded_max));
  ASSIGN_OR_RETURN(without.excluded, judge());
  without.kept -= std::ssize(without.excluded);
  return without;
}

absl::StatusOr<std::string> ThisProgram() {
  std::array<char, 4096> path{};
  const ssize_t length = ::readlink("/proc/self/exe", path.data(), path.size());
  if (length <= 0 || static_cast<size_t>(length) == path.size())
    return ErrnoStatus(length < 0 ? errno : ENAMETOOLONG, "read /proc/self/exe");
  return std::string(path.data(), static_cast<size_t>(length));
}

}  // namespace perdure
