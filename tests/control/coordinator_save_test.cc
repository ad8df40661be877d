// A coordinator that saves: when, what it asks of whom, what counts, what it gives up.
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

// Nodes 0 and 1 run generation 1; a save a minute, of step 12.
class CoordinatorSaves : public testing::Test {
 protected:
  CoordinatorSaves() {
    story_.LogStaysAsItIs();
    story_.RunAll();
    for (NodeId node : {0, 1}) story_.Report(node, NodeStage::kRunning, 1);
  }
  // `node` reports what it has frozen.
  void Says(NodeId node, StepIndex frozen) {
    story_.Report(node, NodeStage::kRunning, 1, [=](msg::Report& r) { r.frozen = frozen; });
  }
  void Wrote(NodeId node, int32_t attempt, bool ok = true) {
    story_.Wrote(node, kStep, attempt, ok);
  }
  void Vote(NodeId node, int32_t file, bool ok = true, int32_t attempt = 1,
            StepIndex step = kStep) {
    story_.Hear(
        node,
        msg::Voted{
            .term = 0, .generation = 1, .step = step, .attempt = attempt, .file = file, .ok = ok});
  }
  void Join(int32_t attempt, std::vector<int> readers = {1, 0}) {
    story_.Do(Coordinator::PartsJoined{1, kStep, attempt, std::move(readers), {"A", "B"}, true});
  }
  // To the named point; each goes through those before it.
  void Freeze(StepIndex step = kStep) {
    story_.Do(Coordinator::SaveNow{});
    for (NodeId node : {0, 1}) Says(node, step);
    EXPECT_THAT(story_.All<Coordinator::MeasureRoom>(), SizeIs(1));
  }
  void Write() {
    Freeze();
    story_.Do(Coordinator::Measured{1, kStep, true});
    EXPECT_THAT(story_.Sent<msg::Write>(), SizeIs(2));
  }
  void Verify() {
    Write();
    for (NodeId node : {0, 1}) Wrote(node, 1);
    EXPECT_THAT(story_.All<Coordinator::JoinParts>(), SizeIs(1));
    Join(1);
    EXPECT_THAT(story_.Sent<msg::Verify>(), SizeIs(2));
  }
  void Publish() {
    Verify();
    Vote(1, 0);
    Vote(0, 1);
    EXPECT_TRUE(story_.Appends(EntryKind::kCommit));
  }
  // Node 0's share of the first attempt could not be written.
  void WriteAgain() {
    Write();
    Wrote(0, 1, false);
    Wrote(1, 1);
    ASSERT_THAT(story_.Sent<msg::Write>(), SizeIs(2));
    ASSERT_EQ(story_.Sent<msg::Write>().at(1).attempt, 2);
  }

  CoordinatorStory story_{2};
};

// ---- when

TEST_F(CoordinatorSaves, EverySaveEveryAndAsksUntilAStateIsFrozen) {
  story_.AfterInTouch(Ms(61'200), {0, 1});
  EXPECT_THAT(
      story_.WhenSent<msg::Save>(0, kStart),
      ElementsAre(absl::Minutes(1), absl::Minutes(1) + Ms(500), absl::Minutes(1) + Ms(1000)));
  EXPECT_THAT(story_.WhenSent<msg::Save>(1, kStart), IsEmpty()) << "the node of rank 0 tells";
  Says(1, 66);
  story_.AfterInTouch(absl::Seconds(5), {0, 1});
  EXPECT_THAT(story_.Sent<msg::Save>(), IsEmpty());
}

TEST_F(CoordinatorSaves, OfAStepBehindTheCheckpoint) {
  story_.Do(Coordinator::SaveNow{});
  EXPECT_EQ(story_.Sent<msg::Save>().at(0).after, -1);
  EXPECT_FALSE(story_.Sent<msg::Save>().at(0).last);
  Publish();
  story_.Win();
  story_.Do(Coordinator::SaveNow{});
  EXPECT_EQ(story_.Sent<msg::Save>().at(0).after, kStep);
}

TEST_F(CoordinatorSaves, OfAStepBehindTheOneThatWasGivenUp) {
  Freeze();
  story_.Do(Coordinator::Measured{1, kStep, false});
  story_.Do(Coordinator::SaveNow{});
  EXPECT_EQ(story_.Sent<msg::Save>().at(0).after, kStep);
}

TEST_F(CoordinatorSaves, OneAtATime) {
  Freeze();
  story_.Do(Coordinator::SaveNow{});
  EXPECT_TRUE(story_.DoesNothing());
}

// Who takes it over and hears nothing else must know that the next state is the last.
TEST_F(CoordinatorSaves, AndSaysBesideThatTheJobEndsUntilItIsHeard) {
  Freeze();
  const absl::Time frozen = story_.now();
  story_.Do(Coordinator::EndJob{75});
  story_.AfterInTouch(Ms(1'700), {0, 1});
  EXPECT_GE(story_.WhenSent<msg::Save>(0, frozen).size(), 3U);
  EXPECT_EQ(story_.Sent<msg::Save>().at(0).after, kStep);
  EXPECT_TRUE(story_.Sent<msg::Save>().at(0).last);
}

TEST_F(CoordinatorSaves, AndSaysBesideThatTheJobEndsWhoeverFroze) {
  story_.Do(Coordinator::EndJob{75});
  const absl::Time asked = story_.now();
  for (NodeId node : {0, 1}) Says(node, kStep);
  story_.AfterInTouch(Ms(1'700), {0, 1});
  EXPECT_GE(story_.WhenSent<msg::Save>(0, asked).size(), 3U);
  EXPECT_EQ(story_.Sent<msg::Save>().at(0).after, kStep);
}

TEST(CoordinatorSavesBeside, NothingThatASpareSaysItWrote) {
  CoordinatorStory story(3, {}, CoordinatorStory::TwoAndASpare());
  story.Do(Coordinator::Drain{1, true});
  story.RunAll();
  ASSERT_EQ(story.lead().members(), (std::vector<NodeId>{0, 2}));
  const auto frozen = [](msg::Report& r) { r.frozen = kStep; };
  for (NodeId node : {0, 2}) story.Report(node, NodeStage::kRunning, 1, frozen);
  story.Do(Coordinator::Measured{1, kStep, true});
  story.Wrote(1, kStep, 1);
  story.Wrote(0, kStep, 1);
  EXPECT_THAT(story.All<Coordinator::JoinParts>(), IsEmpty());
  story.Wrote(2, kStep, 1);
  EXPECT_THAT(story.All<Coordinator::JoinParts>(), SizeIs(1));
}

TEST_F(CoordinatorSaves, AgainSaveEveryAfterTheLastWasSettled) {
  Publish();
  story_.AfterInTouch(absl::Seconds(20), {0, 1});
  const absl::Time settled = story_.now();
  story_.Win();
  for (NodeId node : {0, 1}) Says(node, -1);
  story_.AfterInTouch(Ms(60'100), {0, 1});
  EXPECT_EQ(story_.WhenSent<msg::Save>(0, settled), std::vector{absl::Minutes(1)});
}

// ---- what counts

TEST_F(CoordinatorSaves, WhenEachNodeHoldsTheSameStep) {
  story_.Do(Coordinator::SaveNow{});
  Says(0, kStep);
  Says(0, kStep);
  Says(1, kStep + 1);
  EXPECT_THAT(story_.All<Coordinator::MeasureRoom>(), IsEmpty());
  Says(1, kStep);
  EXPECT_THAT(story_.All<Coordinator::MeasureRoom>(), SizeIs(1));
}

// Every so many steps, at the end of a phase, at the last step.
TEST_F(CoordinatorSaves, WhatRanksFreezeByThemselves) {
  for (NodeId node : {0, 1}) Says(node, kStep);
  EXPECT_THAT(story_.All<Coordinator::MeasureRoom>(), SizeIs(1));
  EXPECT_THAT(story_.Sent<msg::Settle>(), IsEmpty());
  story_.AfterInTouch(absl::Seconds(70), {0, 1});
  EXPECT_THAT(story_.Sent<msg::Save>(), IsEmpty()) << "one at a time";
}

// A coordinator before this one told node 0 to let go of it: it is past that step without it.
TEST_F(CoordinatorSaves, NothingThatOneOfThemHasNotAnyMore) {
  Says(1, kStep);
  story_.Report(0, NodeStage::kRunning, 1, [](msg::Report& r) { r.finished = kStep; });
  EXPECT_THAT(story_.Sent<msg::Settle>(), IsEmpty()) << "it may freeze it yet";
  story_.Report(0, NodeStage::kRunning, 1, [](msg::Report& r) { r.finished = kStep + 1; });
  ASSERT_THAT(story_.Sent<msg::Settle>(), SizeIs(2));
  EXPECT_EQ(story_.Sent<msg::Settle>().at(1).step, kStep);
  EXPECT_FALSE(story_.Sent<msg::Settle>().at(1).committed);
  ASSERT_THAT(story_.Sent<msg::Save>(), SizeIs(1)) << "another at once";
  EXPECT_EQ(story_.Sent<msg::Save>().at(0).after, kStep);
  story_.AfterInTouch(Ms(600), {1});
  EXPECT_THAT(story_.Sent<msg::Settle>(), SizeIs(1)) << "until it has let go";
  for (NodeId node : {0, 1}) Says(node, kStep + 1);
  EXPECT_THAT(story_.All<Coordinator::MeasureRoom>(), SizeIs(1));
}

TEST_F(CoordinatorSaves, NothingThatTheOthersArePast) {
  Says(0, kStep + 1);
  story_.After(Ms(600));
  Says(1, kStep);
  EXPECT_EQ(story_.Sent<msg::Settle>().at(1).step, kStep);
  Says(1, kStep + 1);
  EXPECT_THAT(story_.All<Coordinator::MeasureRoom>(), SizeIs(1));
}

TEST_F(CoordinatorSaves, WhatIsPublishedWhoeverHasLetGo) {
  Publish();
  story_.Report(0, NodeStage::kRunning, 1, [](msg::Report& r) { r.finished = kStep + 5; });
  EXPECT_THAT(story_.Sent<msg::Settle>(), IsEmpty()) << "it may be committed";
  story_.Win();
  EXPECT_TRUE(story_.Sent<msg::Settle>().at(1).committed);
}

TEST_F(CoordinatorSaves, WhatFitsAndBelongsToIt) {
  Freeze();
  story_.Do(Coordinator::Measured{2, kStep, true});
  story_.Do(Coordinator::Measured{1, kStep - 1, true});
  EXPECT_TRUE(story_.DoesNothing());
}

TEST_F(CoordinatorSaves, WritesSaidAgainUntilTheyAreDone) {
  Write();
  story_.AfterInTouch(Ms(1200), {0, 1});
  EXPECT_THAT(story_.WhenSent<msg::Write>(1, kStart), ElementsAre(Ms(500), Ms(1000)));
  Wrote(1, 1);
  story_.AfterInTouch(Ms(1200), {1});
  EXPECT_THAT(story_.WhenSent<msg::Write>(1, kStart), IsEmpty());
}

TEST_F(CoordinatorSaves, PartsWhenEachNodeHasWrittenIts) {
  Write();
  Wrote(0, 1);
  Wrote(0, 1);
  EXPECT_THAT(story_.All<Coordinator::JoinParts>(), IsEmpty());
  Wrote(1, 1);
  ASSERT_THAT(story_.All<Coordinator::JoinParts>(), SizeIs(1));
  EXPECT_EQ(story_.All<Coordinator::JoinParts>()[0].attempt, 1);
  EXPECT_THAT(story_.All<Coordinator::JoinParts>()[0].packed,
              ElementsAre("0 wrote 1", "1 wrote 1"));
}

TEST_F(CoordinatorSaves, WhatWasWrittenForThisSaveAlone) {
  Write();
  story_.Wrote(0, kStep - 1, 1);
  story_.Wrote(0, kStep, 2);
  story_.Wrote(0, kStep, 0);
  story_.Wrote(0, kStep, 1, true, 2);
  story_.Hear(0, msg::Wrote{.term = 5, .generation = 1, .step = kStep, .attempt = 1, .ok = true});
  Wrote(1, 1);
  EXPECT_THAT(story_.All<Coordinator::JoinParts>(), IsEmpty());
  Wrote(0, 1);
  EXPECT_THAT(story_.All<Coordinator::JoinParts>(), SizeIs(1));
}

// Its agent was replaced: what it told of its ranks is gone, with who votes.
TEST_F(CoordinatorSaves, WrittenOrderedAgainWhereAnAgentCameBack) {
  Verify();
  story_.After(Ms(600));
  story_.Report(1, NodeStage::kRunning, 1, [](msg::Report& r) {
    r.incarnation = 700;
    r.frozen = kStep;
  });
  ASSERT_THAT(story_.Sent<msg::Write>(), SizeIs(1));
  EXPECT_THAT(story_.Sent<msg::Verify>(), IsEmpty()) << "it does not know yet what it has written";
  Wrote(1, 1);
  EXPECT_THAT(story_.All<Coordinator::JoinParts>(), IsEmpty()) << "they are joined";
  story_.AfterInTouch(Ms(600), {1});
  EXPECT_EQ(story_.Sent<msg::Verify>().at(1).packed, "A");
}

TEST_F(CoordinatorSaves, ASecondTimeWithWhatIsWrittenThen) {
  WriteAgain();
  Wrote(0, 2);
  EXPECT_THAT(story_.All<Coordinator::JoinParts>(), IsEmpty());
  Wrote(1, 2);
  ASSERT_THAT(story_.All<Coordinator::JoinParts>(), SizeIs(1));
  EXPECT_THAT(story_.All<Coordinator::JoinParts>()[0].packed,
              ElementsAre("0 wrote 2", "1 wrote 2"));
}

TEST_F(CoordinatorSaves, TheNextWithWhatIsWrittenForIt) {
  Publish();
  story_.Win();
  for (NodeId node : {0, 1}) Says(node, -1);
  Freeze(kStep + 9);
  story_.Do(Coordinator::Measured{1, kStep + 9, true});
  story_.Wrote(0, kStep + 9, 1);
  EXPECT_THAT(story_.All<Coordinator::JoinParts>(), IsEmpty());
  story_.Wrote(1, kStep + 9, 1);
  EXPECT_THAT(story_.All<Coordinator::JoinParts>(), SizeIs(1));
}

TEST_F(CoordinatorSaves, FilesOfPartsThatBelongToItAndReadersThatItKnows) {
  Write();
  for (NodeId node : {0, 1}) Wrote(node, 1);
  const auto joined = [&](Generation generation, StepIndex step, int32_t attempt) {
    story_.Do(Coordinator::PartsJoined{generation, step, attempt, {1, 0}, {"A", "B"}, true});
  };
  joined(2, kStep, 1);
  joined(1, kStep + 1, 1);
  joined(1, kStep, 2);
  EXPECT_TRUE(story_.DoesNothing());
  Join(1, {1, 2});
  EXPECT_THAT(story_.Sent<msg::Verify>(), IsEmpty());
  EXPECT_EQ(story_.Sent<msg::Write>().at(0).attempt, 2) << "once more";
}

TEST_F(CoordinatorSaves, FilesOfWhichItIsToldWhatIsInThem) {
  Write();
  for (NodeId node : {0, 1}) Wrote(node, 1);
  story_.Do(Coordinator::PartsJoined{1, kStep, 1, {1, 0}, {"A"}, true});
  EXPECT_THAT(story_.Sent<msg::Verify>(), IsEmpty());
  EXPECT_EQ(story_.Sent<msg::Write>().at(0).attempt, 2) << "once more";
  for (NodeId node : {0, 1}) Wrote(node, 2);
  Join(2);
  const auto verify = story_.Sent<msg::Verify>();
  EXPECT_EQ(verify.at(1).file, 0);
  EXPECT_EQ(verify.at(1).packed, "A");
  EXPECT_EQ(verify.at(0).file, 1);
  EXPECT_EQ(verify.at(0).packed, "B");
}

TEST_F(CoordinatorSaves, VotesAskedForAgain) {
  Verify();
  story_.AfterInTouch(Ms(1200), {0, 1});
  EXPECT_THAT(story_.WhenSent<msg::Verify>(1, kStart), ElementsAre(Ms(500), Ms(1000)));
  EXPECT_EQ(story_.Sent<msg::Verify>().at(1).file, 0);
  EXPECT_EQ(story_.Sent<msg::Verify>().at(1).packed, "A");
  Vote(1, 0);
  story_.AfterInTouch(Ms(1200), {0, 1});
  EXPECT_THAT(story_.WhenSent<msg::Verify>(1, kStart), IsEmpty());
}

TEST_F(CoordinatorSaves, VotesOfThisSaveByItsReaders) {
  Verify();
  Vote(1, 0);
  Vote(1, 0);                      // Twice.
  Vote(1, 1);                      // Not its file.
  Vote(0, 1, true, 2);             // Of another attempt,
  Vote(0, 1, true, 1, kStep - 1);  // of another step,
  Vote(0, 1, true, 1, kStep + 1);
  story_.Hear(0, msg::Voted{.term = 5,  // to another coordinator,
                            .generation = 1,
                            .step = kStep,
                            .attempt = 1,
                            .file = 1,
                            .ok = true});
  story_.Hear(0, msg::Voted{.term = 0,  // on another generation.
                            .generation = 2,
                            .step = kStep,
                            .attempt = 1,
                            .file = 1,
                            .ok = true});
  EXPECT_FALSE(story_.append().has_value());
  Vote(0, 1);
  ASSERT_TRUE(story_.Appends(EntryKind::kCommit));
  EXPECT_EQ(story_.append()->step, kStep);
  EXPECT_EQ(story_.append()->generation, 1u);
  EXPECT_EQ(story_.All<Coordinator::Append>()[0].attempt, 1);
}

TEST_F(CoordinatorSaves, AndTellsEachMemberUntilItHasLetGo) {
  Publish();
  EXPECT_THAT(story_.All<Coordinator::SaveOver>(), IsEmpty());
  story_.Win();
  ASSERT_THAT(story_.All<Coordinator::SaveOver>(), SizeIs(1));
  EXPECT_EQ(story_.All<Coordinator::SaveOver>()[0].step, kStep);
  EXPECT_EQ(story_.All<Coordinator::SaveOver>()[0].generation, 1u);
  EXPECT_TRUE(story_.All<Coordinator::SaveOver>()[0].committed);
  const auto settles = story_.Sent<msg::Settle>();
  ASSERT_THAT(settles, SizeIs(2));
  EXPECT_EQ(settles.at(1).step, kStep);
  EXPECT_TRUE(settles.at(1).committed);
  story_.AfterInTouch(Ms(1200), {0, 1});
  EXPECT_THAT(story_.WhenSent<msg::Settle>(1, kStart), ElementsAre(Ms(500), Ms(1000)));
  EXPECT_TRUE(story_.Sent<msg::Settle>().at(1).committed);
}

// ---- a second attempt

TEST_F(CoordinatorSaves, OnceMoreWhenAPartCouldNotBeWritten) {
  WriteAgain();
  Wrote(0, 1, false);
  Wrote(1, 1);
  EXPECT_THAT(story_.All<Coordinator::JoinParts>(), IsEmpty()) << "that was the first attempt";
  for (NodeId node : {0, 1}) Wrote(node, 2);
  ASSERT_THAT(story_.All<Coordinator::JoinParts>(), SizeIs(1));
  Join(2);
  Vote(1, 0, true, 1);
  Vote(0, 1, true, 1);
  EXPECT_FALSE(story_.append().has_value()) << "on files of the first";
  Vote(1, 0, true, 2);
  Vote(0, 1, true, 2);
  ASSERT_TRUE(story_.Appends(EntryKind::kCommit));
  EXPECT_EQ(story_.All<Coordinator::Append>()[0].attempt, 2);
}

TEST_F(CoordinatorSaves, OnceMoreWhenAFileIsBad) {
  Verify();
  Vote(1, 0, false);
  EXPECT_THAT(story_.Sent<msg::Write>(), IsEmpty()) << "others may still read";
  Vote(0, 1);
  ASSERT_THAT(story_.Sent<msg::Write>(), SizeIs(2));
  EXPECT_EQ(story_.Sent<msg::Write>().at(0).attempt, 2);
}

TEST_F(CoordinatorSaves, NotAThirdTime) {
  WriteAgain();
  Wrote(0, 2, false);
  Wrote(1, 2);
  EXPECT_THAT(story_.Sent<msg::Write>(), IsEmpty());
  ASSERT_THAT(story_.Sent<msg::Settle>(), SizeIs(2));
  EXPECT_FALSE(story_.Sent<msg::Settle>().at(0).committed);
  ASSERT_THAT(story_.All<Coordinator::SaveOver>(), SizeIs(1));
  EXPECT_FALSE(story_.All<Coordinator::SaveOver>()[0].committed);
  EXPECT_THAT(story_.said(), HasSubstr("checkpoint of step 12 given up"));
  EXPECT_EQ(story_.phase(), Phase::kRunning);
}

// ---- what is given up

TEST_F(CoordinatorSaves, ForSaveMaxAtMost) {
  Write();
  const auto minutes = [&](int count) { story_.AfterInTouch(absl::Minutes(count), {0, 1}); };
  minutes(29);
  EXPECT_THAT(story_.Sent<msg::Settle>(), IsEmpty());
  minutes(1);
  ASSERT_THAT(story_.All<Coordinator::SaveOver>(), SizeIs(1));
  EXPECT_FALSE(story_.All<Coordinator::SaveOver>()[0].committed);
  EXPECT_FALSE(story_.Sent<msg::Settle>().at(1).committed);
  EXPECT_EQ(story_.WhenSent<msg::Settle>(1, kStart).front(), absl::Minutes(30));
  for (NodeId node : {0, 1}) Says(node, -1);
  story_.AfterInTouch(Ms(60'100), {0, 1});
  EXPECT_EQ(story_.WhenSent<msg::Save>(0, kStart).front(), absl::Minutes(31));
}

TEST_F(CoordinatorSaves, AndNeverGivesUpWhatMayBeCommitted) {
  Publish();
  story_.AfterInTouch(absl::Minutes(31), {0, 1});
  EXPECT_THAT(story_.Sent<msg::Settle>(), IsEmpty());
  story_.Win();
  EXPECT_TRUE(story_.Sent<msg::Settle>().at(0).committed);
}

// Ranks that wait for the state that they froze to be settled do not hang.
TEST_F(CoordinatorSaves, WaitedForIsNoStall) {
  const auto report = [&](bool waits) {
    for (NodeId node : {0, 1})
      story_.Report(node, NodeStage::kRunning, 1, [=](msg::Report& r) {
        r.frozen = kStep;
        r.finished = kStep + 1;
        r.waits = waits && node == 1;
      });
  };
  story_.Report(0, NodeStage::kRunning, 1, [](msg::Report& r) { r.finished = 1; });
  story_.Report(1, NodeStage::kRunning, 1, [](msg::Report& r) { r.finished = 1; });
  report(true);
  story_.AfterInTouch(absl::Minutes(15) + absl::Seconds(5), {0, 1});
  EXPECT_EQ(story_.phase(), Phase::kRunning) << story_.said();
  EXPECT_THAT(story_.Blamed(), IsEmpty());
  report(false);
  story_.AfterInTouch(absl::Seconds(9), {0, 1});
  EXPECT_EQ(story_.phase(), Phase::kRunning) << "the wait for the step begins now";
  story_.AfterInTouch(absl::Seconds(2), {0, 1});
  EXPECT_EQ(story_.phase(), Phase::kStopping);
}

TEST_F(CoordinatorSaves, NothingOfAGenerationThatIsOver) {
  Verify();
  story_.Report(0, NodeStage::kBroken, 1);
  ASSERT_EQ(story_.phase(), Phase::kStopping);
  ASSERT_THAT(story_.All<Coordinator::SaveOver>(), SizeIs(1));
  EXPECT_FALSE(story_.All<Coordinator::SaveOver>()[0].committed);
  Vote(1, 0);
  Vote(0, 1);
  EXPECT_FALSE(story_.append().has_value());
  for (NodeId node : {0, 1}) story_.Stopped(node, 1);
  story_.Win();
  story_.RunOn();
  ASSERT_EQ(story_.phase(), Phase::kRunning);
  const absl::Time runs = story_.now();
  story_.AfterInTouch(Ms(60'100), {0, 1});
  EXPECT_EQ(story_.WhenSent<msg::Save>(0, runs), std::vector{absl::Minutes(1)});
}

// The COMMIT may be in the log: what is decided next must know it.
TEST_F(CoordinatorSaves, AndDecidesNothingBeforeItsCommitIsKnown) {
  Publish();
  const LogEntry commit = *story_.append();
  story_.Report(0, NodeStage::kBroken, 1);
  story_.Stopped(0, 1, {{1, 10, 0}});
  story_.Stopped(1, 1, {{1, 10, 1}});
  EXPECT_TRUE(story_.Appends(EntryKind::kCommit)) << "no START before it";
  story_.Win();
  ASSERT_TRUE(story_.Appends(EntryKind::kStart));
  EXPECT_EQ(story_.append()->step, commit.step) << "not 10";
  EXPECT_EQ(story_.append()->slot, commit.slot + 1);
}

TEST_F(CoordinatorSaves, NotBeforeMembersRun) {
  CoordinatorStory story(1);
  story.Win();
  story.Do(Coordinator::SaveNow{});
  story.Report(0, NodeStage::kIdle);
  story.Do(Coordinator::SaveNow{});
  story.Win();
  story.RunOn();
  ASSERT_EQ(story.phase(), Phase::kRunning);
  story.AfterInTouch(absl::Seconds(10), {0});
  EXPECT_THAT(story.Sent<msg::Save>(), IsEmpty());
}

TEST(CoordinatorTakesOver, AndLetsGoWhatWasFrozenForAnother) {
  CoordinatorStory story(2, View({Lead(0, 1),
                                  Start(1, 1, {0, 1}),
                                  {.slot = 2,
                                   .kind = EntryKind::kCommit,
                                   .author = {.at = {kJob, 1}, .incarnation = 1},
                                   .generation = 1,
                                   .step = 30,
                                   .layout = {}}}));
  story.Win();
  story.Report(0, NodeStage::kRunning, 1, [](msg::Report& r) { r.frozen = 30; });
  story.Report(1, NodeStage::kRunning, 1, [](msg::Report& r) { r.frozen = 31; });
  EXPECT_TRUE(story.Sent<msg::Settle>().at(0).committed) << "the log says so";
  EXPECT_FALSE(story.Sent<msg::Settle>().at(1).committed);
  story.Do(Coordinator::SaveNow{});
  EXPECT_EQ(story.Sent<msg::Save>().at(0).after, 31);
}

// What one was told to drop will never be whole, whoever else has it still.
TEST(CoordinatorTakesOver, AndSavesNothingThatItToldSomebodyToDrop) {
  CoordinatorStory story(2, View({Lead(0, 1), Start(1, 1, {0, 1})}));
  story.Win();
  story.Report(0, NodeStage::kRunning, 1, [](msg::Report& r) { r.frozen = 31; });
  story.Report(1, NodeStage::kRunning, 1);
  ASSERT_EQ(story.Sent<msg::Settle>().at(0).step, 31);
  story.Do(Coordinator::SaveNow{});
  story.After(absl::Seconds(1));
  story.Report(1, NodeStage::kRunning, 1, [](msg::Report& r) { r.frozen = 31; });
  EXPECT_EQ(story.Sent<msg::Settle>().at(1).step, 31);
  for (NodeId node : {0, 1})
    story.Report(node, NodeStage::kRunning, 1, [](msg::Report& r) { r.frozen = 32; });
  EXPECT_THAT(story.All<Coordinator::MeasureRoom>(), SizeIs(1));
}

TEST_F(CoordinatorSaves, OnceMoreWhenItsManifestCannotBeMade) {
  Publish();
  story_.Do(Coordinator::Unpublished{});
  ASSERT_THAT(story_.Sent<msg::Write>(), SizeIs(2));
  EXPECT_EQ(story_.Sent<msg::Write>().at(0).attempt, 2);
  const absl::Time given_up = story_.now();
  for (NodeId node : {0, 1}) Wrote(node, 2);
  Join(2);
  Vote(1, 0, true, 2);
  Vote(0, 1, true, 2);
  ASSERT_THAT(story_.When<Coordinator::Append>(given_up), SizeIs(1));
  story_.Do(Coordinator::Unpublished{});
  ASSERT_THAT(story_.Sent<msg::Settle>(), SizeIs(2));
  EXPECT_FALSE(story_.Sent<msg::Settle>().at(0).committed);
  for (NodeId node : {0, 1}) Says(node, -1);
  Freeze(kStep + 1);  // And the next one is not in its way.
}

// A try before this one may still get the slot.
TEST_F(CoordinatorSaves, AndDoesNotGiveUpACommitThatMayBeThere) {
  Publish();
  const LogEntry commit = *story_.append();
  story_.Do(Coordinator::Appended{std::nullopt});
  story_.AfterInTouch(absl::Seconds(2), {0, 1});
  story_.Do(Coordinator::Unpublished{});
  EXPECT_THAT(story_.Sent<msg::Settle>(), IsEmpty());
  story_.AfterInTouch(absl::Seconds(2), {0, 1});
  ASSERT_TRUE(story_.Appends(EntryKind::kCommit));
  EXPECT_EQ(story_.append()->id, commit.id);
  story_.Win();
  EXPECT_TRUE(story_.Sent<msg::Settle>().at(0).committed);
}

TEST(CoordinatorLeads, UnpublishedIsOfACommitAlone) {
  CoordinatorStory story(1);
  story.Do(Coordinator::Unpublished{});
  EXPECT_TRUE(story.Appends(EntryKind::kLead));
  story.Win();
  EXPECT_EQ(story.phase(), Phase::kGathering);
}

// However late it is told, and of which checkpoint.
TEST(CoordinatorTakesOver, AndKnowsWhatItsGenerationHasCommitted) {
  const auto commit = [](Slot slot, StepIndex step) {
    return LogEntry{.slot = slot,
                    .kind = EntryKind::kCommit,
                    .author = {.at = {kJob, 1}, .incarnation = 1},
                    .generation = 1,
                    .step = step,
                    .layout = {}};
  };
  CoordinatorStory story(3,
                         View({Lead(0, 1), Start(1, 1, {0, 1, 2}), commit(2, 30), commit(3, 40)}));
  story.Win();
  story.Report(0, NodeStage::kRunning, 1, [](msg::Report& r) { r.frozen = 30; });
  story.Report(1, NodeStage::kRunning, 1, [](msg::Report& r) { r.frozen = 35; });
  story.Report(2, NodeStage::kRunning, 1, [](msg::Report& r) { r.frozen = 40; });
  EXPECT_TRUE(story.Sent<msg::Settle>().at(0).committed);
  EXPECT_FALSE(story.Sent<msg::Settle>().at(1).committed);
  EXPECT_TRUE(story.Sent<msg::Settle>().at(2).committed);
}

}  // namespace
}  // namespace perdure
