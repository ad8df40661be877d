// A coordinator whose generations end: what the next START says about it, and when there is none.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/control/coordinator_story.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Kind = EvidenceKind;
using Phase = Coordinator::Phase;

// Two ranks on three nodes.
class CoordinatorTries : public testing::Test {
 protected:
  CoordinatorTries() {
    story_.LogStaysAsItIs();
    story_.RunAll();
  }
  Generation generation() { return story_.lead().layout().generation; }
  void Broken(NodeId node, Kind kind, StepIndex finished, int64_t number = 0) {
    story_.Report(node, NodeStage::kBroken, generation(), [=](msg::Report& r) {
      r.finished = finished;
      r.failed_local_rank = 0;
      r.failure = kind;
      r.failure_number = number;
    });
  }
  // All hold the state of `step`.
  void StopAll(StepIndex step) {
    const PlacedLayout layout = story_.lead().layout();
    for (size_t rank = 0; rank < layout.seats.size(); ++rank)
      story_.Stopped(layout.seats[rank].node, layout.generation,
                     {{layout.generation, step, static_cast<int32_t>(rank)}});
  }
  // A rank of node `node`, all at `step`; the next generation's START, which is won.
  LogEntry Fail(NodeId node, Kind kind, StepIndex step, int64_t number = 0) {
    Broken(node, kind, step, number);
    StopAll(step);
    EXPECT_TRUE(story_.Appends(EntryKind::kStart)) << story_.said();
    const LogEntry start = story_.Win();
    story_.RunOn();
    EXPECT_EQ(story_.phase(), Phase::kRunning);
    return start;
  }
  const Failure& Says() const { return story_.append()->failure; }

  CoordinatorStory story_{3, {}, CoordinatorStory::TwoAndASpare()};
};

// ---- what START says

TEST_F(CoordinatorTries, AndSaysWhyTheGenerationBeforeEnded) {
  Broken(1, Kind::kOutOfMemory, 12, 9);
  StopAll(12);
  ASSERT_TRUE(story_.Appends(EntryKind::kStart));
  EXPECT_EQ(Says(),
            (Failure{.kind = Kind::kOutOfMemory, .number = 9, .step = 12, .node = NodeId{1}}));
}

TEST_F(CoordinatorTries, AndKnowsTheLastStepThatAnybodyFinished) {
  Broken(1, Kind::kRankCrashed, 12);
  story_.Report(0, NodeStage::kStopping, 1, [](msg::Report& r) { r.finished = 13; });
  story_.Report(2, NodeStage::kIdle, 0, [](msg::Report& r) { r.finished = 99; });
  StopAll(12);
  EXPECT_EQ(Says().step, 13) << "and not what a spare finished once";
}

TEST_F(CoordinatorTries, AndKnowsWhereItBeganIfNothingWasFinished) {
  Fail(1, Kind::kRankCrashed, 12);
  story_.Report(1, NodeStage::kBroken, 2, [](msg::Report& r) {
    r.failed_local_rank = 0;
    r.finished = 0;
  });
  StopAll(12);
  EXPECT_EQ(Says().step, 12);
}

TEST_F(CoordinatorTries, AndSaysNothingFailedWhereNothingDid) {
  story_.Do(Coordinator::Drain{1, true});
  story_.AfterInTouch(absl::Seconds(1), {0, 1, 2});
  ASSERT_EQ(story_.phase(), Phase::kStopping);
  story_.Report(0, NodeStage::kStopping, 1, [](msg::Report& r) { r.finished = 7; });
  StopAll(7);
  EXPECT_EQ(Says(), (Failure{.kind = std::nullopt, .number = 0, .step = 7, .node = {}}));
}

TEST_F(CoordinatorTries, AndForgetsItWithTheGeneration) {
  EXPECT_EQ(Fail(1, Kind::kOutOfMemory, 12).failure.kind, Kind::kOutOfMemory);
  EXPECT_EQ(Fail(0, Kind::kRankKilled, 14, 11).failure,
            (Failure{.kind = Kind::kRankKilled, .number = 11, .step = 14, .node = NodeId{0}}));
}

TEST_F(CoordinatorTries, AndBlamesWhoFailedFirst) {
  Broken(1, Kind::kRankKilled, 12);
  Broken(0, Kind::kRankCrashed, 12);
  StopAll(12);
  EXPECT_EQ(Says().kind, Kind::kRankKilled);
  EXPECT_EQ(Says().node, NodeId{1});
}

// Connections break because of something; who sees it first may be the faster to say so.
TEST_F(CoordinatorTries, AndNotWhoseConnectionsBroke) {
  Broken(0, Kind::kNetworkError, 12);
  Broken(1, Kind::kRankKilled, 12);
  StopAll(12);
  EXPECT_EQ(Says().kind, Kind::kRankKilled);
}

TEST_F(CoordinatorTries, AndKnowsNetworksThatFailByThemselves) {
  Broken(0, Kind::kNetworkError, 12);
  Broken(1, Kind::kNetworkError, 12);
  StopAll(12);
  EXPECT_EQ(Says().kind, Kind::kNetworkError);
  EXPECT_EQ(Says().node, NodeId{0});
}

TEST_F(CoordinatorTries, AndKnowsNodesThatAreLost) {
  for (NodeId node : {0, 1}) story_.Report(node, NodeStage::kRunning, 1);
  story_.AfterInTouch(Ms(2100), {0, 2});
  ASSERT_EQ(story_.phase(), Phase::kStopping);
  StopAll(12);
  EXPECT_EQ(Says().kind, Kind::kNodeLost);
  EXPECT_EQ(Says().node, NodeId{1});
}

TEST_F(CoordinatorTries, AndDoesNotBlameASpareThatIsLost) {
  for (NodeId node : {0, 1}) story_.Report(node, NodeStage::kRunning, 1);
  story_.Report(2, NodeStage::kIdle);
  story_.AfterInTouch(Ms(2100), {0, 1});
  Broken(0, Kind::kRankCrashed, 12);
  StopAll(12);
  EXPECT_EQ(Says().kind, Kind::kRankCrashed);
}

TEST_F(CoordinatorTries, AndKnowsAgentsThatComeBackWithoutTheirRanks) {
  story_.Report(1, NodeStage::kIdle, 0, [](msg::Report& r) { r.incarnation = 700; });
  ASSERT_EQ(story_.phase(), Phase::kStopping);
  StopAll(12);
  EXPECT_EQ(Says().kind, Kind::kNodeLost);
  EXPECT_EQ(Says().node, NodeId{1});
}

TEST_F(CoordinatorTries, AndKnowsWhoHangs) {
  for (int second = 0; second < 620 && story_.phase() == Phase::kRunning; ++second) {
    for (NodeId node : {0, 1})
      story_.Report(node, NodeStage::kRunning, 1,
                    [node](msg::Report& r) { r.finished = node == 1; });
    story_.Report(2, NodeStage::kIdle);
    story_.After(absl::Seconds(1));
  }
  ASSERT_EQ(story_.phase(), Phase::kStopping);
  const absl::Time stops = story_.now();
  for (const auto& [_, stop] : story_.Sent<msg::Stop>()) EXPECT_TRUE(stop.stalled);
  story_.AfterInTouch(absl::Seconds(1), {0, 1, 2});
  ASSERT_FALSE(story_.WhenSent<msg::Stop>(0, stops).empty()) << "and says it again";
  for (const auto& [_, stop] : story_.Sent<msg::Stop>()) EXPECT_TRUE(stop.stalled);
  StopAll(0);
  EXPECT_EQ(Says(), (Failure{.kind = Kind::kHung, .number = 0, .step = 1, .node = NodeId{0}}));
}

TEST_F(CoordinatorTries, AndKnowsWhoDoesNotStart) {
  Broken(1, Kind::kRankKilled, 12);
  for (const auto& [_, stop] : story_.Sent<msg::Stop>())
    EXPECT_FALSE(stop.stalled) << "others may be in the middle of a step";
  StopAll(12);
  story_.Win();
  story_.Report(0, NodeStage::kReady, 2);
  const NodeId other = story_.lead().members().back();
  story_.Report(other, NodeStage::kLoading, 2);
  story_.AfterInTouch(absl::Minutes(10), {0, 1, 2});
  ASSERT_EQ(story_.phase(), Phase::kStopping);
  StopAll(12);
  ASSERT_TRUE(story_.Appends(EntryKind::kStart));
  EXPECT_EQ(Says().kind, Kind::kStartFailed);
  EXPECT_EQ(Says().node, other);
}

// ---- what is tried, and for how long

TEST_F(CoordinatorTries, MemoryOnceThenACheckpointThenNothing) {
  Fail(0, Kind::kRankCrashed, 12);
  const LogEntry second = Fail(1, Kind::kRankCrashed, 12);
  EXPECT_EQ(second.step, 0) << "there is no checkpoint: the run begins anew";
  EXPECT_THAT(story_.said(), HasSubstr("2 times in a row a generation ended after step 12"));
  Broken(0, Kind::kRankCrashed, 12);
  StopAll(12);
  ASSERT_TRUE(story_.Appends(EntryKind::kEnd)) << story_.said();
  EXPECT_EQ(story_.Win().exit_code, kExitPersonMustLook);
  EXPECT_THAT(story_.said(), HasSubstr("3 times in a row a generation ended after step 12"));
  EXPECT_THAT(story_.said(), HasSubstr("rank crashed on node 0; a person must look"));
}

TEST_F(CoordinatorTries, MemoryOnceMore) { EXPECT_EQ(Fail(0, Kind::kRankCrashed, 12).step, 12); }

TEST_F(CoordinatorTries, AsOftenAsItGoesOn) {
  for (StepIndex step = 12; step < 30; ++step)
    EXPECT_EQ(Fail(0, Kind::kRankCrashed, step).step, step);
}

TEST_F(CoordinatorTries, AsOftenAsItIsNotTheProgram) {
  for (int i = 0; i < 10; ++i) EXPECT_EQ(Fail(0, Kind::kStorageError, 12).step, 12);
}

// What the generation before left in memory is what it failed with.
TEST_F(CoordinatorTries, NoMemoryOfWhatFailedTwiceAlsoLater) {
  Fail(0, Kind::kRankCrashed, 12);
  Broken(1, Kind::kRankCrashed, 12);
  StopAll(12);
  ASSERT_EQ(story_.Win().step, 0);
  // It did not get as far as a step: the others' memory is there still.
  Broken(0, Kind::kStorageError, 0);
  const PlacedLayout layout = story_.lead().layout();
  for (size_t rank = 0; rank < layout.seats.size(); ++rank)
    story_.Stopped(layout.seats[rank].node, layout.generation,
                   {{2, 12, static_cast<int32_t>(rank)}});
  ASSERT_TRUE(story_.Appends(EntryKind::kStart));
  EXPECT_EQ(story_.append()->step, 0);
}

TEST_F(CoordinatorTries, AnotherNodeWhereOneFailedBothTimes) {
  EXPECT_THAT(NodesOf(*Fail(1, Kind::kRankCrashed, 12).layout), ElementsAre(0, 1));
  EXPECT_THAT(NodesOf(*Fail(1, Kind::kRankCrashed, 12).layout), ElementsAre(0, 2));
  for (NodeId node : {0, 2}) story_.Report(node, NodeStage::kRunning, generation());
  story_.Report(1, NodeStage::kIdle);
  story_.AfterInTouch(absl::Seconds(30), {0, 1, 2});
  EXPECT_EQ(story_.phase(), Phase::kRunning) << "and does not go back to it";
}

TEST_F(CoordinatorTries, NothingWhereTrainingItselfFailed) {
  Broken(1, Kind::kTrainingFailed, 12);
  StopAll(12);
  ASSERT_TRUE(story_.Appends(EntryKind::kEnd));
  EXPECT_EQ(story_.Win().exit_code, kExitPersonMustLook);
  EXPECT_THAT(story_.said(), HasSubstr("training failed"));
}

TEST_F(CoordinatorTries, NothingAlsoWhereThatIsHeardWhileRanksStop) {
  Broken(0, Kind::kNetworkError, 12);
  Broken(1, Kind::kTrainingFailed, 12);
  StopAll(12);
  EXPECT_TRUE(story_.Appends(EntryKind::kEnd));
}

TEST_F(CoordinatorTries, NothingButWithTheCodeThatWasSaidBefore) {
  story_.Do(Coordinator::EndJob{2});
  Broken(1, Kind::kTrainingFailed, 12);
  StopAll(12);
  EXPECT_EQ(story_.Win().exit_code, 2);
}

TEST_F(CoordinatorTries, NothingWhereTheJobWasToStopAndItsStateIsLost) {
  story_.Do(Coordinator::EndJob{75});
  Broken(1, Kind::kRankCrashed, 12);
  for (NodeId node : {0, 1, 2}) story_.Stopped(node, 1);
  EXPECT_EQ(story_.Win().exit_code, kExitUnsaved);
}

// The log has what was tried before.
TEST(CoordinatorTakesOver, AndKnowsHowOftenItWasTried) {
  const auto failed = [](Slot slot, Generation generation, StepIndex step) {
    LogEntry start = Start(slot, generation, {0, 1});
    start.step = step;
    start.failure = {.kind = Kind::kRankCrashed, .number = 1, .step = 12, .node = NodeId{0}};
    return start;
  };
  CoordinatorStory story(
      2, View({Lead(0, 1), Start(1, 1, {0, 1}), failed(2, 2, 12), failed(3, 3, 0)}));
  story.Win();
  story.Report(0, NodeStage::kBroken, 3, [](msg::Report& r) {
    r.failed_local_rank = 0;
    r.finished = 12;
  });
  story.Report(1, NodeStage::kRunning, 3, [](msg::Report& r) { r.finished = 12; });
  ASSERT_EQ(story.phase(), Phase::kStopping);
  for (NodeId node : {0, 1}) story.Stopped(node, 3, {{3, 12, static_cast<int32_t>(node)}});
  ASSERT_TRUE(story.Appends(EntryKind::kEnd)) << story.said();
  EXPECT_EQ(story.Win().exit_code, kExitPersonMustLook);
}

TEST(CoordinatorTakesOver, AndKnowsWhereItsGenerationBegan) {
  LogEntry start = Start(1, 1, {0, 1});
  start.step = 40;
  CoordinatorStory story(2, View({Lead(0, 1), start}));
  story.Win();
  story.Report(0, NodeStage::kLoading, 1);
  story.Report(1, NodeStage::kLoading, 1);
  for (NodeId node : {0, 1}) story.Stopped(node, 1);
  ASSERT_TRUE(story.Appends(EntryKind::kStart));
  EXPECT_EQ(story.append()->failure, (Failure{.kind = {}, .number = 0, .step = 40, .node = {}}));
}

TEST(CoordinatorEnds, WithTheCodeOfACompleteRun) {
  ControlOptions options = CoordinatorStory::Options();
  options.done_code = 5;
  CoordinatorStory story(1, {}, CoordinatorStory::Rule(), options);
  story.RunAll();
  story.SaveAll(12);
  story.Done(0, 12);
  story.Stopped(0, 1);
  EXPECT_EQ(story.Win().exit_code, 5);
}

}  // namespace
}  // namespace perdure
