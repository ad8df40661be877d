// A coordinator that changes a layout although nothing failed, where memory keeps no snapshots: a
// checkpoint comes first, with which all ranks wait, so that no step is taken again.
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

constexpr StepIndex kStep = 12;

// Nodes 0 and 1 run generation 1, node 2 is a spare; a save a minute. Node 1 is to be done without.
class CoordinatorSavesFirst : public testing::Test {
 protected:
  CoordinatorSavesFirst() {
    story_.LogStaysAsItIs();
    story_.RunAll();
    for (NodeId node : {0, 1}) Runs(node);
  }
  void Runs(NodeId node) {
    story_.Report(node, NodeStage::kRunning, 1, [this](msg::Report& r) {
      r.no_snapshots = true;
      r.finished = kStep + absl::ToInt64Seconds(story_.now() - kStart);
    });
  }
  // It waits with the state of that step.
  void Waits(NodeId node, StepIndex step = kStep) {
    story_.Report(node, NodeStage::kRunning, 1, [=](msg::Report& r) {
      r.no_snapshots = r.waits = true;
      r.frozen = r.finished = step;
    });
  }
  // It has it and goes on.
  void GoesOn(NodeId node) {
    story_.Report(node, NodeStage::kRunning, 1, [=](msg::Report& r) {
      r.no_snapshots = true;
      r.frozen = kStep;
      r.finished = kStep + 1;
    });
  }
  void Drain() {
    story_.Do(Coordinator::Drain{1, true});
    story_.AfterInTouch(Ms(500), {0, 1, 2});
  }
  // What is frozen is written, read back and committed.
  void Commit(StepIndex step = kStep) {
    story_.Do(Coordinator::Measured{1, step, true});
    for (NodeId node : {0, 1}) story_.Wrote(node, step, 1);
    story_.Do(Coordinator::PartsJoined{1, step, 1, {0}, {"A"}, true});
    story_.Hear(0, msg::Voted{.term = 0, .generation = 1, .step = step, .attempt = 1, .ok = true});
    ASSERT_EQ(story_.Win().kind, EntryKind::kCommit);
  }
  LogEntry Started() {
    for (NodeId node : {0, 1}) story_.Stopped(node, 1);
    EXPECT_TRUE(story_.Appends(EntryKind::kStart)) << story_.said();
    return story_.append().value_or(LogEntry{});
  }

  CoordinatorStory story_{3, {}, CoordinatorStory::TwoAndASpare()};
};

TEST_F(CoordinatorSavesFirst, AtOnceWhereMemoryKeepsTheState) {
  for (NodeId node : {0, 1}) story_.Report(node, NodeStage::kRunning, 1);
  Drain();
  EXPECT_EQ(story_.phase(), Phase::kStopping);
  EXPECT_THAT(story_.WhenSent<msg::Save>(0, kStart), IsEmpty());
}

TEST_F(CoordinatorSavesFirst, BehindACheckpointThatAllWaitWith) {
  Drain();
  EXPECT_EQ(story_.phase(), Phase::kRunning);
  EXPECT_THAT(story_.said(), HasSubstr("a checkpoint first, because memory keeps no snapshots"));
  EXPECT_THAT(story_.said(), HasSubstr("drained: node 1"));
  ASSERT_THAT(story_.Sent<msg::Save>(), SizeIs(1));
  EXPECT_TRUE(story_.Sent<msg::Save>().at(0).pause);
  EXPECT_FALSE(story_.Sent<msg::Save>().at(0).last);
  for (NodeId node : {0, 1}) Waits(node);
  Commit();
  EXPECT_EQ(story_.phase(), Phase::kStopping);
  EXPECT_THAT(story_.Sent<msg::Settle>(), IsEmpty()) << "they would go on";
  EXPECT_TRUE(story_.Sent<msg::Stop>().at(0).at_boundary);
  const LogEntry start = Started();
  EXPECT_EQ(start.step, kStep);
  EXPECT_TRUE(start.from_checkpoint);
  EXPECT_FALSE(start.failure.kind.has_value());
  EXPECT_THAT(NodesOf(*start.layout), ElementsAre(0, 2));
}

TEST_F(CoordinatorSavesFirst, AsksUntilAllWaitAndNotBeyond) {
  Drain();
  const absl::Time asked = story_.now();
  story_.AfterInTouch(Ms(1'100), {0, 1, 2});
  EXPECT_THAT(story_.WhenSent<msg::Save>(0, asked), SizeIs(2));
  // What they froze by themselves is not what they wait with.
  for (NodeId node : {0, 1}) GoesOn(node);
  const absl::Time frozen = story_.now();
  story_.AfterInTouch(Ms(1'100), {0, 1, 2});
  EXPECT_THAT(story_.WhenSent<msg::Save>(0, frozen), SizeIs(2));
  EXPECT_EQ(story_.Sent<msg::Save>().at(0).after, kStep);
  for (NodeId node : {0, 1}) Waits(node);
  story_.AfterInTouch(absl::Seconds(5), {0, 1, 2});
  EXPECT_THAT(story_.Sent<msg::Save>(), IsEmpty()) << "they would wait with one more";
}

TEST_F(CoordinatorSavesFirst, NotBehindAStateThatSomebodyGoesBeyond) {
  Drain();
  Waits(0);
  GoesOn(1);
  Commit();
  EXPECT_EQ(story_.phase(), Phase::kRunning);
  EXPECT_THAT(story_.Sent<msg::Settle>(), SizeIs(2));
  for (NodeId node : {0, 1}) Runs(node);
  const absl::Time committed = story_.now();
  story_.AfterInTouch(Ms(600), {0, 1, 2});
  EXPECT_THAT(story_.WhenSent<msg::Save>(0, committed), testing::Not(IsEmpty())) << "again";
  EXPECT_EQ(story_.Sent<msg::Save>().at(0).after, kStep);
  EXPECT_TRUE(story_.Sent<msg::Save>().at(0).pause);
}

TEST_F(CoordinatorSavesFirst, NotAtAllWhereNothingCanBeSaved) {
  Drain();
  for (NodeId node : {0, 1}) Waits(node);
  story_.Do(Coordinator::Measured{1, kStep, false});
  EXPECT_EQ(story_.phase(), Phase::kRunning);
  EXPECT_THAT(story_.Sent<msg::Settle>(), SizeIs(2)) << "they go on";
  for (NodeId node : {0, 1}) Runs(node);
  const absl::Time given_up = story_.now();
  story_.AfterInTouch(absl::Seconds(61), {0, 1, 2});
  ASSERT_FALSE(story_.WhenSent<msg::Save>(0, given_up).empty());
  EXPECT_GE(story_.WhenSent<msg::Save>(0, given_up).front(), absl::Seconds(59)) << "as any other";
  EXPECT_TRUE(story_.Sent<msg::Save>().at(0).pause) << "with the next one";
}

TEST_F(CoordinatorSavesFirst, NotWhenNothingIsToChangeAnyMore) {
  Drain();
  for (NodeId node : {0, 1}) Waits(node);
  story_.Do(Coordinator::Drain{1, false});
  Commit();
  EXPECT_EQ(story_.phase(), Phase::kRunning);
  EXPECT_THAT(story_.Sent<msg::Settle>(), SizeIs(2));
  for (NodeId node : {0, 1}) Runs(node);
  story_.AfterInTouch(absl::Seconds(5), {0, 1, 2});
  EXPECT_THAT(story_.Sent<msg::Save>(), IsEmpty()) << "nor is another asked for";
}

TEST_F(CoordinatorSavesFirst, AtOnceWhenSomethingFails) {
  Drain();
  story_.Report(1, NodeStage::kBroken, 1);
  EXPECT_EQ(story_.phase(), Phase::kStopping);
  EXPECT_EQ(Started().step, 0) << "there is no checkpoint";
  story_.Win();
  story_.RunOn();
  story_.AfterInTouch(absl::Seconds(5), story_.lead().members());
  EXPECT_THAT(story_.Sent<msg::Save>(), IsEmpty()) << "it has changed";
}

TEST_F(CoordinatorSavesFirst, AndASlowNodeIsLeftOutThen) {
  constexpr StepIndex kLater = 60;
  const auto work = [this](NodeId node, bool waits) {
    story_.Report(node, NodeStage::kRunning, 1, [this, node, waits](msg::Report& r) {
      const int64_t ms = absl::ToInt64Milliseconds(story_.now() - kStart);
      const int64_t percent = node == 1 ? 300 : 100;
      r.works = {{.steps = ms / 100, .leaves = ms / 100, .nanoseconds = ms * 10'000 * percent}};
      r.no_snapshots = true;
      r.finished = kStep + ms / 1000;
      r.waits = waits;
      if (waits) r.frozen = r.finished = kLater;
    });
  };
  for (NodeId node : {0, 1}) work(node, false);
  story_.AfterInTouch(absl::Seconds(40), {0, 1, 2});
  EXPECT_EQ(story_.phase(), Phase::kRunning);
  EXPECT_THAT(story_.lead().slow(), ElementsAre(Coordinator::SlowNode{1, 300, false}))
      << "it is named, and used still";
  for (NodeId node : {0, 1}) work(node, true);
  Commit(kLater);
  EXPECT_EQ(story_.phase(), Phase::kStopping);
  EXPECT_THAT(story_.lead().slow(), ElementsAre(Coordinator::SlowNode{1, 300, true}));
  const LogEntry start = Started();
  EXPECT_EQ(start.step, kLater);
  EXPECT_EQ(start.failure.kind, EvidenceKind::kSlow);
  EXPECT_THAT(NodesOf(*start.layout), ElementsAre(0, 2));
}

}  // namespace
}  // namespace perdure
