// Which of the implementations of Collectives a group of ranks uses.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/ops.h"
#include "runtime/comm/collectives.h"

namespace perdure {

// Among `members` of `transport`, over the memory that `ops` computes in; `channel` as for Group.
// Pointers outlive the result.
std::unique_ptr<Collectives> MakeCollectives(Transport* transport, std::vector<int> members,
                                             uint32_t channel, Ops* ops);

}  // namespace perdure
