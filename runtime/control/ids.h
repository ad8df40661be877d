// The numbers by which the machines of runtime/control know things.
#pragma once

#include <compare>
#include <cstdint>

namespace perdure {

using NodeId =
    uint32_t;  // Of an agent inside its job's allocation, from 0. Names outlive jobs, these do not.
using Generation =
    uint64_t;  // Of a membership; rises with every START of the run log, never used twice. 0: none.
using StepIndex = int64_t;  // Optimizer steps finished since the run began.

// Where a rank lives: the local_rank-th of its node's slots.
struct Seat {
  NodeId node = 0;
  int32_t local_rank = 0;
  friend auto operator<=>(const Seat&, const Seat&) = default;
};

}  // namespace perdure
