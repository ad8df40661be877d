// What must hold of the peers of snapshots, counted with nothing of snapshot_placement.cc.
#pragma once

#include <span>
#include <string>

#include "runtime/control/layout.h"

namespace perdure {

// "" or the first promise of snapshot_placement.h that is broken for these seats. O(ranks * nodes).
std::string BrokenSnapshotPromise(std::span<const Seat> seats, std::span<const NodeOffer> offers);

}  // namespace perdure
