#include "runtime/control/seat_assignment.h"

#include <algorithm>
#include <numeric>
#include <span>
#include <tuple>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/control/block_placement.h"

namespace perdure {
namespace {

class Assigner {
 public:
  Assigner(const OfferedSlots& offered, const PlacedLayout& last, const LayoutShape& shape)
      : offered_(offered),
        last_(last),
        shape_(shape),
        unit_(offered.unit()),
        blocks_(offered.blocks()) {}

  SeatPlan Run(int32_t spares) {
    Survey();
    Choose();
    room_.clear();
    at_ = Settle(plan_.source, room_);
    LeaveDrained();
    PlaceBlocks(offered_, plan_.source, spares, room_, at_);
    TakeSeats();
    return std::move(plan_);
  }

 private:
  // The i-th rank of block b of replica d.
  int32_t Rank(const LayoutShape& shape, int32_t d, int32_t b, int32_t i) const {
    const int32_t in_replica = b * unit_ + i;
    return shape.Rank(in_replica / shape.tensor, d, in_replica % shape.tensor);
  }

  void Survey();
  void Choose();
  std::vector<int32_t> Settle(std::span<const int32_t> replicas, std::vector<int32_t>& room) const;
  void LeaveDrained();
  void TakeSeats();
  int32_t FreeSlot(int32_t node);

  const OfferedSlots& offered_;
  const PlacedLayout& last_;
  const LayoutShape shape_;
  const int32_t unit_, blocks_;
  std::vector<int32_t> slot_of_;  // By rank of the last layout; -1: lost.

  struct Block {
    int32_t node = -1;  // -1: not offered.
    int32_t lost = 0;   // Ranks.
  };
  std::vector<Block> had_;  // By replica of the last layout and block.

  std::vector<int32_t> at_;    // Node by replica and block of the new layout; -1: not yet placed.
  std::vector<int32_t> room_;  // By node: blocks that it can still take.

  std::vector<int32_t> owner_;             // By slot: rank of the new layout, -1: free.
  std::vector<bool> sat_;                  // By slot: a rank of the last layout sat here.
  std::vector<int32_t> next_idle_, next_;  // By node: where the search for a free slot goes on.
  SeatPlan plan_;
};

// What is left of the last layout.
void Assigner::Survey() {
  const size_t nodes = offered_.nodes().size(), slots = offered_.seats().size();
  sat_.assign(slots, false);
  owner_.assign(slots, -1);
  next_idle_.reserve(nodes);
  for (const OfferedSlots::Node& node : offered_.nodes()) next_idle_.push_back(node.slot_begin);
  next_ = next_idle_;

  slot_of_.assign(last_.seats.size(), -1);
  int32_t node = -1;
  for (size_t rank = 0; rank < last_.seats.size(); ++rank) {
    const Seat& seat = last_.seats[rank];
    const int32_t found = offered_.FindNode(seat.node, node);
    if (found >= 0) slot_of_[rank] = offered_.FindSlot(node = found, seat.local_rank);
    if (slot_of_[rank] < 0) {
      plan_.lost.push_back(static_cast<int32_t>(rank));
    } else {
      PERDURE_CHECK(!sat_[slot_of_[rank]]);  // Seats are distinct.
      sat_[slot_of_[rank]] = true;
    }
  }

  had_.resize(static_cast<size_t>(last_.shape.data) * blocks_);
  for (int32_t d = 0, k = 0; d < last_.shape.data; ++d)
    for (int32_t b = 0; b < blocks_; ++b, ++k) {
      for (int32_t i = 0; i < unit_; ++i) had_[k].lost += slot_of_[Rank(last_.shape, d, b, i)] < 0;
      const Seat& seat = last_.seats[Rank(last_.shape, d, b, 0)];
      had_[k].node = offered_.FindNode(seat.node, k == 0 ? -1 : had_[k - 1].node);
    }
}

// Where the blocks of `replicas` (of the last layout) stay, -1 where they must move (or are new).
// `room`: what every node has left then.
std::vector<int32_t> Assigner::Settle(std::span<const int32_t> replicas,
                                      std::vector<int32_t>& room) const {
  struct Hurt {
    int32_t node, lost, at;  // `at`: index into the result.
    auto operator<=>(const Hurt&) const = default;
  };
  std::vector<Hurt> hurt;
  std::vector<int32_t> stay(replicas.size() * blocks_, -1);
  room.reserve(offered_.nodes().size());
  for (const OfferedSlots::Node& node : offered_.nodes()) room.push_back(node.blocks);
  for (size_t i = 0; i < replicas.size(); ++i) {
    if (replicas[i] < 0) continue;
    for (int32_t b = 0; b < blocks_; ++b) {
      const Block& had = had_[static_cast<size_t>(replicas[i]) * blocks_ + b];
      const int32_t at = static_cast<int32_t>(i) * blocks_ + b;
      if (had.node < 0 || had.lost == unit_) continue;
      if (had.lost > 0) {
        hurt.push_back({had.node, had.lost, at});
      } else {
        stay[at] = had.node;
        --room[had.node];
      }
    }
  }
  std::sort(hurt.begin(), hurt.end());
  for (const Hurt& block : hurt) {
    if (room[block.node] == 0) continue;
    stay[block.at] = block.node;
    --room[block.node];
  }
  return stay;
}

// Which replicas of the last layout go on, and as which number.
void Assigner::Choose() {
  const int32_t had = last_.shape.data;
  struct Replica {
    int32_t moves = 0, drained = 0, d = 0;
    bool broken = false;
    auto Key() const { return std::tuple(moves, drained, d); }
  };
  std::vector<Replica> replicas(had);
  std::vector<int32_t> all(had), room;
  std::iota(all.begin(), all.end(), 0);
  const std::vector<int32_t> stay = Settle(all, room);
  for (int32_t d = 0; d < had; ++d) {
    replicas[d].d = d;
    for (int32_t k = d * blocks_; k < (d + 1) * blocks_; ++k) {
      replicas[d].broken |= had_[k].lost > 0;
      replicas[d].moves += stay[k] < 0 ? unit_ : had_[k].lost;
      replicas[d].drained += stay[k] >= 0 && offered_.nodes()[stay[k]].drained;
    }
    plan_.broken += replicas[d].broken;
  }
  if (had > shape_.data) {
    std::sort(replicas.begin(), replicas.end(),
              [](const Replica& a, const Replica& b) { return a.Key() < b.Key(); });
    replicas.resize(shape_.data);
    std::sort(replicas.begin(), replicas.end(),
              [](const Replica& a, const Replica& b) { return a.d < b.d; });
  }
  plan_.source.assign(shape_.data, -1);
  for (const Replica& replica : replicas) {
    plan_.repaired += replica.broken;
    if (replica.d < shape_.data) plan_.source[replica.d] = replica.d;
  }
  int32_t hole = 0;
  for (auto replica = replicas.rbegin(); replica != replicas.rend(); ++replica) {
    if (replica->d < shape_.data) break;
    while (plan_.source[hole] >= 0) ++hole;
    plan_.source[hole] = replica->d;
  }
}

// Blocks on drained nodes make for the room that other nodes have beside what must be placed.
void Assigner::LeaveDrained() {
  const auto drained = [&](int32_t node) { return node >= 0 && offered_.nodes()[node].drained; };
  std::vector<std::pair<int32_t, size_t>> leaving;  // Node by node, so that some become empty.
  int64_t room = 0;
  for (size_t node = 0; node < room_.size(); ++node)
    if (!offered_.nodes()[node].drained) room += room_[node];
  for (size_t k = 0; k < at_.size(); ++k) {
    if (at_[k] < 0) --room;
    if (drained(at_[k])) leaving.emplace_back(at_[k], k);
  }
  if (room <= 0) return;
  std::sort(leaving.begin(), leaving.end());
  if (static_cast<int64_t>(leaving.size()) > room) leaving.resize(room);
  for (const auto& [node, k] : leaving) {
    at_[k] = -1;
    ++room_[node];
  }
}

// One where nobody sat before, if there is one.
int32_t Assigner::FreeSlot(int32_t node) {
  const int32_t end = offered_.nodes()[node].slot_end;
  int32_t& idle = next_idle_[node];
  while (idle < end && (owner_[idle] >= 0 || sat_[idle])) ++idle;
  if (idle < end) return idle;
  int32_t& any = next_[node];
  while (any < end && owner_[any] >= 0) ++any;
  PERDURE_CHECK(any < end);
  plan_.took_seats_of_others = true;
  return any;
}

// From nodes to slots: first all that stay, so that nobody takes their seats.
void Assigner::TakeSeats() {
  std::vector<int32_t> slot_of(static_cast<size_t>(shape_.ranks()), -1);
  const auto each = [&](auto&& take) {
    for (int32_t d = 0, k = 0; d < shape_.data; ++d)
      for (int32_t b = 0; b < blocks_; ++b, ++k)
        for (int32_t i = 0; i < unit_; ++i) take(d, b, i, k);
  };
  each([&](int32_t d, int32_t b, int32_t i, int32_t k) {
    const int32_t source = plan_.source[d];
    if (source < 0 || had_[source * blocks_ + b].node != at_[k]) return;
    const int32_t slot = slot_of_[Rank(last_.shape, source, b, i)];
    if (slot < 0) return;
    owner_[slot] = slot_of[Rank(shape_, d, b, i)] = slot;
  });
  each([&](int32_t d, int32_t b, int32_t i, int32_t k) {
    int32_t& slot = slot_of[Rank(shape_, d, b, i)];
    if (slot >= 0) return;
    slot = FreeSlot(at_[k]);
    owner_[slot] = slot;
  });
  plan_.seats.reserve(slot_of.size());
  for (const int32_t slot : slot_of) plan_.seats.push_back(offered_.seats()[slot]);
  plan_.spares.reserve(owner_.size() - slot_of.size());
  for (size_t slot = 0; slot < owner_.size(); ++slot)
    if (owner_[slot] < 0) plan_.spares.push_back(offered_.seats()[slot]);
}

}  // namespace

SeatPlan AssignSeats(const OfferedSlots& offered, const PlacedLayout& last,
                     const LayoutShape& shape, int32_t spares) {
  PERDURE_CHECK(shape.data <= offered.Fit());
  return Assigner(offered, last, shape).Run(spares);
}

}  // namespace perdure
