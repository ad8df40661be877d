#include "launch/slurm_step.h"

#include <signal.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <vector>

#include "absl/time/clock.h"
#include "launch/chain_queue.h"
#include "launch/job_bounds.h"
#include "launch/slurm/hostlist.h"
#include "runtime/agent/job_start.h"
#include "runtime/agent/run_log.h"
#include "runtime/base/status.h"
#include "runtime/wire/event_loop.h"

namespace perdure {
namespace {

// How long the controller may not answer before a job begins without what it would have said.
constexpr absl::Duration kAskFor = absl::Minutes(2), kAskAgain = absl::Seconds(5);

// How long a job of this run that still lives may take to be gone.
constexpr absl::Duration kWaitForOther = absl::Minutes(1);

void Say(const std::string& speaker, const std::string& line) {
  std::fprintf(stderr, "%s: %s\n", speaker.c_str(), line.c_str());
}

absl::StatusOr<std::vector<std::string>> SrunCommand(const SlurmStep& step) {
  const std::string nodes = std::to_string(step.allocation.nodes.size());
  // srun is searched for in PATH, as sites arrange it.
  std::vector<std::string> argv = {"/usr/bin/env",      "srun",
                                   "--no-kill",         "--kill-on-bad-exit=0",
                                   "--wait=0",          "--mpi=none",
                                   "--input=none",      "--nodes=" + nodes,
                                   "--ntasks=" + nodes, "--ntasks-per-node=1"};
  if (!step.log.empty()) argv.insert(argv.end(), {"--output=" + step.log, "--open-mode=append"});
  // The step that a shell of the allocation is has its processors.
  if (step.allocation.step_id.has_value()) argv.emplace_back("--overlap");
  argv.insert(argv.end(), step.config.slurm.srun.begin(), step.config.slurm.srun.end());
  ASSIGN_OR_RETURN(const std::string self, ThisProgram());
  argv.insert(argv.end(), {self, "node", step.run_directory, "--data-dir", step.data_directory,
                           "--names", CompressHostlist(step.allocation.nodes), "--restarts",
                           std::to_string(step.restarts), "--snapshots",
                           step.config.snapshot.directory, "--interface", step.config.job.interface,
                           "--ends-at", std::to_string(absl::ToUnixSeconds(step.end)), "--",
                           "--ranks-per-node", std::to_string(step.ranks_per_node)});
  if (step.until_step >= 0)
    argv.insert(argv.end(), {"--until-step", std::to_string(step.until_step)});
  if (step.quiet) argv.emplace_back("--quiet");
  if (step.retry) argv.emplace_back("--retry");
  return argv;
}

}  // namespace

std::optional<bool> SlurmJobRuns(int64_t job, absl::Duration timeout) {
  const absl::StatusOr<JobView> view =
      Scheduler(RunCommand, {.timeout = timeout}).Job(JobText(job));
  if (absl::IsNotFound(view.status())) return false;
  if (!view.ok()) return std::nullopt;
  return view->state != JobState::kPending && !IsOver(view->state);
}

absl::StatusOr<std::optional<int64_t>> OtherJobOf(const std::string& run_directory,
                                                  Scheduler& scheduler, int64_t job) {
  std::error_code error;
  if (!std::filesystem::exists(run_directory + "/run.toml", error)) return std::nullopt;
  ASSIGN_OR_RETURN(const RunLog log, RunLog::Open(run_directory));
  const std::optional<uint64_t> open = OpenJob(log);
  const auto other = static_cast<int64_t>(JobOf(open.value_or(0)));
  if (other == 0 || other == job) return std::nullopt;
  const absl::Time until = absl::Now() + kWaitForOther;
  while (true) {
    const absl::StatusOr<JobView> view = scheduler.Job(JobText(other));
    const bool lives = view.ok() && view->state != JobState::kPending && !IsOver(view->state);
    if (!lives) return std::nullopt;
    if (absl::Now() > until) return other;
    absl::SleepFor(kAskAgain);
  }
}

absl::Time EndOfAllocation(const std::string& speaker, Scheduler& scheduler,
                           const Allocation& allocation, absl::Duration otherwise) {
  if (allocation.end.has_value()) return *allocation.end;
  const absl::Time began = absl::Now();
  while (true) {
    const absl::StatusOr<JobView> view = scheduler.Job(JobText(allocation.job_id));
    if (view.ok() && view->end.has_value()) return *view->end;
    if (!absl::IsUnavailable(view.status()) || absl::Now() - began > kAskFor) {
      Say(speaker, fmt::format("when this job ends is not known ({}); taken to be in {}",
                               view.ok() ? "Slurm does not say it" : Message(view.status()),
                               absl::FormatDuration(otherwise)));
      return began + otherwise;
    }
    absl::SleepFor(kAskAgain);
  }
}

absl::StatusOr<ProcessEnd> RunSlurmStep(const SlurmStep& step) {
  ProcessOptions process{
      .argv = {}, .environment = {}, .descriptors = {}, .log_path = {}, .group = 0};
  ASSIGN_OR_RETURN(process.argv, SrunCommand(step));
  ASSIGN_OR_RETURN(const std::unique_ptr<EventLoop> loop, EventLoop::New());
  std::vector<int> signals = {SIGTERM, SIGINT, SIGUSR1, SIGCONT};
  if (step.of_person) signals.push_back(SIGQUIT);
  std::unique_ptr<SupervisedProcess> srun;
  bool interrupted = false;
  RETURN_IF_ERROR(loop->AddSignals(signals, [&](int signal) {
    // The step's tasks get what Slurm sends by themselves; it is not to end the batch script.
    Say(step.speaker, fmt::format("signal {} ({})", signal, ::strsignal(signal)));
    if (srun == nullptr) return;
    if (signal == SIGQUIT || (signal == SIGINT && interrupted && step.of_person))
      srun->Signal(SIGQUIT);
    else if (signal == SIGINT || (signal == SIGTERM && step.of_person))
      srun->Signal(SIGTERM);
    interrupted = interrupted || signal == SIGINT;
  }));
  if (step.begins) step.begins(loop.get());
  OomKills oom = OomKills::OfThisProcess();
  std::optional<ProcessEnd> ended;
  ASSIGN_OR_RETURN(srun, SupervisedProcess::Start(loop.get(), &oom, process,
                                                  {.ended =
                                                       [&](const ProcessEnd& how) {
                                                         ended = how;
                                                         loop->Stop();
                                                       },
                                                   .unkillable = nullptr}));
  loop->Run();
  return *ended;
}

}  // namespace perdure
