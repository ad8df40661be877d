// A coordinator whose next generation needs a state that no memory holds: which checkpoint, what if
// it is bad, when it has proved good.
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

LogEntry Commit(Slot slot, StepIndex step) {
  return {.slot = slot,
          .kind = EntryKind::kCommit,
          .author = {.at = {kOtherJob, 1}, .incarnation = 1},
          .generation = 1,
          .step = step,
          .layout = {}};
}

// Nodes 0 and 1, one rank each; the job before has committed steps 20 and 30.
class CoordinatorChooses : public testing::Test {
 protected:
  explicit CoordinatorChooses(const LayoutRule& rule = CoordinatorStory::Rule())
      : story_(2,
               View({Lead(0, 1, kOtherJob), Start(1, 1, {0, 1}, kOtherJob), Commit(2, 20),
                     Commit(3, 30), End(4, 75, kOtherJob)}),
               rule) {
    story_.LogStaysAsItIs();
    story_.StoreIsSilent();
    story_.Win();
    for (NodeId node : {0, 1}) story_.Report(node, NodeStage::kIdle);
  }
  const Coordinator::ChooseCheckpoint Asked() const {
    const auto asked = story_.All<Coordinator::ChooseCheckpoint>();
    EXPECT_THAT(asked, SizeIs(1));
    return asked.empty() ? Coordinator::ChooseCheckpoint{} : asked[0];
  }
  void Answer(uint64_t question, std::optional<StepIndex> step) {
    story_.Do(Coordinator::CheckpointChosen{.question = question,
                                            .step = step,
                                            .packed = step ? "of " + std::to_string(*step) : "",
                                            .ok = true});
  }
  // Of the newest generation.
  Generation generation() { return story_.lead().layout().generation; }
  void Broken(NodeId node, EvidenceKind kind) {
    story_.Report(node, NodeStage::kBroken, generation(), [=](msg::Report& r) {
      r.failed_local_rank = 0;
      r.failure = kind;
    });
  }
  void StopAll(StepIndex holds = -1) {
    const Generation stopped = generation();
    for (NodeId node : {0, 1})
      story_.Stopped(node, stopped,
                     holds < 0 ? std::vector<Holding>()
                               : std::vector<Holding>{{stopped, holds, static_cast<int>(node)}});
  }
  void Finished(NodeId node, StepIndex step) {
    story_.Report(node, NodeStage::kRunning, generation(),
                  [=](msg::Report& r) { r.finished = step; });
  }

  CoordinatorStory story_;
};

TEST_F(CoordinatorChooses, WhatTheStoreSays) {
  EXPECT_EQ(story_.phase(), Phase::kChoosing);
  EXPECT_FALSE(story_.append().has_value());
  EXPECT_FALSE(Asked().last_is_bad);
  EXPECT_EQ(Asked().last, "");
  Answer(Asked().question, 30);
  ASSERT_TRUE(story_.Appends(EntryKind::kStart));
  EXPECT_EQ(story_.append()->step, 30);
  EXPECT_EQ(story_.append()->failure, Failure()) << "the first of its job";
  story_.Win();
  const Resume resume = story_.Sent<msg::Prepare>().at(1).resume;
  EXPECT_TRUE(resume.from_checkpoint);
  EXPECT_EQ(resume.step, 30);
  EXPECT_EQ(resume.checkpoint, "of 30");
  EXPECT_THAT(story_.said(), HasSubstr("from a checkpoint at step 30"));
}

TEST_F(CoordinatorChooses, OneThatIsOlderThanTheNewest) {
  Answer(Asked().question, 20);
  EXPECT_EQ(story_.Win().step, 20);
  story_.RunOn();
  // What is behind it is newer than any good checkpoint, also where a bad one is of step 30.
  Finished(0, 25);
  Broken(1, EvidenceKind::kNodeLost);
  StopAll(25);
  ASSERT_TRUE(story_.Appends(EntryKind::kStart));
  EXPECT_EQ(story_.append()->step, 25);
  EXPECT_FALSE(story_.append()->from_checkpoint);
  story_.Win();
  EXPECT_FALSE(story_.Sent<msg::Prepare>().at(1).resume.from_checkpoint);
  EXPECT_EQ(story_.Sent<msg::Prepare>().at(1).resume.shape, (LayoutShape{.data = 2}));
  EXPECT_EQ(story_.Sent<msg::Prepare>().at(1).resume.checkpoint, "");
}

// Checkpoints behind the newest that counts: somebody has mended one.
TEST_F(CoordinatorChooses, OneThatWasBad) {
  Answer(Asked().question, 40);
  EXPECT_TRUE(story_.Win().from_checkpoint);
  story_.RunOn();
  for (NodeId node : {0, 1}) story_.Done(node, 40);
  EXPECT_THAT(story_.said(), Not(HasSubstr("could not be saved")));
  for (NodeId node : {0, 1}) story_.Stopped(node, generation());
  EXPECT_EQ(story_.Win().exit_code, 0);
}

TEST_F(CoordinatorChooses, ThatTheRunBegins) {
  Answer(Asked().question, std::nullopt);
  EXPECT_FALSE(story_.append()->from_checkpoint);
  EXPECT_EQ(story_.Win().step, 0);
  const Resume resume = story_.Sent<msg::Prepare>().at(1).resume;
  EXPECT_TRUE(resume.from_checkpoint);
  EXPECT_EQ(resume.checkpoint, "");
  EXPECT_THAT(story_.said(), HasSubstr("from the beginning at step 0"));
}

TEST_F(CoordinatorChooses, AndAsksAgainUnderTheSameNumber) {
  const uint64_t question = Asked().question;
  const absl::Time asked = story_.now();
  story_.AfterInTouch(absl::Seconds(11), {0, 1});
  EXPECT_THAT(story_.When<Coordinator::ChooseCheckpoint>(asked),
              ElementsAre(absl::Seconds(5), absl::Seconds(10)));
  for (const auto& again : story_.All<Coordinator::ChooseCheckpoint>())
    EXPECT_EQ(again.question, question);
  Answer(question, 30);
  ASSERT_TRUE(story_.Appends(EntryKind::kStart));
  Answer(question, 20);
  EXPECT_TRUE(story_.DoesNothing()) << "one answer is enough";
  story_.Win();
  story_.AfterInTouch(absl::Seconds(11), {0, 1});
  EXPECT_THAT(story_.All<Coordinator::ChooseCheckpoint>(), IsEmpty());
}

TEST_F(CoordinatorChooses, NothingThatItDidNotAskFor) {
  Answer(Asked().question + 1, 30);
  EXPECT_TRUE(story_.DoesNothing());
}

TEST_F(CoordinatorChooses, ToEndWhereNoneCanBeUsed) {
  story_.Do(Coordinator::CheckpointChosen{
      .question = Asked().question, .exit_code = 93, .words = "all are torn"});
  EXPECT_THAT(story_.said(), HasSubstr("all are torn"));
  ASSERT_TRUE(story_.Appends(EntryKind::kEnd));
  EXPECT_EQ(story_.Win().exit_code, 93);
  story_.After(absl::Minutes(1));
  EXPECT_THAT(story_.All<Coordinator::ChooseCheckpoint>(), IsEmpty());
}

TEST_F(CoordinatorChooses, AnotherWhenThatOneIsBad) {
  const uint64_t first = Asked().question;
  Answer(first, 30);
  story_.Win();
  Broken(1, EvidenceKind::kBadCheckpoint);
  StopAll();
  const Coordinator::ChooseCheckpoint again = Asked();
  EXPECT_TRUE(again.last_is_bad);
  EXPECT_EQ(again.last, "of 30");
  EXPECT_NE(again.question, first);
  Answer(first, 30);
  EXPECT_TRUE(story_.DoesNothing()) << "late: it was asked before that was known";
  Answer(again.question, 20);
  EXPECT_EQ(story_.Win().step, 20);
  Broken(1, EvidenceKind::kNodeLost);
  StopAll();
  EXPECT_FALSE(Asked().last_is_bad) << "that was said";
  EXPECT_EQ(Asked().last, "");
}

TEST_F(CoordinatorChooses, AnotherWhoeverFindsItBadAndWhen) {
  Answer(Asked().question, 30);
  story_.Win();
  for (NodeId node : {0, 1}) story_.Report(node, NodeStage::kLoading, 2);
  Broken(0, EvidenceKind::kNetworkError);
  ASSERT_EQ(story_.phase(), Phase::kStopping);
  Broken(1, EvidenceKind::kBadCheckpoint);
  StopAll();
  EXPECT_TRUE(Asked().last_is_bad);
  Answer(Asked().question, 20);
  EXPECT_EQ(story_.append()->failure.kind, EvidenceKind::kBadCheckpoint) << "the other follows";
}

// It is heard when the next START is under way, with another checkpoint.
TEST_F(CoordinatorChooses, NoOtherCheckpointIsBadThanWhatWasLoaded) {
  Answer(Asked().question, 30);
  story_.Win();
  for (NodeId node : {0, 1}) story_.Report(node, NodeStage::kLoading, 2);
  Broken(0, EvidenceKind::kBadCheckpoint);
  StopAll();
  Answer(Asked().question, 20);
  ASSERT_TRUE(story_.Appends(EntryKind::kStart));
  story_.Report(1, NodeStage::kStopped, 2, [](msg::Report& r) {
    r.failed_local_rank = 0;
    r.failure = EvidenceKind::kBadCheckpoint;
  });
  story_.Win();
  Broken(1, EvidenceKind::kNodeLost);
  StopAll();
  EXPECT_EQ(Asked().last, "of 30");
}

TEST_F(CoordinatorChooses, NoCheckpointIsBadWithoutOne) {
  Answer(Asked().question, std::nullopt);
  story_.Win();
  Broken(1, EvidenceKind::kBadCheckpoint);
  StopAll();
  EXPECT_FALSE(Asked().last_is_bad);
}

TEST_F(CoordinatorChooses, WithTheNodesThatAreThereWhenItIsKnown) {
  story_.AfterInTouch(absl::Seconds(3), {0});
  Answer(1, 30);
  ASSERT_TRUE(story_.Appends(EntryKind::kStart));
  EXPECT_THAT(NodesOf(*story_.append()->layout), ElementsAre(0));
}

TEST_F(CoordinatorChooses, NothingIfTheJobEnds) {
  story_.Do(Coordinator::EndJob{75});
  ASSERT_TRUE(story_.Appends(EntryKind::kEnd));
  Answer(1, 30);
  EXPECT_TRUE(story_.DoesNothing());
  EXPECT_EQ(story_.Win().exit_code, 75);
  story_.After(absl::Minutes(1));
  EXPECT_THAT(story_.All<Coordinator::ChooseCheckpoint>(), IsEmpty());
}

// Two replicas are needed; node 1 is lost while the store thinks.
class CoordinatorChoosesForTwo : public CoordinatorChooses {
 protected:
  CoordinatorChoosesForTwo() : CoordinatorChooses(CoordinatorStory::Needs(2, absl::Hours(1))) {}
};

TEST_F(CoordinatorChoosesForTwo, AnewAfterItHadToWait) {
  EXPECT_EQ(Asked().question, 1u);
  story_.AfterInTouch(absl::Seconds(3), {0});
  Answer(1, 30);
  EXPECT_EQ(story_.phase(), Phase::kWaiting);
  story_.AfterInTouch(absl::Seconds(20), {0});
  EXPECT_THAT(story_.All<Coordinator::ChooseCheckpoint>(), IsEmpty());
  story_.Report(1, NodeStage::kIdle);
  EXPECT_EQ(story_.phase(), Phase::kChoosing);
  EXPECT_EQ(Asked().question, 2u) << "it may be another by now";
}

TEST_F(CoordinatorChoosesForTwo, AndSaysOnceWhatItHasDecided) {
  Answer(1, 30);
  const std::string words = "data 2 (tensor 1, pipeline 1) on nodes 0-1";
  const size_t at = story_.said().find(words);
  ASSERT_NE(at, std::string::npos) << story_.said();
  EXPECT_EQ(story_.said().find(words, at + 1), std::string::npos);
}

// ---- a checkpoint proves good

TEST_F(CoordinatorChooses, ACheckpointThatIsGoodAfterTwoSteps) {
  Answer(Asked().question, 30);
  story_.Win();
  story_.RunOn();
  Finished(0, 31);
  EXPECT_THAT(story_.All<Coordinator::GoodSteps>(), IsEmpty());
  Finished(0, 32);
  ASSERT_THAT(story_.All<Coordinator::GoodSteps>(), SizeIs(1));
  EXPECT_EQ(story_.All<Coordinator::GoodSteps>()[0].generation, 2u);
  Finished(1, 33);
  EXPECT_THAT(story_.All<Coordinator::GoodSteps>(), IsEmpty()) << "once";
}

TEST_F(CoordinatorChooses, NothingThatProvesGoodWithoutACheckpoint) {
  Answer(Asked().question, std::nullopt);
  story_.Win();
  story_.RunOn();
  Finished(0, 5);
  EXPECT_THAT(story_.All<Coordinator::GoodSteps>(), IsEmpty());
  Broken(1, EvidenceKind::kNodeLost);
  StopAll(5);
  story_.Win();  // From memory.
  story_.RunOn();
  Finished(0, 15);
  EXPECT_THAT(story_.All<Coordinator::GoodSteps>(), IsEmpty());
}

TEST(CoordinatorTakesOver, AndSaysWhatProvesGoodMeanwhile) {
  const auto takes_over = [](StepIndex resumed, bool from_checkpoint) {
    LogEntry start = Start(2, 2, {0, 1});
    start.step = resumed;
    start.from_checkpoint = from_checkpoint;
    LogEntry commit = Commit(1, 30);
    LogEntry lead = Lead(0, 1);
    commit.author = lead.author;
    CoordinatorStory story(2, View({lead, commit, start}));
    story.Win();
    for (NodeId node : {0, 1})
      story.Report(node, NodeStage::kRunning, 2, [](msg::Report& r) { r.finished = 33; });
    EXPECT_EQ(story.phase(), Phase::kRunning);
    story.Report(0, NodeStage::kRunning, 2, [](msg::Report& r) { r.finished = 33; });
    return story.All<Coordinator::GoodSteps>().size();
  };
  EXPECT_EQ(takes_over(30, true), 1u);
  EXPECT_EQ(takes_over(32, true), 0u) << "not two steps";
  EXPECT_EQ(takes_over(31, false), 0u) << "from memory";
}

}  // namespace
}  // namespace perdure
