// Which rank keeps the snapshot of which, so that what fails together does not lose both. Pure;
// O(n log n) of ranks.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/control/layout.h"

namespace perdure {

// By rank: the rank that keeps its snapshot, always on another node.
//
// Ranks are put in a row, domain by domain and node by node, and each takes the one k places
// further on, round and round. So every rank keeps exactly one, and
// with k at least the largest node and the largest domain both are left behind. Where one domain
// has more than half of the ranks, as many as can go to another one do, and the others to another
// node. Where one node has more than half of them, its ranks share those of the other nodes: a rank
// keeps at most the average, rounded up, because memory is what limits it.
//
// k is rounded up to a power of two where there is room, so a node that comes or goes leaves the
// peers of all others but its neighbours (k places) as they were.
//
// FailedPrecondition where all ranks are on one node: there is no peer, a checkpoint must do.
// REQUIRES: seats distinct; `offers` has every node that is sat on.
absl::StatusOr<std::vector<int32_t>> PlaceSnapshots(std::span<const Seat> seats,
                                                    std::span<const NodeOffer> offers);

}  // namespace perdure
