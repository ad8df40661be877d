#include "launch/agent_command.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "launch/exit_codes.h"
#include "launch/node_agent.h"
#include "launch/slurm/hostlist.h"
#include "runtime/agent/job_start.h"
#include "runtime/base/status.h"
#include "runtime/control/evidence.h"

namespace perdure {
namespace {

absl::Status ReadNames(const std::string& list, NodeAgentOptions& options) {
  ASSIGN_OR_RETURN(options.names, ExpandHostlist(list, HostlistGrammar::k23_11));
  if (!options.names.empty() && options.names.size() != options.nodes)
    return InvalidArgument("--names has {} names, --nodes is {}: give one for each node",
                           options.names.size(), options.nodes);
  for (const std::string& name : options.names) RETURN_IF_ERROR(CheckNodeName(name));
  return absl::OkStatus();
}

}  // namespace

void AddAgentCommand(CLI::App& app, int* exit_code) {
  struct Arguments {
    NodeAgentOptions options;
    uint64_t job = 0, restart = 0;
    int64_t ends_at = 0;
    std::string names;
  };
  auto arguments = std::make_shared<Arguments>();
  NodeAgentOptions& options = arguments->options;
  CLI::App* agent = app.add_subcommand(
      "agent", "The agent of one node of a job; perdure run and batch scripts start it");
  agent->add_option("run_dir", options.run_directory, "The run's directory")->required();
  agent->add_option("--node", options.node, "Which node, from 0")->required();
  agent->add_option("--nodes", options.nodes, "How many the job has")
      ->required()
      ->check(CLI::PositiveNumber);
  agent->add_option("--job", arguments->job, "The job's number, the same for all its agents")
      ->required()
      ->check(CLI::Range(uint64_t{1}, (uint64_t{1} << 52) - 1));
  agent->add_option("--restart", arguments->restart, "How often the job was started before")
      ->check(CLI::Range(uint64_t{0}, (uint64_t{1} << kRestartBits) - 1));
  agent->add_option("--ranks-per-node", options.ranks_per_node, "Ranks of this node")
      ->check(CLI::Range(1, 64));
  agent->add_option("--cores", options.cores, "That its ranks share (default: all there are)")
      ->check(CLI::PositiveNumber);
  agent->add_option("--domain", options.domain, "What it fails together with: a rack, a switch");
  agent->add_option("--interface", options.interface, "Where other agents reach this one");
  agent->add_option("--data-dir", options.data_directory, "What mixture paths are relative to")
      ->required();
  agent->add_option("--until-step", options.until_step, "As of perdure run")
      ->check(CLI::NonNegativeNumber);
  agent->add_option("--ends-at", arguments->ends_at, "End of the job's time, seconds since 1970");
  agent->add_flag("--slurm", options.slurm, "It is Slurm's job of that number");
  agent->add_option("--names", arguments->names, "Of the job's nodes, as Slurm writes them");
  agent->add_flag("--stops", options.stops, "The job is to stop: as SIGTERM says it");
  agent->add_flag("--quiet", options.quiet, "No progress lines");
  agent->add_flag("--retry", options.retry, "As of perdure run");
  agent->callback([arguments, exit_code] {
    arguments->options.run_directory = std::filesystem::absolute(arguments->options.run_directory);
    arguments->options.job = JobStart(arguments->job, arguments->restart);
    if (arguments->ends_at > 0)
      arguments->options.ends_at = absl::FromUnixSeconds(arguments->ends_at);
    if (const absl::Status named = ReadNames(arguments->names, arguments->options); !named.ok()) {
      std::fprintf(stderr, "perdure agent: %s\n", Message(named).c_str());
      *exit_code = kExitUsage;
      return;
    }
    *exit_code = RunNodeAgent(arguments->options);
  });
}

}  // namespace perdure
