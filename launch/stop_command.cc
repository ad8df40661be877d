#include "launch/stop_command.h"

#include <signal.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/time/clock.h"
#include "launch/agent_record.h"
#include "launch/chain.h"
#include "launch/chain_queue.h"
#include "launch/exit_codes.h"
#include "launch/slurm/scheduler.h"
#include "launch/slurm_step.h"
#include "runtime/agent/process.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using Json = nlohmann::ordered_json;

struct StopArguments {
  std::string run_directory;
  bool now = false, at_job_end = false;
};

absl::Status PrintWhatIs(const std::string& run_directory) {
  ASSIGN_OR_RETURN(const Json after, ReadStatus(run_directory));
  std::printf("%s at step %s\n", after["state"].get<std::string>().c_str(),
              after["step"].dump().c_str());
  return absl::OkStatus();
}

constexpr absl::Duration kAsk = absl::Seconds(90);  // As of any Scheduler.

std::optional<bool> Lives(int64_t job) { return SlurmJobRuns(job, kAsk); }

// One of perdure run in an allocation: its processes are on other machines. The allocation stays.
absl::Status StopInAllocation(const StopArguments& arguments, int64_t job) {
  RETURN_IF_ERROR(Scheduler(RunCommand).Signal(JobText(job), arguments.now ? "QUIT" : "TERM"));
  while (true) {
    ASSIGN_OR_RETURN(const Json status, ReadStatus(arguments.run_directory, Lives));
    if (!JobLives(status["state"].get<std::string>())) return PrintWhatIs(arguments.run_directory);
    absl::SleepFor(absl::Seconds(1));
  }
}

// SIGTERM: stop after the step, with a checkpoint. Waits until the job is gone.
absl::Status StopHere(const StopArguments& arguments) {
  ASSIGN_OR_RETURN(const Json status, ReadStatus(arguments.run_directory, Lives));
  const std::string state = status["state"];
  if (!JobLives(state)) {
    std::printf("no job is running (state %s)\n", state.c_str());
    return absl::OkStatus();
  }
  if (arguments.at_job_end)
    return InvalidArgument("--at-job-end is for chains, and {} has none", arguments.run_directory);
  if (status["slurm_job"].is_number() && status["slurm_job"] > 0)
    return StopInAllocation(arguments, status["slurm_job"]);
  const int pid = status["launcher_pid"];
  if (::kill(pid, arguments.now ? SIGQUIT : SIGTERM) != 0)
    return ErrnoStatus(errno, fmt::format("signal {}", pid));
  while (!AwaitProcessEnd(pid, absl::Seconds(60)))
    std::printf("process %d is still stopping\n", pid);
  return PrintWhatIs(arguments.run_directory);
}

// No other job begins; the one that runs leaves as it is told to, or at its end.
absl::Status StopChain(const StopArguments& arguments, const Chain& chain) {
  constexpr absl::Duration kLook = absl::Seconds(1), kSayEvery = absl::Minutes(1);
  Scheduler scheduler(RunCommand);
  ChainQueue queue(&scheduler, &chain, {.run_directory = arguments.run_directory});
  RETURN_IF_ERROR(chain.StopFor({.why = kStopCommand, .job = 0, .time = absl::Now()}));
  RETURN_IF_ERROR(queue.CancelPending());
  std::printf("nothing of the chain is queued any more\n");
  ASSIGN_OR_RETURN(const std::vector<JobView> jobs, queue.Running());
  if (jobs.empty() || arguments.at_job_end) return absl::OkStatus();
  for (const JobView& job : jobs)
    RETURN_IF_ERROR(arguments.now ? scheduler.Cancel(JobText(job.id))
                                  : scheduler.Signal(JobText(job.id), "TERM"));
  absl::Time say = absl::Now() + kSayEvery;
  while (true) {
    ASSIGN_OR_RETURN(const std::vector<JobView> left, queue.Running());
    if (left.empty()) return PrintWhatIs(arguments.run_directory);
    if (absl::Now() >= say) {
      std::printf("job %s is still stopping\n", JobText(left.front().id).c_str());
      say += kSayEvery;
    }
    absl::SleepFor(kLook);
  }
}

absl::Status Stop(const StopArguments& arguments) {
  const absl::StatusOr<Chain> chain = Chain::Open(arguments.run_directory);
  if (absl::IsNotFound(chain.status())) return StopHere(arguments);
  RETURN_IF_ERROR(chain.status());
  return StopChain(arguments, *chain);
}

// What is queued is held, and keeps its age; the job that runs goes on to its end.
absl::Status Hold(const std::string& run_directory, bool hold) {
  ASSIGN_OR_RETURN(const Chain chain, Chain::Open(run_directory));
  Scheduler scheduler(RunCommand);
  ChainQueue queue(&scheduler, &chain, {.run_directory = run_directory});
  ASSIGN_OR_RETURN(const std::vector<JobView> pending, queue.Pending());
  for (const JobView& job : pending) {
    RETURN_IF_ERROR(hold ? scheduler.Hold(JobText(job.id)) : scheduler.Release(JobText(job.id)));
    std::printf("job %s is %s\n", JobText(job.id).c_str(), hold ? "held" : "released");
  }
  if (pending.empty())
    return FailedPrecondition("nothing of run directory {} is queued; look with perdure status {}",
                              run_directory, run_directory);
  return absl::OkStatus();
}

int Exit(const char* command, const absl::Status& status) {
  if (!status.ok()) std::fprintf(stderr, "perdure %s: %s\n", command, Message(status).c_str());
  return status.ok() ? kExitComplete : kExitUsage;
}

void AddHoldCommand(CLI::App& app, const char* name, const char* what, bool hold, int* exit_code) {
  auto directory = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand(name, what);
  command->add_option("run_dir", *directory, "The run's directory")->required();
  command->callback([=] { *exit_code = Exit(name, Hold(*directory, hold)); });
}

}  // namespace

void AddStopCommand(CLI::App& app, int* exit_code) {
  auto arguments = std::make_shared<StopArguments>();
  CLI::App* stop = app.add_subcommand(
      "stop", "Stop the job of a run after its step, with a checkpoint, and its chain");
  stop->add_option("run_dir", arguments->run_directory, "The run's directory")->required();
  CLI::Option* now =
      stop->add_flag("--now", arguments->now,
                     "At once: what was done since the newest checkpoint is done again later");
  stop->add_flag("--at-job-end", arguments->at_job_end,
                 "Of a chain: the job that runs goes on until its time is over")
      ->excludes(now);
  stop->callback([arguments, exit_code] { *exit_code = Exit("stop", Stop(*arguments)); });
}

void AddPauseCommand(CLI::App& app, int* exit_code) {
  AddHoldCommand(app, "pause", "Hold what is queued of a chain; the job that runs goes on", true,
                 exit_code);
}

void AddResumeCommand(CLI::App& app, int* exit_code) {
  AddHoldCommand(app, "resume", "Let go on what perdure pause holds", false, exit_code);
}

}  // namespace perdure
