// Random histories of nodes and slots that come, go and are drained; after every change the answer
// keeps all promises, and so do the peers of its snapshots.
#include <gtest/gtest.h>

#include <set>

#include "tests/control/layout_situations.h"
#include "tests/control/snapshot_promise.h"
#include "tests/prng.h"

namespace perdure {
namespace {

class History {
 public:
  explicit History(uint64_t seed) : draw_(seed) {
    const int32_t slots = 1 + draw_.Below(8), nodes = 1 + draw_.Below(9);
    rule_ = RuleOf(1 + draw_.Below(draw_.OneIn(4) ? 10 : 4), 1 + draw_.Below(3));
    rule_.spares = draw_.Below(3);
    rule_.data = draw_.OneIn(4) ? 1 + draw_.Below(6) : 0;
    rule_.data_min = 1 + draw_.Below(2);
    rule_.shrink = !draw_.OneIn(6);
    if (draw_.OneIn(3)) rule_.grow_after = absl::ZeroDuration();
    if (draw_.OneIn(3)) rule_.leaves = 1 + draw_.Below(9);
    nodes_ = WholeNodes(nodes, slots, 1 + draw_.Below(4));
    // Nodes need not be alike.
    for (NodeOffer& node : nodes_)
      if (draw_.OneIn(6)) node.slots.resize(draw_.Below(slots) + 1);
    away_ = std::vector<bool>(nodes_.size(), false);
    now_ = unchanged_since_ = kDay;
  }

  void Run(int32_t changes) {
    for (; changes > 0 && !ended_; --changes) {
      Answer();
      if (testing::Test::HasFatalFailure()) return;
      Change();
      now_ += absl::Minutes(draw_.Below(12));
    }
  }

  std::set<LayoutAction> seen;

 private:
  Situation Now() const {
    Situation situation{.current = current_,
                        .now = now_,
                        .unchanged_since = unchanged_since_,
                        .waiting_since = waiting_since_,
                        .nodes_coming = nodes_coming_};
    for (size_t n = 0; n < nodes_.size(); ++n) {
      if (away_[n]) continue;
      situation.offers.push_back(nodes_[n]);
      std::erase_if(situation.offers.back().slots, [&](int32_t slot) {
        return dead_.contains({nodes_[n].node, slot});
      });
    }
    return situation;
  }

  void Answer() {
    const Situation situation = Now();
    const Decision decision = DecideLayout(rule_, situation);
    seen.insert(decision.action);
    ASSERT_EQ(BrokenPromise(rule_, situation, decision), "") << decision.words;
    ended_ = decision.action == LayoutAction::kEnd;
    if (decision.action == LayoutAction::kWait) waiting_since_ = std::min(waiting_since_, now_);
    if (decision.look_again < absl::InfiniteFuture()) LookAgain(situation, decision);
    if (decision.shape.data == 0) return;
    ASSERT_EQ(BrokenSnapshotPromise(decision.seats, situation.offers), "");
    waiting_since_ = absl::InfiniteFuture();
    current_ = Applied(current_, decision);
    if (decision.action != LayoutAction::kKeep) unchanged_since_ = now_;
  }

  // Time alone changes the answer then, and not before.
  void LookAgain(Situation then, const Decision& decision) {
    const bool waits = decision.action == LayoutAction::kWait;
    if (waits) then.waiting_since = waiting_since_;
    if (!waits) then.current = Applied(then.current, decision);
    then.now = decision.look_again - absl::Nanoseconds(1);
    const Decision before = DecideLayout(rule_, then);
    ASSERT_EQ(before.action, waits ? LayoutAction::kWait : LayoutAction::kKeep) << before.words;
    then.now = decision.look_again;
    const Decision after = DecideLayout(rule_, then);
    ASSERT_EQ(BrokenPromise(rule_, then, after), "") << after.words;
    ASSERT_NE(after.action, before.action) << after.words;
    if (!waits) ASSERT_EQ(after.action, LayoutAction::kGrow) << after.words;
  }

  void Change() {
    const size_t n = static_cast<size_t>(draw_.Below(static_cast<int32_t>(nodes_.size())));
    NodeOffer& node = nodes_[n];
    const Seat seat = {node.node, node.slots[draw_.Below(static_cast<int32_t>(node.slots.size()))]};
    switch (draw_.Below(8)) {
      case 0:
      case 1:
        away_[n] = true;
        break;
      case 2:
      case 3:
        away_[n] = false;
        break;
      case 4:
        if (!dead_.insert(seat).second) dead_.clear();
        break;
      case 5:
        node.drained = !node.drained;
        break;
      case 6:
        nodes_coming_ = !nodes_coming_;
        return;
      default:
        if (draw_.OneIn(3)) rule_.leaves = 1 + draw_.Below(9);
        return;
    }
    unchanged_since_ = now_;
  }

  Prng draw_;
  LayoutRule rule_;
  std::vector<NodeOffer> nodes_;
  std::vector<bool> away_;
  std::set<Seat> dead_;
  PlacedLayout current_;
  absl::Time now_, unchanged_since_, waiting_since_ = absl::InfiniteFuture();
  bool nodes_coming_ = false, ended_ = false;
};

constexpr uint64_t kHistories = 5000;  // Of each case.
class LayoutHistories : public testing::TestWithParam<uint64_t> {};

TEST_P(LayoutHistories, KeepEveryPromise) {
  std::set<LayoutAction> seen;
  for (uint64_t seed = GetParam(); seed < GetParam() + kHistories; ++seed) {
    History history(seed);
    history.Run(12);
    seen.merge(history.seen);
    ASSERT_FALSE(HasFatalFailure()) << "seed " << seed;
  }
  EXPECT_EQ(seen.size(), 8U);  // No action went untested.
}
INSTANTIATE_TEST_SUITE_P(From, LayoutHistories,
                         testing::Range<uint64_t>(0, 4 * kHistories, kHistories));

}  // namespace
}  // namespace perdure
