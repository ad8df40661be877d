#include "launch/slurm/scheduler.h"

#include <unistd.h>

#include <algorithm>
#include <optional>
#include <random>
#include <utility>

#include "absl/time/time.h"
#include "launch/slurm/hostlist.h"
#include "launch/slurm/scheduler_text.h"
#include "launch/slurm/slurm_words.h"
#include "launch/slurm/text_reader.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// What turns the answers of Slurm's commands into others than we read.
bool ChangesAnswers(const std::string& name) {
  return name.starts_with("SQUEUE_") || name.starts_with("SINFO_") || name.starts_with("SACCT_") ||
         name.starts_with("SCONTROL_");
}

// Slurm gives every job variables that describe it. Taken over by a job that this one submits, they
// would describe the wrong one to its srun.
bool DescribesJob(const std::string& name) {
  constexpr std::string_view kSettings[] = {
      "SLURM_CLUSTERS",   "SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_DEBUG_FLAGS",
      "SLURM_EXIT_ERROR", "SLURM_JWT",  "SLURM_TIME_FORMAT"};
  if (name.starts_with("SLURMD_")) return true;
  return name.starts_with("SLURM_") &&
         std::find(std::begin(kSettings), std::end(kSettings), name) == std::end(kSettings);
}

// No option, no list, nothing that a command would take for more than one job.
absl::Status CheckJob(std::string_view job) {
  const std::vector<std::string_view> parts = Split(job, "_");
  if (parts.size() > 2 || !std::all_of(parts.begin(), parts.end(), [](std::string_view part) {
        return ParseNumber<int64_t>(part).ok();
      }))
    return InvalidArgument("'{}' is no job's id: give one as in 123, or 123_4 of an array", job);
  return absl::OkStatus();
}

absl::Status CheckName(const std::string& name) {
  if (name.empty()) return InvalidArgument("a job's or a user's name is empty");
  return absl::OkStatus();
}

std::string UnguessableSeparator() {
  std::random_device random;
  return fmt::format("<~{:08x}{:08x}~>", random(), random());
}

// What a command's own failure means to whoever asked.
absl::Status RunnerFailure(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kDeadlineExceeded:
      return Unavailable("{}; try again later", Message(status));
    case absl::StatusCode::kNotFound:
      return FailedPrecondition("{}", Message(status));
    default:
      return status;
  }
}

bool IsRecordOf(const JobView& view, std::string_view job) {
  const std::vector<std::string_view> parts = Split(job, "_");
  if (parts.size() == 1) return std::to_string(view.id) == job;
  return std::to_string(view.array_job_id) == parts[0] && view.array_task == parts[1];
}

}  // namespace

std::string JobText(int64_t id) { return std::to_string(id); }

Scheduler::Scheduler(CommandRunner runner) : Scheduler(std::move(runner), Options()) {}

Scheduler::Scheduler(CommandRunner runner, Options options)
    : runner_(std::move(runner)), options_([&] {
        if (options.separator.empty()) options.separator = UnguessableSeparator();
        if (options.user.empty()) options.user = std::to_string(::geteuid());
        return std::move(options);
      }()) {
  PERDURE_CHECK(runner_ != nullptr);
  // It is part of a format, where % begins a field.
  PERDURE_CHECK(options_.separator.find('%') == std::string::npos);
}

absl::StatusOr<InvocationResult> Scheduler::Run(Invocation command) {
  command.timeout = options_.timeout;
  absl::StatusOr<InvocationResult> result = runner_(command);
  if (!result.ok()) return RunnerFailure(result.status());
  return result;
}

absl::StatusOr<std::string> Scheduler::Ask(std::vector<std::string> argv) {
  Invocation command{.argv = std::move(argv), .without = ChangesAnswers};
  command.environment = {{"LC_ALL", "C"},
                         {"TZ", "UTC"},
                         {"SLURM_TIME_FORMAT", "%s"},
                         {"SLURM_BITSTR_LEN", "0"}};  // Arrays' elements are not abbreviated.
  ASSIGN_OR_RETURN(InvocationResult result, Run(command));
  if (result.exit_code != 0) return CommandFailure(command.argv, result);
  return std::move(result.output);
}

absl::Status Scheduler::Tell(std::vector<std::string> argv) {
  return Ask(std::move(argv)).status();
}

// ---- jobs

absl::StatusOr<JobView> Scheduler::Job(const std::string& job) {
  RETURN_IF_ERROR(CheckJob(job));
  ASSIGN_OR_RETURN(const std::string text, Ask({"scontrol", "-o", "-a", "show", "job", job}));
  absl::StatusOr<std::vector<JobView>> views = ParseScontrolJobs(text, std::nullopt);
  if (absl::IsFailedPrecondition(views.status())) {
    ASSIGN_OR_RETURN(const std::string name, NameOf(job));
    views = ParseScontrolJobs(text, name);
  }
  if (!views.ok()) return views.status();
  for (JobView& view : *views)
    if (IsRecordOf(view, job)) return std::move(view);
  // An element that is pending together with others has no record of its own.
  if (views->size() == 1) return std::move(views->front());
  return NotFound("scontrol show job {} shows {} jobs, and none of that id", job, views->size());
}

absl::StatusOr<std::string> Scheduler::NameOf(const std::string& job) {
  const std::string& separator = options_.separator;
  ASSIGN_OR_RETURN(const std::string text, Ask({"squeue", "-h", "-a", "-t", "all", "-j", job, "-o",
                                                "%A" + separator + "%j" + separator}));
  ASSIGN_OR_RETURN(const auto records, SeparatedRecords(text, separator, 2));
  if (records.empty()) return NotFound("squeue does not know job {} any more", job);
  return std::string(records.front()[1]);
}

absl::StatusOr<std::vector<JobView>> Scheduler::JobsNamed(const std::string& name) {
  RETURN_IF_ERROR(CheckName(name));
  // Not by --name, which takes a comma for the end of a name.
  ASSIGN_OR_RETURN(const std::string text,
                   Ask({"squeue", "-h", "-a", "--noconvert", "--user=" + options_.user, "-t", "all",
                        "-o", SqueueFormat(options_.separator)}));
  ASSIGN_OR_RETURN(std::vector<JobView> jobs, ParseSqueue(text, options_.separator));
  std::erase_if(jobs, [&](const JobView& job) { return job.name != name; });
  std::sort(jobs.begin(), jobs.end(),
            [](const JobView& a, const JobView& b) { return a.id < b.id; });
  return jobs;
}

absl::StatusOr<int64_t> Scheduler::Submit(const Submission& submission) {
  PERDURE_CHECK(submission.script.empty() || submission.script_path.empty());
  PERDURE_CHECK(submission.arguments.empty() || submission.script.empty());
  Invocation command{.argv = {"sbatch", "--parsable"}, .input = submission.script};
  for (const std::string& option : submission.options) command.argv.push_back(option);
  if (!submission.script_path.empty()) command.argv.push_back(submission.script_path);
  for (const std::string& argument : submission.arguments) command.argv.push_back(argument);
  // The job gets the environment of sbatch, so nothing is set here.
  if (options_.inside_job) command.without = DescribesJob;
  const absl::StatusOr<InvocationResult> result = Run(command);
  if (absl::IsUnavailable(result.status()))
    return Unavailable("{}. The job may have been queued all the same: look for it by its name",
                       Message(result.status()));
  if (!result.ok()) return result.status();
  if (result->exit_code != 0) return CommandFailure(command.argv, *result);
  return ParseSubmitted(result->output);
}

absl::Status Scheduler::Hold(const std::string& job) {
  RETURN_IF_ERROR(CheckJob(job));
  return Tell({"scontrol", "hold", job});
}

absl::Status Scheduler::Release(const std::string& job) {
  RETURN_IF_ERROR(CheckJob(job));
  return Tell({"scontrol", "release", job});
}

absl::Status Scheduler::Requeue(const std::string& job) {
  RETURN_IF_ERROR(CheckJob(job));
  return Tell({"scontrol", "requeue", job});
}

absl::Status Scheduler::Cancel(const std::string& job) {
  RETURN_IF_ERROR(CheckJob(job));
  return Tell({"scancel", job});
}

absl::Status Scheduler::Signal(const std::string& job, const std::string& signal) {
  RETURN_IF_ERROR(CheckJob(job));
  return Tell({"scancel", "--signal=" + signal, job});
}

absl::Status Scheduler::CancelPendingNamed(const std::string& name) {
  RETURN_IF_ERROR(CheckName(name));
  // Not by --me, which scancel has from 22.05 on.
  return Tell({"scancel", "--user=" + options_.user, "--state=PENDING", "--name=" + name});
}

absl::Status Scheduler::Update(const std::string& job, const std::vector<std::string>& changes) {
  RETURN_IF_ERROR(CheckJob(job));
  std::vector<std::string> argv = {"scontrol", "update", "JobId=" + job};
  argv.insert(argv.end(), changes.begin(), changes.end());
  return Tell(std::move(argv));
}

absl::Status Scheduler::SetExcludedNodes(const std::string& job,
                                         std::span<const std::string> nodes) {
  for (const std::string& node : nodes)
    if (!IsNodeName(node)) return InvalidArgument("'{}' is no node's name", node);
  return Update(job, {"ExcNodeList=" + CompressHostlist(nodes)});
}

absl::Status Scheduler::SetNumNodes(const std::string& job, int nodes_min, int nodes_max) {
  if (nodes_min < 1 || nodes_max < nodes_min)
    return InvalidArgument("job {}: {} to {} nodes: give at least 1, and the smaller number first",
                           job, nodes_min, nodes_max);
  // Numbers of tasks and of processors that were given or derived at its submission would keep it
  // from starting on fewer nodes.
  return Update(job, {fmt::format("NumNodes={}-{}", nodes_min, nodes_max),
                      fmt::format("NumTasks={}", nodes_min), fmt::format("NumCPUs={}", nodes_min)});
}

absl::Status Scheduler::SetTimeLimit(const std::string& job, absl::Duration limit) {
  if (limit <= absl::ZeroDuration())
    return InvalidArgument("job {}: a time limit of {} is none", job, absl::FormatDuration(limit));
  return Update(job, {"TimeLimit=" + SlurmDuration(limit)});
}

absl::Status Scheduler::SetDependency(const std::string& job, const std::string& dependency) {
  return Update(job, {"Dependency=" + dependency});
}

// ---- the site

absl::StatusOr<std::vector<PartitionView>> Scheduler::Partitions() {
  ASSIGN_OR_RETURN(const std::string text, Ask({"scontrol", "-o", "-a", "show", "partition"}));
  return ParsePartitions(text);
}

absl::StatusOr<PartitionView> Scheduler::Partition(const std::string& name) {
  ASSIGN_OR_RETURN(std::vector<PartitionView> parts, Partitions());
  std::string known;
  for (PartitionView& part : parts) {
    if (part.name == name) return std::move(part);
    known += (known.empty() ? "" : ", ") + part.name;
  }
  return NotFound("there is no partition '{}'; there are: {}", name, known);
}

absl::StatusOr<std::vector<QosView>> Scheduler::Qos() {
  ASSIGN_OR_RETURN(const std::string text,
                   Ask({"sacctmgr", "-nP", "show", "qos", fmt::format("format={}", kQosFields)}));
  return ParseQos(text);
}

absl::StatusOr<std::vector<AssociationView>> Scheduler::Associations(const std::string& user) {
  RETURN_IF_ERROR(CheckName(user));
  ASSIGN_OR_RETURN(const std::string text,
                   Ask({"sacctmgr", "-nP", "show", "user", "where", "name=" + user, "withassoc",
                        fmt::format("format={}", kAssociationFields)}));
  return ParseAssociations(text);
}

absl::StatusOr<SchedulerConfig> Scheduler::Config() {
  ASSIGN_OR_RETURN(const std::string text, Ask({"scontrol", "show", "config"}));
  return ParseConfig(text);
}

absl::StatusOr<std::vector<NodeView>> Scheduler::Nodes() {
  ASSIGN_OR_RETURN(const std::string text,
                   Ask({"sinfo", "-h", "-a", "-N", "-o", SinfoFormat(options_.separator)}));
  return ParseSinfo(text, options_.separator);
}

absl::StatusOr<std::vector<PastJob>> Scheduler::History(absl::Time since,
                                                        const std::string& partition) {
  std::vector<std::string> argv = {
      "sacct",
      "-n",
      "-P",
      "-X",
      "-a",
      "--noconvert",
      "-S",
      absl::FormatTime("%Y-%m-%dT%H:%M:%S", since, absl::UTCTimeZone()),
      fmt::format("--format={}", kHistoryFields)};
  if (!partition.empty()) argv.push_back("--partition=" + partition);
  ASSIGN_OR_RETURN(const std::string text, Ask(std::move(argv)));
  return ParseHistory(text);
}

}  // namespace perdure
