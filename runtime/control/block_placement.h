// Finds nodes for blocks that have none: seat_assignment.h, rule 5. Pure; O(n log n).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/control/offered_slots.h"

namespace perdure {

// `at`: the node (index in `offered`) of each replica's blocks, -1: to be found; `room`: blocks
// that each node can still take. Both are brought up to date. `source`: by replica, -1: a new one.
// REQUIRES: there is room for all.
void PlaceBlocks(const OfferedSlots& offered, std::span<const int32_t> source, int32_t spares,
                 std::vector<int32_t>& room, std::vector<int32_t>& at);

}  // namespace perdure
