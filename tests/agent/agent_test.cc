#include "runtime/agent/agent.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <fstream>

#include "runtime/base/status.h"
#include "tests/agent/agent_stage.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;
using testing::Not;

class AgentTest : public testing::Test {
 protected:
  AgentTest() : stage_(directory_.path()) {}
  ~AgentTest() override {
    EXPECT_EQ(stage_.lockstep().wrong(), "");
    if (HasFailure()) std::printf("%s", stage_.Story().c_str());
  }

  void StartAll(NodeId nodes = 4) {
    for (NodeId node = 0; node < nodes; ++node) stage_.Start(node);
    ASSERT_TRUE(stage_.Steps(5));
  }
  bool RunsOn(std::vector<NodeId> nodes) {
    return stage_.Until([&] {
      const StageNode* lead = stage_.Lead();
      return lead != nullptr && lead->agent->lead()->phase() == Coordinator::Phase::kRunning &&
             lead->agent->lead()->members() == nodes;
    });
  }

  const TestDirectory directory_;
  AgentStage stage_;
};

TEST_F(AgentTest, AJobFormsAndSteps) {
  StartAll();
  const std::vector<Record> records = stage_.Records();
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[0].type, RecordType::kLead);
  EXPECT_EQ(records[0].author.at, (Endpoint{1, 0}));
  EXPECT_EQ(ParseLead(records[0].body)->address,
            WireAddressText(stage_.at(0).agent->peers().address()));
  EXPECT_EQ(records[1].type, RecordType::kStart);
  const StartRecord start = *ParseStart(records[1].body);
  EXPECT_EQ(start.shape, (LayoutShape{1, 1, 4}));
  EXPECT_EQ(start.seats, (std::vector<Seat>{{0, 0}, {1, 0}, {2, 0}, {3, 0}}));
  // Connections: each member's to the coordinator, in the table's tree none is needed beside it.
  EXPECT_EQ(stage_.at(0).agent->peers().wire().Usage().connections, 3u);
  EXPECT_EQ(stage_.at(0).agent->peers().counters().malformed, 0u);
}

TEST_F(AgentTest, ALostNodeIsReplacedBySpareOrDoneWithout) {
  stage_.options.rule.spares = 1;
  StartAll();
  ASSERT_TRUE(RunsOn({1, 2, 3})) << "the coordinator's node is the spare";
  stage_.Kill(1);
  ASSERT_TRUE(RunsOn({0, 2, 3}));
  ASSERT_TRUE(stage_.Steps(5));
  stage_.Kill(3);
  ASSERT_TRUE(RunsOn({0, 2}));
  ASSERT_TRUE(stage_.Steps(5));
  EXPECT_THAT(stage_.at(0).evidence,
              Contains(testing::Field(&Coordinator::Evidence::node, NodeId{1})));
  // One of each: neither cost more than a generation.
  EXPECT_EQ(stage_.Count(RecordType::kStart), 3);
  EXPECT_EQ(stage_.Count(RecordType::kLead), 1);
}

// Its ranks live on, another agent takes the lead and finds everybody running.
TEST_F(AgentTest, TheCoordinatorsDeathCostsNoStep) {
  StartAll();
  stage_.KillAgent(0);
  stage_.StartAgent(0);
  ASSERT_TRUE(stage_.Until([&] { return stage_.Count(RecordType::kLead) == 2; }));
  ASSERT_TRUE(RunsOn({0, 1, 2, 3}));
  ASSERT_TRUE(stage_.Steps(5));
  EXPECT_EQ(stage_.Count(RecordType::kStart), 1);
}

TEST_F(AgentTest, TheCoordinatorsNodeIsReplacedLikeAnyOther) {
  stage_.options.rule.spares = 1;
  StartAll();
  ASSERT_TRUE(RunsOn({1, 2, 3}));
  stage_.Kill(0);
  ASSERT_TRUE(stage_.Until([&] { return stage_.Count(RecordType::kLead) == 2; }));
  ASSERT_TRUE(RunsOn({1, 2, 3}));
  ASSERT_TRUE(stage_.Steps(5));
  EXPECT_EQ(stage_.Count(RecordType::kStart), 1) << "it was the spare";
  // Now one that has ranks.
  stage_.Start(0);
  ASSERT_TRUE(stage_.Steps(5));
  stage_.Kill(1);
  ASSERT_TRUE(RunsOn({0, 2, 3}));
  ASSERT_TRUE(stage_.Steps(5));
  EXPECT_EQ(stage_.Count(RecordType::kLead), 3);
  EXPECT_EQ(stage_.Count(RecordType::kStart), 2);
}

TEST_F(AgentTest, ANodeThatComesBackIsTakenIn) {
  StartAll();
  stage_.Kill(2);
  ASSERT_TRUE(RunsOn({0, 1, 3}));
  stage_.Start(2);  // Another incarnation, another port.
  ASSERT_TRUE(RunsOn({0, 1, 2, 3}));
  ASSERT_TRUE(stage_.Steps(5));
}

TEST_F(AgentTest, AJobEndsWithItsCodeEverywhere) {
  StartAll();
  ASSERT_TRUE(stage_.Lead()->agent->TellLead(Coordinator::EndJob{75}));
  ASSERT_TRUE(stage_.Until([&] {
    for (NodeId node = 0; node < 4; ++node)
      if (!stage_.at(node).exit_code.has_value()) return false;
    return true;
  }));
  for (NodeId node = 0; node < 4; ++node) EXPECT_EQ(stage_.at(node).exit_code, 75) << node;
  // With a checkpoint of what was trained.
  const std::vector<Record> records = stage_.Records();
  ASSERT_EQ(records.back().type, RecordType::kEnd);
  ASSERT_EQ(records[records.size() - 2].type, RecordType::kCommit);
  EXPECT_EQ(ParseEnd(records.back().body)->exit_code, 75);
}

TEST_F(AgentTest, ACompleteRunEnds) {
  stage_.lockstep().steps_max = 20;
  for (NodeId node = 0; node < 4; ++node) stage_.Start(node);
  ASSERT_TRUE(stage_.Until([&] { return stage_.at(3).exit_code.has_value(); }));
  EXPECT_EQ(stage_.at(3).exit_code, 0);
  EXPECT_EQ(stage_.lockstep().step(), 20);
  EXPECT_EQ(stage_.Count(RecordType::kCommit), 1);
}

TEST_F(AgentTest, ACheckpointIsCommittedOnceItsManifestIsMade) {
  StartAll();
  stage_.at(0).store.publishes = ResourceExhausted("no room in ckpt/");
  ASSERT_TRUE(stage_.at(0).agent->TellLead(Coordinator::SaveNow{}));
  ASSERT_TRUE(stage_.Until([&] { return !stage_.at(3).ranks.settled.empty(); }));
  EXPECT_FALSE(stage_.at(3).ranks.settled.back().committed);
  EXPECT_THAT(stage_.at(0).remarks, Contains(HasSubstr("no room in ckpt/")));
  EXPECT_EQ(stage_.Count(RecordType::kCommit), 0);
  ASSERT_TRUE(stage_.Steps(5));
  // The next one is not in its way.
  stage_.at(0).store.publishes = absl::OkStatus();
  ASSERT_TRUE(stage_.at(0).agent->TellLead(Coordinator::SaveNow{}));
  ASSERT_TRUE(stage_.Until([&] { return stage_.at(3).ranks.settled.back().committed; }));
  EXPECT_EQ(stage_.Count(RecordType::kCommit), 1);
  EXPECT_EQ(stage_.Count(RecordType::kStart), 1);
}

TEST_F(AgentTest, TheStoreHearsWhetherItsAgentLeads) {
  stage_.options.control.poll = absl::Milliseconds(200);
  StartAll();
  const StageStore& store = stage_.at(0).store;
  EXPECT_EQ(store.leads, 1);
  EXPECT_EQ(store.ends, 0);
  ASSERT_EQ(store.present.size(), 1u);
  EXPECT_EQ(store.present[0].generation, 1u);
  EXPECT_EQ(stage_.at(1).store.leads, 0);
  ASSERT_TRUE(stage_.at(0).agent->TellLead(Coordinator::SaveNow{}));
  ASSERT_TRUE(stage_.Until([&] { return !store.over.empty(); }));
  EXPECT_TRUE(store.over[0].committed);
  EXPECT_EQ(store.over[0].generation, 1u);
  // A note without anything to say is dropped in silence, another is not.
  stage_.at(0).store.notes = NotFound("nothing is to be said");
  ASSERT_TRUE(stage_.at(0).agent->TellLead(Coordinator::Note{.tag = 1}));
  stage_.For(absl::Milliseconds(300));
  EXPECT_THAT(stage_.at(0).remarks, Not(Contains(HasSubstr("nothing is to be said"))));
  RunLog other = *RunLog::Open(directory_.path());
  ASSERT_OK(other.Append(RecordType::kLead, 1, SerializeLead({.address = "127.0.0.1:9"})));
  ASSERT_TRUE(stage_.Until([&] { return store.ends == 1; }));
  EXPECT_EQ(stage_.at(0).agent->lead(), nullptr);
}

TEST_F(AgentTest, NotesOfTheStoreAreInTheLog) {
  StartAll();
  StageNode& lead = stage_.at(0);
  for (uint64_t tag : {7, 8}) ASSERT_TRUE(lead.agent->TellLead(Coordinator::Note{tag}));
  ASSERT_TRUE(stage_.Until([&] { return lead.store.noted.size() == 2; }));
  EXPECT_THAT(lead.store.noted, testing::ElementsAre(7, 8));
  EXPECT_EQ(stage_.Count(RecordType::kAttempt), 2);
  const Record last = stage_.Records().back();
  EXPECT_EQ(ParseAttempt(last.body)->name, "s000000008.g1.00000000");
  EXPECT_EQ(last.generation, 1u);
  lead.store.notes = Internal("forgot what it was");
  ASSERT_TRUE(lead.agent->TellLead(Coordinator::Note{9}));
  ASSERT_TRUE(stage_.Until([&] {
    return std::any_of(lead.remarks.begin(), lead.remarks.end(), [](const std::string& remark) {
      return remark.find("forgot what it was") != std::string::npos;
    });
  }));
  EXPECT_EQ(stage_.Count(RecordType::kAttempt), 2);
  ASSERT_TRUE(stage_.Steps(5)) << "nothing is held up by it";
}

// Memory is lost with the ranks, and of two checkpoints the newer cannot be loaded.
TEST_F(AgentTest, ARunGoesOnFromACheckpointThatIsGood) {
  stage_.options.control.stop_max = absl::Seconds(2);
  StartAll();
  StageNode& lead = stage_.at(0);
  EXPECT_THAT(lead.store.asked, testing::SizeIs(1)) << "the run began";
  std::vector<CommitRecord> commits;
  for (size_t save = 1; save <= 2; ++save) {
    ASSERT_TRUE(lead.agent->TellLead(Coordinator::SaveNow{}));
    ASSERT_TRUE(stage_.Until([&] { return stage_.Count(RecordType::kCommit) == int(save); }));
    commits.push_back(*ParseCommit(stage_.Records().back().body));
    ASSERT_TRUE(stage_.Steps(5));
  }
  EXPECT_THAT(lead.store.joined.at(3),
              testing::StartsWith(fmt::format("step {}:", commits[1].step)));
  for (NodeId node = 0; node < 4; ++node) {
    stage_.at(node).ranks.deaf = true;
    stage_.at(node).ranks.bad_checkpoint = commits[1].checkpoint;
  }
  stage_.Kill(3);
  ASSERT_TRUE(stage_.Until([&] { return lead.store.good.size() == 1; })) << stage_.Story();
  ASSERT_THAT(lead.store.asked, testing::SizeIs(3));
  EXPECT_FALSE(lead.store.asked[1].last_is_bad);
  EXPECT_TRUE(lead.store.asked[2].last_is_bad);
  EXPECT_EQ(lead.store.asked[2].last, commits[1].checkpoint);
  std::vector<StartRecord> starts;
  for (const Record& record : stage_.Records())
    if (record.type == RecordType::kStart) starts.push_back(*ParseStart(record.body));
  ASSERT_THAT(starts, testing::SizeIs(3));
  EXPECT_EQ(starts[1].step, commits[1].step);
  EXPECT_EQ(starts[1].failure.kind, EvidenceKind::kNodeLost);
  EXPECT_EQ(starts[1].failure.node, NodeId{3});
  EXPECT_GE(starts[1].failure.step, commits[1].step + 5);
  EXPECT_EQ(starts[2].step, commits[0].step);
  EXPECT_EQ(starts[2].failure.kind, EvidenceKind::kBadCheckpoint);
  EXPECT_EQ(starts[2].failure.step, commits[1].step);
}

TEST_F(AgentTest, RanksThatDoNotStopAreKilled) {
  stage_.options.control.stop_max = absl::Seconds(2);
  StartAll();
  stage_.at(2).ranks.deaf = true;
  stage_.Kill(1);
  ASSERT_TRUE(RunsOn({0, 2, 3}));
  ASSERT_TRUE(stage_.Steps(5));
}

// Two jobs on one run: the second asks the first's coordinator, with the first's key, and waits.
TEST_F(AgentTest, AnotherJobWaitsWhileTheFirstLives) {
  stage_.options.control.poll = absl::Milliseconds(500);
  stage_.options.control.lease_log = absl::Seconds(2);
  StartAll();
  for (NodeId node = 0; node < 2; ++node) stage_.Start(node, 2, /*own_log=*/true);
  stage_.For(absl::Seconds(4));  // Longer than a log lease.
  EXPECT_EQ(stage_.Count(RecordType::kLead), 1);
  EXPECT_EQ(stage_.Count(RecordType::kStart), 1);
  EXPECT_EQ(stage_.Lead(2), nullptr);
  ASSERT_TRUE(stage_.Steps(5));
  // The first is gone without a word; now it is the second's.
  for (NodeId node = 0; node < 4; ++node) stage_.Kill(node);
  ASSERT_TRUE(stage_.Until([&] { return stage_.Count(RecordType::kStart) == 2; }));
  ASSERT_TRUE(stage_.Steps(5));
  EXPECT_EQ(stage_.Records().back().author.at.job, 2u);
}

TEST_F(AgentTest, ADamagedLogIsAPersonsToLookAt) {
  StartAll();
  std::ofstream(fmt::format("{}/log/{:08}.rec", directory_.path(), 2)) << "not a record";
  ASSERT_TRUE(stage_.Until([&] { return stage_.at(0).exit_code.has_value(); }));
  EXPECT_EQ(stage_.at(0).exit_code, 93);
  EXPECT_THAT(stage_.at(0).remarks, Contains(AllOf(HasSubstr("(slot 2)"), HasSubstr("restore"))));
}

TEST_F(AgentTest, WrongOptionsAreRefused) {
  StageNode& node = stage_.Start(0);
  AgentOptions options = stage_.options;
  const auto expect = [&](const char* what) {
    const auto agent =
        Agent::New(stage_.loop(), stage_.log(), options, &node.ranks, &node.store, {});
    ASSERT_FALSE(agent.ok()) << what;
    EXPECT_THAT(Message(agent.status()), HasSubstr(what));
  };
  options.node = options.nodes;
  expect("node 4 of a job of 4");
  options.node = 1;
  options.interface = "10.11.12.13";
  expect("10.11.12.13");
  options.interface = "no-such-interface";
  expect("no-such-interface");
  options.interface = "127.0.0.1";
  options.control.heartbeat = absl::ZeroDuration();
  expect("heartbeat");
  options.control.heartbeat = absl::Milliseconds(250);
  options.run_directory += "/elsewhere";
  expect("elsewhere/control");
}

}  // namespace
}  // namespace perdure
