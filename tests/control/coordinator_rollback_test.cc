// A coordinator whose ranks come to a bad step: the next generation begins before it, with a gap in
// the samples, and what is of the steps that it leaves does not count any more.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/control/coordinator_story.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;
using Phase = Coordinator::Phase;

constexpr Gap kGap{.first_step = 25, .samples = 60, .bad_step = 27, .number = 1};
const BadStep kBad{.gap = kGap, .why = "gradient norm 9 is above 2"};

LogEntry Commit(Slot slot, StepIndex step, Generation generation = 1) {
  return {.slot = slot,
          .kind = EntryKind::kCommit,
          .author = {.at = {kOtherJob, 1}, .incarnation = 1},
          .generation = generation,
          .step = step,
          .layout = {}};
}

// Nodes 0 and 1, one rank each; the job before has committed steps 20 and 24, and this one runs
// from there.
class CoordinatorGoesBack : public testing::Test {
 protected:
  CoordinatorGoesBack()
      : story_(2, View({Lead(0, 1, kOtherJob), Start(1, 1, {0, 1}, kOtherJob), Commit(2, 20),
                        Commit(3, 24), End(4, 75, kOtherJob)})) {
    story_.LogStaysAsItIs();
    story_.StoreIsSilent();
    story_.Win();
    for (NodeId node : {0, 1}) story_.Report(node, NodeStage::kIdle);
    Answer(24);
    story_.Win();
    story_.RunOn();
  }
  const Coordinator::ChooseCheckpoint Asked() const {
    const auto asked = story_.All<Coordinator::ChooseCheckpoint>();
    EXPECT_THAT(asked, SizeIs(1));
    return asked.empty() ? Coordinator::ChooseCheckpoint{} : asked[0];
  }
  void Answer(std::optional<StepIndex> step) {
    story_.Do(Coordinator::CheckpointChosen{.question = Asked().question,
                                            .step = step,
                                            .packed = step ? "of " + std::to_string(*step) : "",
                                            .ok = true});
  }
  Generation generation() { return story_.lead().layout().generation; }
  void Finds(NodeId node, const BadStep& bad, StepIndex finished = 26) {
    story_.Report(node, NodeStage::kRunning, generation(), [=](msg::Report& r) {
      r.finished = finished;
      r.bad = bad;
    });
  }
  // Both hold the states after these steps.
  void StopAll(const std::vector<StepIndex>& held) {
    const Generation stopped = generation();
    for (NodeId node : {0, 1}) {
      std::vector<Holding> holdings;
      for (const StepIndex step : held)
        holdings.push_back({stopped, step, static_cast<int32_t>(node)});
      story_.Stopped(node, stopped, holdings);
    }
  }

  CoordinatorStory story_;
};

TEST_F(CoordinatorGoesBack, ToACheckpointBeforeTheSteps) {
  Finds(0, kBad);
  EXPECT_EQ(story_.phase(), Phase::kStopping);
  EXPECT_THAT(story_.said(), HasSubstr("step 27 is bad: gradient norm 9 is above 2"));
  EXPECT_FALSE(story_.Sent<msg::Stop>().at(1).at_boundary) << "they stand already";
  StopAll({25, 26});
  EXPECT_THAT(Asked().gaps, ElementsAre(kGap)) << "memory is of steps that are taken again";
  Answer(24);
  ASSERT_TRUE(story_.Appends(EntryKind::kStart));
  EXPECT_EQ(story_.append()->step, 24);
  EXPECT_THAT(story_.append()->gaps, ElementsAre(kGap));
  EXPECT_EQ(story_.append()->failure.kind, std::nullopt) << "nothing failed";
  story_.Win();
  EXPECT_THAT(story_.Sent<msg::Prepare>().at(1).gaps, ElementsAre(kGap));
  const auto went = story_.All<Coordinator::WentBack>();
  ASSERT_THAT(went, SizeIs(1));
  EXPECT_EQ(went[0].generation, generation());
  EXPECT_EQ(went[0].bad, kBad);
  story_.RunOn();
  EXPECT_EQ(story_.phase(), Phase::kRunning);
}

TEST_F(CoordinatorGoesBack, ToMemoryWhereThatIsBeforeTheSteps) {
  Finds(1, {.gap = {.first_step = 26, .samples = 40, .bad_step = 27, .number = 1}, .why = "nan"});
  StopAll({25, 26});
  ASSERT_TRUE(story_.Appends(EntryKind::kStart));
  EXPECT_EQ(story_.append()->step, 25);
  EXPECT_FALSE(story_.append()->from_checkpoint);
  EXPECT_THAT(story_.append()->gaps, SizeIs(1));
}

TEST_F(CoordinatorGoesBack, ToTheNewestOfThemOnly) {
  // Step 26 is committed meanwhile: it is none that the run may go on from.
  story_.SaveAll(26);
  EXPECT_EQ(story_.lead().view().commit_step, 26);
  Finds(0, kBad);
  StopAll({26});
  EXPECT_THAT(Asked().gaps, ElementsAre(kGap));
  Answer(24);
  story_.Win();
  EXPECT_EQ(story_.lead().view().commit_step, 24);
  EXPECT_THAT(story_.lead().view().checkpoints, ElementsAre(20, 24));
  // A checkpoint of such a step is made once more.
  story_.RunOn();
  story_.SaveAll(26);
  EXPECT_THAT(story_.lead().view().checkpoints, ElementsAre(20, 24, 26));
}

// What the new generation says is about other steps.
TEST_F(CoordinatorGoesBack, OnceForOneStep) {
  Finds(0, kBad);
  StopAll({});
  Answer(24);
  story_.Win();
  const Generation again = generation();
  // An old report that comes late, and the same of a node that has not heard of the new one.
  story_.Report(1, NodeStage::kRunning, again - 1, [](msg::Report& r) { r.bad = kBad; });
  EXPECT_EQ(story_.phase(), Phase::kForming);
  story_.RunOn();
  story_.Report(1, NodeStage::kRunning, again, [](msg::Report& r) { r.finished = 24; });
  EXPECT_EQ(story_.phase(), Phase::kRunning);
  // Another bad step has its own gap, behind the first.
  const Gap next{.first_step = 26, .samples = 60, .bad_step = 28, .number = 2};
  Finds(0, {.gap = next, .why = "nan"}, 27);
  StopAll({});
  EXPECT_THAT(Asked().gaps, ElementsAre(kGap, next));
  Answer(24);
  EXPECT_THAT(story_.append()->gaps, ElementsAre(kGap, next));
}

TEST_F(CoordinatorGoesBack, WhenARankFailsMeanwhile) {
  Finds(0, kBad);
  story_.Report(1, NodeStage::kBroken, generation(), [](msg::Report& r) {
    r.failed_local_rank = 0;
    r.failure = EvidenceKind::kRankKilled;
    r.finished = 26;
  });
  StopAll({});
  Answer(24);
  ASSERT_TRUE(story_.Appends(EntryKind::kStart));
  EXPECT_THAT(story_.append()->gaps, ElementsAre(kGap));
  EXPECT_EQ(story_.append()->failure.kind, EvidenceKind::kRankKilled);
  story_.Win();
  EXPECT_THAT(story_.lead().view().failures, IsEmpty()) << "it failed in a step that is left";
}

// It has failed twice behind the last step before the bad one, and fails a third time; but the run
// leaves those steps.
TEST_F(CoordinatorGoesBack, AlsoWhereItWouldNotBeTriedAgain) {
  const auto fails = [this] {
    story_.Report(1, NodeStage::kBroken, generation(), [](msg::Report& r) {
      r.failed_local_rank = 0;
      r.failure = EvidenceKind::kRankCrashed;
      r.finished = 26;
    });
  };
  for (int time = 0; time < 2; ++time) {
    fails();
    StopAll({});
    Answer(24);
    EXPECT_THAT(story_.Win().gaps, IsEmpty());
    story_.RunOn();
  }
  Finds(0, kBad);
  fails();
  StopAll({});
  Answer(24);
  ASSERT_TRUE(story_.Appends(EntryKind::kStart));
  EXPECT_THAT(story_.append()->gaps, ElementsAre(kGap));
}

TEST_F(CoordinatorGoesBack, WhenOnlyWhoIsLateHasFoundIt) {
  // Another failure ends the generation; a report that comes while it stops says what was found.
  story_.Report(1, NodeStage::kBroken, generation(), [](msg::Report& r) {
    r.failed_local_rank = 0;
    r.failure = EvidenceKind::kRankKilled;
    r.finished = 26;
  });
  EXPECT_EQ(story_.phase(), Phase::kStopping);
  Finds(0, kBad);
  StopAll({26});
  EXPECT_THAT(Asked().gaps, ElementsAre(kGap));
}

// Found again by the generation that begins without the gap.
TEST_F(CoordinatorGoesBack, NotForWhatIsHeardBehindTheDecision) {
  story_.Report(1, NodeStage::kBroken, generation(), [](msg::Report& r) {
    r.failed_local_rank = 0;
    r.failure = EvidenceKind::kRankKilled;
    r.finished = 26;
  });
  StopAll({});
  EXPECT_EQ(story_.phase(), Phase::kChoosing);
  const uint64_t question = Asked().question;
  story_.Report(0, NodeStage::kStopped, generation(), [](msg::Report& r) { r.bad = kBad; });
  story_.Do(Coordinator::CheckpointChosen{
      .question = question, .step = 24, .packed = "of 24", .ok = true});
  ASSERT_TRUE(story_.Appends(EntryKind::kStart));
  EXPECT_THAT(story_.append()->gaps, IsEmpty()) << "the checkpoint was asked for without";
  story_.Win();
  EXPECT_THAT(story_.All<Coordinator::WentBack>(), IsEmpty());
}

TEST_F(CoordinatorGoesBack, WhatNoRunHasIsNotBelieved) {
  Finds(0, {.gap = {.first_step = 25, .samples = 0, .bad_step = 27, .number = 1}, .why = ""});
  EXPECT_EQ(story_.phase(), Phase::kRunning);
}

// The job that is to end does: what it would go back to is in a checkpoint.
TEST_F(CoordinatorGoesBack, UnlessTheJobEnds) {
  story_.Do(Coordinator::EndJob{75});
  Finds(0, kBad);
  StopAll({26});
  EXPECT_THAT(story_.said(), HasSubstr("the next one finds it bad again"));
  ASSERT_TRUE(story_.Appends(EntryKind::kEnd));
  EXPECT_EQ(story_.append()->exit_code, 75) << "nothing is lost that would have been kept";
  EXPECT_THAT(story_.said(), Not(HasSubstr("could not be saved")));
}

// A successor hears of it from the members that stand.
TEST(CoordinatorGoesBackLater, UnderTheNextCoordinator) {
  LogEntry start = Start(1, 1, {0, 1});
  CoordinatorStory story(2, View({Lead(0, 1), start, Commit(2, 24)}));
  story.LogStaysAsItIs();
  story.StoreIsSilent();
  story.Win();
  const auto finds = [](msg::Report& r) {
    r.finished = 26;
    r.bad = kBad;
  };
  for (NodeId node : {0, 1}) story.Report(node, NodeStage::kRunning, 1, finds);
  EXPECT_EQ(story.phase(), Phase::kRunning) << "they are taken over as they are";
  story.AfterInTouch(Ms(100), {0, 1});
  EXPECT_EQ(story.phase(), Phase::kStopping);
  for (NodeId node : {0, 1}) story.Stopped(node, 1);
  const auto asked = story.All<Coordinator::ChooseCheckpoint>();
  ASSERT_THAT(asked, SizeIs(1));
  EXPECT_THAT(asked[0].gaps, ElementsAre(kGap));
}

// ---- what the log says

TEST(LogViewOfGaps, KnowsWhichCheckpointsCount) {
  LogView view =
      View({Lead(0, 1), Start(1, 1, {0, 1}), Commit(2, 20), Commit(3, 24), Commit(4, 26)});
  EXPECT_EQ(view.NewestCheckpoint({}), 26);
  EXPECT_EQ(view.NewestCheckpoint({kGap}), 24);
  LogEntry start = Start(5, 2, {0, 1});
  start.step = 24;
  start.from_checkpoint = true;
  start.gaps = {kGap};
  view.Absorb(start);
  EXPECT_EQ(view.commit_step, 24);
  EXPECT_EQ(view.gaps, Gaps{kGap});
  EXPECT_EQ(view.live.back().gaps, Gaps{kGap});
  view.Absorb(Commit(6, 25, 2));
  EXPECT_THAT(view.checkpoints, ElementsAre(20, 24, 25));
  // Behind all of them.
  start = Start(7, 3, {0, 1});
  start.gaps = {{.first_step = 5, .samples = 1, .bad_step = 26, .number = 2}};
  EXPECT_EQ(view.NewestCheckpoint(start.gaps), -1);
  view.Absorb(start);
  EXPECT_EQ(view.commit_step, -1);
}

TEST(LogViewOfGaps, ForgetsFailuresInStepsThatAreLeft) {
  LogView view = View({Lead(0, 1), Start(1, 1, {0, 1})});
  for (Generation generation = 2; generation <= 3; ++generation) {
    LogEntry start = Start(generation, generation, {0, 1});
    start.step = 20;
    start.failure = {.kind = EvidenceKind::kRankCrashed,
                     .step = generation == 2 ? StepIndex{23} : StepIndex{24},
                     .node = NodeId{1}};
    view.Absorb(start);
  }
  ASSERT_THAT(view.failures, SizeIs(1));
  LogEntry start = Start(4, 4, {0, 1});
  start.step = 20;
  start.failure.step = 24;
  start.gaps = {kGap};
  view.Absorb(start);
  EXPECT_THAT(view.failures, IsEmpty()) << "step 25 sees other samples now";
  start.slot = 5;
  start.gaps.push_back({.first_step = 26, .samples = 1, .bad_step = 26, .number = 2});
  start.failure = {.kind = EvidenceKind::kRankCrashed, .step = 24, .node = NodeId{1}};
  view.Absorb(start);
  EXPECT_THAT(view.failures, SizeIs(1)) << "it does not";
}

TEST(LogViewOfGaps, KnowsWhereAnImportedRunBegan) {
  LogEntry start = Start(0, 1, {});
  LogView view = View({start, Commit(1, 1000), End(2, 75)});
  EXPECT_EQ(view.begins, 1000);
  view.Absorb(Lead(3, 0));
  view.Absorb(Start(4, 2, {0}));
  view.Absorb(Commit(5, 1010, 2));
  EXPECT_EQ(view.begins, 1000);
}

}  // namespace
}  // namespace perdure
