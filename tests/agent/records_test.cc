#include "runtime/agent/records.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kName = "s000000120.g3.9f3c21aa";

TEST(Records, ComeBackAsTheyWere) {
  const StartRecord start{8, 2, "tensor 2 x \"é\"", -1};
  EXPECT_EQ(*ParseStart(SerializeStart(start)), start);
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
  expect(ParseStart(R"({"ranks":8,"nodes":2,"layout":"x"})").status(), "base_step is missing");
  expect(ParseStart(R"({"ranks":8,"nodes":2,"layout":"x","base_step":-2})").status(), "base_step");
  expect(ParseStart(R"({"ranks":8,"nodes":2,"layout":"x","base_step":1,"y":1})").status(),
         "y is unknown");
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
  ASSERT_OK(log->Append(RecordType::kStart, 1, SerializeStart({1, 1, "x", -1})));
  EXPECT_TRUE(ListCheckpoints(*log, directory.path()).empty());
  const std::string first = commit(10, 1), second = commit(20, 1);
  ASSERT_OK(log->Append(RecordType::kVerified, 1, SerializeVerified({first, "read"})));
  ASSERT_OK(log->Append(RecordType::kVerified, 1, SerializeVerified({second, "ran"})));
  ASSERT_OK(log->Append(RecordType::kStart, 2, SerializeStart({1, 1, "x", 20})));
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

}  // namespace
}  // namespace perdure
