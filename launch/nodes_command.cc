#include "launch/nodes_command.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/time/clock.h"
#include "launch/chain.h"
#include "launch/chain_queue.h"
#include "launch/config.h"
#include "launch/exit_codes.h"
#include "launch/node_book.h"
#include "launch/slurm/scheduler.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using Json = nlohmann::ordered_json;

struct NodesArguments {
  std::string run_directory, node;
  bool json = false;
};

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "perdure nodes: %s\n", Message(status).c_str());
  return absl::IsInvalidArgument(status) ? kExitUsage : kExitFailed;
}

// What the next job of a chain asks for.
std::string NextNodes(const Chain& chain, const RunConfig& config) {
  int64_t step = 0;
  for (const ChainJob& job : chain.Jobs()) step = std::max({step, job.first_step, job.last_step});
  return NodesFor(config, step);
}

// As that job is judged; without a chain, as one on one node.
absl::StatusOr<EvidenceBook::Options> OptionsOf(const std::string& run_directory) {
  const absl::StatusOr<Chain> chain = Chain::Open(run_directory);
  if (absl::IsNotFound(chain.status())) return EvidenceBook::Options{};
  RETURN_IF_ERROR(chain.status());
  ASSIGN_OR_RETURN(const RunConfig config, LoadConfig(chain->config_path(), {}));
  return BookOptionsFor(NextNodes(*chain, config));
}

std::string WordsOf(const EvidenceBook::Verdict& verdict) {
  if (verdict.pinned) return "pinned";
  if (verdict.excluded) return "excluded";
  return verdict.drained ? "avoided" : "used";
}

int List(const NodesArguments& arguments) {
  std::error_code error;
  if (!std::filesystem::is_directory(arguments.run_directory, error))
    return Fail(InvalidArgument("{} is no run's directory", arguments.run_directory));
  const absl::StatusOr<EvidenceBook::Options> options = OptionsOf(arguments.run_directory);
  if (!options.ok()) return Fail(options.status());
  const absl::StatusOr<NodeBook::Contents> contents =
      NodeBook(arguments.run_directory).Read(*options);
  if (!contents.ok()) return Fail(contents.status());
  const EvidenceBook::Judgement judgement = contents->book.Judge(absl::Now());
  if (arguments.json) {
    Json json = {{"nodes", Json::array()},
                 {"programs", Json::array()},
                 {"passed_over", contents->passed_over}};
    for (const EvidenceBook::Verdict& verdict : judgement.nodes)
      json["nodes"].push_back({{"node", verdict.node},
                               {"points", verdict.points},
                               {"verdict", WordsOf(verdict)},
                               {"entries", verdict.entries},
                               {"reason", verdict.reason}});
    for (const EvidenceBook::SuspectProgram& program : judgement.programs)
      json["programs"].push_back({{"kind", NameOf(program.kind)},
                                  {"number", program.number},
                                  {"nodes", program.nodes},
                                  {"reason", program.reason}});
    std::printf("%s\n", json.dump(2).c_str());
    return kExitComplete;
  }
  if (judgement.nodes.empty()) std::printf("nothing is known against any node of this run\n");
  size_t width = 4;
  for (const EvidenceBook::Verdict& verdict : judgement.nodes)
    width = std::max(width, verdict.node.size());
  const int columns = static_cast<int>(width);
  if (!judgement.nodes.empty())
    std::printf("%-*s  points  verdict   entries  reason\n", columns, "node");
  for (const EvidenceBook::Verdict& verdict : judgement.nodes)
    std::printf("%-*s  %6d  %-8s  %7d  %s\n", columns, verdict.node.c_str(), verdict.points,
                WordsOf(verdict).c_str(), verdict.entries,
                verdict.reason.substr(verdict.node.size() + 2).c_str());
  for (const EvidenceBook::SuspectProgram& program : judgement.programs)
    std::printf("%s\n", program.reason.c_str());
  if (contents->passed_over > 0)
    std::printf("%lld lines or files of %s/nodes cannot be read, and were passed over\n",
                static_cast<long long>(contents->passed_over), arguments.run_directory.c_str());
  return kExitComplete;
}

// The job that is pending is told now: the one before it may be long, or gone.
void TellPending(const std::string& run_directory) {
  const auto say = [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); };
  const absl::StatusOr<Chain> chain = Chain::Open(run_directory);
  if (absl::IsNotFound(chain.status())) return;
  absl::Status told = chain.status();
  if (told.ok()) {
    const absl::StatusOr<RunConfig> config = LoadConfig(chain->config_path(), {});
    told.Update(config.status());
    if (config.ok()) {
      Scheduler scheduler(RunCommand);
      ChainQueue queue(&scheduler, &*chain,
                       {.run_directory = run_directory, .slurm = config->slurm, .say = say});
      told.Update(queue.ExcludeOfPending(NextNodes(*chain, *config)));
    }
  }
  if (!told.ok())
    say("warning: the job that is pending does not know it; the one that runs tells it when it "
        "leaves: " +
        Message(told));
}

int Change(const NodesArguments& arguments, const absl::Status& changed, const char* what) {
  if (!changed.ok()) return Fail(changed);
  if (arguments.json)
    std::printf("%s\n", Json({{"node", arguments.node}, {"now", what}}).dump(2).c_str());
  else
    std::printf("%s is %s\n", arguments.node.c_str(), what);
  TellPending(arguments.run_directory);
  return kExitComplete;
}

int Clear(const NodesArguments& arguments) {
  const NodeBook book(arguments.run_directory);
  return Change(arguments, book.Clear(arguments.node, absl::Now()), "cleared");
}

int Pin(const NodesArguments& arguments) {
  std::error_code error;
  if (!std::filesystem::is_directory(arguments.run_directory, error))
    return Fail(InvalidArgument("{} is no run's directory", arguments.run_directory));
  return Change(arguments, NodeBook(arguments.run_directory).Pin(arguments.node), "pinned");
}

int Unpin(const NodesArguments& arguments) {
  return Change(arguments, NodeBook(arguments.run_directory).Unpin(arguments.node), "unpinned");
}

}  // namespace

void AddNodesCommand(CLI::App& app, int* exit_code) {
  const auto arguments = std::make_shared<NodesArguments>();  // Of the one that is given.
  CLI::App* nodes = app.add_subcommand(
      "nodes", "What is known against nodes: nodes RUN_DIR, nodes clear|pin|unpin RUN_DIR NODE");
  nodes->require_subcommand(0, 1);
  nodes->add_option("RUN_DIR", arguments->run_directory, "The run's directory, to list its nodes");
  nodes->add_flag("--json", arguments->json, "Print JSON");
  const auto add = [&](const char* name, const char* doc, int (*run)(const NodesArguments&)) {
    CLI::App* command = nodes->add_subcommand(name, doc);
    command->add_option("RUN_DIR", arguments->run_directory, "The run's directory")->required();
    command->add_option("NODE", arguments->node, "The node's name")->required();
    command->add_flag("--json", arguments->json, "Print JSON");
    command->callback([=] {
      arguments->run_directory = std::filesystem::absolute(arguments->run_directory);
      *exit_code = run(*arguments);
    });
  };
  add("clear", "Hold nothing against it that is known now", Clear);
  add("pin", "Never exclude it, until it is unpinned", Pin);
  add("unpin", "Let it be excluded again", Unpin);
  nodes->callback([=] {
    if (!nodes->get_subcommands().empty()) return;
    if (arguments->run_directory.empty()) throw CLI::RequiredError("RUN_DIR");
    arguments->run_directory = std::filesystem::absolute(arguments->run_directory);
    *exit_code = List(*arguments);
  });
}

}  // namespace perdure
