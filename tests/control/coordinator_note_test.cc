// A coordinator that puts records of the shell's own into the log, between its own.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/control/coordinator_story.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;
using Phase = Coordinator::Phase;

std::vector<uint64_t> Noted(const CoordinatorStory& story) {
  std::vector<uint64_t> tags;
  for (const auto& noted : story.All<Coordinator::Noted>()) tags.push_back(noted.tag);
  return tags;
}

TEST(CoordinatorNotes, WhatItIsAskedTo) {
  CoordinatorStory story(1);
  story.RunAll();
  story.Do(Coordinator::Note{70});
  ASSERT_TRUE(story.Appends(EntryKind::kNote));
  EXPECT_EQ(story.append()->note, 70u);
  EXPECT_EQ(story.append()->slot, 2u);
  EXPECT_EQ(story.append()->generation, 1u);
  EXPECT_EQ(story.append()->author, CoordinatorStory::Me());
  EXPECT_THAT(Noted(story), IsEmpty());
  story.Win();
  EXPECT_THAT(Noted(story), ElementsAre(70)) << "as its author calls it, not the log";
}

TEST(CoordinatorNotes, OneAfterTheOther) {
  CoordinatorStory story(1);
  story.RunAll();
  for (uint64_t tag : {70, 71, 72}) story.Do(Coordinator::Note{tag});
  EXPECT_THAT(story.All<Coordinator::Append>(), IsEmpty()) << "the first is under way";
  std::vector<uint64_t> ids;
  for (uint64_t tag : {70, 71, 72}) {
    ASSERT_TRUE(story.Appends(EntryKind::kNote));
    ids.push_back(story.Win().id);
    EXPECT_THAT(Noted(story), ElementsAre(tag));
  }
  EXPECT_NE(ids[0], ids[1]);
  EXPECT_NE(ids[1], ids[2]);
  EXPECT_FALSE(story.append().has_value());
}

TEST(CoordinatorNotes, OfTheNewestGenerationWhenItIsWritten) {
  CoordinatorStory story(1);
  story.Do(Coordinator::Note{70});
  EXPECT_TRUE(story.Appends(EntryKind::kLead)) << "first it must lead";
  story.Win();
  EXPECT_TRUE(story.Appends(EntryKind::kNote));
  EXPECT_EQ(story.append()->generation, 0u);
  story.Win();
  story.Report(0, NodeStage::kIdle);
  ASSERT_TRUE(story.Appends(EntryKind::kStart));
  story.Do(Coordinator::Note{71});
  story.Win();
  ASSERT_TRUE(story.Appends(EntryKind::kNote));
  EXPECT_EQ(story.append()->generation, 1u);
}

TEST(CoordinatorNotes, AgainUnderTheSameIdWhatMayBeThere) {
  CoordinatorStory story(1);
  story.RunAll();
  story.Do(Coordinator::Note{70});
  const LogEntry first = *story.append();
  story.Do(Coordinator::Appended{std::nullopt});
  story.After(absl::Seconds(1));
  ASSERT_TRUE(story.Appends(EntryKind::kNote));
  EXPECT_EQ(story.append()->id, first.id);
  EXPECT_EQ(story.append()->note, 70u);
  // It has no body any more, but the first try may be executed still.
  story.Do(Coordinator::Unpublished{});
  story.After(absl::Seconds(1));
  EXPECT_EQ(story.append()->id, first.id);
  story.Win();
  EXPECT_THAT(Noted(story), ElementsAre(70));
}

TEST(CoordinatorNotes, NothingThatHasNoBody) {
  CoordinatorStory story(1);
  story.RunAll();
  for (uint64_t tag : {70, 71}) story.Do(Coordinator::Note{tag});
  story.Do(Coordinator::Unpublished{});
  EXPECT_THAT(Noted(story), IsEmpty());
  ASSERT_TRUE(story.Appends(EntryKind::kNote));
  EXPECT_EQ(story.append()->note, 71u) << "and is not held up by it";
  EXPECT_EQ(story.append()->slot, 2u);
}

TEST(CoordinatorNotes, AlsoWhileAGenerationStops) {
  CoordinatorStory story(1);
  story.RunAll();
  for (uint64_t tag : {70, 71}) story.Do(Coordinator::Note{tag});
  story.Report(0, NodeStage::kBroken, 1);
  story.Stopped(0, 1);
  EXPECT_TRUE(story.Appends(EntryKind::kNote)) << "START must know its slot";
  story.Win();
  EXPECT_THAT(Noted(story), ElementsAre(70));
  ASSERT_TRUE(story.Appends(EntryKind::kNote));
  story.Win();
  EXPECT_THAT(Noted(story), ElementsAre(71));
  EXPECT_TRUE(story.Appends(EntryKind::kStart));
}

// A COMMIT of a generation that is over is nobody's; what is under way may be there.
TEST(CoordinatorNotes, AndNoCommitBehindThemOfWhatIsOver) {
  CoordinatorStory story(1);
  story.RunAll();
  story.Do(Coordinator::SaveNow{});
  story.Report(0, NodeStage::kRunning, 1, [](msg::Report& r) { r.frozen = 12; });
  story.Do(Coordinator::Measured{1, 12, true});
  story.Wrote(0, 12, 1);
  story.Do(Coordinator::PartsJoined{1, 12, 1, {0}, {"A"}, true});
  story.Do(Coordinator::Note{70});
  story.Hear(0, msg::Voted{.term = 0, .generation = 1, .step = 12, .attempt = 1, .ok = true});
  EXPECT_TRUE(story.Appends(EntryKind::kNote));
  story.Report(0, NodeStage::kBroken, 1);
  story.Stopped(0, 1);
  story.Win();
  EXPECT_TRUE(story.Appends(EntryKind::kStart)) << "not the COMMIT";
}

TEST(CoordinatorNotes, AndASaveIsGivenUpBehindThem) {
  ControlOptions options = CoordinatorStory::Options();
  options.save_max = absl::Seconds(10);
  CoordinatorStory story(1, {}, CoordinatorStory::Rule(), options);
  story.LogStaysAsItIs();
  story.RunAll();
  story.Do(Coordinator::SaveNow{});
  story.Report(0, NodeStage::kRunning, 1, [](msg::Report& r) { r.frozen = 12; });
  story.Do(Coordinator::Note{70});
  story.AfterInTouch(absl::Seconds(11), {0});
  EXPECT_FALSE(story.Sent<msg::Settle>().at(0).committed);
}

TEST(CoordinatorNotes, BeforeTheEndAndNothingBehindIt) {
  ControlOptions options = CoordinatorStory::Options();
  options.node_silence = Ms(1000);
  CoordinatorStory story(2, {}, CoordinatorStory::Rule(), options);
  story.LogStaysAsItIs();
  story.RunAll();
  story.Do(Coordinator::EndJob{75});
  for (NodeId node : {0, 1}) story.Report(node, NodeStage::kRunning, 1);
  story.AfterInTouch(Ms(1100), {0});
  story.Stopped(0, 1);
  ASSERT_EQ(story.phase(), Phase::kEnding) << "node 1 may step still";
  story.Do(Coordinator::Note{70});
  ASSERT_TRUE(story.Appends(EntryKind::kNote));
  story.AfterInTouch(absl::Seconds(3), {0});
  story.Do(Coordinator::Note{71});
  EXPECT_TRUE(story.Appends(EntryKind::kNote));
  EXPECT_EQ(story.Win().kind, EntryKind::kNote);
  EXPECT_EQ(story.Win().kind, EntryKind::kEnd) << "not the second note: END was asked for before";
  EXPECT_FALSE(story.append().has_value());
  story.Do(Coordinator::Note{72});
  EXPECT_TRUE(story.DoesNothing());
}

}  // namespace
}  // namespace perdure
