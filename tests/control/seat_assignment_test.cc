// Every loss of slots in small layouts, against brute force.
#include "runtime/control/seat_assignment.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <ostream>

#include "tests/control/layout_situations.h"

namespace perdure {
namespace {

struct Small {
  int32_t nodes, slots, tensor, pipeline;
  int32_t spares = 0;
};

std::ostream& operator<<(std::ostream& out, const Small& small) {
  return out << small.nodes << " nodes of " << small.slots << ", tensor " << small.tensor
             << ", pipeline " << small.pipeline << ", spares " << small.spares;
}

// What FewestMoves says of all answers together.
struct Tally {
  int64_t moves = 0, fewest = 0;
  int32_t excess_max = 0;
};

void Judge(const LayoutRule& rule, const Situation& situation, Tally& tally) {
  const Decision decision = DecideLayout(rule, situation);
  ASSERT_EQ(BrokenPromise(rule, situation, decision), "") << decision.words;
  if (decision.shape.data == 0) return;
  const int32_t moves = Moves(situation.current, decision);
  const int32_t fewest = FewestMoves(situation, decision.shape.data);
  ASSERT_GE(moves, fewest);
  tally.moves += moves;
  tally.fewest += fewest;
  tally.excess_max = std::max(tally.excess_max, moves - fewest);
  if (decision.shape == situation.current.shape) ASSERT_EQ(moves, fewest) << decision.words;
}

// As few moves as possible, but where several groups of several stages share nodes: see the end of
// seat_assignment.h.
void Judge(const Small& small, const Tally& tally) {
  const bool shared = small.tensor > 1 && small.tensor < small.slots && small.pipeline > 1;
  EXPECT_LE(tally.excess_max, shared ? 2 : 0);
  EXPECT_LE(tally.moves, tally.fewest * 112 / 100);
}

class SeatAssignment : public testing::TestWithParam<Small> {
 protected:
  SeatAssignment() : rule_(RuleOf(GetParam().tensor, GetParam().pipeline)) {
    rule_.spares = GetParam().spares;
    start_ = Started(rule_, WholeNodes(GetParam().nodes, GetParam().slots, 2));
  }
  int32_t slots() const { return GetParam().nodes * GetParam().slots; }
  Seat SeatOf(int32_t slot) const {
    return {static_cast<NodeId>(slot / GetParam().slots), slot % GetParam().slots};
  }

  LayoutRule rule_;
  Situation start_;
};

class EveryLossOfSlots : public SeatAssignment {};
TEST_P(EveryLossOfSlots, MovesTheFewest) {
  Tally tally;
  for (uint32_t lost = 0; lost < 1U << slots(); ++lost) {
    Situation situation = start_;
    for (int32_t slot = 0; slot < slots(); ++slot)
      if ((lost >> slot & 1U) != 0) RemoveSlot(situation.offers, SeatOf(slot));
    Judge(rule_, situation, tally);
    ASSERT_FALSE(HasFatalFailure()) << "lost slots " << lost;
  }
  Judge(GetParam(), tally);
}
INSTANTIATE_TEST_SUITE_P(Of, EveryLossOfSlots,
                         testing::Values(Small{4, 2, 1, 1}, Small{4, 2, 2, 1}, Small{4, 2, 1, 2},
                                         Small{4, 2, 2, 2}, Small{4, 2, 1, 3}, Small{4, 2, 1, 1, 1},
                                         Small{4, 2, 2, 1, 1}, Small{4, 2, 1, 2, 1},
                                         Small{3, 4, 1, 1}, Small{3, 4, 2, 1}, Small{3, 4, 2, 2},
                                         Small{3, 4, 2, 3}, Small{3, 4, 3, 1}, Small{3, 4, 4, 1},
                                         Small{3, 4, 1, 3}, Small{3, 4, 2, 1, 1},
                                         Small{3, 4, 2, 2, 1}, Small{2, 6, 2, 1}, Small{2, 6, 3, 1},
                                         Small{2, 6, 2, 2}, Small{2, 5, 2, 2},
                                         // Groups that are wider than a node.
                                         Small{4, 2, 4, 1}, Small{4, 2, 3, 1}, Small{4, 3, 4, 1},
                                         Small{3, 4, 6, 1}, Small{3, 4, 6, 2}));

// And up to two slots of others.
class EveryLossOfNodes : public SeatAssignment {};
TEST_P(EveryLossOfNodes, MovesTheFewest) {
  Tally tally;
  for (uint32_t lost = 0; lost < 1U << GetParam().nodes; ++lost)
    for (int32_t a = 0; a < slots(); ++a)
      for (int32_t b = a; b < slots(); ++b) {
        Situation situation = start_;
        for (int32_t node = 0; node < GetParam().nodes; ++node)
          if ((lost >> node & 1U) != 0) Remove(situation.offers, static_cast<NodeId>(node));
        RemoveSlot(situation.offers, SeatOf(a));
        RemoveSlot(situation.offers, SeatOf(b));
        Judge(rule_, situation, tally);
        ASSERT_FALSE(HasFatalFailure()) << "lost nodes " << lost << ", slots " << a << ", " << b;
      }
  Judge(GetParam(), tally);
}
INSTANTIATE_TEST_SUITE_P(Of, EveryLossOfNodes,
                         testing::Values(Small{6, 4, 1, 4}, Small{6, 4, 2, 1}, Small{6, 4, 2, 2},
                                         Small{6, 4, 2, 3}, Small{6, 4, 4, 1}, Small{6, 4, 4, 2},
                                         Small{6, 4, 2, 2, 1}, Small{6, 4, 3, 2},
                                         Small{6, 4, 2, 2, 2}));

}  // namespace
}  // namespace perdure
