// The backend and its instruction set as part of what fixes a run's bits.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runtime/train/run_config.h"

namespace perdure {

// Replaces numerics.backend = "auto" and numerics.isa = "auto": by what the run has frozen, or
// where it begins (`frozen` null) by what this machine has, a GPU before the CPU.
// FailedPrecondition: this machine has no such backend, or of another kind.
absl::Status ResolveBackend(RunConfig& config, const RunConfig* frozen);

// What libraries of the ranks read when they are loaded: "NAME=value", where the environment does
// not say it already.
std::vector<std::string> RankEnvironment(const RunConfig& config);

}  // namespace perdure
