#include "launch/run_command.h"

#include <CLI/CLI.hpp>
#include <cstdio>

#include "launch/agents_job.h"
#include "launch/allocation_job.h"
#include "launch/config.h"
#include "launch/exit_codes.h"
#include "launch/run_directory.h"
#include "runtime/base/status.h"
#include "runtime/train/plan.h"

namespace perdure {
namespace {

struct RunArguments {
  std::string config_path;
  std::string run_directory;
  std::string data_directory;
  std::vector<std::string> settings;
  std::string exec;  // As PrintCommand has it.
  int64_t nodes = 0;
  int64_t ranks_per_node = 0;
  int64_t until_step = -1;
  bool quiet = false;
  bool retry = false;
  bool no_agent_restart = false;
};

int Refuse(const absl::Status& status) {
  std::fprintf(stderr, "perdure run: %s\n", Message(status).c_str());
  return kExitUsage;
}

int Run(const RunArguments& arguments) {
  absl::StatusOr<RunConfig> config =
      LoadRun(arguments.config_path, arguments.settings, arguments.exec, arguments.run_directory);
  if (!config.ok()) return Refuse(config.status());
  JobOptions options;
  options.run_directory = RunDirectoryOf(arguments.run_directory, config->name);
  options.data_directory = DataDirectoryOf(arguments.data_directory, arguments.config_path);
  const absl::StatusOr<NodeRange> range = ParseNodeRange(config->job.nodes);
  if (!range.ok()) return Refuse(range.status());
  options.nodes = arguments.nodes > 0 ? arguments.nodes : range->least;
  options.ranks_per_node =
      arguments.ranks_per_node > 0 ? arguments.ranks_per_node : config->job.ranks_per_node;
  options.until_step = arguments.until_step;
  options.quiet = arguments.quiet;
  options.retry = arguments.retry;
  options.config = *std::move(config);
  options.restart_agents = !arguments.no_agent_restart;
  const absl::StatusOr<std::optional<Allocation>> allocation =
      AllocationToUse(ProcessEnvironment(), arguments.nodes > 0);
  if (!allocation.ok()) return Refuse(allocation.status());
  if (allocation->has_value()) return RunAllocationJob(options, **allocation);
  return RunAgentsJob(options);
}

}  // namespace

void AddRunCommand(CLI::App& app, int* exit_code) {
  auto arguments = std::make_shared<RunArguments>();
  CLI::App* run = app.add_subcommand(
      "run",
      "One job of a run, here or on the nodes of this allocation: begins or resumes it at any "
      "layout");
  run->add_option("config", arguments->config_path, "run.toml; may be left out with --exec");
  run->add_option("--exec", arguments->exec,
                  "All that follows: a trainer of your own, which each rank runs in place of ours")
      ->type_name("COMMAND...");
  run->add_option("--run-dir", arguments->run_directory,
                  "The run's directory (default: runs/NAME)");
  run->add_option("--data-dir", arguments->data_directory,
                  "What mixture paths are relative to (default: run.toml's folder)");
  run->add_option("--nodes", arguments->nodes,
                  "Nodes: groups of ranks of this machine (default: the allocation's nodes, where "
                  "Slurm has given several; else the least of job.nodes)")
      ->check(CLI::PositiveNumber);
  run->add_option("--ranks-per-node", arguments->ranks_per_node,
                  "Ranks of a node (default: job.ranks_per_node)")
      ->check(CLI::PositiveNumber);
  run->add_option("--set", arguments->settings,
                  "key=value over run.toml, for example layout.tensor=2; may be repeated")
      ->allow_extra_args(false);
  run->add_option("--until-step", arguments->until_step,
                  "Stop cleanly after this step with a checkpoint (exit code 75)")
      ->check(CLI::NonNegativeNumber);
  run->add_flag("--quiet", arguments->quiet, "No progress lines");
  run->add_flag("--retry", arguments->retry,
                "Load a checkpoint again that was loaded twice without a good step behind it");
  run->add_flag("--no-agent-restart", arguments->no_agent_restart,
                "A node whose agent died stays away")
      ->group("");  // For tests of what the others do then.
  run->add_flag_callback(
      "--help-config",
      [] {
        std::printf("%s", DescribeConfig().c_str());
        throw CLI::Success();
      },
      "All keys of run.toml");
  run->callback([arguments, exit_code] { *exit_code = Run(*arguments); });
}

}  // namespace perdure
