// Every loss of slots in small layouts, against brute force.
#include "runtime/control/seat_assignment.h"

#include <gtest/gtest.h>

#include <bit>

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
  EXPECT_LE(tally.excess_max, shared ? 1 : 0);
  EXPECT_LE(tally.moves, tally.fewest * 112 / 100);
}

TEST(SeatAssignment, EveryLossOfSlots) {
  for (const Small& small : {Small{4, 2, 1, 1},
                             {4, 2, 2, 1},
                             {4, 2, 1, 2},
                             {4, 2, 2, 2},
                             {4, 2, 1, 3},
                             {4, 2, 1, 1, 1},
                             {4, 2, 2, 1, 1},
                             {4, 2, 1, 2, 1},
                             {3, 4, 1, 1},
                             {3, 4, 2, 1},
                             {3, 4, 2, 2},
                             {3, 4, 2, 3},
                             {3, 4, 3, 1},
                             {3, 4, 4, 1},
                             {3, 4, 1, 3},
                             {3, 4, 2, 1, 1},
                             {3, 4, 2, 2, 1},
                             {2, 6, 2, 1},
                             {2, 6, 3, 1},
                             {2, 6, 2, 2},
                             {2, 5, 2, 2},
                             // Groups that are wider than a node.
                             {4, 2, 4, 1},
                             {4, 2, 3, 1},
                             {4, 3, 4, 1},
                             {3, 4, 6, 1},
                             {3, 4, 6, 2}}) {
    SCOPED_TRACE(testing::Message() << small);
    LayoutRule rule = RuleOf(small.tensor, small.pipeline);
    rule.spares = small.spares;
    const Situation start = Started(rule, WholeNodes(small.nodes, small.slots, 2));
    const int32_t slots = small.nodes * small.slots;
    Tally tally;
    for (uint32_t lost = 0; lost < 1U << slots; ++lost) {
      Situation situation = start;
      for (int32_t slot = 0; slot < slots; ++slot)
        if ((lost >> slot & 1U) != 0)
          RemoveSlot(situation.offers,
                     {static_cast<NodeId>(slot / small.slots), slot % small.slots});
      Judge(rule, situation, tally);
      if (HasFatalFailure()) {
        ADD_FAILURE() << "lost " << lost;
        return;
      }
    }
    Judge(small, tally);
  }
}

TEST(SeatAssignment, EveryLossOfNodesWithTwoSlots) {
  for (const Small& small : {Small{6, 4, 1, 4},
                             {6, 4, 2, 1},
                             {6, 4, 2, 2},
                             {6, 4, 2, 3},
                             {6, 4, 4, 1},
                             {6, 4, 4, 2},
                             {6, 4, 2, 2, 1},
                             {6, 4, 3, 2},
                             {6, 4, 2, 2, 2}}) {
    SCOPED_TRACE(testing::Message() << small);
    LayoutRule rule = RuleOf(small.tensor, small.pipeline);
    rule.spares = small.spares;
    const Situation start = Started(rule, WholeNodes(small.nodes, small.slots, 3));
    const int32_t slots = small.nodes * small.slots;
    Tally tally;
    for (uint32_t lost = 0; lost < 1U << small.nodes; ++lost)
      for (int32_t a = 0; a < slots; ++a)
        for (int32_t b = a; b < slots; ++b) {
          Situation situation = start;
          for (int32_t node = 0; node < small.nodes; ++node)
            if ((lost >> node & 1U) != 0) Remove(situation.offers, static_cast<NodeId>(node));
          for (const int32_t slot : {a, b})
            RemoveSlot(situation.offers,
                       {static_cast<NodeId>(slot / small.slots), slot % small.slots});
          Judge(rule, situation, tally);
          if (HasFatalFailure()) {
            ADD_FAILURE() << "lost nodes " << lost << " and slots " << a << ", " << b;
            return;
          }
        }
    Judge(small, tally);
  }
}

}  // namespace
}  // namespace perdure
