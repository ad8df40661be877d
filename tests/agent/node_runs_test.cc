#include "runtime/agent/node_runs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Files of one run each, or of as many as there are `runs`; of one atom a run, of one block.
std::vector<PartPlan> PlanOf(const std::vector<int>& runs) {
  std::vector<PartPlan> plan;
  int64_t atom = 0;
  for (const int count : runs) {
    PartPlan& part = plan.emplace_back();
    part.file = fmt::format("part-{:05}.h5", plan.size() - 1);
    for (int run = 0; run < count; ++run) {
      part.runs.push_back(1);
      part.atoms.push_back(atom++);
    }
  }
  return plan;
}

RunReport RunOf(const PartPlan& plan, int64_t run) {
  RunReport report{.file = plan.file,
                   .run = run,
                   .runs = plan.runs,
                   .bytes = uint64_t{plan.runs.size()} << 20,
                   .offsets = {},
                   .atoms = {plan.atoms[static_cast<size_t>(run)]},
                   .atom_digests = {DigestOf("atom")},
                   .blocks = {static_cast<uint64_t>(run)},
                   .block_digests = {DigestOf("block")}};
  return report;
}

NodeRuns Name() {
  NodeRuns name;
  name.generation = 3;
  name.step = 120;
  name.nonce = 0x91;
  return name;
}

Trail TrailOfIt() {
  return {.sample_chain = DigestOf("chain"), .recent = {{2.5, 0.75}, {-0.0, 1e-310}}};
}

// Member i wrote those runs of the files; the first one has rank 0.
std::vector<NodeRuns> MembersOf(const std::vector<PartPlan>& plan,
                                const std::vector<std::vector<std::pair<size_t, int64_t>>>& wrote) {
  std::vector<NodeRuns> members;
  for (const auto& runs : wrote) {
    NodeRuns& member = members.emplace_back(Name());
    if (members.size() == 1) member.trail = TrailOfIt();
    for (const auto& [file, run] : runs) member.runs.push_back(RunOf(plan[file], run));
  }
  return members;
}

std::string Refused(const std::vector<PartPlan>& plan, const std::vector<NodeRuns>& members) {
  const auto joined = JoinNodes(Name(), plan, members);
  EXPECT_TRUE(absl::IsDataLoss(joined.status())) << joined.status();
  return Message(joined.status());
}

TEST(NodeRuns, ComeBack) {
  NodeRuns runs = Name();
  runs.trail = TrailOfIt();
  runs.runs = {RunOf(PlanOf({2})[0], 0), RunOf(PlanOf({2})[0], 1)};
  runs.seconds = {.freeze = 0.5, .copy = 1.25, .wait = 0, .write = 3600};
  for (const bool chain : {true, false}) {
    if (!chain) runs.trail.reset();
    const std::string packed = PackNodeRuns(runs);
    const auto back = ParseNodeRuns(packed);
    ASSERT_OK(back.status());
    EXPECT_EQ(back->generation, 3u);
    EXPECT_EQ(back->step, 120);
    EXPECT_EQ(back->nonce, 0x91u);
    EXPECT_EQ(back->trail, runs.trail);
    ASSERT_EQ(back->runs.size(), 2u);
    EXPECT_EQ(SerializeRun(back->runs[1]), SerializeRun(runs.runs[1]));
    EXPECT_DOUBLE_EQ(back->seconds.freeze, 0.5);
    EXPECT_DOUBLE_EQ(back->seconds.copy, 1.25);
    EXPECT_DOUBLE_EQ(back->seconds.write, 3600);
    for (size_t length = 0; length < packed.size(); ++length)
      EXPECT_TRUE(absl::IsDataLoss(ParseNodeRuns(packed.substr(0, length)).status())) << length;
    EXPECT_TRUE(absl::IsDataLoss(ParseNodeRuns(packed + "x").status()));
    EXPECT_TRUE(absl::IsDataLoss(ParseNodeRuns("\x01" + packed.substr(1)).status()));
  }
}

TEST(NodeRuns, SecondsThatAreNone) {
  for (const double seconds :
       {-1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    NodeRuns runs = Name();
    runs.seconds.write = seconds;
    EXPECT_OK(ParseNodeRuns(PackNodeRuns(runs)).status());
  }
}

TEST(NodeRuns, EveryFlippedByteIsSafe) {
  NodeRuns runs = Name();
  runs.trail = TrailOfIt();
  const std::vector<PartPlan> plan = PlanOf({2});
  runs.runs = {RunOf(plan[0], 0), RunOf(plan[0], 1)};
  const std::string packed = PackNodeRuns(runs);
  for (size_t at = 0; at < packed.size(); ++at)
    for (const int flip : {1, 0x40, 0x80, 0xff}) {
      std::string bad = packed;
      bad[at] = static_cast<char>(bad[at] ^ flip);
      if (const auto back = ParseNodeRuns(bad); back.ok())
        (void)JoinNodes(Name(), plan, std::vector<NodeRuns>{*back});
    }
}

TEST(JoinNodes, NoFileVouchesForItsOwnMachine) {
  // A file a node: the next node reads.
  const std::vector<PartPlan> plan = PlanOf({2, 1, 1});
  const auto joined =
      JoinNodes(Name(), plan, MembersOf(plan, {{{0, 1}, {0, 0}}, {{1, 0}}, {{2, 0}}}));
  ASSERT_OK(joined.status());
  EXPECT_THAT(joined->readers, ElementsAre(1, 2, 0));
  ASSERT_EQ(joined->parts.size(), 3u);
  EXPECT_THAT(joined->parts[0].atoms, ElementsAre(0, 1));
  EXPECT_EQ(joined->trail.sample_chain, DigestOf("chain"));
  // A file of two nodes: one that wrote nothing of it.
  const std::vector<PartPlan> wide = PlanOf({2, 1});
  const auto of_two = JoinNodes(Name(), wide, MembersOf(wide, {{{0, 0}}, {{0, 1}}, {{1, 0}}}));
  ASSERT_OK(of_two.status());
  EXPECT_THAT(of_two->readers, ElementsAre(2, 0));
  // Of all nodes: another than its first writer.
  const std::vector<PartPlan> one = PlanOf({2});
  const auto of_all = JoinNodes(Name(), one, MembersOf(one, {{{0, 0}}, {{0, 1}}}));
  ASSERT_OK(of_all.status());
  EXPECT_THAT(of_all->readers, ElementsAre(1));
  // Alone.
  const auto alone = JoinNodes(Name(), one, MembersOf(one, {{{0, 0}, {0, 1}}}));
  ASSERT_OK(alone.status());
  EXPECT_THAT(alone->readers, ElementsAre(0));
  // A member whose ranks answer for no atom reads like any other.
  const auto idle = JoinNodes(Name(), one, MembersOf(one, {{{0, 0}, {0, 1}}, {}}));
  ASSERT_OK(idle.status());
  EXPECT_THAT(idle->readers, ElementsAre(1));
}

TEST(JoinNodes, TheSlowestCounts) {
  const std::vector<PartPlan> plan = PlanOf({1});
  std::vector<NodeRuns> members = MembersOf(plan, {{{0, 0}}, {}});
  members[0].seconds = {.freeze = 1, .copy = 5, .wait = 0, .write = 2};
  members[1].seconds = {.freeze = 3, .copy = 4, .wait = 1, .write = 1};
  const auto joined = JoinNodes(Name(), plan, members);
  ASSERT_OK(joined.status());
  EXPECT_EQ(joined->seconds.freeze, 3);
  EXPECT_EQ(joined->seconds.copy, 5);
  EXPECT_EQ(joined->seconds.wait, 1);
  EXPECT_EQ(joined->seconds.write, 2);
}

TEST(JoinNodes, WhatDoesNotFit) {
  const std::vector<PartPlan> plan = PlanOf({2, 1});
  const std::vector<NodeRuns> good = MembersOf(plan, {{{0, 0}, {0, 1}}, {{1, 0}}});
  ASSERT_OK(JoinNodes(Name(), plan, good).status());
  auto members = good;
  members[0].runs.pop_back();
  EXPECT_THAT(Refused(plan, members), HasSubstr("part-00000.h5: run 1 is missing"));
  members = good;
  members[1].runs.clear();
  EXPECT_THAT(Refused(plan, members), HasSubstr("part-00001.h5: nobody wrote it"));
  members = good;
  members[1].runs.push_back(members[1].runs[0]);
  EXPECT_THAT(Refused(plan, members), HasSubstr("run 0 was written twice"));
  members = good;
  members[1].runs[0].file = "part-00002.h5";
  EXPECT_THAT(Refused(plan, members), HasSubstr("part-00002.h5, which is no part"));
  members = good;
  members[1].runs[0].atoms[0] = 1;
  EXPECT_THAT(Refused(plan, members), HasSubstr("other atoms than it should"));
  members = good;
  members[1].runs[0].run = 1;
  EXPECT_THAT(Refused(plan, members), HasSubstr("by another plan"));
  members = good;
  members[0].runs[0].runs = {2};
  EXPECT_THAT(Refused(plan, members), HasSubstr("by another plan"));
  members = good;
  members[1].runs[0].block_digests.clear();
  EXPECT_THAT(Refused(plan, members), HasSubstr("part-00001.h5"));
  members = good;
  members[0].trail.reset();
  EXPECT_THAT(Refused(plan, members), HasSubstr("no member has rank 0"));
  members = good;
  members[1].trail = TrailOfIt();
  EXPECT_THAT(Refused(plan, members), HasSubstr("two members have rank 0"));
}

TEST(JoinNodes, AnotherAttemptIsAnother) {
  const std::vector<PartPlan> plan = PlanOf({1});
  for (int what = 0; what < 3; ++what) {
    std::vector<NodeRuns> members = MembersOf(plan, {{{0, 0}}, {}});
    if (what == 0) ++members[1].generation;
    if (what == 1) ++members[1].step;
    if (what == 2) ++members[1].nonce;
    EXPECT_THAT(Refused(plan, members), HasSubstr("and not s000000120.g3.00000091"));
  }
}

}  // namespace
}  // namespace perdure
