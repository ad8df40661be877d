// Collectives over device memory by NCCL, GPU to GPU. The only door to NCCL: nccl.h and the CUDA
// runtime stay behind it, and no_nccl.cc stands in for it where they were not found.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "runtime/comm/collectives.h"

namespace perdure {

bool NcclIsBuilt();

// Which GPU computes for `ops`: equal for two ranks if and only if they share one. Empty in a build
// without NCCL, or if the device does not say.
std::string GpuIdentity(Ops* ops);

// Members and channel as for Group; `ops` is of the CUDA backend and outlives the group. Every
// member calls this at the same point.
absl::StatusOr<std::unique_ptr<Collectives>> NewNcclGroup(Transport* transport,
                                                          std::vector<int> members,
                                                          uint32_t channel, Ops* ops,
                                                          StartOrder start_order);

}  // namespace perdure
