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
#include "launch/job_bounds.h"
#include "launch/local_lock.h"
#include "launch/run_directory.h"
#include "runtime/agent/job_start.h"
#include "runtime/agent/records.h"
#include "runtime/base/status.h"
#include "runtime/wire/event_loop.h"

namespace perdure {
namespace {

// Not a scheduler's: those are small.
uint64_t NewJobId() {
  std::random_device random;
  return uint64_t{1} << 51 | (uint64_t{random()} << 20 ^ random()) % (uint64_t{1} << 51);
}

void Say(const std::string& line) { std::fprintf(stderr, "perdure run: %s\n", line.c_str()); }

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

// The job's exit code. No process of it is left.
absl::StatusOr<int> RunJob(const JobOptions& options, const JobBounds& bounds,
                           const LocalLock& lock, RunLog& log, uint64_t job) {
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
  return TellEnd(bounds, log, launcher.End().value_or(EndRecord{.exit_code = kExitFailed}));
}

}  // namespace

int RunAgentsJob(const JobOptions& options) {
  const JobBounds bounds{.speaker = "perdure run",
                         .config = options.config,
                         .run_directory = options.run_directory,
                         .data_directory = options.data_directory,
                         .ranks = options.nodes * options.ranks_per_node,
                         .until_step = options.until_step,
                         .retry = options.retry};
  BegunJob begun = BeginJob(bounds);
  if (!begun.run.has_value()) return begun.exit_code;
  OpenedRun& run = *begun.run;
  // Its coordinator need not be waited for.
  if (const std::optional<uint64_t> open = OpenJob(run.log);
      open.has_value() && open == run.lock.last_job()) {
    const absl::Status ended = AppendEnd(run.log, *open, "its processes are gone");
    if (!ended.ok()) return RefuseJob(bounds, ended);
  }
  const uint64_t job = JobStart(NewJobId(), 0);
  if (const absl::Status held = run.lock.Hold(job); !held.ok()) return RefuseJob(bounds, held);
  const absl::StatusOr<int> exit_code = RunJob(options, bounds, run.lock, run.log, job);
  return exit_code.ok() ? *exit_code : RefuseJob(bounds, exit_code.status());
}

}  // namespace perdure
