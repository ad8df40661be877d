// What a coordinator does about slow ranks: names them, does without their nodes where that pays,
// and uses those again later.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/control/coordinator_story.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using Phase = Coordinator::Phase;

constexpr absl::Duration kLong = absl::Seconds(40);  // More than a window.

class Story : public CoordinatorStory {
 public:
  using CoordinatorStory::CoordinatorStory;

  static LayoutRule Leaves(int32_t leaves) {
    LayoutRule rule = Rule();
    rule.leaves = leaves;
    return rule;
  }
  // Members that run say what they work: `percent` of others' from now on.
  void Works(NodeId node, int64_t percent) {
    Report(node, NodeStage::kRunning, lead().layout().generation, [this, percent](msg::Report& r) {
      const int64_t ms = absl::ToInt64Milliseconds(now() - kStart);
      r.works = {{.steps = ms / 100, .leaves = ms / 100, .nanoseconds = ms * 10'000 * percent}};
    });
  }
  // All members work alike, but `node`.
  void RunsWithSlow(NodeId node, int64_t percent) {
    for (const NodeId member : std::vector<NodeId>(lead().members()))
      Works(member, member == node ? percent : 100);
  }
  // So long, or until the generation is being stopped.
  void InTouch(absl::Duration time) {
    blamed_.clear();
    for (const absl::Time end = now() + time; now() < end && phase() == Phase::kRunning;) {
      AfterInTouch(Ms(100), {0, 1, 2, 3, 4, 5});
      for (const auto& evidence : All<Coordinator::Evidence>()) blamed_.push_back(evidence);
    }
  }
  std::vector<std::pair<NodeId, EvidenceKind>> Blamed() const {
    std::vector<std::pair<NodeId, EvidenceKind>> blamed;
    for (const auto& e : blamed_) blamed.emplace_back(e.node, e.kind);
    return blamed;
  }
  const std::vector<Coordinator::Evidence>& evidence() const { return blamed_; }
  // All members stop with the state of step `step`.
  void StopAll(StepIndex step) {
    const Generation generation = lead().layout().generation;
    const std::vector<NodeId> members = lead().members();
    const auto ranks = static_cast<int32_t>(members.size());
    for (const NodeId member : members) {
      std::vector<Holding> holdings;
      for (int32_t rank = 0; rank < ranks; ++rank) holdings.push_back({generation, step, rank});
      Stopped(member, generation, holdings);
    }
  }
  std::vector<NodeId> Seated() const {
    return append().has_value() ? NodesOf(*append()->layout) : std::vector<NodeId>();
  }

 private:
  std::vector<Coordinator::Evidence> blamed_;
};

TEST(CoordinatorSlow, ASpareTakesItsPlace) {
  Story story(3, {}, CoordinatorStory::TwoAndASpare());
  story.LogStaysAsItIs();
  story.RunAll();
  story.RunsWithSlow(1, 300);
  story.InTouch(kLong);
  EXPECT_THAT(story.Blamed(), ElementsAre(std::pair(1, EvidenceKind::kSlow)));
  EXPECT_EQ(story.evidence()[0].number, 300);
  EXPECT_EQ(story.evidence()[0].rank, 1);
  EXPECT_THAT(story.said(),
              HasSubstr("rank 1 on node 1 has been slow (3.00 times the others' work)"));
  EXPECT_EQ(story.phase(), Phase::kStopping);
  EXPECT_TRUE(story.Sent<msg::Stop>().at(0).at_boundary) << "no step is lost";
  EXPECT_THAT(story.said(), HasSubstr("slow node 1 left out with rank 1"));
  story.StopAll(40);
  EXPECT_THAT(story.Seated(), ElementsAre(0, 2));
  const LogEntry start = story.Win();
  EXPECT_EQ(start.step, 40);
  EXPECT_FALSE(start.from_checkpoint);
  EXPECT_EQ(start.failure.kind, EvidenceKind::kSlow);
  EXPECT_EQ(start.failure.node, NodeId{1});
  EXPECT_EQ(start.failure.number, 300);
  EXPECT_THAT(story.lead().slow(), ElementsAre(Coordinator::SlowNode{1, 300, true}));
}

TEST(CoordinatorSlow, TheCoordinatorsOwnNodeIsLeftOutLikeAnyOther) {
  Story story(3, {}, CoordinatorStory::TwoAndASpare());
  story.LogStaysAsItIs();
  story.RunAll();
  story.RunsWithSlow(0, 300);
  story.InTouch(kLong);
  story.StopAll(40);
  EXPECT_THAT(story.Seated(), ElementsAre(1, 2));
}

// 64 leaves: 16 rounds on four replicas, 22 on three.
TEST(CoordinatorSlow, ItsReplicaIsLeftOutWhereThatPays) {
  for (const auto& [percent, pays] :
       {std::pair(300, true), std::pair(160, true), std::pair(151, false)}) {
    Story story(4);
    story.LogStaysAsItIs();
    story.RunAll();
    story.RunsWithSlow(2, percent);
    story.InTouch(kLong);
    EXPECT_THAT(story.Blamed(), ElementsAre(std::pair(2, EvidenceKind::kSlow))) << percent;
    EXPECT_EQ(story.phase() == Phase::kStopping, pays) << percent << ": " << story.said();
    if (!pays) {
      EXPECT_THAT(story.said(), HasSubstr("node 2 is kept"));
      EXPECT_THAT(story.lead().slow(), ElementsAre(Coordinator::SlowNode{2, percent, false}));
      continue;
    }
    story.StopAll(40);
    EXPECT_THAT(story.Seated(), ElementsAre(0, 1, 3));
  }
}

// Four leaves: one round on four replicas, two on three.
TEST(CoordinatorSlow, TheRoundsCount) {
  Story story(4, {}, Story::Leaves(4));
  story.LogStaysAsItIs();
  story.RunAll();
  story.RunsWithSlow(2, 210);
  story.InTouch(kLong);
  EXPECT_EQ(story.phase(), Phase::kRunning) << "two rounds are no faster than 2.1 times one";
  EXPECT_THAT(story.Blamed(), ElementsAre(std::pair(2, EvidenceKind::kSlow)));
}

// Without one of two equally slow nodes nothing is gained, without both it is.
TEST(CoordinatorSlow, AllThatAreSlowAreLeftOutTogether) {
  Story story(6);
  story.LogStaysAsItIs();
  story.RunAll();
  for (NodeId node = 0; node < 6; ++node) story.Works(node, node == 1 || node == 4 ? 300 : 100);
  story.InTouch(kLong);
  ASSERT_EQ(story.phase(), Phase::kStopping) << story.said();
  story.StopAll(40);
  EXPECT_THAT(story.Seated(), ElementsAre(0, 2, 3, 5));
}

TEST(CoordinatorSlow, WhoIsNeededIsOnlyNamed) {
  Story story(3, {}, CoordinatorStory::Needs(3, absl::Hours(1)));
  story.LogStaysAsItIs();
  story.RunAll();
  story.RunsWithSlow(1, 900);
  story.InTouch(kLong);
  EXPECT_THAT(story.Blamed(), ElementsAre(std::pair(1, EvidenceKind::kSlow)));
  EXPECT_EQ(story.phase(), Phase::kRunning);
  story.InTouch(kLong);
  EXPECT_THAT(story.Blamed(), IsEmpty()) << "once";
  EXPECT_EQ(story.phase(), Phase::kRunning);
}

// It was kept because nobody could stand in for it.
TEST(CoordinatorSlow, IsLeftOutWhenASpareComes) {
  Story story(4, {}, CoordinatorStory::Needs(3, absl::Hours(1)));
  story.LogStaysAsItIs();
  story.Win();
  for (NodeId node = 0; node < 3; ++node) story.Report(node, NodeStage::kIdle);
  story.AfterInTouch(absl::Seconds(31), {0, 1, 2});
  ASSERT_TRUE(story.Appends(EntryKind::kStart));
  story.Win();
  story.RunOn();
  story.RunsWithSlow(1, 300);
  story.InTouch(kLong);
  ASSERT_EQ(story.phase(), Phase::kRunning);
  story.Report(3, NodeStage::kIdle);
  story.InTouch(absl::Seconds(1));
  ASSERT_EQ(story.phase(), Phase::kStopping);
  story.StopAll(40);
  EXPECT_THAT(story.Seated(), ElementsAre(0, 2, 3));
}

TEST(CoordinatorSlow, NobodyIsNamedWhereAllAreAlike) {
  Story story(4);
  story.LogStaysAsItIs();
  story.RunAll();
  story.RunsWithSlow(9, 300);
  story.InTouch(absl::Minutes(3));
  EXPECT_THAT(story.Blamed(), IsEmpty());
  EXPECT_EQ(story.phase(), Phase::kRunning);
}

class Without : public testing::Test {
 protected:
  // Node 2 of four was slow; the others run generation 2.
  Without() {
    story_.LogStaysAsItIs();
    story_.RunAll();
    story_.RunsWithSlow(2, 300);
    story_.InTouch(kLong);
    NextGeneration();
    story_.Report(2, NodeStage::kIdle);
    story_.RunsWithSlow(9, 100);
  }
  void NextGeneration() {
    story_.StopAll(40);
    starts_.push_back(story_.Win());
    story_.RunOn();
    left_ = story_.now();
  }
  Story story_{4, {}, Story::Leaves(64), Options()};
  std::vector<LogEntry> starts_;
  absl::Time left_;

 private:
  static ControlOptions Options() {
    ControlOptions options = CoordinatorStory::Options();
    options.slow_retry = absl::Minutes(10);
    options.save_every = absl::Hours(10);
    return options;
  }
};

TEST_F(Without, NobodyGrowsOntoItBeforeItsTime) {
  EXPECT_THAT(story_.lead().members(), ElementsAre(0, 1, 3));
  story_.InTouch(absl::Minutes(9));
  EXPECT_EQ(story_.phase(), Phase::kRunning);
  story_.InTouch(absl::Minutes(2));
  EXPECT_EQ(story_.phase(), Phase::kStopping) << "as any node that came back";
  EXPECT_THAT(story_.lead().slow(), IsEmpty());
  story_.StopAll(80);
  EXPECT_THAT(story_.Seated(), ElementsAre(0, 1, 2, 3));
  EXPECT_FALSE(story_.append()->failure.kind.has_value());
}

TEST_F(Without, TheSecondTimeItIsLeftOutForTwiceAsLong) {
  story_.InTouch(absl::Minutes(11));
  NextGeneration();
  story_.RunsWithSlow(2, 300);
  story_.InTouch(kLong);
  ASSERT_EQ(story_.phase(), Phase::kStopping) << "found again";
  NextGeneration();
  story_.Report(2, NodeStage::kIdle);
  story_.RunsWithSlow(9, 100);
  story_.InTouch(absl::Minutes(18));
  EXPECT_EQ(story_.phase(), Phase::kRunning);
  story_.InTouch(absl::Minutes(3));
  EXPECT_EQ(story_.phase(), Phase::kStopping);
}

// Another node fails: the slow one is not called in for it.
TEST_F(Without, ItIsNoSpareForOthers) {
  story_.Report(1, NodeStage::kBroken, 2, [](msg::Report& r) {
    r.slots = 0;
    r.failure = EvidenceKind::kDeviceError;
    r.failed_local_rank = 0;
  });
  story_.StopAll(41);
  EXPECT_THAT(story_.Seated(), ElementsAre(0, 3));
}

TEST_F(Without, ItIsUsedWhereTheOthersDoNotHoldWhatIsNeeded) {
  for (NodeId node : {0, 1, 3})
    story_.Report(node, NodeStage::kBroken, 2, [](msg::Report& r) {
      r.slots = 0;
      r.failure = EvidenceKind::kDeviceError;
      r.failed_local_rank = 0;
    });
  story_.StopAll(41);
  EXPECT_THAT(story_.Seated(), ElementsAre(2));
}

TEST_F(Without, ASuccessorKnows) {
  LogView view = View({Lead(0, 0), Start(1, 1, {0, 1, 2, 3})});
  LogEntry start = starts_.back();
  start.slot = 2;
  view.Absorb(start);
  ControlOptions options = CoordinatorStory::Options();
  options.slow_retry = absl::Minutes(10);
  Story next(4, view, Story::Leaves(64), options);
  next.LogStaysAsItIs();
  next.Win();
  EXPECT_THAT(next.lead().slow(), ElementsAre(Coordinator::SlowNode{2, 0, true}));
  for (NodeId node : {0, 1, 3}) next.Report(node, NodeStage::kRunning, 2);
  next.Report(2, NodeStage::kIdle);
  ASSERT_EQ(next.phase(), Phase::kRunning);
  next.InTouch(absl::Minutes(9));
  EXPECT_EQ(next.phase(), Phase::kRunning);
  next.InTouch(absl::Minutes(2));
  EXPECT_EQ(next.phase(), Phase::kStopping);
}

// What happens while the others come to a boundary is what START tells, for it may come again.
TEST(CoordinatorSlow, AFailureGoesBeforeSlowness) {
  Story story(4);
  story.LogStaysAsItIs();
  story.RunAll();
  story.RunsWithSlow(2, 300);
  story.InTouch(kLong);
  ASSERT_EQ(story.phase(), Phase::kStopping);
  story.Report(2, NodeStage::kBroken, 1, [](msg::Report& r) {
    r.failure = EvidenceKind::kRankCrashed;
    r.failed_local_rank = 0;
  });
  story.StopAll(40);
  EXPECT_THAT(story.Seated(), ElementsAre(0, 1, 3)) << "and the slow one is left out all the same";
  EXPECT_EQ(story.append()->failure.kind, EvidenceKind::kRankCrashed);
}

TEST(CoordinatorSlow, AJobThatEndsDoesNotChangeItsLayout) {
  Story story(3, {}, CoordinatorStory::TwoAndASpare());
  story.LogStaysAsItIs();
  story.RunAll();
  story.RunsWithSlow(1, 300);
  story.Do(Coordinator::EndJob{75});
  story.InTouch(kLong);
  EXPECT_THAT(story.said(), Not(HasSubstr("left out")));
}

TEST(LogView, KnowsWhoWasSlowInThisJob) {
  LogEntry start = Start(2, 2, {0, 1});
  start.failure = {.kind = EvidenceKind::kSlow, .number = 300, .step = 4, .node = NodeId{2}};
  LogEntry again = Start(3, 3, {0, 1});
  again.failure = start.failure;
  LogView view = View({Lead(0, 0), Start(1, 1, {0, 1, 2}), start, again});
  EXPECT_THAT(view.slow, ElementsAre(std::pair(NodeId{2}, 2)));
  EXPECT_THAT(view.failures, IsEmpty()) << "nothing failed";
  LogView same_job = view;
  same_job.Absorb(Lead(4, 1));
  EXPECT_FALSE(same_job.slow.empty());
  LogView other_job = view;
  other_job.Absorb(Lead(4, 1, kOtherJob));
  EXPECT_THAT(other_job.slow, IsEmpty());
  view.Absorb(End(4, 75));
  EXPECT_THAT(view.slow, IsEmpty());
}

}  // namespace
}  // namespace perdure
