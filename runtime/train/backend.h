// The Ops of a rank, as its configuration wants them.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "runtime/train/run_config.h"

namespace perdure {

// numerics.backend of a rank that is the `local_rank`-th of its node: GPUs are dealt out in turn.
// REQUIRES: a backend that is resolved. FailedPrecondition: this node's GPU is not the one that
// numerics.isa names. Unavailable, Unimplemented: there is none.
absl::StatusOr<std::unique_ptr<Ops>> NewOps(const RunConfig& config, int local_rank);

}  // namespace perdure
