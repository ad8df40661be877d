// The matmul library's instruction set as part of what fixes a run's bits.
#pragma once

#include "absl/status/status.h"
#include "runtime/train/run_config.h"

namespace perdure {

// Replaces numerics.isa = "auto": by what the run has frozen, or by this machine's where it begins
// (`frozen` null). FailedPrecondition: this machine's is another.
absl::Status ResolveIsa(RunConfig& config, const RunConfig* frozen);

}  // namespace perdure
