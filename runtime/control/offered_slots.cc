#include "runtime/control/offered_slots.h"

#include <algorithm>
#include <functional>

#include "runtime/base/check.h"

namespace perdure {
namespace {

// Whether ranks of one tensor group sit on different nodes.
bool Crosses(const PlacedLayout& layout) {
  for (size_t rank = 1; rank < layout.seats.size(); ++rank)
    if (static_cast<int32_t>(rank) % layout.shape.tensor != 0 &&
        layout.seats[rank].node != layout.seats[rank - 1].node)
      return true;
  return false;
}

int32_t Width(const OfferedSlots::Node& node) { return node.slot_end - node.slot_begin; }

}  // namespace

OfferedSlots::OfferedSlots(std::span<const NodeOffer> offers, const LayoutShape& shape,
                           const PlacedLayout& last) {
  std::vector<const NodeOffer*> ordered;
  std::vector<uint32_t> domains;
  ordered.reserve(offers.size());
  domains.reserve(offers.size());
  size_t slots = 0;
  for (const NodeOffer& offer : offers) {
    ordered.push_back(&offer);
    domains.push_back(offer.domain);
    slots += offer.slots.size();
  }
  std::sort(ordered.begin(), ordered.end(),
            [](const NodeOffer* a, const NodeOffer* b) { return a->node < b->node; });
  std::sort(domains.begin(), domains.end());
  domains.erase(std::unique(domains.begin(), domains.end()), domains.end());
  domains_ = static_cast<int32_t>(domains.size());

  nodes_.reserve(offers.size());
  seats_.reserve(slots);
  int32_t widest = 0;
  for (const NodeOffer* offer : ordered) {
    PERDURE_CHECK(nodes_.empty() || nodes_.back().id != offer->node);
    const auto domain = std::lower_bound(domains.begin(), domains.end(), offer->domain);
    const int32_t begin = static_cast<int32_t>(seats_.size());
    for (const int32_t local_rank : offer->slots) {
      PERDURE_CHECK(seats_.size() == static_cast<size_t>(begin) ||
                    seats_.back().local_rank < local_rank);
      seats_.push_back({.node = offer->node, .local_rank = local_rank});
    }
    nodes_.push_back({.id = offer->node,
                      .domain = static_cast<int32_t>(domain - domains.begin()),
                      .drained = offer->drained,
                      .coordinates = offer->coordinates,
                      .avoided = offer->avoided,
                      .slot_begin = begin,
                      .slot_end = static_cast<int32_t>(seats_.size())});
    widest = std::max(widest, Width(nodes_.back()));
  }
  unit_ = widest >= shape.tensor && !Crosses(last) ? shape.tensor : 1;
  blocks_ = shape.replica_ranks() / unit_;
  for (Node& node : nodes_) node.blocks = Width(node) / unit_;
}

int32_t OfferedSlots::FindNode(NodeId id, int32_t hint) const {
  const auto is = [&](int32_t i) {
    return i >= 0 && i < static_cast<int32_t>(nodes_.size()) && nodes_[i].id == id;
  };
  if (is(hint)) return hint;
  if (is(hint + 1)) return hint + 1;
  const auto found = std::lower_bound(nodes_.begin(), nodes_.end(), id,
                                      [](const Node& node, NodeId want) { return node.id < want; });
  const int32_t index = static_cast<int32_t>(found - nodes_.begin());
  return is(index) ? index : -1;
}

int32_t OfferedSlots::FindSlot(int32_t node, int32_t local_rank) const {
  const int32_t begin = nodes_[node].slot_begin, end = nodes_[node].slot_end;
  // Where no slot is missing below it, a local rank is its own index.
  if (local_rank >= 0 && local_rank < end - begin &&
      seats_[begin + local_rank].local_rank == local_rank)
    return begin + local_rank;
  const Seat seat = {.node = nodes_[node].id, .local_rank = local_rank};
  const auto last = seats_.begin() + end;
  const auto found = std::lower_bound(seats_.begin() + begin, last, seat);
  return found != last && *found == seat ? static_cast<int32_t>(found - seats_.begin()) : -1;
}

int32_t OfferedSlots::Fit() const { return FitBeside(0, true); }

int32_t OfferedSlots::FitBeside(int32_t spares, bool use_drained) const {
  std::vector<int32_t> healthy, drained;  // Blocks of the nodes that hold any.
  int64_t fit = 0;
  for (const Node& node : nodes_) {
    if (node.blocks == 0) continue;
    if (!node.drained || use_drained) fit += node.blocks;
    if (spares > 0) (node.drained ? drained : healthy).push_back(node.blocks);
  }
  const auto keep_back = [](std::vector<int32_t>& widths, size_t count) {
    count = std::min(count, widths.size());
    std::partial_sort(widths.begin(), widths.begin() + count, widths.end(), std::greater<>());
    int64_t blocks = 0;
    for (size_t i = 0; i < count; ++i) blocks += widths[i];
    return blocks;
  };
  const size_t wanted = static_cast<size_t>(std::max(spares, 0));
  if (use_drained) fit -= keep_back(drained, wanted);
  fit -= keep_back(healthy, wanted - std::min(wanted, drained.size()));
  return static_cast<int32_t>(fit / blocks_);
}

}  // namespace perdure
