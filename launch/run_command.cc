// perdure run, perdure status, perdure stop.
#include "launch/run_command.h"

#include <signal.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "launch/agent_record.h"
#include "launch/agents_job.h"
#include "launch/config.h"
#include "launch/exit_codes.h"
#include "runtime/agent/process.h"
#include "runtime/base/status.h"
#include "runtime/train/plan.h"

namespace perdure {
namespace {

using Json = nlohmann::ordered_json;

struct RunArguments {
  std::string config_path;
  std::string run_directory;
  std::string data_directory;
  std::vector<std::string> settings;
  int64_t nodes = 0;
  int64_t ranks_per_node = 0;
  int64_t until_step = -1;
  bool quiet = false;
  bool retry = false;
  bool no_agent_restart = false;
};

int Refuse(const char* command, const absl::Status& status) {
  std::fprintf(stderr, "perdure %s: %s\n", command, Message(status).c_str());
  return kExitUsage;
}

int Run(const RunArguments& arguments) {
  absl::StatusOr<RunConfig> config = LoadConfig(arguments.config_path, arguments.settings);
  if (!config.ok()) return Refuse("run", config.status());
  const std::filesystem::path folder =
      std::filesystem::absolute(arguments.config_path).parent_path();
  JobOptions options;
  options.run_directory = std::filesystem::absolute(
      arguments.run_directory.empty() ? std::filesystem::path("runs") / config->name
                                      : std::filesystem::path(arguments.run_directory));
  options.data_directory = arguments.data_directory.empty()
                               ? folder.string()
                               : std::filesystem::absolute(arguments.data_directory).string();
  const absl::StatusOr<NodeRange> range = ParseNodeRange(config->job.nodes);
  if (!range.ok()) return Refuse("run", range.status());
  options.nodes = arguments.nodes > 0 ? arguments.nodes : range->least;
  options.ranks_per_node =
      arguments.ranks_per_node > 0 ? arguments.ranks_per_node : config->job.ranks_per_node;
  options.until_step = arguments.until_step;
  options.quiet = arguments.quiet;
  options.retry = arguments.retry;
  options.config = *std::move(config);
  options.restart_agents = !arguments.no_agent_restart;
  return RunAgentsJob(options);
}

int Status(const std::string& run_directory, bool json) {
  const absl::StatusOr<Json> read = ReadStatus(run_directory);
  if (!read.ok()) return Refuse("status", read.status());
  const Json& s = *read;
  if (json) {
    std::printf("%s\n", s.dump(2).c_str());
    return kExitComplete;
  }
  const auto text = [&](const char* key) {
    return s.contains(key) ? (s[key].is_string() ? s[key].get<std::string>() : s[key].dump()) : "-";
  };
  std::printf(
      "run         %s\nstate       %s\nphase       %s\nstep        %s of %s\nloss        "
      "%s\ntokens/s    %s\n",
      text("name").c_str(), text("state").c_str(), text("phase").c_str(), text("step").c_str(),
      text("steps_total").c_str(), text("loss").c_str(), text("tokens_per_second").c_str());
  std::printf("generation  %s\nlayout      %s\nnodes       %s%s\n", text("generation").c_str(),
              text("layout").c_str(), text("nodes").c_str(),
              JobLives(text("state")) ? "" : " until the job ended");
  for (const Json& member : s["members"]) {
    std::printf("node %-6s ranks", member["node"].dump().c_str());
    for (const Json& rank : member["ranks"])
      std::printf(" %s (process %s)", rank["rank"].dump().c_str(), rank["pid"].dump().c_str());
    std::printf("\n");
  }
  return kExitComplete;
}

// SIGTERM: stop after the step, with a checkpoint. Waits until the job is gone.
int Stop(const std::string& run_directory, bool now) {
  const absl::StatusOr<Json> read = ReadStatus(run_directory);
  if (!read.ok()) return Refuse("stop", read.status());
  const std::string state = (*read)["state"];
  if (!JobLives(state)) {
    std::printf("no job is running (state %s)\n", state.c_str());
    return kExitComplete;
  }
  const int pid = (*read)["launcher_pid"];
  if (::kill(pid, now ? SIGQUIT : SIGTERM) != 0)
    return Refuse("stop", ErrnoStatus(errno, fmt::format("signal {}", pid)));
  while (!AwaitProcessEnd(pid, absl::Seconds(60)))
    std::printf("process %d is still stopping\n", pid);
  const absl::StatusOr<Json> after = ReadStatus(run_directory);
  if (after.ok())
    std::printf("%s at step %s\n", (*after)["state"].get<std::string>().c_str(),
                (*after)["step"].dump().c_str());
  return kExitComplete;
}

}  // namespace

void AddRunCommand(CLI::App& app, int* exit_code) {
  auto arguments = std::make_shared<RunArguments>();
  CLI::App* run = app.add_subcommand(
      "run", "One job of a run, on this machine: begins it, or resumes it at any layout");
  run->add_option("config", arguments->config_path, "run.toml")->required();
  run->add_option("--run-dir", arguments->run_directory,
                  "The run's directory (default: runs/NAME)");
  run->add_option("--data-dir", arguments->data_directory,
                  "What mixture paths are relative to (default: run.toml's folder)");
  run->add_option("--nodes", arguments->nodes,
                  "Nodes: groups of ranks (default: the least of job.nodes)")
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

void AddStatusCommand(CLI::App& app, int* exit_code) {
  auto directory = std::make_shared<std::string>();
  auto json = std::make_shared<bool>(false);
  CLI::App* status = app.add_subcommand("status", "What a run is doing now");
  status->add_option("run_dir", *directory, "The run's directory")->required();
  status->add_flag("--json", *json, "As JSON");
  status->callback([directory, json, exit_code] { *exit_code = Status(*directory, *json); });
}

void AddStopCommand(CLI::App& app, int* exit_code) {
  auto directory = std::make_shared<std::string>();
  auto now = std::make_shared<bool>(false);
  CLI::App* stop =
      app.add_subcommand("stop", "Stop the job of a run after its step, with a checkpoint");
  stop->add_option("run_dir", *directory, "The run's directory")->required();
  stop->add_flag("--now", *now,
                 "At once: what was done since the newest checkpoint is done again later");
  stop->callback([directory, now, exit_code] { *exit_code = Stop(*directory, *now); });
}

}  // namespace perdure
