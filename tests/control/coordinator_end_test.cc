// A coordinator that ends its job: with a save first, when nobody can step, once.
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

void Frozen(msg::Report& report) { report.frozen = 12; }

TEST(CoordinatorEnds, AJobAfterASaveAtABoundary) {
  CoordinatorStory story(1);
  story.RunAll();
  story.Do(Coordinator::EndJob{75});
  ASSERT_THAT(story.Sent<msg::Save>(), SizeIs(1));
  EXPECT_TRUE(story.Sent<msg::Save>()[0].last);
  EXPECT_EQ(story.phase(), Phase::kRunning) << "until it is saved";
  story.Report(0, NodeStage::kRunning, 1, Frozen);
  story.Do(Coordinator::Measured{1, 12, true});
  story.Wrote(0, 12, 1);
  story.Do(Coordinator::PartsJoined{1, 12, 1, {0}, {"A"}, true});
  story.Hear(0, msg::Voted{.term = 0, .generation = 1, .step = 12, .attempt = 1, .ok = true});
  EXPECT_EQ(story.Win().kind, EntryKind::kCommit);
  EXPECT_THAT(story.Sent<msg::Settle>(), SizeIs(1));
  EXPECT_THAT(story.Sent<msg::Stop>(), IsEmpty()) << "the ranks are about to be done";
  story.Done(0, 12);
  ASSERT_THAT(story.Sent<msg::Stop>(), SizeIs(1));
  story.Stopped(0, 1);
  const LogEntry end = story.Win();
  EXPECT_EQ(end.kind, EntryKind::kEnd);
  EXPECT_EQ(end.exit_code, 75);
  EXPECT_EQ(end.step, 12) << "what the next job begins with";
  EXPECT_EQ(story.Sent<msg::Bye>().at(0).exit_code, 75);
  ASSERT_THAT(story.All<Coordinator::Finished>(), SizeIs(1));
  EXPECT_EQ(story.All<Coordinator::Finished>()[0].exit_code, 75);
}

// Whose state is elsewhere.
ControlOptions KeepsNoState() {
  ControlOptions options = CoordinatorStory::Options();
  options.keeps_state = false;
  return options;
}

TEST(CoordinatorEnds, AJobThatKeepsNoStateAtABoundary) {
  CoordinatorStory story(1, {}, CoordinatorStory::Rule(), KeepsNoState());
  story.RunAll();
  story.Do(Coordinator::SaveNow{});
  story.AfterInTouch(absl::Minutes(3), {0});
  EXPECT_THAT(story.Sent<msg::Save>(), IsEmpty()) << "there is nothing to save";
  story.Report(0, NodeStage::kRunning, 1, [](msg::Report& report) { report.finished = 12; });
  story.Do(Coordinator::EndJob{75});
  EXPECT_THAT(story.Sent<msg::Save>(), IsEmpty());
  ASSERT_THAT(story.Sent<msg::Stop>(), SizeIs(1));
  EXPECT_TRUE(story.Sent<msg::Stop>()[0].at_boundary);
  story.Stopped(0, 1);
  const LogEntry end = story.Win();
  EXPECT_EQ(end.kind, EntryKind::kEnd);
  EXPECT_EQ(end.exit_code, 75);
}

TEST(CoordinatorEnds, AJobThatKeepsNoStateIsComplete) {
  CoordinatorStory story(1, {}, CoordinatorStory::Rule(), KeepsNoState());
  story.RunAll();
  story.Done(0, 12);
  story.Stopped(0, 1);
  EXPECT_EQ(story.Win().exit_code, 0) << "though no checkpoint has step 12";
}

TEST(CoordinatorEnds, AJobWhoseLastSaveFails) {
  CoordinatorStory story(1);
  story.RunAll();
  story.Do(Coordinator::EndJob{75});
  story.Report(0, NodeStage::kRunning, 1, Frozen);
  story.Do(Coordinator::Measured{1, 12, false});
  story.Done(0, 12);
  EXPECT_THAT(story.said(), HasSubstr("the state of step 12 could not be saved"));
  story.Stopped(0, 1);
  EXPECT_EQ(story.Win().exit_code, kExitUnsaved) << "nobody may take it for a good end";
}

// A file system that does not answer: whoever waits for it is not waited for.
TEST(CoordinatorEnds, AJobWhoseLastSaveTakesTooLong) {
  CoordinatorStory story(1);
  story.LogStaysAsItIs();
  story.RunAll();
  story.Do(Coordinator::EndJob{75});
  const auto stands = [](msg::Report& report) {
    Frozen(report);
    report.waits = true;
    report.finished = 12;
  };
  story.Report(0, NodeStage::kRunning, 1, stands);
  story.Do(Coordinator::Measured{1, 12, true});
  story.AfterInTouch(CoordinatorStory::Options().save_max + absl::Seconds(1), {0});
  ASSERT_EQ(story.phase(), Phase::kStopping);
  EXPECT_THAT(story.said(), HasSubstr("the state of step 12 could not be saved"));
  story.Stopped(0, 1);
  EXPECT_EQ(story.Win().exit_code, kExitUnsaved);
}

TEST(CoordinatorEnds, AJobWhoseSaveIsUnderWayWhenThatIsOver) {
  CoordinatorStory story(1);
  story.RunAll();
  story.Do(Coordinator::SaveNow{});
  story.Report(0, NodeStage::kRunning, 1, Frozen);
  story.Do(Coordinator::EndJob{75});
  // Said beside it, and again: ranks that freeze by themselves have the next state at once.
  ASSERT_THAT(story.Sent<msg::Save>(), SizeIs(1));
  EXPECT_TRUE(story.Sent<msg::Save>()[0].last);
  EXPECT_EQ(story.Sent<msg::Save>()[0].after, 12) << "a later one than this";
  const absl::Time said = story.now();
  story.AfterInTouch(Ms(1100), {0});
  EXPECT_THAT(story.WhenSent<msg::Save>(0, said), ElementsAre(Ms(500), Ms(1000)));
  story.Do(Coordinator::Measured{1, 12, true});
  story.Wrote(0, 12, 1);
  story.Do(Coordinator::PartsJoined{1, 12, 1, {0}, {"A"}, true});
  story.Hear(0, msg::Voted{.term = 0, .generation = 1, .step = 12, .attempt = 1, .ok = true});
  EXPECT_EQ(story.Win().kind, EntryKind::kCommit);
  // Steps were taken since: the newest state is the last one to be kept.
  EXPECT_THAT(story.Sent<msg::Stop>(), IsEmpty());
  ASSERT_THAT(story.Sent<msg::Save>(), SizeIs(1));
  EXPECT_TRUE(story.Sent<msg::Save>()[0].last);
  EXPECT_EQ(story.Sent<msg::Save>()[0].after, 12);
  story.SaveAll(15);
  story.Done(0, 15);
  story.Stopped(0, 1);
  const LogEntry end = story.Win();
  EXPECT_EQ(end.exit_code, 75);
  EXPECT_EQ(end.step, 15);
}

// Also behind one that failed.
TEST(CoordinatorEnds, AJobWhoseSaveUnderWayFails) {
  CoordinatorStory story(1);
  story.RunAll();
  story.Do(Coordinator::SaveNow{});
  story.Report(0, NodeStage::kRunning, 1, Frozen);
  story.Do(Coordinator::EndJob{75});
  story.Do(Coordinator::Measured{1, 12, false});
  ASSERT_THAT(story.Sent<msg::Save>(), SizeIs(1));
  EXPECT_TRUE(story.Sent<msg::Save>()[0].last);
  story.SaveAll(15);
  story.Done(0, 15);
  story.Stopped(0, 1);
  EXPECT_EQ(story.Win().exit_code, 75);
}

// What is done behind the last step, and its records, belong to the job.
TEST(CoordinatorEnds, AJobWhenTheStoreHasWoundUp) {
  CoordinatorStory story(1);
  story.StoreIsBusy();
  story.RunAll();
  story.SaveAll(12);
  story.Done(0, 12);
  story.Stopped(0, 1);
  EXPECT_THAT(story.All<Coordinator::WindUp>(), SizeIs(1));
  EXPECT_EQ(story.phase(), Phase::kEnding);
  EXPECT_FALSE(story.append().has_value());
  story.LogStaysAsItIs();
  story.AfterInTouch(absl::Hours(1), {0});
  EXPECT_FALSE(story.append().has_value());
  EXPECT_THAT(story.All<Coordinator::WindUp>(), IsEmpty()) << "once";
  story.Do(Coordinator::Note{7});
  story.Do(Coordinator::WoundUp{});
  EXPECT_EQ(story.Win().kind, EntryKind::kNote) << "what was noted comes before";
  EXPECT_EQ(story.Win().kind, EntryKind::kEnd);
  story.Do(Coordinator::WoundUp{});
  EXPECT_TRUE(story.DoesNothing());
}

void Broken(msg::Report& report) {
  report.finished = 40;
  report.failed_local_rank = 0;
  report.failure = EvidenceKind::kRankCrashed;
}

// A job that is told to end, and whose ranks fail then with the state of `step` in memory: what is
// written of it.
LogEntry BreaksAtItsEnd(CoordinatorStory& story, StepIndex step) {
  story.RunAll();
  story.Do(Coordinator::EndJob{75});
  story.Report(0, NodeStage::kBroken, 1, Broken);
  story.Stopped(0, 1, {{1, step, 0}});
  return story.Win();
}

// What memory holds and no checkpoint does is worth one more generation.
TEST(CoordinatorEnds, AJobThatFailsBeforeItIsSavedWhenItIs) {
  CoordinatorStory story(1);
  const LogEntry start = BreaksAtItsEnd(story, 40);
  ASSERT_EQ(start.kind, EntryKind::kStart);
  EXPECT_EQ(start.step, 40);
  EXPECT_THAT(story.Sent<msg::Prepare>(), SizeIs(1));
  story.RunOn();
  ASSERT_EQ(story.phase(), Phase::kRunning);
  story.Report(0, NodeStage::kRunning, 2);
  ASSERT_THAT(story.All<Coordinator::Send>(), testing::Not(IsEmpty()));
  story.SaveAll(40);
  story.Done(0, 40);
  story.Stopped(0, 2, {{2, 40, 0}});
  const LogEntry end = story.Win();
  EXPECT_EQ(end.kind, EntryKind::kEnd);
  EXPECT_EQ(end.exit_code, 75);
  EXPECT_EQ(end.step, 40);
}

// What every run begins with is not.
TEST(CoordinatorEnds, AJobThatHoldsWhatItBeganWith) {
  CoordinatorStory story(1);
  EXPECT_EQ(BreaksAtItsEnd(story, 0).kind, EntryKind::kEnd);
}

TEST(CoordinatorEnds, AJobThatIsRecoveringWhenItIsSaved) {
  CoordinatorStory stopping(1), forming(1);
  for (CoordinatorStory* story : {&stopping, &forming}) {
    story->RunAll();
    story->Report(0, NodeStage::kBroken, 1, Broken);
  }
  stopping.Do(Coordinator::EndJob{75});
  stopping.Stopped(0, 1, {{1, 40, 0}});
  EXPECT_EQ(stopping.Win().kind, EntryKind::kStart);
  forming.Stopped(0, 1, {{1, 40, 0}});
  EXPECT_EQ(forming.Win().kind, EntryKind::kStart);
  forming.Do(Coordinator::EndJob{75});
  for (CoordinatorStory* story : {&stopping, &forming}) {
    EXPECT_EQ(story->phase(), Phase::kForming) << story->said();
    story->RunOn();
    EXPECT_EQ(story->phase(), Phase::kRunning) << story->said();
  }
}

// It ends all the same: what cannot be kept is not tried for ever, and what no node is left for not
// at all.
TEST(CoordinatorEnds, AJobThatFailsAgainAndAgainBeforeItIsSaved) {
  CoordinatorStory story(1);
  story.RunAll();
  story.Do(Coordinator::EndJob{75});
  for (Generation generation = 1; story.phase() == Phase::kRunning; ++generation) {
    ASSERT_LE(generation, Generation{kFailuresMax}) << story.said();
    story.Report(0, NodeStage::kBroken, generation, Broken);
    story.Stopped(0, generation, {{generation, 40, 0}});
    if (story.Appends(EntryKind::kEnd)) break;
    ASSERT_EQ(story.Win().kind, EntryKind::kStart) << story.said();
    story.RunOn();
  }
  EXPECT_EQ(story.Win().exit_code, kExitUnsaved);
}

TEST(CoordinatorEnds, AJobWhoseNetworkFailsAgainAndAgainBeforeItIsSaved) {
  CoordinatorStory story(1);
  story.RunAll();
  story.Do(Coordinator::EndJob{75});
  Generation generation = 1;
  for (; !story.Appends(EntryKind::kEnd); ++generation) {
    ASSERT_LT(generation, 10U) << story.said();
    story.Report(0, NodeStage::kBroken, generation, [](msg::Report& report) {
      Broken(report);
      report.failure = EvidenceKind::kNetworkError;
    });
    story.Stopped(0, generation, {{generation, 40, 0}});
    if (story.Appends(EntryKind::kEnd)) break;
    ASSERT_EQ(story.Win().kind, EntryKind::kStart) << story.said();
    story.RunOn();
  }
  EXPECT_EQ(generation, 1U + kFailuresMax);
  EXPECT_EQ(story.Win().exit_code, kExitUnsaved);
}

TEST(CoordinatorEnds, AJobThatCannotWriteOrTrainWithoutAnotherTry) {
  for (const EvidenceKind kind : {EvidenceKind::kStorageError, EvidenceKind::kTrainingFailed}) {
    CoordinatorStory story(1);
    story.RunAll();
    story.Do(Coordinator::EndJob{75});
    story.Report(0, NodeStage::kBroken, 1, [=](msg::Report& report) {
      Broken(report);
      report.failure = kind;
    });
    story.Stopped(0, 1, {{1, 40, 0}});
    ASSERT_TRUE(story.Appends(EntryKind::kEnd)) << story.said();
    EXPECT_EQ(story.Win().exit_code, kExitUnsaved);
  }
}

// It could wait for them, or could not.
TEST(CoordinatorEnds, AJobThatLacksNodesBeforeItIsSaved) {
  for (const absl::Duration wait_max : {absl::Hours(1), absl::ZeroDuration()}) {
    CoordinatorStory story(2, {}, CoordinatorStory::Needs(2, wait_max));
    story.LogStaysAsItIs();
    story.RunAll();
    story.Report(0, NodeStage::kRunning, 1, [](msg::Report& report) { report.finished = 40; });
    story.Do(Coordinator::EndJob{75});
    story.AfterInTouch(absl::Seconds(5), {0});  // The other one is silent.
    story.Stopped(0, 1, {{1, 40, 0}, {1, 40, 1}});
    story.AfterInTouch(absl::Minutes(1), {0});
    ASSERT_TRUE(story.Appends(EntryKind::kEnd)) << story.said();
    EXPECT_EQ(story.Win().exit_code, kExitUnsaved) << story.said();
  }
}

TEST(CoordinatorEnds, AJobWhateverItIsAbout) {
  CoordinatorStory claiming(1), gathering(2), starting(1), forming(1);
  claiming.Do(Coordinator::EndJob{75});
  claiming.Win();
  claiming.Report(0, NodeStage::kIdle);
  gathering.Win();
  gathering.Report(0, NodeStage::kIdle);
  gathering.Do(Coordinator::EndJob{75});
  starting.Win();
  starting.Report(0, NodeStage::kIdle);
  starting.Do(Coordinator::EndJob{75});
  EXPECT_EQ(starting.Win().kind, EntryKind::kStart) << "it may be in its slot already";
  EXPECT_THAT(starting.Sent<msg::Prepare>(), IsEmpty());
  forming.Win();
  forming.Report(0, NodeStage::kIdle);
  forming.Win();
  ASSERT_EQ(forming.phase(), Phase::kForming);
  forming.Report(0, NodeStage::kLoading, 1);
  forming.Do(Coordinator::EndJob{75});
  EXPECT_THAT(forming.Sent<msg::Stop>(), SizeIs(1));
  forming.Stopped(0, 1);
  CoordinatorStory successor(2, View({Lead(0, 1), Start(1, 1, {0, 1})}));
  successor.Win();
  successor.Report(0, NodeStage::kRunning, 1);
  successor.Do(Coordinator::EndJob{75});
  EXPECT_EQ(successor.phase(), Phase::kGathering) << "ranks may run, and hold what is to be saved";
  for (CoordinatorStory* story : {&claiming, &gathering, &starting, &forming}) {
    ASSERT_TRUE(story->Appends(EntryKind::kEnd)) << story->said();
    EXPECT_EQ(story->Win().exit_code, 75);
  }
}

TEST(CoordinatorEnds, AJobThatWaitsForNodes) {
  CoordinatorStory story(2, {}, CoordinatorStory::Needs(2, absl::Hours(1)));
  story.LogStaysAsItIs();
  story.Win();
  story.Report(0, NodeStage::kIdle);
  story.AfterInTouch(absl::Minutes(1), {0});
  ASSERT_EQ(story.phase(), Phase::kWaiting);
  story.Do(Coordinator::EndJob{75});
  EXPECT_TRUE(story.Appends(EntryKind::kEnd));
}

// The agent tells each coordinator that it makes; members run meanwhile.
TEST(CoordinatorEnds, AJobThatItTakesOverWithASaveAtOnce) {
  CoordinatorStory story(2, View({Lead(0, 1), Start(1, 1, {0, 1})}));
  story.Do(Coordinator::EndJob{75});
  story.Win();
  story.Report(0, NodeStage::kRunning, 1);
  story.Report(1, NodeStage::kRunning, 1);
  EXPECT_EQ(story.phase(), Phase::kRunning);
  EXPECT_THAT(story.Sent<msg::Save>(), SizeIs(1));
}

TEST(CoordinatorEnds, WithTheFirstCodeThatWasSaid) {
  CoordinatorStory story(1);
  story.RunAll();
  story.Do(Coordinator::EndJob{75});
  story.Do(Coordinator::EndJob{1});
  story.Report(0, NodeStage::kDone, 1);
  story.Stopped(0, 1);
  EXPECT_EQ(story.Win().exit_code, 75);
}

TEST(CoordinatorEnds, ACompleteRunWhenEachNodeIsDone) {
  CoordinatorStory story(2);
  story.RunAll();
  story.SaveAll(12);
  story.Done(0, 12);
  story.Done(0, 12);
  EXPECT_EQ(story.phase(), Phase::kRunning);
  story.Done(1, 12);
  EXPECT_EQ(story.phase(), Phase::kStopping);
  for (NodeId node : {0, 1}) story.Stopped(node, 1);
  EXPECT_EQ(story.Win().exit_code, 0);
}

// Nobody may take a run for complete whose last state is not kept.
TEST(CoordinatorEnds, WithAFailureWhereTheLastStateIsNotKept) {
  CoordinatorStory story(1);
  story.RunAll();
  story.SaveAll(11);
  story.Done(0, 12);
  EXPECT_THAT(story.said(), HasSubstr("the state of step 12 could not be saved"));
  story.Stopped(0, 1);
  EXPECT_EQ(story.Win().exit_code, kExitUnsaved);
}

// Node 1 is silent and may step until its lease has ended.
TEST(CoordinatorEnds, WhenNobodyCanStepAnyMore) {
  ControlOptions options = CoordinatorStory::Options();
  options.node_silence = Ms(1000);
  CoordinatorStory story(2, {}, CoordinatorStory::Rule(), options);
  story.RunAll();
  story.Do(Coordinator::EndJob{75});
  story.Report(0, NodeStage::kRunning, 1);
  story.Report(1, NodeStage::kRunning, 1);
  const absl::Duration lease = story.LeaseOf(1);
  story.AfterInTouch(Ms(1100), {0});
  ASSERT_EQ(story.phase(), Phase::kStopping);
  story.Stopped(0, 1);
  EXPECT_EQ(story.phase(), Phase::kEnding);
  EXPECT_FALSE(story.append().has_value());
  story.AfterInTouch(absl::Seconds(3), {0});
  EXPECT_THAT(story.When<Coordinator::Append>(kStart), ElementsAre(lease * 101 / 100));
  EXPECT_EQ(story.Win().kind, EntryKind::kEnd);
}

TEST(CoordinatorEnds, OnceAndTellsWhoAsksLater) {
  CoordinatorStory story(2);
  story.RunAll();
  for (NodeId node : {0, 1}) story.Report(node, NodeStage::kDone, 1);
  for (NodeId node : {0, 1}) story.Stopped(node, 1);
  story.Win();
  EXPECT_EQ(story.phase(), Phase::kEnded);
  EXPECT_THAT(story.Sent<msg::Bye>(), SizeIs(2));
  story.Do(Coordinator::EndJob{1});
  story.After(absl::Minutes(5));
  EXPECT_THAT(story.All<Coordinator::Append>(), IsEmpty());
  EXPECT_THAT(story.All<Coordinator::ReadLog>(), IsEmpty()) << "it leads no more";
  story.Report(1, NodeStage::kStopped, 1);
  EXPECT_THAT(story.Sent<msg::Bye>(), SizeIs(1));
  story.Do(Coordinator::LogRead{.asked = story.now(), .entries = {{Lead(3, 1, kOtherJob)}}});
  EXPECT_TRUE(story.resigned().empty()) << "the next job has begun";
  story.Do(Coordinator::Received{{kOtherJob, 1}, msg::Probe{.term = 0}});
  EXPECT_TRUE(story.DoesNothing());
}

}  // namespace
}  // namespace perdure
