// What a layout is to the control plane: its shape, and where each rank sits; and what a node
// offers to sit on. Values without behaviour: whoever decides fills them, whoever starts reads
// them.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/control/ids.h"

namespace perdure {

struct LayoutShape {
  int32_t tensor = 1;
  int32_t pipeline = 1;
  int32_t data = 0;  // Replicas; 0: none.

  int32_t replica_ranks() const { return tensor * pipeline; }
  int32_t ranks() const { return replica_ranks() * data; }
  // NodeStage p, replica d, t: numbered as by Mesh of runtime/train, a tensor group's ranks in a
  // row.
  int32_t Rank(int32_t p, int32_t d, int32_t t) const { return (p * data + d) * tensor + t; }
  int32_t ReplicaOf(int32_t rank) const { return rank / tensor % data; }

  friend bool operator==(const LayoutShape&, const LayoutShape&) = default;
};

// What a living node lends.
struct NodeOffer {
  NodeId node = 0;
  std::vector<int32_t> slots;  // Local ranks that a rank can sit at now; ascending, distinct.
  uint32_t domain = 0;         // What fails together: a rack, a switch.
  bool drained = false;        // Evidence speaks against it: the last to be used.
  bool avoided = false;        // It was slow: no room, unless too few replicas fit without it.
  bool coordinates = false;    // Its agent does: if one node is a spare, then this one, whose loss
                               // costs no rank then.

  friend bool operator==(const NodeOffer&, const NodeOffer&) = default;
};

// The layout of the generation that runs, or ran last. INVARIANT: seats.size() == shape.ranks(), by
// rank, all distinct.
struct PlacedLayout {
  Generation generation = 0;  // 0: the job has had none.
  LayoutShape shape;
  std::vector<Seat> seats;
  // Of failures, by the nodes that have seats in order; empty: no two differ. Fixed once for a
  // generation, because all must place the same snapshots in the same places.
  std::vector<uint32_t> domains = {};

  friend bool operator==(const PlacedLayout&, const PlacedLayout&) = default;
};

}  // namespace perdure
