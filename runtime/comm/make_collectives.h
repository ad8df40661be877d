// Which of the implementations of Collectives a group of ranks uses.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "runtime/comm/collectives.h"

namespace perdure {

// Among `members` of `transport`, over the memory that `ops` computes in; `channel` as for Group.
// Pointers outlive the result. Every member makes the same call at the same point; `start_order` is
// a promise about Start.
//
// `device_transport` says how memory that is not the host's gets from rank to rank: "nccl",
// "staged" (through the host), or "auto": nccl where this build has it and every member has a GPU
// to itself, else staged. With "nccl" members may all share one GPU, each a process: for tests.
// All members come to the same answer. InvalidArgument for other words;
// Unimplemented for "nccl" in a build without it.
absl::StatusOr<std::unique_ptr<Collectives>> MakeCollectives(
    Transport* transport, std::vector<int> members, uint32_t channel, Ops* ops,
    const std::string& device_transport = "auto", StartOrder start_order = StartOrder::kSame);

}  // namespace perdure
