// The slots of all nodes that are offered, in one canonical order, cut into blocks; how many whole
// replicas they hold. Immutable; made anew for every decision, O(n log n) of nodes and O(n) of
// slots.
//
// A block is what must not be torn apart: a tensor group, because its ranks talk in every layer.
// Where no node has room for a whole group, or the running layout has groups that cross nodes, a
// block is a single rank: such a run goes on crossing nodes, because one wider node that comes back
// is no reason to move everybody.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/control/layout.h"

namespace perdure {

class OfferedSlots {
 public:
  struct Node {
    NodeId id = 0;
    int32_t domain = 0;  // Index among the domains offered, by their numbers.
    bool drained = false, coordinates = false;
    bool avoided = false;  // Says nothing here: `drained` has it too where it counts.
    int32_t slot_begin = 0, slot_end = 0;
    int32_t blocks = 0;  // That fit.
  };

  // REQUIRES: no node twice; slots ascending. `last` may be empty, else has `shape`'s T and P;
  // `shape.data` says nothing.
  OfferedSlots(std::span<const NodeOffer> offers, const LayoutShape& shape,
               const PlacedLayout& last);

  const std::vector<Node>& nodes() const { return nodes_; }  // By id.
  const std::vector<Seat>& seats() const { return seats_; }  // By slot, ascending.
  int32_t slots() const { return static_cast<int32_t>(seats_.size()); }
  int32_t domains() const { return domains_; }
  int32_t unit() const { return unit_; }      // Ranks of a block: T or 1.
  int32_t blocks() const { return blocks_; }  // Blocks of a replica.

  // Index of the node, -1: not offered. `hint` is an index that may be right.
  int32_t FindNode(NodeId id, int32_t hint) const;
  // The slot of a seat on node `node`, -1: not offered.
  int32_t FindSlot(int32_t node, int32_t local_rank) const;

  // Whole replicas that fit, drained nodes included.
  int32_t Fit() const;
  // Those that fit while `spares` nodes stay idle: drained ones first, then the widest, because a
  // spare should be able to stand in for any node. Further drained nodes count if `use_drained`.
  int32_t FitBeside(int32_t spares, bool use_drained) const;

 private:
  std::vector<Node> nodes_;
  std::vector<Seat> seats_;
  int32_t domains_ = 0, unit_ = 1, blocks_ = 1;
};

}  // namespace perdure
