#include "launch/agents_job.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "launch/agent_launcher.h"
#include "launch/agent_record.h"
#include "launch/exit_codes.h"
#include "launch/local_lock.h"
#include "launch/run_data.h"
#include "launch/run_directory.h"
#include "monitoring/journal.h"
#include "runtime/agent/job_start.h"
#include "runtime/agent/records.h"
#include "runtime/base/status.h"
#include "runtime/train/plan.h"
#include "runtime/wire/event_loop.h"

namespace perdure {
namespace {

// Not a scheduler's: those are small.
uint64_t NewJobId() {
  std::random_device random;
  return uint64_t{1} << 51 | (uint64_t{random()} << 20 ^ random()) % (uint64_t{1} << 51);
}

void Say(const std::string& line) { std::fprintf(stderr, "perdure run: %s\n", line.c_str()); }

// Prints why the job does not begin; the exit code that fits.
int RefuseRun(const absl::Status& status) {
  Say(Message(status));
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kDataLoss:
      return kExitUsage;
    default:
      return kExitFailed;
  }
}

// The exit code of a run that has nothing to do, which is said.
std::optional<int> NothingToDo(const JobOptions& options, const OpenedRun& run) {
  const std::string& name = run.config.name;
  if (run.start.step >= StepSchedule(run.config).steps()) {
    Say(fmt::format("run {} is complete at step {}", name, run.start.step));
    return kExitComplete;
  }
  if (options.until_step < 0 || !run.start.manifest.has_value() ||
      run.start.step < options.until_step)
    return std::nullopt;
  Say(fmt::format("run {} is at step {} already; --until-step {} asks for nothing more", name,
                  run.start.step, options.until_step));
  return kExitStopped;
}

// The last job of the log that has begun and not ended.
std::optional<uint64_t> OpenJob(const RunLog& log) {
  std::optional<uint64_t> open;
  for (const Record& record : log.records()) {
    if (record.type == RecordType::kLead) open = record.author.at.job;
    if (record.type == RecordType::kEnd && open == record.author.at.job) open.reset();
  }
  return open;
}

// What a job that is over did not say itself. REQUIRES: none of its processes is left.
absl::Status AppendEnd(RunLog& log, uint64_t job, const std::string& reason) {
  int64_t step = 0;
  for (const Record& record : log.records())
    if (record.type == RecordType::kCommit)
      if (const absl::StatusOr<CommitRecord> commit = ParseCommit(record.body); commit.ok())
        step = commit->step;
  log.WriteAs({.at = {.job = job, .node = 0}, .incarnation = std::random_device()() | 1U});
  return log.Append(RecordType::kEnd, log.generation(),
                    SerializeEnd({.reason = reason, .exit_code = kExitFailed, .step = step}));
}

AgentLauncherOptions LauncherOptions(const JobOptions& options, const LocalLock& lock,
                                     uint64_t job) {
  AgentLauncherOptions launcher{
      .speaker = "perdure run",
      .run_directory = options.run_directory,
      .data_directory = options.data_directory,
      .snapshot_directory = options.config.snapshot.directory,
      .job = job,
      .nodes = {},
      .nodes_of_job = options.nodes,
      // The nodes share this machine.
      .cores = std::max<int64_t>(1, std::thread::hardware_concurrency() / options.nodes),
      .arguments = {"--ranks-per-node", std::to_string(options.ranks_per_node)},
      .descriptors = {{lock.fd(), kLocalLockFd}},
      .restart_agents = options.restart_agents};
  for (int64_t node = 0; node < options.nodes; ++node)
    launcher.nodes.push_back(static_cast<NodeId>(node));
  std::vector<std::string>& arguments = launcher.arguments;
  if (options.until_step >= 0)
    arguments.insert(arguments.end(), {"--until-step", std::to_string(options.until_step)});
  if (options.quiet) arguments.emplace_back("--quiet");
  if (options.retry) arguments.emplace_back("--retry");
  return launcher;
}

// What became of the job, for people.
int Tell(const JobOptions& options, const RunLog& log, const EndRecord& end) {
  const auto exit_code = static_cast<int>(end.exit_code);
  const std::string state = exit_code == kExitComplete  ? "complete"
                            : exit_code == kExitStopped ? "stopped"
                                                        : "failed";
  std::string certificate = "none";
  for (const Record& record : log.records())
    if (record.type == RecordType::kCommit)
      if (const absl::StatusOr<CommitRecord> commit = ParseCommit(record.body); commit.ok())
        certificate = commit->certificate.Hex();
  if (state != "failed")
    std::fprintf(stderr, "%s\n",
                 fmt::format("{} at step {}/{}, certificate {}", state, end.step,
                             StepSchedule(options.config).steps(), certificate)
                     .c_str());
  absl::Status told = RecordState(options.run_directory, options.config, state);
  const absl::StatusOr<std::unique_ptr<Journal>> journal =
      Journal::Open(options.run_directory + "/journal.jsonl");
  told.Update(journal.status());
  if (journal.ok())
    told.Update((*journal)->Append("end", {{"generation", log.generation()},
                                           {"state", state},
                                           {"step", end.step},
                                           {"exit_code", exit_code},
                                           {"why", end.reason}}));
  if (!told.ok()) Say("warning: " + Message(told));
  return exit_code;
}

// The job's exit code. No process of it is left.
absl::StatusOr<int> RunJob(const JobOptions& options, const LocalLock& lock, RunLog& log,
                           uint64_t job) {
  ASSIGN_OR_RETURN(const std::unique_ptr<EventLoop> loop, EventLoop::New());
  if (const absl::Status told = RecordState(options.run_directory, options.config, "starting");
      !told.ok())
    Say("warning: " + Message(told));
  AgentLauncher launcher(LauncherOptions(options, lock, job), loop.get(), &log);
  RETURN_IF_ERROR(launcher.Run());
  if (!launcher.End().has_value()) {
    Say(launcher.why());
    RETURN_IF_ERROR(AppendEnd(log, job, launcher.why()));
  }
  return Tell(options, log, launcher.End().value_or(EndRecord{.exit_code = kExitFailed}));
}

}  // namespace

int RunAgentsJob(const JobOptions& options) {
  // Whether anything fits, said before anything is written.
  const absl::StatusOr<LayoutConfig> layout =
      ResolveLayout(options.config, options.nodes * options.ranks_per_node);
  if (!layout.ok()) return RefuseRun(layout.status());
  if (const absl::Status data = CheckData(options.config, options.data_directory); !data.ok())
    return RefuseRun(data);
  absl::StatusOr<OpenedRun> run = OpenRun(options.run_directory, options.config, options.retry);
  if (!run.ok()) {
    RefuseRun(run.status());
    return absl::IsDataLoss(run.status()) ? kExitNoRestart : kExitUsage;
  }
  if (const std::optional<int> exit_code = NothingToDo(options, *run)) return *exit_code;
  // Its coordinator need not be waited for.
  if (const std::optional<uint64_t> open = OpenJob(run->log);
      open.has_value() && open == run->lock.last_job()) {
    const absl::Status ended = AppendEnd(run->log, *open, "its processes are gone");
    if (!ended.ok()) return RefuseRun(ended);
  }
  const uint64_t job = JobStart(NewJobId(), 0);
  if (const absl::Status held = run->lock.Hold(job); !held.ok()) return RefuseRun(held);
  const absl::StatusOr<int> exit_code = RunJob(options, run->lock, run->log, job);
  return exit_code.ok() ? *exit_code : RefuseRun(exit_code.status());
}

}  // namespace perdure
