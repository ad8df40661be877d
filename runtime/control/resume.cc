#include "runtime/control/resume.h"

#include <algorithm>
#include <tuple>

namespace perdure {
namespace {

struct Share {
  StepIndex step;
  Generation generation;
  int32_t rank;
  bool at_home;  // In the seat that the rank had.
  NodeId node;
};

// Shares of one (step, generation), by rank, those at home first.
using Group = std::pair<const Share*, const Share*>;

bool Whole(const Group& group, size_t ranks) {
  size_t next = 0;
  for (const Share* s = group.first; s != group.second; ++s)
    if (static_cast<size_t>(s->rank) == next) ++next;
  return next == ranks;
}

Resume FromMemory(const Group& group, const LayoutShape& shape) {
  Resume resume{.from_checkpoint = false,
                .generation = group.first->generation,
                .step = group.first->step,
                .shape = shape,
                .elsewhere = {},
                .checkpoint = {}};
  int32_t next = 0;
  for (const Share* s = group.first; s != group.second; ++s) {
    if (s->rank != next) continue;  // Held twice.
    ++next;
    if (!s->at_home) resume.elsewhere.push_back({.rank = s->rank, .node = s->node});
  }
  return resume;
}

}  // namespace

Resume ChooseResume(const std::vector<LogView::Live>& layouts,
                    const std::vector<NodeHoldings>& nodes, StepIndex commit_step,
                    const Gaps& gaps) {
  const auto find = [&](Generation generation) -> const LogView::Live* {
    for (const LogView::Live& live : layouts)
      if (live.layout->generation == generation) return &live;
    return nullptr;
  };
  std::vector<Share> shares;
  for (const NodeHoldings& node : nodes)
    for (const Holding& h : *node.holdings) {
      const LogView::Live* from = find(h.generation);
      if (from == nullptr || h.rank < 0 ||
          static_cast<size_t>(h.rank) >= from->layout->seats.size() ||
          !SameLine(from->gaps, gaps, h.step))
        continue;
      const Seat& seat = from->layout->seats[static_cast<size_t>(h.rank)];
      shares.push_back({.step = h.step,
                        .generation = h.generation,
                        .rank = h.rank,
                        .at_home = seat.node == node.node,
                        .node = node.node});
    }
  const auto key = [](const Share& s) {
    return std::tuple(-s.step, ~s.generation, s.rank, !s.at_home, s.node);
  };
  std::sort(shares.begin(), shares.end(),
            [&](const Share& a, const Share& b) { return key(a) < key(b); });
  for (auto begin = shares.begin(); begin != shares.end();) {
    const auto end = std::find_if(begin, shares.end(), [&](const Share& s) {
      return s.step != begin->step || s.generation != begin->generation;
    });
    if (begin->step <= commit_step) break;
    const Group group(&*begin, &*begin + (end - begin));
    const PlacedLayout& of = *find(begin->generation)->layout;
    if (Whole(group, of.seats.size())) return FromMemory(group, of.shape);
    begin = end;
  }
  return {.from_checkpoint = true,
          .generation = 0,
          .step = std::max(commit_step, StepIndex{0}),
          .shape = {},
          .elsewhere = {},
          .checkpoint = {}};
}

}  // namespace perdure
