// The coordinator by itself, message by message: what it says to whom, and why. How coordinators
// and members fare together is tests/sim's.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/control/coordinator_story.h"

namespace perdure {
namespace {

using testing::HasSubstr;
using Phase = Coordinator::Phase;

// What a successor finds: generation 1 on nodes 0 and 1.
LogView TwoNodesOfAnotherCoordinator() { return View({Lead(0, 1), Start(1, 1, {0, 1})}); }

TEST(Coordinator, BeginsAJob) {
  CoordinatorStory story(2);
  ASSERT_TRUE(story.append().has_value());
  EXPECT_EQ(story.append()->kind, EntryKind::kLead);
  EXPECT_EQ(story.append()->slot, 0u);
  story.Win();
  EXPECT_EQ(story.Sent<msg::Announce>().size(), 2u);
  story.Report(0, NodeStage::kIdle);
  EXPECT_FALSE(story.append().has_value()) << "the other node is waited for";
  story.Report(1, NodeStage::kIdle);
  const LogEntry start = story.Win();
  EXPECT_EQ(start.kind, EntryKind::kStart);
  EXPECT_EQ(start.generation, 1u);
  EXPECT_EQ(start.layout->seats.size(), 2u);
  EXPECT_EQ(story.Sent<msg::Prepare>().size(), 2u);
  story.Present(0, 1);
  EXPECT_TRUE(story.Sent<msg::Table>().empty());
  story.Present(1, 1);
  const auto tables = story.Sent<msg::Table>();
  ASSERT_EQ(tables.size(), 2u);
  EXPECT_EQ(tables.at(0).count, 2);
  story.Report(0, NodeStage::kReady, 1);
  EXPECT_TRUE(story.Sent<msg::Go>().empty());
  story.Report(1, NodeStage::kReady, 1);
  EXPECT_EQ(story.Sent<msg::Go>().size(), 2u);
  EXPECT_EQ(story.phase(), Phase::kRunning);
  story.Report(0, NodeStage::kRunning, 1);
  EXPECT_GT(story.Sent<msg::Answer>().at(0).lease, 0);
}

TEST(Coordinator, DoesNotWaitForEverForNodes) {
  CoordinatorStory story(3);
  story.Win();
  story.Report(2, NodeStage::kIdle);
  for (int i = 0; i < 40; ++i) {
    story.After(absl::Seconds(1));
    story.Report(2, NodeStage::kIdle);
  }
  ASSERT_TRUE(story.append().has_value());
  EXPECT_EQ(story.Win().layout->seats, (std::vector<Seat>{{2, 0}}));
}

TEST(Coordinator, ResignsWhenItsSlotIsTaken) {
  CoordinatorStory story(2);
  LogEntry other{
      .slot = 0, .kind = EntryKind::kLead, .author = {.at = {kJob, 1}, .incarnation = 9}};
  story.Do(Coordinator::Appended{other});
  EXPECT_THAT(story.resigned(), HasSubstr("slot 0"));
  EXPECT_EQ(story.phase(), Phase::kResigned);
  story.Do(Coordinator::SaveNow{});
  EXPECT_TRUE(story.DoesNothing());
}

TEST(Coordinator, ResignsWhenAPollFindsAnotherCoordinator) {
  CoordinatorStory story(1);
  story.RunAll();
  LogEntry other{.slot = 2, .kind = EntryKind::kLead, .author = {.at = {8, 0}, .incarnation = 9}};
  story.Do(Coordinator::LogRead{story.now(), {{other}}});
  EXPECT_THAT(story.resigned(), HasSubstr("job 8"));
}

TEST(Coordinator, TriesAFailedAppendAgainUnderTheSameId) {
  CoordinatorStory story(1);
  const LogEntry first = *story.append();
  story.Do(Coordinator::Appended{std::nullopt});
  story.After(absl::Seconds(1));
  ASSERT_TRUE(story.append().has_value());
  EXPECT_EQ(story.append()->id, first.id);
  EXPECT_EQ(story.append()->slot, first.slot);
}

TEST(Coordinator, ReplacesAFailedRankFromMemory) {
  CoordinatorStory story(3, {}, CoordinatorStory::TwoAndASpare());
  story.RunAll();
  ASSERT_EQ(story.lead().members(), (std::vector<NodeId>{0, 1}));
  story.Report(1, NodeStage::kBroken, 1, [](msg::Report& r) {
    r.slots = 0;
    r.failure = EvidenceKind::kDeviceError;
    r.failed_local_rank = 0;
  });
  EXPECT_EQ(story.All<Coordinator::Evidence>().size(), 1u);
  EXPECT_EQ(story.Sent<msg::Stop>().size(), 2u);
  story.Stopped(0, 1, {{1, 40, 0}, {1, 40, 1}});
  EXPECT_FALSE(story.append().has_value());
  story.Stopped(1, 1);
  EXPECT_THAT(story.said(), HasSubstr("local rank 0 of node 1 failed"));
  const LogEntry start = story.Win();
  EXPECT_EQ(start.step, 40);
  EXPECT_EQ(start.layout->seats, (std::vector<Seat>{{0, 0}, {2, 0}}));
  const Resume resume = story.Sent<msg::Prepare>().at(2).resume;
  EXPECT_FALSE(resume.from_checkpoint);
  ASSERT_EQ(resume.elsewhere.size(), 1u);
  EXPECT_EQ(resume.elsewhere[0].node, 0u);
}

TEST(Coordinator, StopsANodeThatComesBackWithAnOldGeneration) {
  CoordinatorStory story(1);
  story.RunAll();
  story.Report(0, NodeStage::kRunning, 1);
  story.After(absl::Seconds(1));
  story.Report(0, NodeStage::kBroken, 1);
  story.Stopped(0, 1);
  story.Win();
  ASSERT_EQ(story.lead().layout().generation, 2u);
  story.After(absl::Seconds(1));
  story.Report(0, NodeStage::kRunning, 1);
  EXPECT_EQ(story.Sent<msg::Stop>().at(0).generation, 1u);
}

TEST(Coordinator, SavesWhenAskedAndCommits) {
  CoordinatorStory story(2);
  story.RunAll();
  story.Do(Coordinator::SaveNow{});
  ASSERT_EQ(story.Sent<msg::Save>().size(), 1u);
  for (NodeId node : {0, 1})
    story.Report(node, NodeStage::kRunning, 1, [](msg::Report& r) { r.frozen = 12; });
  EXPECT_EQ(story.All<Coordinator::MeasureRoom>().size(), 1u);
  story.Do(Coordinator::Measured{9, 12, true});
  EXPECT_TRUE(story.Sent<msg::Write>().empty()) << "of another generation";
  story.Do(Coordinator::Measured{1, 12, true});
  EXPECT_EQ(story.Sent<msg::Write>().size(), 2u);
  for (NodeId node : {0, 1}) story.Wrote(node, 12, 1);
  EXPECT_EQ(story.All<Coordinator::JoinParts>().size(), 1u);
  story.Do(Coordinator::PartsJoined{1, 12, 1, {1, 0}, {"A", "B"}, true});
  EXPECT_EQ(story.Sent<msg::Verify>().size(), 2u);
  const auto vote = [&](NodeId node, int32_t file) {
    story.Do(Coordinator::Received{{kJob, node},
                                   msg::Voted{.term = story.lead().term(),
                                              .generation = 1,
                                              .step = 12,
                                              .attempt = 1,
                                              .file = file,
                                              .ok = true}});
  };
  vote(1, 0);
  vote(1, 0);  // Twice: once.
  vote(1, 1);  // Not its file.
  EXPECT_FALSE(story.append().has_value());
  vote(0, 1);
  const LogEntry commit = story.Win();
  EXPECT_EQ(commit.kind, EntryKind::kCommit);
  EXPECT_EQ(commit.step, 12);
  EXPECT_TRUE(story.Sent<msg::Settle>().at(1).committed);
}

TEST(Coordinator, DoesNotWriteWhatHasNoRoom) {
  CoordinatorStory story(1);
  story.RunAll();
  story.Do(Coordinator::SaveNow{});
  story.Report(0, NodeStage::kRunning, 1, [](msg::Report& r) { r.frozen = 12; });
  story.Do(Coordinator::Measured{1, 12, false});
  EXPECT_TRUE(story.Sent<msg::Write>().empty());
  ASSERT_EQ(story.Sent<msg::Settle>().size(), 1u);
  EXPECT_FALSE(story.Sent<msg::Settle>().at(0).committed);
  EXPECT_EQ(story.phase(), Phase::kRunning);
}

TEST(Coordinator, MovesOffADrainedNodeAtABoundary) {
  CoordinatorStory story(3, {}, CoordinatorStory::TwoAndASpare());
  story.RunAll();
  const auto live = [&] {
    for (NodeId node = 0; node < 3; ++node)
      story.Report(node, node < 2 ? NodeStage::kRunning : NodeStage::kIdle, node < 2 ? 1 : 0);
  };
  live();
  story.Do(Coordinator::Drain{1, true});
  story.Do(Coordinator::Drain{99, true});  // Of no node.
  story.After(absl::Seconds(1));
  ASSERT_EQ(story.phase(), Phase::kStopping) << story.said();
  live();
  for (NodeId node = 0; node < 2; ++node)
    story.Stopped(node, 1, {{1, 40, static_cast<int32_t>(node)}});
  EXPECT_EQ(story.Win().layout->seats, (std::vector<Seat>{{0, 0}, {2, 0}}));
}

TEST(Coordinator, RefusesAddressesThatAreNotOneARank) {
  CoordinatorStory story(1);
  story.Win();
  story.Report(0, NodeStage::kIdle);
  story.Win();
  story.Do(Coordinator::Received{
      {kJob, 0},
      msg::Present{.term = story.lead().term(), .generation = 1, .addresses = {"a", "b"}}});
  EXPECT_EQ(story.phase(), Phase::kStarting) << "another generation";
  EXPECT_THAT(story.said(), HasSubstr("2 addresses for 1 ranks"));
}

TEST(Coordinator, GivesUpASaveThatHangs) {
  CoordinatorStory story(1);
  story.RunAll();
  story.Do(Coordinator::SaveNow{});
  for (int i = 0; i < 31 * 60; ++i) {
    story.Report(0, NodeStage::kRunning, 1, [&](msg::Report& r) {
      r.frozen = 12;
      r.finished = 12 + i;
    });
    story.After(absl::Seconds(1));
    if (story.said().find("took too long") != std::string::npos) break;
  }
  EXPECT_THAT(story.said(), HasSubstr("took too long"));
  EXPECT_EQ(story.phase(), Phase::kRunning) << "training goes on";
}

TEST(Coordinator, EndsAJobWithASaveFirst) {
  CoordinatorStory story(1);
  story.RunAll();
  story.Do(Coordinator::EndJob{75});
  EXPECT_EQ(story.Sent<msg::Save>().size(), 1u);
  EXPECT_EQ(story.phase(), Phase::kRunning);
}

TEST(Coordinator, EndsACompleteRun) {
  CoordinatorStory story(1);
  story.RunAll();
  story.SaveAll(12);
  story.Done(0, 12);
  story.Stopped(0, 1);
  const LogEntry end = story.Win();
  EXPECT_EQ(end.kind, EntryKind::kEnd);
  EXPECT_EQ(end.exit_code, 0);
  EXPECT_EQ(story.Sent<msg::Bye>().size(), 1u);
  EXPECT_EQ(story.All<Coordinator::Finished>().size(), 1u);
  story.Report(0, NodeStage::kDone, 1);
  EXPECT_EQ(story.Sent<msg::Bye>().size(), 1u) << "who did not hear it is told again";
}

TEST(Coordinator, EndsWithAPersonsCodeWhereNothingWillFit) {
  CoordinatorStory story(
      1, {}, {.tensor = 4, .pipeline = 4, .leaves = 64, .nodes_max = 1, .ranks_per_node = 1});
  story.Win();
  story.Report(0, NodeStage::kIdle);
  ASSERT_TRUE(story.append().has_value()) << story.said();
  EXPECT_EQ(story.Win().exit_code, kExitPersonMustLook);
}

TEST(Coordinator, TakesOverARunningGeneration) {
  CoordinatorStory story(2, TwoNodesOfAnotherCoordinator());
  story.Win();
  story.Report(0, NodeStage::kRunning, 1);
  EXPECT_EQ(story.phase(), Phase::kGathering);
  story.Report(1, NodeStage::kRunning, 1, [](msg::Report& r) { r.frozen = 30; });
  EXPECT_EQ(story.phase(), Phase::kRunning);
  EXPECT_FALSE(story.Sent<msg::Settle>().at(1).committed) << "frozen for somebody else";
  EXPECT_THAT(story.said(), HasSubstr("runs on under a new coordinator"));
}

TEST(Coordinator, StopsAGenerationThatIsNotWholeAnyMore) {
  CoordinatorStory story(2, TwoNodesOfAnotherCoordinator());
  story.Win();
  for (int i = 0; i < 8; ++i) {
    story.Report(0, NodeStage::kRunning, 1);
    story.After(Ms(250));
  }
  EXPECT_THAT(story.said(), HasSubstr("nodes of it are missing"));
  story.Stopped(0, 1);
  story.Win();
  story.Present(0, 2);
  story.Report(0, NodeStage::kReady, 2);
  EXPECT_EQ(story.phase(), Phase::kForming) << "the other node may hold a lease still";
  for (int i = 0; i < 9; ++i) {
    story.After(Ms(250));
    story.Report(0, NodeStage::kReady, 2);
  }
  EXPECT_EQ(story.phase(), Phase::kRunning) << "half of the nodes and a support lease";
}

TEST(Coordinator, AnswersAnotherJob) {
  CoordinatorStory story(1);
  story.Do(Coordinator::Received{{8, 3}, msg::Probe{.term = 0}});
  EXPECT_TRUE(story.Sent<msg::Leading>().empty()) << "does not lead yet";
  story.Win();
  story.Do(Coordinator::Received{{8, 3}, msg::Probe{.term = 0}});
  EXPECT_EQ(story.Sent<msg::Leading>().size(), 1u);
  story.Do(Coordinator::Received{{8, 3}, msg::Probe{.term = 5}});
  EXPECT_TRUE(story.Sent<msg::Leading>().empty()) << "of another term";
}

TEST(Coordinator, IgnoresWhoIsNotOfTheJob) {
  CoordinatorStory story(1);
  story.Win();
  story.Do(Coordinator::Received{{8, 0}, msg::Report{.term = 0, .incarnation = 1, .sequence = 1}});
  story.Do(
      Coordinator::Received{{kJob, 99}, msg::Report{.term = 0, .incarnation = 1, .sequence = 1}});
  EXPECT_TRUE(story.DoesNothing());
  EXPECT_EQ(story.phase(), Phase::kGathering);
}

TEST(Coordinator, NamesWhoStalls) {
  CoordinatorStory story(3);
  story.RunAll();
  for (int second = 0; second < 620 && story.phase() == Phase::kRunning; ++second) {
    for (NodeId node = 0; node < 3; ++node)
      story.Report(node, NodeStage::kRunning, 1,
                   [&](msg::Report& r) { r.finished = node == 2 ? 0 : 1; });
    story.After(absl::Seconds(1));
  }
  EXPECT_EQ(story.phase(), Phase::kStopping);
  EXPECT_THAT(story.said(), HasSubstr("suspected: 2"));
}

}  // namespace
}  // namespace perdure
