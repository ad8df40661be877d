#include "runtime/control/snapshot_placement.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "tests/control/layout_situations.h"
#include "tests/control/snapshot_promise.h"
#include "tests/prng.h"

namespace perdure {

std::string BrokenSnapshotPromise(std::span<const Seat> seats, std::span<const NodeOffer> offers) {
  std::map<NodeId, uint32_t> domain_of;
  for (const NodeOffer& offer : offers) domain_of[offer.node] = offer.domain;
  std::map<NodeId, size_t> nodes;
  std::map<uint32_t, size_t> domains;
  for (const Seat& seat : seats) {
    ++nodes[seat.node];
    ++domains[domain_of[seat.node]];
  }
  const absl::StatusOr<std::vector<int32_t>> peers = PlaceSnapshots(seats, offers);
  if (peers.ok() == (nodes.size() < 2)) return "peers of one node, or none of two";
  if (!peers.ok()) return "";
  if (*peers != *PlaceSnapshots(seats, offers)) return "another answer the second time";
  const auto largest = [](const auto& sizes) {
    size_t most = 0;
    for (const auto& [key, size] : sizes) most = std::max(most, size);
    return most;
  };
  const size_t ranks = seats.size(), node = largest(nodes), domain = largest(domains);
  std::vector<size_t> kept(ranks, 0);
  size_t same_domain = 0;
  for (size_t rank = 0; rank < ranks; ++rank) {
    const int32_t peer = (*peers)[rank];
    if (peer < 0 || peer >= static_cast<int32_t>(ranks)) return "no rank";
    if (seats[peer].node == seats[rank].node) return fmt::format("rank {}: on its own node", rank);
    same_domain += domain_of[seats[peer].node] == domain_of[seats[rank].node];
    ++kept[peer];
  }
  const size_t others = ranks - node;
  const size_t bound = std::max<size_t>(1, (node + others - 1) / others);
  if (*std::max_element(kept.begin(), kept.end()) > bound) return "one rank keeps too many";
  // Nobody can do better: only so many ranks are outside the largest domain.
  const size_t unavoidable = domain > ranks - domain ? domain - (ranks - domain) : 0;
  if (node <= others && same_domain != unavoidable)
    return fmt::format("{} snapshots in their own domain, {} must be", same_domain, unavoidable);
  return "";
}

namespace {

std::vector<Seat> AllSeats(const std::vector<NodeOffer>& offers) {
  std::vector<Seat> seats;
  for (const NodeOffer& offer : offers)
    for (const int32_t slot : offer.slots) seats.push_back({offer.node, slot});
  return seats;
}

TEST(SnapshotPlacement, AnotherNodeAnotherDomain) {
  for (int32_t nodes = 2; nodes <= 9; ++nodes)
    for (int32_t slots = 1; slots <= 5; ++slots)
      for (int32_t per_domain = 1; per_domain <= nodes; ++per_domain) {
        const std::vector<NodeOffer> offers = WholeNodes(nodes, slots, per_domain);
        EXPECT_EQ(BrokenSnapshotPromise(AllSeats(offers), offers), "")
            << nodes << " x " << slots << ", " << per_domain << " nodes a domain";
      }
}

TEST(SnapshotPlacement, AnyNodesInAnyOrder) {
  Prng draw(7);
  for (int32_t round = 0; round < 3000; ++round) {
    std::vector<NodeOffer> offers = WholeNodes(1 + draw.Below(8), 6);
    for (NodeOffer& offer : offers) {
      offer.slots.resize(draw.Below(7));
      offer.domain = static_cast<uint32_t>(draw.Below(3));
    }
    std::vector<Seat> seats = AllSeats(offers);
    if (seats.empty()) continue;
    for (size_t i = seats.size(); i > 1; --i)
      std::swap(seats[i - 1], seats[draw.Below(static_cast<int32_t>(i))]);
    ASSERT_EQ(BrokenSnapshotPromise(seats, offers), "") << "round " << round;
  }
}

TEST(SnapshotPlacement, OneNodeHasNoPeer) {
  const std::vector<NodeOffer> offers = WholeNodes(1, 4);
  const absl::Status status = PlaceSnapshots(AllSeats(offers), offers).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("all 4 ranks are on one node"));
}

// By seat.
std::map<Seat, Seat> PeersOf(const std::vector<NodeOffer>& offers) {
  const std::vector<Seat> seats = AllSeats(offers);
  const std::vector<int32_t> peers = *PlaceSnapshots(seats, offers);
  std::map<Seat, Seat> by_seat;
  for (size_t rank = 0; rank < seats.size(); ++rank) by_seat[seats[rank]] = seats[peers[rank]];
  return by_seat;
}

TEST(SnapshotPlacement, ALostNodeChangesFewPeers) {
  // Domains of 6 nodes of 8 ranks, one of 7: 64 places further on, whichever node is lost.
  std::vector<NodeOffer> all = WholeNodes(500, 8, 6);
  Of(all, 306).domain = Of(all, 305).domain;
  const std::map<Seat, Seat> before = PeersOf(all);
  for (const NodeId lost : {0U, 100U, 300U, 306U, 499U}) {
    std::vector<NodeOffer> offers = all;
    Remove(offers, lost);
    int32_t changed = 0;
    for (const auto& [seat, peer] : PeersOf(offers)) changed += before.at(seat) != peer;
    EXPECT_LE(changed, 64) << lost;
  }
}

}  // namespace
}  // namespace perdure
