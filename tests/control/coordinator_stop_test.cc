// A coordinator that finds a generation, and one that ends a generation: who is waited for, for how
// long, what is left.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/control/coordinator_story.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;
using Phase = Coordinator::Phase;

// Whom the START that was asked for seats.
std::vector<NodeId> Seated(const CoordinatorStory& story) {
  EXPECT_TRUE(story.Appends(EntryKind::kStart)) << story.said();
  return story.Appends(EntryKind::kStart) ? NodesOf(*story.append()->layout)
                                          : std::vector<NodeId>();
}

void LosesItsSlot(msg::Report& report) {
  report.slots = 0;
  report.failed_local_rank = 0;
}

// ---- what it finds

TEST(CoordinatorGathers, AllNodesOfANewJobForGatherAtMost) {
  CoordinatorStory story(3);
  story.LogStaysAsItIs();
  story.Win();
  for (NodeId node : {0, 2}) story.Report(node, NodeStage::kIdle);
  story.AfterInTouch(absl::Seconds(31), {0, 2});
  EXPECT_THAT(story.When<Coordinator::Append>(kStart), ElementsAre(absl::Seconds(30)));
  EXPECT_THAT(Seated(story), ElementsAre(0, 2));
}

TEST(CoordinatorGathers, NodesOfTheRunningGenerationForGatherAgain) {
  CoordinatorStory story(3, View({Lead(0, 1), Start(1, 1, {0, 1})}));
  story.Win();
  for (NodeId node : {0, 2}) story.Report(node, NodeStage::kIdle);
  story.Report(0, NodeStage::kRunning, 1);
  story.AfterInTouch(absl::Seconds(2), {0, 2});
  EXPECT_EQ(story.WhenSent<msg::Stop>(0, kStart).front(), Ms(1500));
  EXPECT_THAT(story.said(), HasSubstr("nodes of it are missing"));
  ASSERT_TRUE(story.lead().cause().has_value());
  EXPECT_EQ(story.lead().cause()->kind, EvidenceKind::kNodeLost);
  EXPECT_EQ(story.lead().cause()->node, NodeId{1}) << "which it knows by what is missing";
}

TEST(CoordinatorGathers, ANodeThatHasNoRanksAnyMoreWasLost) {
  CoordinatorStory story(2, View({Lead(0, 1), Start(1, 1, {0, 1})}));
  story.Win();
  story.Report(0, NodeStage::kRunning, 1);
  story.Report(1, NodeStage::kIdle);
  EXPECT_EQ(story.phase(), Phase::kStopping);
  ASSERT_TRUE(story.lead().cause().has_value());
  EXPECT_EQ(story.lead().cause()->kind, EvidenceKind::kNodeLost);
  EXPECT_EQ(story.lead().cause()->node, NodeId{1});
}

TEST(CoordinatorGathers, TakesOverWhatRunsAndGoesOnGrantingLeases) {
  CoordinatorStory story(2, View({Lead(0, 1), Start(1, 1, {0, 1})}));
  story.Win();
  story.Report(0, NodeStage::kRunning, 1);
  story.Report(1, NodeStage::kRunning, 1);
  EXPECT_EQ(story.phase(), Phase::kRunning);
  story.AfterInTouch(Ms(300), {0, 1});
  EXPECT_GT(story.LeaseOf(0), absl::ZeroDuration());
  EXPECT_THAT(story.Sent<msg::Stop>(), IsEmpty());
  EXPECT_THAT(story.Sent<msg::Go>(), IsEmpty());
}

TEST(CoordinatorGathers, StopsNodesThatRunAnOlderGeneration) {
  CoordinatorStory story(2, View({Lead(0, 1), Start(1, 1, {0, 1}), Start(2, 2, {0, 1})}));
  story.Win();
  story.Report(0, NodeStage::kRunning, 1);
  story.Report(1, NodeStage::kRunning, 1);
  EXPECT_EQ(story.phase(), Phase::kStopping);
  EXPECT_EQ(story.Sent<msg::Stop>().at(0).generation, 2u) << "it and all before it";
}

TEST(CoordinatorGathers, StopsAGenerationThatIsNotRunning) {
  for (const NodeStage stage :
       {NodeStage::kLoading, NodeStage::kReady, NodeStage::kBroken, NodeStage::kStopping}) {
    CoordinatorStory story(2, View({Lead(0, 1), Start(1, 1, {0, 1})}));
    story.Win();
    story.Report(0, NodeStage::kRunning, 1);
    story.Report(1, stage, 1);
    EXPECT_EQ(story.phase(), Phase::kStopping);
    EXPECT_THAT(story.said(), HasSubstr("node 1 does not run generation 1"));
    EXPECT_TRUE(stage == NodeStage::kBroken || !story.lead().cause().has_value())
        << "it is not known";
  }
}

TEST(CoordinatorGathers, StrangersAreNoMembersOfTheGeneration) {
  CoordinatorStory story(3, View({Lead(0, 1), Start(1, 1, {0, 1})}));
  story.Win();
  story.Report(0, NodeStage::kRunning, 1);
  story.Report(2, NodeStage::kRunning, 1);
  EXPECT_EQ(story.phase(), Phase::kGathering) << "node 1 is missing";
}

TEST(CoordinatorGathers, AGenerationOfAnotherJobIsWaitedForAndNotAsked) {
  CoordinatorStory story(2, View({Lead(0, 1, kOtherJob), Start(1, 4, {0, 1}, kOtherJob)}));
  story.LogStaysAsItIs();
  story.Win();
  for (NodeId node : {0, 1}) story.Report(node, NodeStage::kIdle);
  EXPECT_EQ(story.Win().generation, 5u);
  for (NodeId node : {0, 1}) story.Present(node, 5);
  for (NodeId node : {0, 1}) story.Report(node, NodeStage::kReady, 5);
  EXPECT_EQ(story.phase(), Phase::kForming);
  story.AfterInTouch(absl::Seconds(31), {0, 1});
  EXPECT_EQ(story.WhenSent<msg::Go>(1, kStart).front(), Ms(30'300))
      << "the log lease of its coordinator, by any clock";
}

// ---- stopping

TEST(CoordinatorStops, AndSaysItAgainEveryResend) {
  CoordinatorStory story(2);
  story.RunAll();
  story.Report(1, NodeStage::kRunning, 1);
  story.Report(0, NodeStage::kBroken, 1);
  EXPECT_EQ(story.Sent<msg::Stop>().at(1), (msg::Stop{.term = 0, .generation = 1}));
  story.AfterInTouch(Ms(1200), {1});
  EXPECT_THAT(story.WhenSent<msg::Stop>(1, kStart), ElementsAre(Ms(500), Ms(1000)));
}

TEST(CoordinatorStops, WaitsForWhatEachNodeHolds) {
  CoordinatorStory story(2);
  story.RunAll();
  story.Report(0, NodeStage::kBroken, 1);
  story.Stopped(0, 1, {{1, 40, 0}});
  story.Report(1, NodeStage::kStopped, 1);
  EXPECT_FALSE(story.append().has_value()) << "what it holds has not come";
  story.Stopped(1, 1, {{1, 40, 1}});
  ASSERT_TRUE(story.Appends(EntryKind::kStart));
  EXPECT_EQ(story.append()->step, 40);
}

TEST(CoordinatorStops, WaitsForNobodyWhoHasNoRanks) {
  CoordinatorStory story(3, {}, CoordinatorStory::TwoAndASpare());
  story.RunAll();
  story.Report(0, NodeStage::kBroken, 1);
  EXPECT_THAT(story.Sent<msg::Stop>(), SizeIs(2)) << "not the spare";
  for (NodeId node : {0, 1}) story.Stopped(node, 1);
  EXPECT_TRUE(story.Appends(EntryKind::kStart));
}

TEST(CoordinatorStops, WhatWasSaidToAnotherCoordinatorIsNoAnswer) {
  CoordinatorStory story(2, View({Lead(0, 1), Start(1, 1, {0, 1})}));
  story.Win();
  story.Report(0, NodeStage::kRunning, 1);
  story.Report(1, NodeStage::kBroken, 1);
  story.Stopped(0, 1);
  story.Hear(1, msg::Stopped{.term = 0, .incarnation = 101, .generation = 1, .holdings = {}});
  EXPECT_FALSE(story.append().has_value());
  story.Stopped(1, 1);
  EXPECT_TRUE(story.Appends(EntryKind::kStart));
}

TEST(CoordinatorStops, AnOldStoppedIsNoAnswer) {
  CoordinatorStory story(2);
  story.RunAll();
  story.Report(0, NodeStage::kBroken, 1);
  for (NodeId node : {0, 1}) story.Stopped(node, 1);
  story.Win();
  story.RunOn();
  story.Report(1, NodeStage::kRunning, 2);
  story.Report(0, NodeStage::kBroken, 2);
  story.Hear(1, msg::Stopped{
                    .term = 0, .incarnation = 101, .generation = 1, .holdings = {}});  // Come late.
  story.Stopped(0, 2);
  EXPECT_FALSE(story.append().has_value());
  story.Stopped(1, 2);
  EXPECT_TRUE(story.Appends(EntryKind::kStart));
}

TEST(CoordinatorStops, GoesOnWithoutANodeThatIsLostMeanwhile) {
  CoordinatorStory story(3);
  story.LogStaysAsItIs();
  story.RunAll();
  story.Report(2, NodeStage::kRunning, 1);
  story.Report(0, NodeStage::kBroken, 1);
  for (NodeId node : {0, 1}) story.Stopped(node, 1);
  story.AfterInTouch(Ms(2100), {0, 1});
  EXPECT_THAT(story.When<Coordinator::Append>(kStart), ElementsAre(absl::Seconds(2)));
  EXPECT_THAT(Seated(story), ElementsAre(0, 1));
}

// Nodes 0 and 1 hold all the state; node 1 is lost after it said so, while node 2 still stops.
TEST(CoordinatorStops, CountsNeitherOnALostNodeNorOnItsState) {
  CoordinatorStory story(3, {}, CoordinatorStory::TwoAndASpare());
  story.LogStaysAsItIs();
  story.RunAll();
  story.Report(2, NodeStage::kStopping, 1);
  story.Report(0, NodeStage::kBroken, 1);
  story.Stopped(0, 1, {{1, 40, 0}});
  story.Stopped(1, 1, {{1, 40, 1}});
  story.AfterInTouch(Ms(2100), {0, 2});
  EXPECT_THAT(story.Blamed(), ElementsAre(std::pair(1, EvidenceKind::kNodeLost)));
  story.Stopped(2, 1);
  EXPECT_THAT(Seated(story), ElementsAre(0, 2));
  EXPECT_EQ(story.append()->step, 0) << "of the checkpoint: half of the state is gone";
}

// ---- at a step boundary

class StopAtBoundary : public testing::Test {
 protected:
  // Node 1 is drained; the step under way is to be finished.
  StopAtBoundary() {
    story_.LogStaysAsItIs();
    story_.RunAll();
    for (NodeId node : {0, 1}) story_.Report(node, NodeStage::kRunning, 1);
    story_.Do(Coordinator::Drain{1, true});
    story_.AfterInTouch(Ms(500), {0, 1, 2});
    EXPECT_EQ(story_.phase(), Phase::kStopping);
    EXPECT_TRUE(story_.Sent<msg::Stop>().at(0).at_boundary);
    for (NodeId node : {0, 1}) story_.Report(node, NodeStage::kStopping, 1);
    began_ = kStart + Ms(500);
  }
  CoordinatorStory story_{3, {}, CoordinatorStory::TwoAndASpare()};
  absl::Time began_;
};

TEST_F(StopAtBoundary, IsGivenUpWhenANodeIsLost) {
  story_.AfterInTouch(Ms(2100), {0, 2});
  const auto stops = story_.Sent<msg::Stop>();
  EXPECT_FALSE(stops.at(0).at_boundary);
  EXPECT_THAT(story_.WhenSent<msg::Stop>(0, began_), testing::Contains(absl::Seconds(2)))
      << "at once";
}

TEST_F(StopAtBoundary, IsGivenUpWhenARankFails) {
  story_.Report(1, NodeStage::kBroken, 1);
  const auto stops = story_.Sent<msg::Stop>();
  EXPECT_FALSE(stops.at(0).at_boundary);
  EXPECT_FALSE(stops.at(1).at_boundary);
}

TEST_F(StopAtBoundary, IsGivenUpAfterStopMaxAndTheNodesAfterAnother) {
  story_.AfterInTouch(Ms(9900), {0, 1, 2});
  EXPECT_TRUE(story_.Sent<msg::Stop>().at(0).at_boundary);
  story_.AfterInTouch(Ms(100), {0, 1, 2});
  EXPECT_FALSE(story_.Sent<msg::Stop>().at(0).at_boundary);
  story_.AfterInTouch(Ms(9900), {0, 1, 2});
  EXPECT_THAT(story_.Blamed(), IsEmpty());
  story_.AfterInTouch(Ms(100), {0, 1, 2});
  EXPECT_THAT(story_.Blamed(), SizeIs(2));
}

// ---- a node whose ranks do not stop

class StuckNode : public testing::Test {
 protected:
  // Node 1 is told to stop the newest generation and does not.
  void NodeOneGetsStuck(Generation generation, std::vector<Holding> left_on_node_zero) {
    story_.Report(1, NodeStage::kStopping, generation);
    story_.Report(0, NodeStage::kBroken, generation);
    story_.Stopped(0, generation, std::move(left_on_node_zero));
    const absl::Time began = story_.now();
    story_.AfterInTouch(Ms(10'100), {0, 1, 2});
    EXPECT_THAT(story_.Blamed(), ElementsAre(std::pair(1, EvidenceKind::kUnkillable)));
    EXPECT_THAT(story_.When<Coordinator::Append>(began), ElementsAre(absl::Seconds(10)));
  }
  CoordinatorStory story_{3, {}, CoordinatorStory::TwoAndASpare()};
};

TEST_F(StuckNode, IsDoneWithoutAfterStopMax) {
  story_.LogStaysAsItIs();
  story_.RunAll();
  NodeOneGetsStuck(1, {});
  EXPECT_THAT(Seated(story_), ElementsAre(0, 2));
}

TEST_F(StuckNode, IsUsedAgainWhenItsRanksHaveStopped) {
  story_.LogStaysAsItIs();
  story_.RunAll();
  NodeOneGetsStuck(1, {});
  story_.Win();
  story_.Stopped(1, 1);
  story_.Report(1, NodeStage::kStopped, 1);
  for (NodeId node : {0, 2}) story_.Present(node, 2);
  story_.Report(0, NodeStage::kBroken, 2, LosesItsSlot);
  for (NodeId node : {0, 2}) story_.Stopped(node, 2);
  EXPECT_THAT(Seated(story_), ElementsAre(1, 2));
}

TEST_F(StuckNode, WhatItHeldBeforeIsNotCountedUpon) {
  story_.LogStaysAsItIs();
  story_.RunAll();
  story_.Report(0, NodeStage::kBroken, 1);
  story_.Stopped(0, 1, {{1, 40, 0}});
  story_.Stopped(1, 1, {{1, 40, 1}});
  EXPECT_EQ(story_.Win().step, 40);
  for (NodeId node : {0, 1}) story_.Present(node, 2);
  NodeOneGetsStuck(2, {{1, 40, 0}});
  EXPECT_EQ(story_.append()->step, 0) << "of the checkpoint";
}

// ---- afterwards

TEST(CoordinatorStops, BlamesNobodyForStepsOfAGenerationThatIsOver) {
  LayoutRule rule = CoordinatorStory::Rule();
  rule.data = rule.data_min = 2;
  rule.wait_max = absl::Hours(1);
  CoordinatorStory story(2, {}, rule);
  story.LogStaysAsItIs();
  story.RunAll();
  story.Report(0, NodeStage::kRunning, 1, [](msg::Report& r) { r.finished = 5; });
  story.Report(1, NodeStage::kRunning, 1, [](msg::Report& r) { r.finished = 4; });
  story.Report(1, NodeStage::kBroken, 1, LosesItsSlot);
  for (NodeId node : {0, 1}) story.Stopped(node, 1);
  ASSERT_EQ(story.phase(), Phase::kWaiting) << story.said();
  story.AfterInTouch(absl::Minutes(11), {0, 1});
  EXPECT_THAT(story.Blamed(), IsEmpty());
}

TEST(CoordinatorStops, WhatIsLeftOfOlderGenerationsWhereverItShows) {
  CoordinatorStory story(3, {}, CoordinatorStory::TwoAndASpare());
  story.RunAll();
  story.After(Ms(600));
  story.Report(2, NodeStage::kRunning, 1);
  EXPECT_EQ(story.Sent<msg::Stop>().at(2), (msg::Stop{.term = 0, .generation = 1}))
      << "it has no seat";
}

TEST(CoordinatorStops, WhatRunsWhileItWaits) {
  LayoutRule rule = CoordinatorStory::Rule();
  rule.data = rule.data_min = 2;
  rule.wait_max = absl::Hours(1);
  CoordinatorStory story(2, {}, rule);
  story.RunAll();
  story.Report(1, NodeStage::kBroken, 1, LosesItsSlot);
  for (NodeId node : {0, 1}) story.Stopped(node, 1);
  ASSERT_EQ(story.phase(), Phase::kWaiting);
  story.After(Ms(600));
  story.Report(0, NodeStage::kRunning, 1);
  EXPECT_THAT(story.Sent<msg::Stop>(), SizeIs(1));
}

}  // namespace
}  // namespace perdure
