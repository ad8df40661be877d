#include "launch/submit_command.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "absl/time/clock.h"
#include "launch/batch_script.h"
#include "launch/chain.h"
#include "launch/chain_queue.h"
#include "launch/config.h"
#include "launch/exit_codes.h"
#include "launch/pending_reason.h"
#include "launch/run_data.h"
#include "launch/run_directory.h"
#include "launch/site_check.h"
#include "launch/sites/sites.h"
#include "launch/slurm/scheduler.h"
#include "launch/slurm_job.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "runtime/train/plan.h"

namespace perdure {
namespace {

struct SubmitArguments {
  std::string config_path, run_directory, data_directory, site;
  std::vector<std::string> settings;
  std::string exec;                  // As PrintCommand has it.
  std::vector<std::string> options;  // Of sbatch: whatever this command does not know.
  bool dry_run = false;
};

struct Prepared {
  RunConfig config;
  std::string run_directory;
  Chain::Common common;
  std::string script;
};

absl::StatusOr<Prepared> Prepare(const SubmitArguments& arguments) {
  Prepared prepared;
  std::vector<std::string> settings = arguments.settings;
  if (!arguments.site.empty()) settings.push_back("slurm.site=" + arguments.site);
  ASSIGN_OR_RETURN(prepared.config, LoadRun(arguments.config_path, settings, arguments.exec,
                                            arguments.run_directory));
  const RunConfig& config = prepared.config;
  prepared.run_directory = RunDirectoryOf(arguments.run_directory, config.name);
  prepared.common = {
      .job_name = JobNameOf(config.name, prepared.run_directory),
      .data_directory = DataDirectoryOf(arguments.data_directory, arguments.config_path),
      .options = arguments.options};
  ASSIGN_OR_RETURN(const std::string program, ThisProgram());
  ASSIGN_OR_RETURN(prepared.script, WriteBatchScript({.config = config,
                                                      .common = prepared.common,
                                                      .run_directory = prepared.run_directory,
                                                      .program = program}));
  return prepared;
}

// Whether jobs of this run could be formed on the fewest nodes that any of its phases gets.
absl::Status CheckLayouts(const RunConfig& config) {
  for (const PhaseConfig& phase : config.phases) {
    ASSIGN_OR_RETURN(const NodeRange range,
                     ParseNodeRange(phase.nodes.empty() ? config.job.nodes : phase.nodes));
    const absl::StatusOr<LayoutConfig> layout =
        ResolveLayout(config, range.least * config.job.ranks_per_node);
    if (!layout.ok())
      return InvalidArgument("phase {} on {} nodes: {}", phase.name, range.least,
                             Message(layout.status()));
  }
  return absl::OkStatus();
}

// Slurm queues what it never starts, and says so when it has looked at it, which takes a moment.
void WarnOfNeverStarting(Scheduler& scheduler, int64_t job) {
  constexpr absl::Duration kWait = absl::Seconds(3), kLook = absl::Milliseconds(250);
  const absl::Time until = absl::Now() + kWait;
  while (true) {
    const absl::StatusOr<JobView> view = scheduler.Job(JobText(job));
    if (!view.ok() || view->state != JobState::kPending) return;
    const std::string advice = AdviceFor(view->reason);
    if (!advice.empty())
      std::fprintf(stderr, "perdure submit: warning: job %s never starts by itself (%s): %s\n",
                   JobText(job).c_str(), view->reason.c_str(), advice.c_str());
    // The reason of one that has been looked at in passing, while it was queued.
    const bool first_look = view->reason.empty() || view->reason == "PartitionConfig";
    if (!first_look || absl::Now() >= until) return;
    absl::SleepFor(kLook);
  }
}

absl::Status Submit(const SubmitArguments& arguments) {
  ASSIGN_OR_RETURN(const Prepared prepared, Prepare(arguments));
  const RunConfig& config = prepared.config;
  RETURN_IF_ERROR(CheckLayouts(config));
  const std::string nodes = NodesFor(config, 0);
  if (arguments.dry_run) {
    std::vector<std::string> argv = {"sbatch"};
    argv.insert(argv.end(), arguments.options.begin(), arguments.options.end());
    argv.insert(argv.end(), {"--nodes=" + nodes, "--dependency=singleton",
                             prepared.run_directory + "/chain/job.sh"});
    std::printf("# %s/chain/job.sh\n%s\n# %s\n", prepared.run_directory.c_str(),
                prepared.script.c_str(), CommandLine(argv).c_str());
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(CheckData(config, prepared.common.data_directory));
  Scheduler scheduler(RunCommand);
  const auto say = [](const std::string& line) { std::printf("%s\n", line.c_str()); };
  RETURN_IF_ERROR(CheckSite(
      scheduler, {.config = config, .options = arguments.options, .user = "", .say = say}));
  // Before anything of that chain is changed.
  ASSIGN_OR_RETURN(const std::vector<JobView> jobs, scheduler.JobsNamed(prepared.common.job_name));
  for (const JobView& job : jobs)
    if (!IsOver(job.state))
      return FailedPrecondition(
          "run {} has a chain already: job {} ({}{}); look with perdure status {}", config.name,
          job.id, job.state_word, job.reason.empty() ? "" : ", " + job.reason,
          prepared.run_directory);
  RETURN_IF_ERROR(MakeDirectories(prepared.run_directory + "/jobs"));
  ASSIGN_OR_RETURN(const Chain chain, Chain::Create(prepared.run_directory, prepared.common));
  ChainQueue queue(&scheduler, &chain,
                   {.run_directory = prepared.run_directory, .slurm = config.slurm, .say = say});
  RETURN_IF_ERROR(ReplaceFile(chain.config_path(), PrintConfig(config)));
  RETURN_IF_ERROR(ReplaceFile(chain.script_path(), prepared.script));
  RETURN_IF_ERROR(chain.GoOn());
  ASSIGN_OR_RETURN(const int64_t first, queue.Submit(0, nodes));
  std::printf("job %s is queued for run %s on %s nodes\n", JobText(first).c_str(),
              config.name.c_str(), nodes.c_str());
  ASSIGN_OR_RETURN(const int64_t second, queue.Submit(first, nodes));
  std::printf("job %s is queued behind it\nlook with: perdure status %s\n", JobText(second).c_str(),
              prepared.run_directory.c_str());
  WarnOfNeverStarting(scheduler, first);
  return absl::OkStatus();
}

}  // namespace

void AddSubmitCommand(CLI::App& app, int* exit_code) {
  auto arguments = std::make_shared<SubmitArguments>();
  CLI::App* submit = app.add_subcommand(
      "submit", "Queues a run as a chain of Slurm jobs; what it does not know goes to sbatch");
  submit->add_option("config", arguments->config_path, "run.toml; may be left out with --exec");
  submit
      ->add_option("--exec", arguments->exec,
                   "All that follows: a trainer of your own, which each rank runs in place of ours")
      ->type_name("COMMAND...");
  submit->add_option("--run-dir", arguments->run_directory,
                     "The run's directory, the same on every node (default: runs/NAME)");
  submit->add_option("--data-dir", arguments->data_directory,
                     "What mixture paths are relative to (default: run.toml's folder)");
  submit->add_option("--site", arguments->site, "Short for --set slurm.site=NAME");
  submit->add_option("--set", arguments->settings, "key=value over run.toml; may be repeated")
      ->allow_extra_args(false);
  submit->add_flag("--dry-run", arguments->dry_run, "Print script and command, queue nothing");
  submit->add_flag_callback(
      "--list-sites",
      [] {
        for (const Site& site : KnownSites()) std::printf("%s\n", site.name.c_str());
        throw CLI::Success();
      },
      "Profiles that --site knows");
  submit->allow_extras();
  submit->callback([submit, arguments, exit_code] {
    arguments->options = submit->remaining();
    const absl::Status submitted = Submit(*arguments);
    if (!submitted.ok()) std::fprintf(stderr, "perdure submit: %s\n", Message(submitted).c_str());
    *exit_code = submitted.ok() ? kExitComplete : kExitUsage;
  });
}

void AddJobCommand(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<SlurmJobOptions>();
  CLI::App* job = app.add_subcommand("job", "What the script of a chain's job becomes");
  job->group("");  // No command for people.
  job->add_option("run_dir", options->run_directory, "The run's directory")->required();
  job->callback([options, exit_code] {
    options->run_directory = std::filesystem::absolute(options->run_directory);
    *exit_code = RunSlurmJob(*options);
  });
}

}  // namespace perdure
