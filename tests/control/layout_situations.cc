#include "tests/control/layout_situations.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <map>
#include <set>

#include "tests/prng.h"

namespace perdure {

std::vector<NodeOffer> WholeNodes(int32_t nodes, int32_t slots, int32_t per_domain) {
  std::vector<NodeOffer> offers(nodes);
  for (int32_t n = 0; n < nodes; ++n) {
    offers[n].node = static_cast<NodeId>(n);
    offers[n].domain = static_cast<uint32_t>(n / per_domain);
    for (int32_t s = 0; s < slots; ++s) offers[n].slots.push_back(s);
  }
  return offers;
}

void Remove(std::vector<NodeOffer>& offers, NodeId node) {
  std::erase_if(offers, [&](const NodeOffer& offer) { return offer.node == node; });
}

NodeOffer& Of(std::vector<NodeOffer>& offers, NodeId node) {
  return *std::find_if(offers.begin(), offers.end(),
                       [&](const NodeOffer& offer) { return offer.node == node; });
}

void RemoveSlot(std::vector<NodeOffer>& offers, Seat seat) {
  for (NodeOffer& offer : offers)
    if (offer.node == seat.node) std::erase(offer.slots, seat.local_rank);
}

LayoutRule RuleOf(int32_t tensor, int32_t pipeline) {
  return {.tensor = tensor,
          .pipeline = pipeline,
          .leaves = 1000000,
          .grow_after = absl::Minutes(10),
          .wait_max = absl::Minutes(30)};
}

PlacedLayout Applied(const PlacedLayout& before, const Decision& decision) {
  return {.generation = before.generation + 1, .shape = decision.shape, .seats = decision.seats};
}

Situation Started(const LayoutRule& rule, std::vector<NodeOffer> offers) {
  Situation situation{.offers = std::move(offers), .now = kDay};
  situation.current = Applied({}, DecideLayout(rule, situation));
  situation.unchanged_since = kDay;
  return situation;
}

namespace {

using SlotsByNode = std::map<NodeId, std::set<int32_t>>;

bool Crosses(const LayoutShape& shape, const std::vector<Seat>& seats) {
  for (int32_t rank = 0; rank < shape.ranks(); ++rank)
    if (seats[rank].node != seats[rank - rank % shape.tensor].node) return true;
  return false;
}

bool AnyHolds(const std::vector<NodeOffer>& offers, int32_t ranks) {
  return std::any_of(offers.begin(), offers.end(), [&](const NodeOffer& offer) {
    return offer.slots.size() >= static_cast<size_t>(ranks);
  });
}

bool IsOffered(const std::vector<NodeOffer>& offers, const Seat& seat) {
  return std::any_of(offers.begin(), offers.end(), [&](const NodeOffer& offer) {
    return offer.node == seat.node &&
           std::count(offer.slots.begin(), offer.slots.end(), seat.local_rank) == 1;
  });
}

// Ranks that must stay together on a node.
int32_t TogetherIn(int32_t tensor, const Situation& s) {
  return AnyHolds(s.offers, tensor) && !Crosses(s.current.shape, s.current.seats) ? tensor : 1;
}

// Replicas that `offers` hold, cut out one group after the other.
int32_t CountReplicas(std::vector<NodeOffer> offers, int32_t together, int32_t replica_ranks) {
  int32_t ranks = 0;
  for (NodeOffer& offer : offers)
    while (offer.slots.size() >= static_cast<size_t>(together)) {
      offer.slots.resize(offer.slots.size() - together);
      ranks += together;
    }
  return ranks / replica_ranks;
}

// `offers` without the `spares` best ones: drained, then widest (in groups, of which it has any).
std::vector<NodeOffer> WithoutSpares(std::vector<NodeOffer> offers, int32_t spares,
                                     int32_t together) {
  for (; spares > 0; --spares) {
    const auto worth = [&](const NodeOffer& offer) {
      const int64_t groups = static_cast<int64_t>(offer.slots.size()) / together;
      return groups == 0 ? 0 : groups + (offer.drained ? 1000000 : 0);
    };
    const auto best = std::max_element(
        offers.begin(), offers.end(),
        [&](const NodeOffer& a, const NodeOffer& b) { return worth(a) < worth(b); });
    if (best == offers.end() || worth(*best) == 0) break;
    offers.erase(best);
  }
  return offers;
}

std::string BadSeats(const Situation& s, const Decision& d, int32_t together) {
  std::vector<Seat> all = d.seats, offered;
  all.insert(all.end(), d.spares.begin(), d.spares.end());
  std::sort(all.begin(), all.end());
  for (const NodeOffer& offer : s.offers)
    for (const int32_t slot : offer.slots) offered.push_back({offer.node, slot});
  std::sort(offered.begin(), offered.end());
  if (d.shape.data <= 0 || static_cast<int32_t>(d.seats.size()) != d.shape.ranks())
    return fmt::format("{} seats of data {}", d.seats.size(), d.shape.data);
  if (all != offered) return "seats and spares are not the slots offered, each once";
  if (!std::is_sorted(d.spares.begin(), d.spares.end())) return "spares out of order";
  if (together > 1 && Crosses(d.shape, d.seats)) return "a tensor group crosses nodes";
  return "";
}

// A start leaves the spares wanted idle, but where it then had too few replicas.
std::string BadSpares(const LayoutRule& rule, const Situation& s, const Decision& d,
                      int32_t together) {
  if (d.action != LayoutAction::kStart || d.shape.data <= rule.data_min) return "";
  int32_t idle = 0, nodes = 0;
  for (const NodeOffer& offer : s.offers) {
    if (offer.slots.size() < static_cast<size_t>(together)) continue;
    ++nodes;
    idle += std::none_of(d.seats.begin(), d.seats.end(),
                         [&](const Seat& seat) { return seat.node == offer.node; });
  }
  return idle < std::min(rule.spares, nodes) ? fmt::format("{} spare nodes", idle) : "";
}

// Ranks on drained nodes while others have room.
std::string BadDrained(const Situation& s, const Decision& d, int32_t together) {
  SlotsByNode free, drained;
  for (const NodeOffer& offer : s.offers)
    (offer.drained ? drained : free)[offer.node].insert(offer.slots.begin(), offer.slots.end());
  int32_t on_drained = 0, room = 0;
  for (const Seat& seat : d.seats) {
    on_drained += drained.contains(seat.node);
    if (free.contains(seat.node)) free[seat.node].erase(seat.local_rank);
  }
  for (const auto& [node, slots] : free) room += static_cast<int32_t>(slots.size()) / together;
  return on_drained > 0 && room > 0
             ? fmt::format("{} ranks on drained nodes, room for {} groups", on_drained, room)
             : "";
}

// Replicas that go on: none twice, the whole ones first, as few renumbered as possible, and whole
// ones on nodes that are not drained stay where they are.
std::string BadSources(const Situation& s, const Decision& d) {
  const PlacedLayout& was = s.current;
  std::set<int32_t> kept;
  int32_t is_new = 0, renumbered = 0, must = 0;
  if (static_cast<int32_t>(d.source.size()) != d.shape.data) return "sources of other data";
  for (int32_t i = 0; i < d.shape.data; ++i) {
    is_new += d.source[i] < 0;
    if (d.source[i] < 0) continue;
    if (d.source[i] >= was.shape.data || !kept.insert(d.source[i]).second) return "source twice";
    renumbered += d.source[i] != i;
    must += d.source[i] >= d.shape.data;
  }
  if (is_new != std::max(0, d.shape.data - was.shape.data)) return "a replica is new for nothing";
  if (renumbered != must) return "renumbered without need";
  bool gave_up_whole = false, kept_broken = false;
  for (int32_t old = 0; old < was.shape.data; ++old) {
    bool whole = true, drained = false;
    for (int32_t rank = 0; rank < was.shape.ranks(); ++rank) {
      if (was.shape.ReplicaOf(rank) != old) continue;
      whole &= IsOffered(s.offers, was.seats[rank]);
      for (const NodeOffer& offer : s.offers)
        drained |= offer.node == was.seats[rank].node && offer.drained;
    }
    gave_up_whole |= whole && !kept.contains(old);
    kept_broken |= !whole && kept.contains(old);
    const auto at = std::find(d.source.begin(), d.source.end(), old);
    if (!whole || drained || at == d.source.end()) continue;
    const int32_t now = static_cast<int32_t>(at - d.source.begin());
    for (int32_t p = 0; p < d.shape.pipeline; ++p)
      for (int32_t t = 0; t < d.shape.tensor; ++t)
        if (d.seats[d.shape.Rank(p, now, t)] != was.seats[was.shape.Rank(p, old, t)])
          return fmt::format("whole replica {} moved", old);
  }
  return gave_up_whole && kept_broken ? "a whole replica given up for a broken one" : "";
}

std::string BadCount(const LayoutRule& rule, const Situation& s, const Decision& d,
                     int32_t together) {
  const int32_t ranks = rule.tensor * rule.pipeline, had = s.current.shape.data;
  const int32_t most = std::min(rule.leaves, rule.data > 0 ? rule.data : rule.leaves);
  const int32_t fit = std::min(most, CountReplicas(s.offers, together, ranks));
  const int32_t least = std::min(most, rule.shrink || had == 0 ? rule.data_min : had);
  std::vector<NodeOffer> grown = WithoutSpares(s.offers, rule.spares, together);
  const int32_t beside = std::min(most, CountReplicas(grown, together, ranks));
  std::erase_if(grown, [](const NodeOffer& offer) { return offer.drained; });
  const int32_t healthy = std::min(most, CountReplicas(grown, together, ranks));
  const bool stable = s.now >= s.unchanged_since + rule.grow_after;
  using enum LayoutAction;
  int32_t want = std::min(had, fit);
  if (had == 0) want = std::max(beside, std::min(least, fit));
  if (had > 0 && healthy > had && stable) want = healthy;
  const bool none = d.action == kWait || d.action == kEnd;
  if (none != (fit < least || (had == 0 && s.nodes_coming && d.action == kWait)))
    return fmt::format("{} although {} replicas fit and {} are needed", Name(d.action), fit, least);
  if (none) return "";
  if (d.shape.data != want) return fmt::format("data {}, not {}", d.shape.data, want);
  if ((d.look_again < absl::InfiniteFuture()) != (had > 0 && healthy > want))
    return "looks again at the wrong time";
  const bool fits = had == 0     ? d.action == kStart
                    : want > had ? d.action == kGrow
                    : want < had ? d.action == kShrink || d.action == kRebuild
                    : d.seats == s.current.seats
                        ? d.action == kKeep
                        : d.action == kPromoteSpare || d.action == kRebuild;
  return fits ? "" : fmt::format("{} from data {} to {}", Name(d.action), had, want);
}

// Whose seats did they take: of nobody for a spare, of others for a rebuilt mesh.
std::string BadAction(const Situation& s, const Decision& d) {
  if (d.action != LayoutAction::kPromoteSpare && d.action != LayoutAction::kRebuild &&
      d.action != LayoutAction::kShrink)
    return "";
  const PlacedLayout& was = s.current;
  bool moved = false, took = false;
  for (int32_t i = 0; i < d.shape.data; ++i)
    for (int32_t p = 0; p < d.shape.pipeline; ++p)
      for (int32_t t = 0; t < d.shape.tensor; ++t) {
        const Seat& seat = d.seats[d.shape.Rank(p, i, t)];
        if (was.seats[was.shape.Rank(p, d.source[i], t)] == seat) continue;
        moved = true;
        took |= std::count(was.seats.begin(), was.seats.end(), seat) > 0;
      }
  if (d.action == LayoutAction::kPromoteSpare && took) return "a spare that was in use";
  if (d.action == LayoutAction::kRebuild && d.shape == was.shape && !took)
    return "rebuilt from spares only";
  if (d.action == LayoutAction::kRebuild && !moved) return "rebuilt, and nobody moved";
  return "";
}

}  // namespace

std::string BrokenPromise(const LayoutRule& rule, const Situation& s, const Decision& d) {
  if (d.words.empty() || d.words.size() > kWordsMax) return "words: " + d.words;
  if (d.words.ends_with("...")) return "words were cut: " + d.words;
  if (d != DecideLayout(rule, s)) return "another answer the second time";
  Situation other = s;
  Prng draw(s.offers.size());
  for (size_t i = other.offers.size(); i > 1; --i)
    std::swap(other.offers[i - 1], other.offers[draw.Below(static_cast<int32_t>(i))]);
  if (d != DecideLayout(rule, other)) return "another answer for another order of offers";
  const int32_t together = TogetherIn(rule.tensor, s);
  if (std::string bad = BadCount(rule, s, d, together); !bad.empty()) return bad;
  if ((d.exit_code != 0) != (d.action == LayoutAction::kEnd)) return "exit code";
  if (d.action == LayoutAction::kWait || d.action == LayoutAction::kEnd) {
    if (!d.seats.empty() || !d.spares.empty() || d.shape.data != 0) return "seats of no layout";
    if (d.action == LayoutAction::kWait && d.look_again <= s.now) return "waits for the past";
    return "";
  }
  for (const std::string& bad : {BadSeats(s, d, together), BadSpares(rule, s, d, together),
                                 BadDrained(s, d, together), BadSources(s, d), BadAction(s, d)})
    if (!bad.empty()) return bad;
  other.current = Applied(s.current, d);
  const Decision next = DecideLayout(rule, other);
  if (next.action != LayoutAction::kKeep || next.seats != d.seats)
    return "asked again: " + next.words;
  return "";
}

int32_t Moves(const PlacedLayout& current, const Decision& d) {
  int32_t moves = 0;
  for (int32_t i = 0; i < d.shape.data; ++i)
    for (int32_t p = 0; p < d.shape.pipeline; ++p)
      for (int32_t t = 0; t < d.shape.tensor; ++t)
        moves +=
            d.seats[d.shape.Rank(p, i, t)] != current.seats[current.shape.Rank(p, d.source[i], t)];
  return moves;
}

namespace {

struct Group {
  int32_t replica = 0, alive = 0, ranks = 0;
};

// Groups of the current layout by node.
std::map<NodeId, std::vector<Group>> GroupsByNode(const Situation& s, int32_t together) {
  std::map<NodeId, std::vector<Group>> groups;
  const LayoutShape& shape = s.current.shape;
  for (int32_t first = 0; first < shape.ranks(); first += together) {
    Group group{.replica = shape.ReplicaOf(first), .ranks = together};
    for (int32_t rank = first; rank < first + together; ++rank)
      group.alive += IsOffered(s.offers, s.current.seats[rank]);
    groups[s.current.seats[first].node].push_back(group);
  }
  return groups;
}

}  // namespace

int32_t FewestMoves(const Situation& s, int32_t data) {
  const int32_t had = s.current.shape.data, together = TogetherIn(s.current.shape.tensor, s);
  const auto groups = GroupsByNode(s, together);
  uint32_t whole = (1U << had) - 1;
  for (const auto& [node, here] : groups)
    for (const Group& group : here)
      if (group.alive < group.ranks) whole &= ~(1U << group.replica);
  int32_t fewest = std::numeric_limits<int32_t>::max();
  for (uint32_t kept = 0; kept < 1U << had; ++kept) {
    if (std::popcount(kept) != data) continue;
    if ((whole & ~kept) != 0 && (kept & ~whole) != 0) continue;
    int32_t moves = data * s.current.shape.replica_ranks();
    for (const auto& [node, here] : groups) {
      size_t slots = 0;
      for (const NodeOffer& offer : s.offers)
        if (offer.node == node) slots = offer.slots.size();
      int32_t saved = 0;
      for (uint32_t stay = 0; stay < 1U << here.size(); ++stay) {
        int32_t alive = 0;
        bool can = static_cast<size_t>(std::popcount(stay)) * together <= slots;
        for (size_t i = 0; i < here.size(); ++i) {
          const bool stays = (stay >> i & 1U) != 0, goes_on = (kept >> here[i].replica & 1U) != 0;
          can &= goes_on || !stays;
          // Replicas that lost nothing are left alone.
          can &= stays || !goes_on || (whole >> here[i].replica & 1U) == 0;
          if (stays) alive += here[i].alive;
        }
        if (can) saved = std::max(saved, alive);
      }
      moves -= saved;
    }
    fewest = std::min(fewest, moves);
  }
  return fewest;
}

}  // namespace perdure
