// Scenes that read like the header, then random histories.
#include "runtime/control/layout_planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/control/layout_words.h"
#include "tests/control/layout_situations.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using enum LayoutAction;

Decision Ask(const LayoutRule& rule, const Situation& situation) {
  Decision decision = DecideLayout(rule, situation);
  EXPECT_EQ(BrokenPromise(rule, situation, decision), "") << decision.words;
  return decision;
}

std::vector<NodeId> NodesOf(const std::vector<Seat>& seats) {
  std::vector<NodeId> nodes;
  for (const Seat& seat : seats)
    if (nodes.empty() || nodes.back() != seat.node) nodes.push_back(seat.node);
  return nodes;
}

TEST(LayoutPlanner, StartsBesideTheSpares) {
  LayoutRule rule = RuleOf(4, 2);
  rule.spares = 2;
  const Situation situation{.offers = WholeNodes(10, 4), .now = kDay};
  const Decision decision = Ask(rule, situation);
  EXPECT_EQ(decision.action, kStart);
  EXPECT_EQ(decision.shape, (LayoutShape{.tensor = 4, .pipeline = 2, .data = 4}));
  EXPECT_THAT(NodesOf(decision.spares), ElementsAre(8, 9));
  EXPECT_THAT(decision.source, ElementsAre(-1, -1, -1, -1));
  EXPECT_EQ(decision.words, "data 4 (tensor 4, pipeline 2) on nodes 0-7, 8 slots are spare");
}

// Losing a coordinator without ranks costs no step.
TEST(LayoutPlanner, TheCoordinatorsNodeIsASpareIfOneIs) {
  LayoutRule rule = RuleOf(4, 2);
  std::vector<NodeOffer> offers = WholeNodes(10, 4);
  Of(offers, 0).coordinates = true;
  EXPECT_THAT(NodesOf(Ask(rule, {.offers = offers, .now = kDay}).spares), IsEmpty());
  rule.spares = 2;
  const Decision decision = Ask(rule, {.offers = offers, .now = kDay});
  EXPECT_THAT(NodesOf(decision.spares), ElementsAre(0, 9));
  // A rank that must move goes to another one.
  Situation situation = Started(rule, offers);
  std::erase_if(situation.offers, [](const NodeOffer& offer) { return offer.node == 3; });
  EXPECT_THAT(NodesOf(Ask(rule, situation).spares), ElementsAre(0));
  // Nobody moves because of who coordinates.
  situation = Started(rule, offers);
  Of(situation.offers, 0).coordinates = false;
  Of(situation.offers, 1).coordinates = true;
  EXPECT_EQ(Ask(rule, situation).action, kKeep);
  Of(offers, 8).drained = true;
  EXPECT_THAT(NodesOf(Ask(rule, {.offers = offers, .now = kDay}).spares), ElementsAre(0, 8));
}

TEST(LayoutPlanner, DataMinComesBeforeSpares) {
  LayoutRule rule = RuleOf(4, 1);
  rule.spares = 2;
  rule.data_min = 3;
  EXPECT_EQ(Ask(rule, {.offers = WholeNodes(4, 4), .now = kDay}).shape.data, 3);
  EXPECT_EQ(Ask(rule, {.offers = WholeNodes(2, 4), .now = kDay}).action, kWait);
}

TEST(LayoutPlanner, StartsWithNoMoreThanWishedOrLeaves) {
  LayoutRule rule = RuleOf(1, 1);
  rule.leaves = 6;
  EXPECT_EQ(Ask(rule, {.offers = WholeNodes(10, 1), .now = kDay}).shape.data, 6);
  rule.data = 5;
  EXPECT_EQ(Ask(rule, {.offers = WholeNodes(10, 1), .now = kDay}).shape.data, 5);
  rule.data_min = 9;  // As many as wished will do.
  EXPECT_EQ(Ask(rule, {.offers = WholeNodes(10, 1), .now = kDay}).shape.data, 5);
}

TEST(LayoutPlanner, AStartWaitsForNodesThatCome) {
  LayoutRule rule = RuleOf(1, 1);
  rule.nodes_max = 4;
  Situation situation{.offers = WholeNodes(3, 1),
                      .now = kDay,
                      .waiting_since = kDay - absl::Minutes(1),
                      .nodes_coming = true};
  const Decision waits = Ask(rule, situation);
  EXPECT_EQ(waits.action, kWait);
  EXPECT_EQ(waits.reason, LayoutReason::kNodesComing);
  EXPECT_EQ(waits.look_again, kDay + absl::Minutes(29));
  EXPECT_EQ(waits.words,
            "3 nodes are here and hold 3 replicas; more are coming: waiting up to 29m more");
  Situation later = situation;
  later.now = waits.look_again;
  EXPECT_EQ(Ask(rule, later).action, kStart);
  situation.offers = WholeNodes(4, 1);
  EXPECT_EQ(Ask(rule, situation).action, kStart);
  rule.data = 2;
  situation.offers = WholeNodes(3, 1);
  EXPECT_EQ(Ask(rule, situation).action, kStart);
}

TEST(LayoutPlanner, PutsAReplicaIntoOneDomainAndSpreadsReplicas) {
  const LayoutRule rule = RuleOf(4, 3);
  // Three domains of four nodes; a replica has three.
  const Decision decision = Ask(rule, {.offers = WholeNodes(12, 4, 4), .now = kDay});
  ASSERT_EQ(decision.shape.data, 4);
  for (int32_t d = 0; d < 3; ++d)
    for (int32_t p = 0; p < 3; ++p)
      EXPECT_EQ(decision.seats[decision.shape.Rank(p, d, 0)].node / 4, static_cast<NodeId>(d));
}

TEST(LayoutPlanner, SpreadsReplicasOverDomainsThatAreNotAlike) {
  LayoutRule rule = RuleOf(4, 1);
  rule.data = 4;
  std::vector<NodeOffer> offers = WholeNodes(12, 4);
  for (NodeOffer& offer : offers) offer.domain = offer.node < 9 ? 0 : 1;
  std::vector<NodeId> first;
  for (const NodeId node : NodesOf(Ask(rule, {.offers = offers, .now = kDay}).seats))
    first.push_back(node < 9 ? 0 : 1);
  EXPECT_THAT(first, testing::UnorderedElementsAre(0, 0, 1, 1));
}

TEST(LayoutPlanner, ASpareTakesThePlacesOfALostNode) {
  LayoutRule rule = RuleOf(4, 2);
  rule.spares = 1;
  Situation situation = Started(rule, WholeNodes(9, 4));
  Remove(situation.offers, 3);
  const Decision decision = Ask(rule, situation);
  EXPECT_EQ(decision.action, kPromoteSpare);
  EXPECT_EQ(decision.reason, LayoutReason::kRanksLost);
  EXPECT_EQ(Moves(situation.current, decision), 4);
  EXPECT_EQ(decision.words,
            "node 3 lost with ranks 20-23; data 4 stays, 4 ranks move to spare slots of node 8");
}

TEST(LayoutPlanner, ASpareOfTheSameDomainIsPreferred) {
  LayoutRule rule = RuleOf(4, 2);
  rule.data = 3;
  Situation situation = Started(rule, WholeNodes(9, 4, 3));
  const NodeId lost = situation.current.seats[situation.current.shape.Rank(1, 2, 0)].node;
  Remove(situation.offers, lost);
  const Decision decision = Ask(rule, situation);
  EXPECT_EQ(decision.action, kPromoteSpare);
  EXPECT_EQ(decision.seats[decision.shape.Rank(1, 2, 0)].node / 3, lost / 3);
}

TEST(LayoutPlanner, EachReplicaIsRepairedInItsDomain) {
  LayoutRule rule = RuleOf(4, 2);
  rule.data = 2;
  std::vector<NodeOffer> offers = WholeNodes(7, 4);
  for (NodeOffer& offer : offers) offer.domain = offer.node < 3 ? 0 : 1;
  Situation situation = Started(rule, offers);
  const LayoutShape shape = situation.current.shape;
  for (int32_t d = 0; d < 2; ++d)
    Remove(situation.offers, situation.current.seats[shape.Rank(0, d, 0)].node);
  const Decision decision = Ask(rule, situation);
  EXPECT_EQ(decision.action, kPromoteSpare);
  for (int32_t d = 0; d < 2; ++d)
    EXPECT_EQ(decision.seats[shape.Rank(0, d, 0)].node < 3,
              decision.seats[shape.Rank(1, d, 0)].node < 3);
}

TEST(LayoutPlanner, ALostSlotIsReplacedOnItsNode) {
  LayoutRule rule = RuleOf(3, 1);
  Situation situation = Started(rule, WholeNodes(3, 4));
  RemoveSlot(situation.offers, {.node = 1, .local_rank = 1});
  const Decision decision = Ask(rule, situation);
  EXPECT_EQ(decision.action, kPromoteSpare);
  EXPECT_EQ(decision.seats[4], (Seat{.node = 1, .local_rank = 3}));
  EXPECT_EQ(
      decision.words,
      "slots of node 1 lost with rank 4; data 3 stays, 1 rank moves to spare slots of node 1");
}

TEST(LayoutPlanner, ShrinksAtOnceAndRenumbersTheHighest) {
  LayoutRule rule = RuleOf(4, 2);
  Situation situation = Started(rule, WholeNodes(10, 4));
  Remove(situation.offers, situation.current.seats[situation.current.shape.Rank(1, 1, 0)].node);
  const Decision decision = Ask(rule, situation);
  EXPECT_EQ(decision.action, kShrink);
  EXPECT_THAT(decision.source, ElementsAre(0, 4, 2, 3));
  EXPECT_EQ(
      decision.words,
      "node 3 lost with ranks 24-27; too few spares: data 5 -> 4, ranks of replica 1 that are "
      "left (4) become spares");
}

TEST(LayoutPlanner, LeftOversOfTwoBrokenReplicasMakeOne) {
  LayoutRule rule = RuleOf(4, 2);
  Situation situation = Started(rule, WholeNodes(10, 4));
  const LayoutShape shape = situation.current.shape;
  Remove(situation.offers, situation.current.seats[shape.Rank(0, 1, 0)].node);
  Remove(situation.offers, situation.current.seats[shape.Rank(1, 3, 0)].node);
  const Decision decision = Ask(rule, situation);
  EXPECT_EQ(decision.action, kRebuild);
  EXPECT_EQ(decision.shape.data, 4);
  EXPECT_EQ(Moves(situation.current, decision), 4);
  EXPECT_EQ(
      decision.words,
      "nodes 2, 7 lost with ranks 4-7, 32-35; data 5 -> 4: 1 of 2 broken replicas repaired, 4 "
      "ranks move to node 6");
}

TEST(LayoutPlanner, MoreReplicasThanLeavesBecomeSpares) {
  LayoutRule rule = RuleOf(1, 1);
  const Situation situation = Started(rule, WholeNodes(8, 1));
  rule.leaves = 5;
  const Decision decision = Ask(rule, situation);
  EXPECT_EQ(decision.action, kShrink);
  EXPECT_EQ(decision.reason, LayoutReason::kMoreThanWanted);
  EXPECT_EQ(decision.words,
            "data 8 -> 5, because the leaves of a step are 5; what is left of replicas 5-7 becomes "
            "spare");
}

TEST(LayoutPlanner, ALossDoesNotHideThatFewerAreWanted) {
  LayoutRule rule = RuleOf(1, 1);
  Situation situation = Started(rule, WholeNodes(8, 1));
  Remove(situation.offers, 0);
  rule.data = 6;
  const Decision decision = Ask(rule, situation);
  EXPECT_EQ(decision.words,
            "node 0 lost with rank 0; data 8 -> 6, because [layout] data is 6; what is left of "
            "replicas 0, 7 becomes spare");
}

TEST(LayoutPlanner, GrowsWhenNodesStay) {
  LayoutRule rule = RuleOf(4, 1);
  rule.spares = 1;
  Situation situation = Started(rule, WholeNodes(5, 4));
  ASSERT_EQ(situation.current.shape.data, 4);
  situation.offers = WholeNodes(8, 4);
  const Decision keeps = Ask(rule, situation);
  EXPECT_EQ(keeps.action, kKeep);
  EXPECT_EQ(keeps.reason, LayoutReason::kGrowsLater);
  EXPECT_EQ(keeps.look_again, kDay + absl::Minutes(10));
  EXPECT_THAT(keeps.words, HasSubstr("the same for 10m"));
  situation.now = keeps.look_again;
  const Decision grows = Ask(rule, situation);
  EXPECT_EQ(grows.action, kGrow);
  EXPECT_EQ(grows.shape.data, 7);
  EXPECT_EQ(grows.words, "data 4 -> 7 on nodes 4-6, 4 slots stay spare");
  rule.leaves = 5;
  EXPECT_EQ(Ask(rule, situation).shape.data, 5);
  rule.data = 4;
  EXPECT_EQ(Ask(rule, situation).action, kKeep);
}

TEST(LayoutPlanner, DrainedNodesComeLast) {
  LayoutRule rule = RuleOf(4, 1);
  std::vector<NodeOffer> offers = WholeNodes(4, 4);
  Of(offers, 1).drained = true;
  rule.data = 3;
  EXPECT_THAT(NodesOf(Ask(rule, {.offers = offers, .now = kDay}).spares), ElementsAre(1));
  rule.data = 0;
  const Decision all = Ask(rule, {.offers = offers, .now = kDay});
  EXPECT_EQ(all.shape.data, 4);
  EXPECT_THAT(all.words, HasSubstr("used although drained, else fewer replicas fit: node 1"));
  rule.spares = 1;  // A drained node is what is kept back.
  EXPECT_THAT(NodesOf(Ask(rule, {.offers = offers, .now = kDay}).spares), ElementsAre(1));
}

TEST(LayoutPlanner, RanksLeaveADrainedNodeIfThereIsASpare) {
  LayoutRule rule = RuleOf(4, 1);
  Situation situation = Started(rule, WholeNodes(4, 4));
  Of(situation.offers, 2).drained = true;
  EXPECT_EQ(Ask(rule, situation).action, kKeep);
  situation.offers = WholeNodes(5, 4);
  Of(situation.offers, 2).drained = true;
  const Decision decision = Ask(rule, situation);
  EXPECT_EQ(decision.action, kPromoteSpare);
  EXPECT_EQ(decision.reason, LayoutReason::kNodesDrained);
  EXPECT_EQ(decision.words, "data 4 stays, 4 ranks move to spare slots of node 4; drained: node 2");
}

TEST(LayoutPlanner, NobodyGrowsOntoADrainedNode) {
  const LayoutRule rule = RuleOf(4, 1);
  Situation situation = Started(rule, WholeNodes(4, 4));
  situation.offers = WholeNodes(5, 4);
  Of(situation.offers, 4).drained = true;
  situation.now += absl::Hours(1);
  EXPECT_EQ(Ask(rule, situation).action, kKeep);
}

TEST(LayoutPlanner, AnAvoidedNodeIsLeftForASpare) {
  const LayoutRule rule = RuleOf(4, 1);
  Situation situation = Started(rule, WholeNodes(4, 4));
  situation.offers = WholeNodes(5, 4);
  Of(situation.offers, 2).avoided = true;
  const Decision decision = DecideLayout(rule, situation);
  EXPECT_EQ(decision.action, kPromoteSpare);
  EXPECT_EQ(decision.reason, LayoutReason::kNodesSlow);
  EXPECT_EQ(decision.words,
            "slow node 2 left out with ranks 8-11; data 4 stays, 4 ranks move to spare slots of "
            "node 4");
  EXPECT_THAT(decision.spares, testing::IsEmpty()) << "it is none";
  situation.current = Applied(situation.current, decision);
  EXPECT_EQ(DecideLayout(rule, situation).action, kKeep);
}

TEST(LayoutPlanner, AnAvoidedNodesReplicaIsGivenUp) {
  const LayoutRule rule = RuleOf(4, 1);
  Situation situation = Started(rule, WholeNodes(4, 4));
  Of(situation.offers, 1).avoided = true;
  const Decision decision = DecideLayout(rule, situation);
  EXPECT_EQ(decision.action, kShrink);
  EXPECT_EQ(decision.shape.data, 3);
  EXPECT_THAT(NodesOf(decision.seats), testing::UnorderedElementsAre(0, 2, 3));
  situation.current = Applied(situation.current, decision);
  situation.now += absl::Hours(1);
  EXPECT_EQ(DecideLayout(rule, situation).action, kKeep) << "nobody grows onto it";
  Of(situation.offers, 1).avoided = false;
  EXPECT_EQ(DecideLayout(rule, situation).action, kGrow);
}

TEST(LayoutPlanner, AnAvoidedNodeIsUsedWhereTooFewReplicasFitWithoutIt) {
  LayoutRule rule = RuleOf(4, 1);
  rule.data_min = 4;
  Situation situation = Started(rule, WholeNodes(4, 4));
  Of(situation.offers, 1).avoided = true;
  EXPECT_EQ(DecideLayout(rule, situation).action, kKeep);
  rule.data_min = 3;
  EXPECT_EQ(DecideLayout(rule, situation).action, kShrink);
  rule.shrink = false;
  EXPECT_EQ(DecideLayout(rule, situation).action, kKeep);
  rule.shrink = true;
  for (NodeOffer& offer : situation.offers) offer.avoided = true;
  EXPECT_EQ(DecideLayout(rule, situation).action, kKeep) << "there are no others";
  rule.data_min = 4;
  Remove(situation.offers, 3);
  EXPECT_EQ(DecideLayout(rule, situation).shape.data, 0) << "or too few";
}

// It counts as drained then; but that is not what people are told.
TEST(LayoutPlanner, AnAvoidedNodeThatIsUsedIsCalledSlow) {
  LayoutRule rule = RuleOf(4, 1);
  Situation situation{.offers = WholeNodes(3, 4), .now = kDay};
  Of(situation.offers, 1).avoided = true;
  Of(situation.offers, 2).drained = true;
  rule.data_min = 3;
  EXPECT_THAT(DecideLayout(rule, situation).words,
              HasSubstr("; used although drained, else fewer replicas fit: node 2; used although "
                        "slow, else fewer replicas fit: node 1"));
  rule.data = rule.data_min = 2;
  situation = Started(rule, WholeNodes(2, 4));
  situation.offers = WholeNodes(3, 4);
  for (const NodeId node : {0, 1}) Of(situation.offers, node).avoided = true;
  const Decision decision = DecideLayout(rule, situation);
  EXPECT_THAT(decision.words, HasSubstr("to spare slots of node 2; slow: node "));
}

// What was lost and who is slow are told apart.
TEST(LayoutPlanner, LostAndSlowNodesAreNamed) {
  const LayoutRule rule = RuleOf(4, 1);
  Situation situation = Started(rule, WholeNodes(5, 4));
  Of(situation.offers, 1).avoided = true;
  Remove(situation.offers, 3);
  const Decision decision = DecideLayout(rule, situation);
  EXPECT_EQ(decision.reason, LayoutReason::kRanksLost);
  EXPECT_THAT(decision.words,
              HasSubstr("node 3 lost with ranks 12-15, slow node 1 left out with ranks 4-7; "));
}

TEST(LayoutPlanner, ARunThatCrossesNodesGoesOnSo) {
  const LayoutRule rule = RuleOf(4, 1);
  Situation situation = Started(rule, WholeNodes(4, 2));
  ASSERT_EQ(situation.current.shape.data, 2);
  situation.offers.push_back({.node = 9, .slots = {0, 1, 2, 3}});
  EXPECT_EQ(Ask(rule, situation).action, kKeep);
  Remove(situation.offers, 0);
  const Decision decision = Ask(rule, situation);
  EXPECT_EQ(decision.action, kPromoteSpare);
  EXPECT_EQ(Moves(situation.current, decision), 2);
}

TEST(LayoutPlanner, AnotherShapeStartsAnew) {
  const Situation situation = Started(RuleOf(2, 2), WholeNodes(4, 2));
  const Decision decision = DecideLayout(RuleOf(2, 1), situation);
  EXPECT_EQ(decision.action, kStart);
  EXPECT_EQ(decision.shape.data, 4);
}

TEST(LayoutPlanner, WaitsThenEndsTheJob) {
  LayoutRule rule = RuleOf(2, 1);
  rule.data_min = 3;
  Situation situation = Started(rule, WholeNodes(4, 2));
  situation.offers.resize(2);
  const Decision waits = Ask(rule, situation);
  EXPECT_EQ(waits.action, kWait);
  EXPECT_EQ(waits.look_again, kDay + absl::Minutes(30));
  EXPECT_EQ(
      waits.words,
      "2 nodes with 4 slots hold 2 of the 3 replicas that are needed (data_min): waiting up to "
      "30m more");
  situation.waiting_since = kDay;
  situation.nodes_coming = true;
  situation.now = waits.look_again - absl::Nanoseconds(1);
  EXPECT_EQ(Ask(rule, situation).action, kWait);
  situation.now = waits.look_again;
  const Decision ends = Ask(rule, situation);
  EXPECT_EQ(ends.action, kEnd);
  EXPECT_EQ(ends.exit_code, kExitMoreToDo);
  EXPECT_THAT(ends.words, HasSubstr("after waiting 30m: the next job gets fresh nodes"));
}

TEST(LayoutPlanner, MayNotShrink) {
  LayoutRule rule = RuleOf(2, 1);
  rule.shrink = false;
  Situation situation = Started(rule, WholeNodes(4, 2));
  situation.offers.resize(3);
  const Decision waits = Ask(rule, situation);
  EXPECT_EQ(waits.action, kWait);
  EXPECT_THAT(waits.words,
              HasSubstr("3 of the 4 replicas that are needed (the run may not shrink)"));
  situation.offers.push_back({.node = 7, .slots = {0, 1}});
  EXPECT_EQ(Ask(rule, situation).action, kPromoteSpare);
}

TEST(LayoutPlanner, EndsWhereNoNodeHasASlot) {
  const LayoutRule rule = RuleOf(1, 1);
  const Decision ends = Ask(rule, {.offers = WholeNodes(3, 0), .now = kDay});
  EXPECT_EQ(ends.action, kEnd);
  EXPECT_EQ(ends.exit_code, kExitPersonMustLook);
  EXPECT_THAT(ends.words, HasSubstr("none of 3 nodes has a slot"));
  EXPECT_EQ(Ask(rule, {.now = kDay, .nodes_coming = true}).action, kWait);
  EXPECT_EQ(Ask(rule, {.now = kDay}).reason, LayoutReason::kNoSlots);
}

TEST(LayoutPlanner, EndsWhereItCouldNeverFit) {
  LayoutRule rule = RuleOf(4, 4);
  rule.nodes_max = 3;
  rule.ranks_per_node = 4;
  const Decision ends = Ask(rule, {.offers = WholeNodes(3, 4), .now = kDay});
  EXPECT_EQ(ends.action, kEnd);
  EXPECT_EQ(ends.exit_code, kExitPersonMustLook);
  EXPECT_EQ(ends.words,
            "3 nodes of 4 slots never hold 1 replicas of tensor 4 x pipeline 4 ranks: ask for more "
            "nodes, or lower [layout] tensor, pipeline or data");
  rule.nodes_max = 4;
  EXPECT_EQ(Ask(rule, {.offers = WholeNodes(3, 4), .now = kDay}).action, kWait);
  rule.ranks_per_node = 3;  // Groups cross nodes: 12 slots.
  EXPECT_EQ(Ask(rule, {.offers = WholeNodes(3, 3), .now = kDay}).exit_code, kExitPersonMustLook);
}

TEST(LayoutPlanner, NamesActions) {
  EXPECT_STREQ(Name(kKeep), "keep");
  EXPECT_STREQ(Name(kPromoteSpare), "promote-spare");
  EXPECT_STREQ(Name(kGrow), "grow");
  EXPECT_STREQ(Name(kEnd), "end");
}

TEST(LayoutWords, Ranges) {
  EXPECT_EQ(Ranges(std::vector<int64_t>{}), "");
  EXPECT_EQ(Ranges(std::vector<int64_t>{7}), "7");
  EXPECT_EQ(Ranges(std::vector<int64_t>{0, 1, 2, 7}), "0-2, 7");
  EXPECT_EQ(Ranges(std::vector<int64_t>{0, 2, 4, 6, 7}), "0, 2, 4 and 2 more");
}

TEST(LayoutWords, ClipsAtTheBound) {
  EXPECT_EQ(Clip(std::string(kWordsMax, 'x')), std::string(kWordsMax, 'x'));
  EXPECT_EQ(Clip(std::string(kWordsMax + 1, 'x')), std::string(kWordsMax - 3, 'x') + "...");
}

TEST(LayoutWords, FiveHundredLostNodesFit) {
  LayoutRule rule = RuleOf(4, 4);
  rule.spares = 20;
  Situation situation = Started(rule, WholeNodes(2000, 8, 16));
  std::erase_if(situation.offers, [](const NodeOffer& offer) { return offer.node % 4 == 1; });
  for (NodeOffer& offer : situation.offers)
    if (offer.node % 8 == 2) offer.slots.erase(offer.slots.begin());
  for (NodeOffer& offer : situation.offers) offer.drained = offer.node % 16 == 3;
  const Decision decision = DecideLayout(rule, situation);
  EXPECT_EQ(
      decision.words,
      "495 nodes and 248 slots of others lost, 4208 ranks in all; data 990 -> 687: 440 of 743 "
      "broken replicas repaired, 2528 ranks move to nodes 8, 12, 24 and 314 more");
}

}  // namespace
}  // namespace perdure
