#include "runtime/agent/records.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "runtime/base/status.h"
#include "tests/agent/one_rank_start.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kName = "s000000120.g3.9f3c21aa";

TEST(Records, ComeBackAsTheyWere) {
  // Ranks that are no neighbours, a node twice, and a run that comes before its neighbour.
  const StartRecord start{{2, 1, 3},
                          {{4, 0}, {4, 1}, {0, 7}, {4, 3}, {4, 2}, {9, 0}},
                          {5, 5, ~0u},
                          "tensor 2 x \"é\"",
                          17};
  EXPECT_EQ(*ParseStart(SerializeStart(start)), start);
  const StartRecord again{
      .shape = {1, 1, 1},
      .seats = {{4, 0}},
      .domains = {7},
      .layout = "x",
      .step = 17,
      .from_checkpoint = true,
      .failure = {.kind = EvidenceKind::kRankKilled, .number = -11, .step = 18, .node = NodeId{0}}};
  EXPECT_EQ(*ParseStart(SerializeStart(again)), again);
  StartRecord back = again;
  back.gaps = {{.first_step = 5, .samples = 24, .bad_step = 7, .number = 1},
               {.first_step = 9, .samples = 8, .bad_step = 9, .number = 2}};
  EXPECT_EQ(*ParseStart(SerializeStart(back)), back);
  EXPECT_EQ(SerializeStart(again).find("gaps"), std::string::npos) << "as before there were any";
  const StartRecord nobody{{}, {}, {}, "imported", 0};
  EXPECT_EQ(*ParseStart(SerializeStart(nobody)), nobody);
  const LeadRecord lead{"[fd00::5]:4711"};
  EXPECT_EQ(*ParseLead(SerializeLead(lead)), lead);
  const CommitRecord commit{kName, 120, 960, DigestOf("m"), DigestOf("c"), 1ull << 63, 8};
  EXPECT_EQ(*ParseCommit(SerializeCommit(commit)), commit);
  EXPECT_EQ(*ParseAttempt(SerializeAttempt({kName})), AttemptRecord{kName});
  const VerifiedRecord verified{kName, "read"};
  EXPECT_EQ(*ParseVerified(SerializeVerified(verified)), verified);
  const RetireRecord retire{{kName, "s000000100.g1.00000000"}};
  EXPECT_EQ(*ParseRetire(SerializeRetire(retire)), retire);
  const EndRecord end{"time limit", 75, 130};
  EXPECT_EQ(*ParseEnd(SerializeEnd(end)), end);
}

TEST(Records, BytesOfTheSystemThatAreNotTextAreReplaced) {
  EXPECT_OK(ParseEnd(SerializeEnd({"died: \xff", 1, 2})).status());
}

TEST(Records, WrongBodiesNameTheField) {
  const auto expect = [](const absl::Status& status, const char* field) {
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << field;
    EXPECT_THAT(Message(status), HasSubstr(field));
  };
  expect(ParseStart("{").status(), "not valid JSON");
  expect(ParseStart("[]").status(), "not a JSON object");
  const auto failed = [](const char* axes, const char* rest, const char* failure) {
    const char* domains =
        std::string_view(rest).find("domains") == std::string_view::npos ? R"("domains":[],)" : "";
    return ParseStart(fmt::format(R"({{{},"layout":"x",{}{},{}}})", axes, domains, rest, failure))
        .status();
  };
  const auto start = [&](const char* axes, const char* rest) {
    return failed(
        axes, rest,
        R"("from_checkpoint":false,"failure":"","failure_number":0,"failure_step":0,"failure_node":-1)");
  };
  const char* two = R"("tensor":2,"pipeline":1,"data":1)";
  EXPECT_OK(start(two, R"("seats":[0,0,2],"step":1)"));
  expect(start(two, R"("seats":[0,0,2])"), "step is missing");
  expect(failed(two, R"("seats":[0,0,2],"step":1)", R"("from_checkpoint":1)"), "from_checkpoint");
  expect(failed(two, R"("seats":[0,0,2],"step":1)", R"("failure":"")"),
         "from_checkpoint is missing");
  const char* good = R"("seats":[0,0,2],"step":1,"from_checkpoint":true)";
  EXPECT_OK(failed(two, good,
                   R"("failure":"hung","failure_number":-1,"failure_step":9,"failure_node":0)"));
  expect(
      failed(two, good, R"("failure":"sad","failure_number":0,"failure_step":0,"failure_node":-1)"),
      "failure is 'sad'");
  expect(
      failed(two, good, R"("failure":"","failure_number":0,"failure_step":-1,"failure_node":-1)"),
      "failure_step");
  expect(failed(two, good, R"("failure":"","failure_number":0,"failure_step":0,"failure_node":-2)"),
         "failure_node");
  expect(failed(two, good,
                R"("failure":"","failure_number":0,"failure_step":0,"failure_node":4294967296)"),
         "failure_node");
  expect(failed(two, good, R"("failure":"","failure_number":0,"failure_step":0)"),
         "failure_node is missing");
  expect(start(two, R"("seats":[0,0,2],"step":-1)"), "step");
  expect(start(two, R"("seats":[0,0,2],"step":1,"y":1)"), "y is unknown");
  expect(start(R"("tensor":0,"pipeline":1,"data":1)", R"("seats":[],"step":1)"), "tensor");
  expect(start(R"("tensor":1000000,"pipeline":1000000,"data":1)", R"("seats":[],"step":1)"),
         "data makes 1000000000000 ranks");
  expect(start(two, R"("seats":[0,0],"step":1)"), "no triples");
  const auto gaps = [&](const char* numbers) {
    return start(two, fmt::format(R"("seats":[0,0,2],"step":1,"gaps":[{}])", numbers).c_str());
  };
  EXPECT_OK(gaps("5,24,7,1"));
  expect(gaps(""), "gaps is there without any");
  expect(gaps("5,24,7"), "3 numbers are no gaps");
  expect(gaps("5,24,4,1"), "gap 0");
  expect(gaps("5,24,7,1,4,8,9,1"), "gap 1");
  expect(gaps("-5,24,7,1"), "gaps");
  const auto domains = [&](const char* runs) {
    return start(two,
                 fmt::format(R"("seats":[0,0,1,3,0,1],"domains":[{}],"step":1)", runs).c_str());
  };
  for (const char* runs : {"", "4,2", "4,1,9,1", "4294967295,2"}) EXPECT_OK(domains(runs));
  expect(domains("4"), "no pairs");
  expect(domains("4,1"), "domains are of 1 nodes, seats of 2");
  expect(domains("4,3"), "domains[0]");
  expect(domains("4,1,9,2"), "domains[1]");
  expect(domains("4,0"), "domains[0]");
  expect(domains("4294967296,2"), "domains[0]");
  expect(domains("-1,2"), "domains");
  expect(start(two, R"("seats":[0,0,1],"step":1)"), "seats are 1 for 2 ranks");
  expect(start(two, R"("seats":[0,0,3],"step":1)"), "more than the 2 ranks");
  expect(start(two, R"("seats":[0,0,0],"step":1)"), "seats[0]");
  expect(start(two, R"("seats":[0,1,1,4294967296,0,1],"step":1)"), "seats[1]");
  expect(start(two, R"("seats":[0,1000,1000],"step":1)"), "seats[0]");
  expect(start(two, R"("seats":[3,1,1,3,1,1],"step":1)"), "node 3, local rank 1 twice");
  expect(ParseLead(R"({"address":"a","restart":0})").status(), "restart is unknown");
  CommitRecord commit{kName, 120, 960, {}, {}, 1, 1};
  commit.checkpoint = "../../etc";
  expect(ParseCommit(SerializeCommit(commit)).status(), "checkpoint");
  commit.checkpoint = "";
  expect(ParseCommit(SerializeCommit(commit)).status(), "checkpoint");
  expect(ParseVerified(SerializeVerified({kName, "maybe"})).status(), "kind");
  expect(ParseRetire(SerializeRetire({{kName, "*"}})).status(), "names");
  expect(ParseRetire(R"({"names":[7]})").status(), "names[0]");
  expect(ParseAttempt(R"({"name":7})").status(), "name is not a string");
  expect(ParseEnd(SerializeEnd({"x", 256, 1})).status(), "exit_code");
}

TEST(Records, CheckpointNamesAreExact) {
  EXPECT_TRUE(IsCheckpointName(CheckpointName(0, 0, 0)));
  EXPECT_TRUE(IsCheckpointName(CheckpointName(123456789012, 18446744073709551615u, 0xffffffff)));
  for (const char* bad : {"", "s", ".", "..", "s00000120.g3.9f3c21aa", "s000000120.g.9f3c21aa",
                          "s000000120.g3.9f3c21a", "s000000120.g3.9f3c21aaa",
                          "s000000120.g3.9F3C21AA", "s000000120.g3.9f3c21aa/", "s000000120.g3",
                          "s000000120.3.9f3c21aa", "x000000120.g3.9f3c21aa"})
    EXPECT_FALSE(IsCheckpointName(bad)) << bad;
}

TEST(Records, ListTellsWhatTheLogSays) {
  const TestDirectory directory;
  auto log = RunLog::Open(directory.path());
  ASSERT_OK(log.status());
  const auto commit = [&](int64_t step, uint64_t generation) {
    const std::string name = CheckpointName(step, generation, 7);
    EXPECT_OK(log->Append(RecordType::kCommit, generation,
                          SerializeCommit({name, step, step * 8, {}, {}, 1, 1})));
    return name;
  };
  ASSERT_OK(log->Append(RecordType::kStart, 1, SerializeStart(OneRankStart(0))));
  EXPECT_TRUE(ListCheckpoints(*log, directory.path()).empty());
  const std::string first = commit(10, 1), second = commit(20, 1);
  ASSERT_OK(log->Append(RecordType::kVerified, 1, SerializeVerified({first, "read"})));
  ASSERT_OK(log->Append(RecordType::kVerified, 1, SerializeVerified({second, "ran"})));
  ASSERT_OK(log->Append(RecordType::kStart, 2, SerializeStart(OneRankStart(20))));
  const std::string third = commit(30, 2);
  ASSERT_OK(log->Append(RecordType::kRetire, 2, SerializeRetire({{first}})));
  const auto entries = ListCheckpoints(*log, directory.path());
  ASSERT_EQ(entries.size(), 3u);
  EXPECT_EQ(entries[0].commit.checkpoint, third);
  EXPECT_EQ(entries[0].generation, 2u);
  EXPECT_EQ(entries[0].path, directory.path() + "/ckpt/" + third);
  EXPECT_FALSE(entries[0].retired);
  EXPECT_FALSE(entries[1].verified);  // "ran" says nothing about the files.
  EXPECT_TRUE(entries[2].verified);
  EXPECT_TRUE(entries[2].retired);
}

TEST(Records, ListTellsWhatTheRunHasLeft) {
  const TestDirectory directory;
  auto log = RunLog::Open(directory.path());
  ASSERT_OK(log.status());
  const auto start = [&](uint64_t generation, const Gaps& gaps) {
    StartRecord record = OneRankStart(0);
    record.gaps = gaps;
    ASSERT_OK(log->Append(RecordType::kStart, generation, SerializeStart(record)));
  };
  const auto commit = [&](int64_t step, uint64_t generation) {
    EXPECT_OK(log->Append(
        RecordType::kCommit, generation,
        SerializeCommit({CheckpointName(step, generation, 7), step, step * 8, {}, {}, 1, 1})));
  };
  const Gap first{.first_step = 15, .samples = 24, .bad_step = 22, .number = 1};
  const Gap second{.first_step = 24, .samples = 8, .bad_step = 31, .number = 1};
  start(1, {});
  commit(10, 1);
  commit(20, 1);
  EXPECT_FALSE(ListCheckpoints(*log, directory.path())[0].left);
  start(2, {first});
  commit(20, 2);
  commit(30, 2);
  start(3, {first, second});
  EXPECT_EQ(GapsOfRun(*log), (Gaps{first, second}));
  const auto entries = ListCheckpoints(*log, directory.path());
  ASSERT_EQ(entries.size(), 4u);
  EXPECT_TRUE(entries[0].left) << "30 of generation 2";
  EXPECT_FALSE(entries[1].left) << "20 of generation 2";
  EXPECT_EQ(entries[1].gaps, Gaps{first});
  EXPECT_TRUE(entries[2].left) << "20 of generation 1";
  EXPECT_FALSE(entries[3].left);
  EXPECT_TRUE(entries[3].gaps.empty());
}

}  // namespace
}  // namespace perdure
