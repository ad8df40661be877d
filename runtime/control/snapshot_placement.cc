#include "runtime/control/snapshot_placement.h"

#include <algorithm>
#include <bit>
#include <tuple>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

struct Place {
  uint32_t domain = 0;
  Seat seat;
  int32_t rank = 0;
};

std::vector<Place> InARow(std::span<const Seat> seats, std::span<const NodeOffer> offers) {
  std::vector<std::pair<NodeId, uint32_t>> domains;
  domains.reserve(offers.size());
  for (const NodeOffer& offer : offers) domains.emplace_back(offer.node, offer.domain);
  std::sort(domains.begin(), domains.end());
  std::vector<Place> row;
  row.reserve(seats.size());
  for (const Seat& seat : seats) {
    const auto domain =
        std::lower_bound(domains.begin(), domains.end(), std::pair<NodeId, uint32_t>(seat.node, 0));
    PERDURE_CHECK(domain != domains.end() && domain->first == seat.node);
    row.push_back({domain->second, seat, static_cast<int32_t>(row.size())});
  }
  std::sort(row.begin(), row.end(), [](const Place& a, const Place& b) {
    return std::tie(a.domain, a.seat) < std::tie(b.domain, b.seat);
  });
  return row;
}

// Begin and length of the longest stretch of `row` whose places have the same `key`.
template <typename Key>
std::pair<size_t, size_t> Longest(const std::vector<Place>& row, const Key& key) {
  size_t begin = 0, length = 0;
  for (size_t i = 0; i < row.size();) {
    size_t end = i;
    while (end < row.size() && key(row[end]) == key(row[i])) ++end;
    if (end - i > length) std::tie(begin, length) = std::pair(i, end - i);
    i = end;
  }
  return {begin, length};
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> PlaceSnapshots(std::span<const Seat> seats,
                                                    std::span<const NodeOffer> offers) {
  std::vector<Place> row = InARow(seats, offers);
  const size_t ranks = row.size();
  const auto node_of = [](const Place& place) { return place.seat.node; };
  const auto [node_at, node] = Longest(row, node_of);
  if (node == ranks)
    return FailedPrecondition(
        "all {} ranks are on one node: no rank of another node can keep their snapshots; run on "
        "two "
        "nodes or rely on checkpoints",
        ranks);
  std::vector<int32_t> peers(ranks, -1);
  if (node > ranks - node) {
    std::rotate(row.begin(), row.begin() + static_cast<int64_t>(node_at), row.end());
    for (size_t i = 0; i < node; ++i) peers[row[i].rank] = row[node + i % (ranks - node)].rank;
    for (size_t i = node; i < ranks; ++i) peers[row[i].rank] = row[i - node].rank;
    return peers;
  }
  const size_t domain = Longest(row, [](const Place& place) { return place.domain; }).second;
  size_t step = domain;
  if (domain > ranks - domain)
    step = std::max(ranks - domain, node);
  else if (std::bit_ceil(domain) <= ranks - domain)
    step = std::bit_ceil(domain);
  for (size_t i = 0; i < ranks; ++i) peers[row[i].rank] = row[(i + step) % ranks].rank;
  return peers;
}

}  // namespace perdure
