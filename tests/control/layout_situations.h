// Situations for the tests of the layout planner, and what must hold of every answer to them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/control/layout_planner.h"

namespace perdure {

inline const absl::Time kDay = absl::UnixEpoch() + absl::Hours(24);

// Nodes 0, 1, ... with all their slots; domain = node / per_domain.
std::vector<NodeOffer> WholeNodes(int32_t nodes, int32_t slots, int32_t per_domain = 1000);
void Remove(std::vector<NodeOffer>& offers, NodeId node);
void RemoveSlot(std::vector<NodeOffer>& offers, Seat seat);
NodeOffer& Of(std::vector<NodeOffer>& offers, NodeId node);

LayoutRule RuleOf(int32_t tensor, int32_t pipeline);

// The decision's layout as the next current one. REQUIRES: it has one.
PlacedLayout Applied(const PlacedLayout& before, const Decision& decision);
// Starts on `offers`, which stay the situation's.
Situation Started(const LayoutRule& rule, std::vector<NodeOffer> offers);

// "" or the first promise of layout_planner.h and seat_assignment.h that `decision` breaks, counted
// with nothing of theirs. Asks the planner again for what must give the same.
std::string BrokenPromise(const LayoutRule& rule, const Situation& situation,
                          const Decision& decision);

// Ranks of kept replicas whose seat changes; and the fewest possible for as many replicas, among
// all choices of what to give up and which tensor groups stay on their nodes, with replicas that
// lost nothing left alone. For small cases. REQUIRES: no new replica; none drained.
int32_t Moves(const PlacedLayout& current, const Decision& decision);
int32_t FewestMoves(const Situation& situation, int32_t data);

}  // namespace perdure
