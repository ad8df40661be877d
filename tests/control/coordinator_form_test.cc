// A coordinator that forms a generation: Prepare, the table of addresses, Go; what goes wrong
// meanwhile; nodes that come and go.
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

// START of generation 1 on nodes 0 to nodes - 1 is won; nobody has answered.
CoordinatorStory Forming(NodeId nodes, const LayoutRule& rule = CoordinatorStory::Rule(),
                         const ControlOptions& options = CoordinatorStory::Options()) {
  CoordinatorStory story(nodes, {}, rule, options);
  story.LogStaysAsItIs();
  story.Win();
  for (NodeId node = 0; node < nodes; ++node) story.Report(node, NodeStage::kIdle);
  story.Win();
  EXPECT_EQ(story.phase(), Phase::kForming);
  return story;
}

// ---- Prepare

TEST(CoordinatorForms, TellsEachNodeItsRanksAndWhereTheStateIs) {
  CoordinatorStory story = Forming(2);
  const auto prepares = story.Sent<msg::Prepare>();
  ASSERT_THAT(prepares, SizeIs(2));
  const msg::Prepare& second = prepares.at(1);
  EXPECT_EQ(second.generation, 1u);
  EXPECT_EQ(second.shape.data, 2);
  EXPECT_THAT(second.ranks, ElementsAre(msg::Prepare::Assignment{.local_rank = 0, .rank = 1}));
  EXPECT_TRUE(second.resume.from_checkpoint);
  EXPECT_EQ(second.resume.step, 0);
}

// All must place the same snapshots in the same places.
TEST(CoordinatorForms, WritesDownWhatFailsTogether) {
  CoordinatorStory story(3);
  story.Win();
  for (NodeId node = 0; node < 3; ++node)
    story.Report(node, NodeStage::kIdle, 0, [=](msg::Report& r) { r.domain = node == 1 ? 7 : 4; });
  EXPECT_THAT(story.Win().layout->domains, ElementsAre(4, 7, 4));
  EXPECT_THAT(Forming(2).lead().layout().domains, IsEmpty()) << "nothing to say";
}

TEST(CoordinatorForms, SaysPrepareAgainUntilItIsHeard) {
  CoordinatorStory story = Forming(2);
  story.AfterInTouch(Ms(1200), {0, 1});
  EXPECT_THAT(story.WhenSent<msg::Prepare>(1, kStart), ElementsAre(Ms(500), Ms(1000)));
  story.Report(1, NodeStage::kSpawning, 1);
  story.AfterInTouch(Ms(1200), {1});
  EXPECT_THAT(story.Sent<msg::Prepare>(), IsEmpty());
}

TEST(CoordinatorForms, AsksAgainForAddressesThatGotLost) {
  CoordinatorStory story = Forming(2);
  story.Report(1, NodeStage::kPresent, 1);
  story.AfterInTouch(Ms(600), {1});
  EXPECT_THAT(story.WhenSent<msg::Prepare>(1, kStart), ElementsAre(Ms(500)));
  story.Present(1, 1);
  story.AfterInTouch(Ms(1200), {1});
  EXPECT_THAT(story.Sent<msg::Prepare>(), IsEmpty());
}

TEST(CoordinatorForms, EachNodeOfTheTreeHasOneParent) {
  for (const int64_t fan_out : {1, 2, 3, 16})
    for (const NodeId nodes : {1u, 2u, 5u, 9u}) {
      ControlOptions options = CoordinatorStory::Options();
      options.table_fan_out = fan_out;
      CoordinatorStory story = Forming(nodes, CoordinatorStory::Rule(), options);
      std::map<NodeId, int> parents;
      for (const auto& [node, prepare] : story.Sent<msg::Prepare>()) {
        EXPECT_LE(prepare.children.size(), static_cast<size_t>(fan_out));
        for (NodeId child : prepare.children) ++parents[child];
      }
      for (NodeId node = 0; node < nodes; ++node) story.Present(node, 1);
      EXPECT_LE(story.Sent<msg::Table>().size(), static_cast<size_t>(fan_out));
      for (const auto& [node, table] : story.Sent<msg::Table>()) ++parents[node];
      EXPECT_EQ(parents.size(), nodes);
      for (const auto& [node, count] : parents) EXPECT_EQ(count, 1) << node << " of " << nodes;
    }
}

// ---- the table

TEST(CoordinatorForms, SendsTheTableWhenAllAddressesAreThere) {
  CoordinatorStory story = Forming(2);
  story.Present(0, 1);
  story.Present(0, 1);
  EXPECT_THAT(story.Sent<msg::Table>(), IsEmpty()) << "the same twice";
  story.Hear(1, msg::Present{.term = 9, .generation = 1, .addresses = {"x"}});
  story.Hear(1, msg::Present{.term = 0, .generation = 0, .addresses = {"x"}});
  EXPECT_THAT(story.Sent<msg::Table>(), IsEmpty()) << "for another coordinator, generation";
  story.Hear(1, msg::Present{.term = 0, .generation = 1, .addresses = {"b"}});
  ASSERT_THAT(story.Sent<msg::Table>(), SizeIs(2));
  const msg::Table table = story.Sent<msg::Table>().at(0);
  EXPECT_EQ(table.ranks, 2);
  EXPECT_EQ(table.first, 0);
  EXPECT_THAT(*UnpackAddresses(table.packed, table.count), ElementsAre("a", "b"));
}

// Before they are sent it: what follows counts as an attempt with the checkpoint.
TEST(CoordinatorForms, SaysOnceThatAllArePresent) {
  CoordinatorStory story = Forming(2);
  story.Present(0, 1);
  EXPECT_THAT(story.All<Coordinator::AllPresent>(), IsEmpty());
  story.Hear(1, msg::Present{.term = 0, .generation = 1, .addresses = {"b"}});
  const auto said = story.All<Coordinator::AllPresent>();
  ASSERT_THAT(said, SizeIs(1));
  EXPECT_EQ(said[0].generation, 1u);
  EXPECT_EQ(said[0].checkpoint, "");
  story.Hear(1, msg::Present{.term = 0, .generation = 1, .addresses = {"b"}});
  EXPECT_THAT(story.All<Coordinator::AllPresent>(), IsEmpty());
}

TEST(CoordinatorForms, CutsALargeTableIntoParts) {
  CoordinatorStory story = Forming(5);
  for (NodeId node = 0; node < 5; ++node)
    story.Hear(node,
               msg::Present{.term = 0,
                            .generation = 1,
                            .addresses = {std::string(50'000, 'a' + static_cast<char>(node))}});
  std::vector<int32_t> ranks;
  size_t parts = 0;
  for (const auto& send : story.All<Coordinator::Send>()) {
    const auto* table = std::get_if<msg::Table>(&send.message);
    if (table == nullptr || send.to.node != 3) continue;
    ++parts;
    EXPECT_EQ(table->ranks, 5);
    EXPECT_LE(table->packed.size(), 200'000u);
    const auto addresses = *UnpackAddresses(table->packed, table->count);
    for (int32_t i = 0; i < table->count; ++i) {
      ranks.push_back(table->first + i);
      EXPECT_EQ(addresses[static_cast<size_t>(i)][0], 'a' + ranks.back());
    }
  }
  EXPECT_EQ(parts, 2u);
  EXPECT_THAT(ranks, ElementsAre(0, 1, 2, 3, 4));
}

TEST(CoordinatorForms, SendsTheTableAgainToWhoNeedsIt) {
  CoordinatorStory story = Forming(3, CoordinatorStory::TwoAndASpare());
  const auto need = [&](NodeId node, Generation generation) {
    story.Hear(node, msg::NeedTable{.term = 0, .generation = generation});
    return story.Sent<msg::Table>().size();
  };
  EXPECT_EQ(need(1, 1), 0u) << "it is not there";
  for (NodeId node : {0, 1}) story.Present(node, 1);
  EXPECT_EQ(need(1, 1), 1u);
  EXPECT_EQ(need(1, 2), 0u);
  EXPECT_EQ(need(2, 1), 0u) << "no member";
  story.Hear(1, msg::NeedTable{.term = 4, .generation = 1});
  EXPECT_TRUE(story.DoesNothing());
  for (NodeId node : {0, 1}) story.Report(node, NodeStage::kReady, 1);
  EXPECT_EQ(need(1, 1), 0u) << "all have it";
}

// ---- Go

TEST(CoordinatorForms, GoesWhenEachIsReady) {
  CoordinatorStory story = Forming(2);
  for (NodeId node : {0, 1}) story.Present(node, 1);
  story.Report(0, NodeStage::kReady, 1);
  story.Report(0, NodeStage::kReady, 1);
  EXPECT_THAT(story.Sent<msg::Go>(), IsEmpty());
  story.Report(1, NodeStage::kReady, 1);
  EXPECT_THAT(story.Sent<msg::Go>(), SizeIs(2));
}

TEST(CoordinatorForms, SaysGoAgainUntilTheyRun) {
  CoordinatorStory story(2);
  story.LogStaysAsItIs();
  story.RunAll();
  story.Report(0, NodeStage::kRunning, 1);
  story.Report(1, NodeStage::kReady, 1);
  story.AfterInTouch(Ms(1200), {0, 1});
  EXPECT_THAT(story.WhenSent<msg::Go>(1, kStart), ElementsAre(Ms(500), Ms(1000)));
  EXPECT_THAT(story.WhenSent<msg::Go>(0, kStart), IsEmpty());
}

// ---- what goes wrong

TEST(CoordinatorForms, WithoutANodeThatWasLostWhileStartWasWritten) {
  CoordinatorStory story(2);
  story.LogStaysAsItIs();
  story.Win();
  for (NodeId node : {0, 1}) story.Report(node, NodeStage::kIdle);
  story.AfterInTouch(Ms(2100), {0});
  story.Win();
  EXPECT_THAT(story.Sent<msg::Prepare>(), IsEmpty());
  EXPECT_THAT(story.said(), HasSubstr("node 1 was lost meanwhile"));
  ASSERT_TRUE(story.Appends(EntryKind::kStart)) << "node 0 has no ranks to stop";
  EXPECT_EQ(story.append()->generation, 2u);
  EXPECT_THAT(NodesOf(*story.append()->layout), ElementsAre(0));
}

TEST(CoordinatorForms, ForFormMaxAndBlamesWhoIsNotReady) {
  CoordinatorStory story = Forming(2);
  for (NodeId node : {0, 1}) story.Present(node, 1);
  story.Report(0, NodeStage::kReady, 1);
  story.Report(1, NodeStage::kLoading, 1);
  story.AfterInTouch(absl::Minutes(10) - Ms(100), {0, 1});
  EXPECT_THAT(story.Blamed(), IsEmpty());
  story.AfterInTouch(Ms(100), {0, 1});
  EXPECT_THAT(story.Blamed(), ElementsAre(std::pair(1, EvidenceKind::kStartFailed)));
  EXPECT_THAT(story.Sent<msg::Stop>(), SizeIs(2));
  EXPECT_THAT(story.said(), HasSubstr("1 of 2 nodes were ready in time"));
}

TEST(CoordinatorReplaces, AFailedRankAndKeepsTheEvidence) {
  CoordinatorStory story = Forming(2);
  story.Report(1, NodeStage::kBroken, 1, [](msg::Report& r) {
    r.failed_local_rank = 0;
    r.failure = EvidenceKind::kDeviceError;
    r.failure_number = 79;
  });
  ASSERT_THAT(story.All<Coordinator::Evidence>(), SizeIs(1));
  EXPECT_EQ(story.All<Coordinator::Evidence>()[0].node, 1u);
  EXPECT_EQ(story.All<Coordinator::Evidence>()[0].kind, EvidenceKind::kDeviceError);
  EXPECT_EQ(story.All<Coordinator::Evidence>()[0].number, 79);
  EXPECT_THAT(story.Sent<msg::Stop>(), SizeIs(1)) << "node 0 has no ranks yet";
}

TEST(CoordinatorReplaces, ASilentMemberAfterNodeSilence) {
  CoordinatorStory story(2);
  story.LogStaysAsItIs();
  story.RunAll();
  story.Report(1, NodeStage::kRunning, 1);
  story.AfterInTouch(Ms(2100), {0});
  EXPECT_EQ(story.WhenSent<msg::Stop>(0, kStart), std::vector{absl::Seconds(2)});
  EXPECT_THAT(story.said(), HasSubstr("node 1 is silent for 2s"));
}

TEST(CoordinatorReplaces, RanksThatAreNotThereAnyMore) {
  CoordinatorStory story = Forming(2);
  story.Report(1, NodeStage::kSpawning, 1);
  EXPECT_EQ(story.phase(), Phase::kForming);
  story.Report(1, NodeStage::kIdle, 0, [](msg::Report& r) { r.incarnation = 777; });
  EXPECT_EQ(story.phase(), Phase::kStarting) << "nobody has ranks to stop";
  EXPECT_THAT(story.said(), HasSubstr("node 1 came back without its ranks"));
}

TEST(CoordinatorReplaces, RanksThatAreNotThereAnyMoreWhileItRuns) {
  CoordinatorStory story(2);
  story.RunAll();
  story.Report(1, NodeStage::kIdle, 0, [](msg::Report& r) { r.incarnation = 777; });
  EXPECT_EQ(story.phase(), Phase::kStopping);
}

TEST(CoordinatorReplaces, RanksThatStoppedByThemselves) {
  for (const NodeStage stage : {NodeStage::kStopping, NodeStage::kStopped}) {
    CoordinatorStory story(2);
    story.RunAll();
    story.Report(1, stage, 1);
    EXPECT_EQ(story.phase(), Phase::kStopping);
    EXPECT_THAT(story.said(), HasSubstr("the ranks of node 1 have stopped"));
  }
}

TEST(CoordinatorReplaces, NothingOnTheWordOfAnOlderGeneration) {
  CoordinatorStory story = Forming(2);
  for (NodeId node : {0, 1}) story.Report(node, NodeStage::kIdle);
  EXPECT_EQ(story.phase(), Phase::kForming) << "they have not heard Prepare";
}

// What a node held before it was started again is gone.
TEST(CoordinatorReplaces, CountsOnNothingOfALifeThatIsOver) {
  CoordinatorStory story(2);
  story.RunAll();
  story.Report(0, NodeStage::kBroken, 1);
  story.Stopped(1, 1, {{1, 40, 0}, {1, 40, 1}});
  story.Report(1, NodeStage::kIdle, 0, [](msg::Report& r) { r.incarnation = 777; });
  story.Stopped(0, 1);
  ASSERT_TRUE(story.Appends(EntryKind::kStart));
  EXPECT_EQ(story.append()->step, 0);
}

// However late it is told of, and by which way.
TEST(CoordinatorReplaces, CountsOnNothingThatALifeSaysWhichIsOver) {
  CoordinatorStory story(2);
  story.RunAll();
  story.Report(0, NodeStage::kBroken, 1);
  story.Report(1, NodeStage::kIdle, 0, [](msg::Report& r) { r.incarnation = 777; });
  story.Hear(
      1, msg::Stopped{
             .term = 0, .incarnation = 101, .generation = 1, .holdings = {{1, 40, 0}, {1, 40, 1}}});
  story.Stopped(0, 1);
  ASSERT_TRUE(story.Appends(EntryKind::kStart));
  EXPECT_EQ(story.append()->step, 0);
}

// ---- nodes come and go

TEST(CoordinatorChanges, GrowsAtABoundaryWhenTheNodesHaveBeenTheSameForGrowAfter) {
  CoordinatorStory story(3, View({Lead(0, 1), Start(1, 1, {0, 1})}));
  story.LogStaysAsItIs();
  story.Win();
  for (NodeId node : {0, 1}) story.Report(node, NodeStage::kRunning, 1);
  ASSERT_EQ(story.phase(), Phase::kRunning);
  story.AfterInTouch(absl::Seconds(5), {0, 1});
  EXPECT_THAT(story.Sent<msg::Stop>(), IsEmpty());
  const absl::Time came = story.now();
  story.Report(2, NodeStage::kIdle);
  story.AfterInTouch(Ms(1100), {0, 1, 2});
  EXPECT_EQ(story.WhenSent<msg::Stop>(1, came), std::vector{Ms(1000)});
  EXPECT_TRUE(story.Sent<msg::Stop>().at(1).at_boundary);
}

TEST(CoordinatorChanges, MovesOffANodeThatIsToBeGivenBack) {
  CoordinatorStory story(3, {}, CoordinatorStory::TwoAndASpare());
  story.LogStaysAsItIs();
  story.RunAll();
  for (NodeId node : {0, 1}) story.Report(node, NodeStage::kRunning, 1);
  story.AfterInTouch(absl::Seconds(2), {0, 1, 2});
  const absl::Time said = story.now();
  story.Report(1, NodeStage::kRunning, 1, [](msg::Report& r) { r.leaving = true; });
  story.AfterInTouch(Ms(600), {0, 1, 2});
  EXPECT_EQ(story.WhenSent<msg::Stop>(1, said), std::vector{Ms(500)});
  EXPECT_TRUE(story.Sent<msg::Stop>().at(1).at_boundary);
  for (NodeId node : {0, 1}) story.Stopped(node, 1, {{1, 40, static_cast<int32_t>(node)}});
  ASSERT_TRUE(story.Appends(EntryKind::kStart));
  EXPECT_THAT(NodesOf(*story.append()->layout), ElementsAre(0, 2));
  EXPECT_EQ(story.append()->step, 40) << "what it holds is still there";
}

TEST(CoordinatorChanges, MovesOffASlotThatCannotBeUsedAnyMore) {
  CoordinatorStory story(3, {}, CoordinatorStory::TwoAndASpare());
  story.LogStaysAsItIs();
  story.RunAll();
  for (NodeId node : {0, 1}) story.Report(node, NodeStage::kRunning, 1);
  story.AfterInTouch(absl::Seconds(2), {0, 1, 2});
  const absl::Time said = story.now();
  story.Report(1, NodeStage::kRunning, 1, [](msg::Report& r) { r.slots = 0b10; });
  story.AfterInTouch(Ms(600), {0, 1, 2});
  EXPECT_EQ(story.WhenSent<msg::Stop>(1, said), std::vector{Ms(500)});
}

TEST(CoordinatorChanges, ADrainIsTakenBackAndSaidTwiceIsNothing) {
  CoordinatorStory story(3, {}, CoordinatorStory::TwoAndASpare());
  story.LogStaysAsItIs();
  story.RunAll();
  for (NodeId node : {0, 1}) story.Report(node, NodeStage::kRunning, 1);
  story.Do(Coordinator::Drain{1, false});
  story.Do(Coordinator::Drain{1, true});
  story.After(Ms(400));
  story.Do(Coordinator::Drain{1, false});
  story.AfterInTouch(absl::Seconds(3), {0, 1, 2});
  EXPECT_EQ(story.phase(), Phase::kRunning);
}

TEST(CoordinatorWaits, ForNodesAndStartsAsSoonAsTheyAreThere) {
  CoordinatorStory story(2, {}, CoordinatorStory::Needs(2, absl::Hours(1)));
  story.LogStaysAsItIs();
  story.Win();
  story.Report(0, NodeStage::kIdle);
  story.AfterInTouch(absl::Minutes(5), {0});
  ASSERT_EQ(story.phase(), Phase::kWaiting);
  story.Report(1, NodeStage::kIdle);
  EXPECT_TRUE(story.Appends(EntryKind::kStart));
}

// Not with every report, of which there are thousands a minute.
TEST(CoordinatorWaits, AndSaysSoOnceForEachChangeOfTheNodes) {
  CoordinatorStory story(3, {}, CoordinatorStory::Needs(3, absl::Hours(1)));
  const auto said = [&] {
    size_t times = 0;
    for (size_t at = 0; (at = story.said().find("waiting up to", at)) != std::string::npos; ++at)
      ++times;
    return times;
  };
  story.LogStaysAsItIs();
  story.Win();
  story.Report(0, NodeStage::kIdle);
  story.AfterInTouch(absl::Minutes(5), {0});
  EXPECT_EQ(said(), 1u);
  story.Report(1, NodeStage::kIdle);
  story.AfterInTouch(absl::Minutes(5), {0, 1});
  EXPECT_EQ(said(), 2u);
}

TEST(CoordinatorWaits, ForWaitMaxAndEndsWithMoreToDo) {
  CoordinatorStory story(2, {}, CoordinatorStory::Needs(2, absl::Minutes(20)));
  story.LogStaysAsItIs();
  story.Win();
  story.Report(0, NodeStage::kIdle);
  story.AfterInTouch(absl::Minutes(21), {0});
  EXPECT_THAT(story.When<Coordinator::Append>(kStart),
              ElementsAre(absl::Seconds(30) + absl::Minutes(20)));
  EXPECT_EQ(story.append()->kind, EntryKind::kEnd);
  EXPECT_EQ(story.append()->exit_code, kExitMoreToDo);
}

}  // namespace
}  // namespace perdure
