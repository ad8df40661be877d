// What a decision of the layout planner and a placement of snapshots cost, from 8 nodes to 100,000
// ranks: prints a table of microseconds (the fastest of several batches, the machine being shared).
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <string>
#include <vector>

#include "runtime/control/layout_planner.h"
#include "runtime/control/snapshot_placement.h"

namespace perdure {
namespace {

std::vector<NodeOffer> WholeNodes(int32_t nodes, int32_t slots) {
  std::vector<NodeOffer> offers(nodes);
  for (int32_t n = 0; n < nodes; ++n) {
    offers[n].node = static_cast<NodeId>(n);
    offers[n].domain = static_cast<uint32_t>(n / 16);
    for (int32_t s = 0; s < slots; ++s) offers[n].slots.push_back(s);
  }
  return offers;
}

// Of one call.
template <typename Call>
double Microseconds(const Call& call) {
  using Clock = std::chrono::steady_clock;
  double best = 1e30;
  int calls = 1;
  for (int batch = 0; batch < 12; ++batch) {
    const Clock::time_point begin = Clock::now();
    for (int i = 0; i < calls; ++i) call();
    const double spent = std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
    best = std::min(best, spent / calls);
    if (spent < 2e4) calls *= 2;
  }
  return best;
}

void Measure(int32_t nodes, int32_t slots, int32_t tensor, int32_t pipeline) {
  const LayoutRule rule{.tensor = tensor,
                        .pipeline = pipeline,
                        .leaves = 1 << 20,
                        .spares = std::max(1, nodes / 100),
                        .grow_after = absl::Minutes(10),
                        .wait_max = absl::Minutes(30)};
  Situation start{.offers = WholeNodes(nodes, slots), .now = absl::UnixEpoch()};
  const Decision first = DecideLayout(rule, start);
  Situation keep = start;
  keep.current = {.generation = 1, .shape = first.shape, .seats = first.seats};
  keep.unchanged_since = keep.now;
  Situation one_lost = keep;
  one_lost.offers.erase(one_lost.offers.begin() + nodes / 2);
  Situation half_lost = keep;
  std::erase_if(half_lost.offers, [](const NodeOffer& offer) { return offer.node % 2 == 1; });
  Situation slots_lost = keep;
  for (NodeOffer& offer : slots_lost.offers)
    if (offer.node % 4 == 1) offer.slots.pop_back();
  const auto decide = [&](const Situation& situation) {
    return Microseconds([&] {
      if (DecideLayout(rule, situation).words.empty()) std::abort();
    });
  };
  const double snapshots = Microseconds([&] {
    if (!PlaceSnapshots(keep.current.seats, keep.offers).ok()) std::abort();
  });
  fmt::print(
      "{:>6} x {:<2} {:>3} x {:<3} {:>7} {:>10.1f} {:>10.1f} {:>10.1f} {:>10.1f} {:>10.1f} "
      "{:>10.1f}\n",
      nodes, slots, tensor, pipeline, first.shape.ranks(), decide(start), decide(keep),
      decide(one_lost), decide(half_lost), decide(slots_lost), snapshots);
}

}  // namespace
}  // namespace perdure

int main() {
  fmt::print(
      "nodes x slots, T x P, ranks; us: start, keep, 1 node lost, half lost, slots lost, "
      "snapshots\n");
  for (const auto& [tensor, pipeline] : {std::pair(1, 1), std::pair(4, 2), std::pair(8, 4)}) {
    perdure::Measure(4, 8, tensor, std::min(pipeline, 3));
    perdure::Measure(8, 8, tensor, pipeline);
    perdure::Measure(32, 8, tensor, pipeline);
    perdure::Measure(12500, 8, tensor, pipeline);
  }
  return 0;
}
