// What [exec], a trainer that is not ours, means to agent and control plane.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "launch/node_agent.h"
#include "runtime/agent/command_ranks.h"
#include "runtime/agent/records.h"
#include "runtime/control/control_options.h"
#include "runtime/train/run_config.h"

namespace perdure {

// PERDURE_PROGRESS of a run.
std::string ProgressPath(const std::string& run_directory);

// The newest step that its trainer has said there; nothing: it has not.
std::optional<int64_t> ToldStep(const std::string& run_directory);

// Where a job of that run has ended, as far as it is known.
int64_t StepAtEnd(const RunConfig& config, const std::string& run_directory, const EndRecord& end);

// Of the ranks of that agent's node; its log directory is left to the caller.
// InvalidArgument: the agent's interface is none of this machine.
absl::StatusOr<CommandRanksOptions> CommandOptionsOf(const ExecConfig& exec,
                                                     const NodeAgentOptions& agent,
                                                     const std::string& run_id);

// Nothing of it is saved here. Its ranks cannot ask before each step whether their lease lasts,
// they are killed when it does not: so that a moment's trouble costs nothing the lease is longer.
void SetControlFor(const ExecConfig& exec, ControlOptions& control);

}  // namespace perdure
