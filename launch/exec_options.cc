#include "launch/exec_options.h"

#include <signal.h>

#include <algorithm>
#include <cstdlib>
#include <thread>
#include <utility>

#include "runtime/agent/job_start.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/wire/wire_sockets.h"

namespace perdure {
namespace {

int SignalOf(const std::string& said) {
  constexpr std::pair<const char*, int> kKnown[] = {
      {"TERM", SIGTERM}, {"USR1", SIGUSR1}, {"USR2", SIGUSR2}, {"INT", SIGINT}, {"HUP", SIGHUP}};
  for (const auto& [name, signal] : kKnown)
    if (said == name) return signal;
  PERDURE_CHECK(false);  // Whoever has read the configuration has checked it.
  return 0;
}

}  // namespace

std::string ProgressPath(const std::string& run_directory) {
  return run_directory + "/metrics/progress.jsonl";
}

std::optional<int64_t> ToldStep(const std::string& run_directory) {
  const std::optional<nlohmann::json> line = ProgressFile::Last(ProgressPath(run_directory));
  return line.has_value() ? std::optional((*line)["step"].get<int64_t>()) : std::nullopt;
}

int64_t StepAtEnd(const RunConfig& config, const std::string& run_directory, const EndRecord& end) {
  return config.foreign() ? ToldStep(run_directory).value_or(0) : static_cast<int64_t>(end.step);
}

absl::StatusOr<CommandRanksOptions> CommandOptionsOf(const ExecConfig& exec,
                                                     const NodeAgentOptions& agent,
                                                     const std::string& run_id) {
  ASSIGN_OR_RETURN(const WireAddress address, InterfaceAddress(agent.interface));
  CommandRanksOptions options{
      .node = agent.node,
      .command = exec.command,
      .directory = exec.directory,
      .signal = SignalOf(exec.signal),
      .environment = {fmt::format("TORCHELASTIC_RUN_ID={}", run_id),
                      fmt::format("PERDURE_RUN_DIR={}", agent.run_directory),
                      fmt::format("PERDURE_JOB={}", JobOf(agent.job))},
      .log_directory = {},
      .address = HostText(address),
      .progress_path = ProgressPath(agent.run_directory),
      .must_speak = exec.stall > absl::ZeroDuration()};
  if (::getenv("OMP_NUM_THREADS") == nullptr) {
    const int64_t cores =
        agent.cores > 0 ? agent.cores : static_cast<int64_t>(std::thread::hardware_concurrency());
    options.environment.push_back(
        fmt::format("OMP_NUM_THREADS={}",
                    std::max<int64_t>(1, cores / std::max<int64_t>(1, agent.ranks_per_node))));
  }
  if (agent.ends_at < absl::InfiniteFuture())
    options.environment.push_back(
        fmt::format("PERDURE_ENDS_AT={}", absl::ToUnixSeconds(agent.ends_at)));
  return options;
}

void SetControlFor(const ExecConfig& exec, ControlOptions& control) {
  constexpr absl::Duration kLease = absl::Seconds(10);
  constexpr absl::Duration kAtMost = absl::Hours(24);  // As long as it may be.
  control.keeps_state = false;
  control.lease_agent = control.lease_support = kLease;
  // Half of it is for leaving at a boundary.
  control.stop_max = 2 * exec.leave;
  control.stall_min = control.first_step_max =
      exec.stall > absl::ZeroDuration() ? exec.stall : kAtMost;
}

}  // namespace perdure
