// The `perdure` command. Flags, files and the environment are read in this folder only; main builds
// everything and passes it down.
#include <signal.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "launch/agent_command.h"
#include "launch/ckpt_command.h"
#include "launch/config.h"
#include "launch/config_fields.h"
#include "launch/data_command.h"
#include "launch/doctor_command.h"
#include "launch/drill_command.h"
#include "launch/exit_codes.h"
#include "launch/node_command.h"
#include "launch/nodes_command.h"
#include "launch/plan_command.h"
#include "launch/run_command.h"
#include "launch/status_command.h"
#include "launch/stop_command.h"
#include "launch/submit_command.h"
#include "launch/version.h"
#include "runtime/agent/rank_main.h"

namespace {

// UCX and PSM take over signals when they are loaded: they print traces, freeze, write files where
// one stands. A crash is our agent's to report, and a stop is ours to answer.
void RestoreSignals() {
  for (int signal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGINT, SIGTERM})
    ::signal(signal, SIG_DFL);
}

// A batch system sends its notices, and a terminal its keys, to every process of a job: they are
// for a rank's agent to answer, which ends its ranks by other means.
void IgnoreNotices() {
  for (int signal : {SIGHUP, SIGINT, SIGTERM, SIGUSR1}) ::signal(signal, SIG_IGN);
}

// What stands behind --exec is a command with options of its own: one value for the parser.
std::vector<std::string> TakeExec(int argc, char** argv) {
  std::vector<std::string> words(argv, argv + argc);
  const auto exec = std::find(words.begin(), words.end(), "--exec");
  if (exec == words.end() || exec + 1 == words.end()) return words;
  const std::string command = perdure::PrintCommand({exec + 1, words.end()});
  words.erase(exec, words.end());
  words.insert(words.end(), {"--exec", command});
  return words;
}

}  // namespace

int main(int argc, char** argv) {
  RestoreSignals();
  // A rank is started by its agent alone; it is no command for people.
  if (argc == 2 && std::strcmp(argv[1], "rank") == 0) {
    IgnoreNotices();
    return perdure::RunRankMain(
        perdure::FrameSocket(perdure::kRankSocketFd), perdure::kRankPageFd,
        {.parse_config =
             [](const std::string& toml) { return perdure::ParseConfig(toml, "run.toml", {}); },
         .devices = {},
         .hub = nullptr});
  }

  CLI::App app{
      "Perdure: one training run, one loss curve, bit for bit the same whatever jobs, failures and "
      "GPU counts "
      "it went through"};
  app.require_subcommand(1);
  app.set_version_flag("--version", perdure::VersionText,
                       "The version, and the backends and transports of this build");
  int exit_code = 0;
  perdure::AddRunCommand(app, &exit_code);
  perdure::AddSubmitCommand(app, &exit_code);
  perdure::AddJobCommand(app, &exit_code);
  perdure::AddNodeCommand(app, &exit_code);
  perdure::AddAgentCommand(app, &exit_code);
  perdure::AddStatusCommand(app, &exit_code);
  perdure::AddStopCommand(app, &exit_code);
  perdure::AddPauseCommand(app, &exit_code);
  perdure::AddResumeCommand(app, &exit_code);
  perdure::AddNodesCommand(app, &exit_code);
  perdure::AddDrillCommand(app, &exit_code);
  perdure::AddPlanCommand(app, &exit_code, perdure::RunCommand);
  perdure::AddDoctorCommand(app, &exit_code);
  perdure::AddDataCommand(app, &exit_code);
  perdure::AddCkptCommand(app, &exit_code);
  try {
    std::vector<std::string> words = TakeExec(argc, argv);
    std::reverse(words.begin(), words.end());
    words.pop_back();  // CLI11 wants them backwards, without the program.
    app.parse(words);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : perdure::kExitUsage;
  }
  return exit_code;
}
