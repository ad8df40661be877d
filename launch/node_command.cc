#include "launch/node_command.h"

#include <netdb.h>
#include <sys/socket.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <thread>

#include "launch/agent_launcher.h"
#include "launch/allocation_end.h"
#include "launch/exit_codes.h"
#include "launch/slurm/allocation.h"
#include "launch/slurm/hostlist.h"
#include "runtime/agent/job_start.h"
#include "runtime/base/digest.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

struct NodeArguments {
  std::string run_directory, data_directory;
  std::string names;  // Of all nodes of the job, as Slurm writes them.
  std::string snapshot_directory;
  std::string interface;                // job.interface.
  int64_t ends_at = 0;                  // The job's time, seconds since 1970; 0: not known.
  int restarts = 0;                     // As of JobStart.
  std::vector<std::string> for_agents;  // Handed on.
};

void Say(const std::string& line) { std::fprintf(stderr, "perdure node: %s\n", line.c_str()); }

// Where this node is in the allocation that the job began with: nodes that were removed since keep
// their numbers.
absl::StatusOr<NodeId> IndexOf(const std::vector<std::string>& names, const std::string& name) {
  const auto at = std::find(names.begin(), names.end(), name);
  if (at == names.end())
    return InvalidArgument("node {} is not among the job's nodes ({} of them)", name, names.size());
  return static_cast<NodeId>(at - names.begin());
}

// Nodes behind one switch fail together. 0: nothing is known of switches.
uint32_t DomainOf(const EnvironmentLookup& lookup) {
  const std::string address = lookup("SLURM_TOPOLOGY_ADDR").value_or("");
  const std::string pattern = lookup("SLURM_TOPOLOGY_ADDR_PATTERN").value_or("");
  const size_t last = address.rfind('.');
  if (pattern.find("switch") == std::string::npos || last == std::string::npos) return 0;
  // Any number that the same text gives everywhere.
  const Digest digest = DigestOf(address.substr(0, last));
  uint32_t domain = 0;
  for (size_t byte = 0; byte < sizeof domain; ++byte) domain = domain << 8 | digest.bytes[byte];
  return std::max(domain, 1U);
}

// Where the other nodes reach this one: what its name means, unless that is the node itself alone.
absl::StatusOr<std::string> AddressOf(const std::string& name, size_t nodes) {
  const addrinfo hints{
      .ai_flags = AI_ADDRCONFIG, .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
  addrinfo* found = nullptr;
  const int failed = ::getaddrinfo(name.c_str(), nullptr, &hints, &found);
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, ::freeaddrinfo);
  std::string loopback;
  for (const addrinfo* at = failed == 0 ? found : nullptr; at != nullptr; at = at->ai_next) {
    char text[NI_MAXHOST] = "";
    if (::getnameinfo(at->ai_addr, at->ai_addrlen, text, sizeof text, nullptr, 0, NI_NUMERICHOST) !=
        0)
      continue;
    const std::string address = text;
    if (!address.starts_with("127.") && address != "::1") return address;
    loopback = address;
  }
  if (!loopback.empty() && nodes == 1) return loopback;
  return InvalidArgument(
      "where other nodes reach node {} is not known: its name {}; say it, for example --set "
      "job.interface=ib0",
      name,
      !loopback.empty() ? "means " + loopback + " here"
                        : fmt::format("means nothing here ({})",
                                      failed == 0 ? "no address" : ::gai_strerror(failed)));
}

absl::StatusOr<int> RunNode(const NodeArguments& arguments) {
  const EnvironmentLookup lookup = ProcessEnvironment();
  ASSIGN_OR_RETURN(const std::optional<Allocation> allocation, ReadAllocation(lookup));
  if (!allocation.has_value() || !allocation->node_name.has_value())
    return FailedPrecondition(
        "this is no task of a Slurm step: perdure job starts it, perdure run runs a job here");
  ASSIGN_OR_RETURN(const std::vector<std::string> names,
                   ExpandHostlist(arguments.names, HostlistGrammar::k23_11));
  ASSIGN_OR_RETURN(const NodeId node, IndexOf(names, *allocation->node_name));
  ASSIGN_OR_RETURN(const std::unique_ptr<EventLoop> loop, EventLoop::New());
  ASSIGN_OR_RETURN(RunLog log, RunLog::Open(arguments.run_directory));
  const auto cores = static_cast<int64_t>(std::max(1U, std::thread::hardware_concurrency()));
  AgentLauncherOptions options{
      .speaker = fmt::format("perdure node {}", *allocation->node_name),
      .run_directory = arguments.run_directory,
      .data_directory = arguments.data_directory,
      .snapshot_directory = arguments.snapshot_directory,
      .job = JobStart(static_cast<uint64_t>(allocation->job_id),
                      static_cast<uint64_t>(arguments.restarts)),
      .nodes = {node},
      .nodes_of_job = static_cast<int64_t>(names.size()),
      .cores = std::min(cores, static_cast<int64_t>(allocation->cpus_on_node.value_or(cores))),
      .arguments = arguments.for_agents,
      .hurries = false};
  options.arguments.insert(
      options.arguments.end(),
      {"--names", arguments.names, "--slurm", "--ends-at", std::to_string(arguments.ends_at)});
  if (const uint32_t domain = DomainOf(lookup); domain != 0)
    options.arguments.insert(options.arguments.end(), {"--domain", std::to_string(domain)});
  if (arguments.interface.empty()) {
    ASSIGN_OR_RETURN(const std::string address, AddressOf(*allocation->node_name, names.size()));
    options.arguments.insert(options.arguments.end(), {"--interface", address});
  } else {
    options.arguments.insert(options.arguments.end(), {"--interface", arguments.interface});
  }
  AgentLauncher launcher(options, loop.get(), &log);
  RETURN_IF_ERROR(launcher.Run());
  if (!launcher.End().has_value()) Say(launcher.why());
  SeeToAllocationEnd({.run_directory = arguments.run_directory,
                      .data_directory = arguments.data_directory,
                      .job = allocation->job_id,
                      .restarts = arguments.restarts,
                      .node = node,
                      .time_over = arguments.ends_at > 0 ? absl::FromUnixSeconds(arguments.ends_at)
                                                         : absl::InfiniteFuture(),
                      .say = Say},
                     log);
  return launcher.End().has_value() ? static_cast<int>(launcher.End()->exit_code) : kExitFailed;
}

}  // namespace

void AddNodeCommand(CLI::App& app, int* exit_code) {
  auto arguments = std::make_shared<NodeArguments>();
  CLI::App* node =
      app.add_subcommand("node", "The launcher of one node of a Slurm job; perdure job starts it");
  node->group("");  // No command for people.
  node->add_option("run_dir", arguments->run_directory, "The run's directory")->required();
  node->add_option("--data-dir", arguments->data_directory, "As of perdure agent")->required();
  node->add_option("--names", arguments->names, "Of the job's nodes")->required();
  node->add_option("--restarts", arguments->restarts, "Which start of Slurm's job it is, from 0")
      ->check(CLI::Range(0, (1 << kRestartBits) - 1));
  node->add_option("--snapshots", arguments->snapshot_directory, "[snapshot] directory")
      ->required();
  node->add_option("--interface", arguments->interface, "job.interface; empty: as the name says");
  node->add_option("--ends-at", arguments->ends_at, "As of perdure agent");
  node->add_option("agent_options", arguments->for_agents, "Behind --: of the agent");
  node->callback([arguments, exit_code] {
    const absl::StatusOr<int> code = RunNode(*arguments);
    if (!code.ok()) Say(Message(code.status()));
    *exit_code = code.value_or(kExitUsage);
  });
}

}  // namespace perdure
