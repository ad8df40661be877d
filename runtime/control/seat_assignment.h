// Who sits where in the next layout, so that the least state moves. Pure; O(n log n) of ranks and
// nodes.
//
// 1. A rank whose seat is still there keeps it, and its coordinates, wherever the shape allows.
//    Replicas of which no rank is lost are never taken apart while they are needed.
// 2. Fewer replicas than before: those that would move the most ranks are given up, of equals those
//    on drained nodes, then the highest. Kept replicas with a number that is no more there are
//    renumbered into the holes, the highest first. What is left of those given up is free, and
//    repairs others.
// 3. A block (offered_slots.h) that lost ranks stays on its node if that has slots left for it,
//    those of a node that lost the fewest ranks first; else it moves as a whole.
// 4. Blocks on drained nodes move to other nodes as far as these have room.
// 5. What is to be placed goes to nodes in use before idle ones, to as few idle ones as hold it,
//    the coordinator's as the last of these, and to drained ones last; inside that, blocks of a
//    replica go to the domain where most of it sits already, new replicas to the domain that holds
//    the fewest.
//
// So the fewest ranks move that can, with one exception: rule 2 weighs replicas one by one. Where
// several tensor groups share a node, replicas have several stages, and slots of several nodes fail
// at once, giving up another replica may spare a move, because what it leaves repairs a neighbour
// in place. To choose best is a covering problem; in the small layouts that seat_assignment_test
// compares with brute force the rule moves two ranks more at most, and none where nothing is
// given up.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/control/layout.h"
#include "runtime/control/offered_slots.h"

namespace perdure {

struct SeatPlan {
  std::vector<Seat> seats;      // By rank.
  std::vector<Seat> spares;     // All other slots, ascending.
  std::vector<int32_t> source;  // By replica: which one of the last layout it was, -1: new.
  std::vector<int32_t> lost;    // Ranks of the last layout whose seat is not offered, ascending.
  int32_t broken = 0;           // Replicas of the last layout with lost ranks,
  int32_t repaired = 0;         // those of them that are in this one.
  bool took_seats_of_others = false;  // A rank sits where another one of the last layout sat.
};

// `data` replicas, at most offered.Fit(), of the shape that `offered` was made for; `last` as
// there. New replicas leave `spares` nodes idle if they can (OfferedSlots::FitBeside).
SeatPlan AssignSeats(const OfferedSlots& offered, const PlacedLayout& last,
                     const LayoutShape& shape, int32_t spares);

}  // namespace perdure
