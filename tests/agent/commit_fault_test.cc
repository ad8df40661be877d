// A record of the run log and the calls that it hangs on; whole jobs are crash_test's.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "runtime/agent/records.h"
#include "runtime/agent/run_log.h"
#include "runtime/base/status.h"
#include "tests/agent/one_rank_start.h"
#include "tests/ckpt/fault_hooks.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class CommitFaultTest : public testing::Test {
 protected:
  void SetUp() override {
    auto log = RunLog::Open(run());
    ASSERT_OK(log.status());
    ASSERT_OK(log->Append(RecordType::kStart, 1, SerializeStart(OneRankStart(0))));
  }
  void TearDown() override { ClearFaults(); }
  const std::string& run() const { return directory_.path(); }

  TestDirectory directory_;
};

std::string End(int64_t step) { return SerializeEnd({"test", 0, step}); }

TEST_F(CommitFaultTest, LostReplyOfLinkIsNoFailure) {
  for (const int error : {EIO, ETIMEDOUT, EEXIST}) {
    auto log = RunLog::Open(run());
    SetFaults({.call = Call::kLink, .error = error, .after = true});
    EXPECT_OK(log->Append(RecordType::kEnd, 1, End(error)));
    EXPECT_EQ(FaultsHit(), 1);
    ClearFaults();
    EXPECT_EQ(RunLog::Open(run())->next_slot(), log->next_slot());
  }
}

// The link is made, its reply lost, and the link count tells nothing (another name of the
// temporary): the bytes do.
TEST_F(CommitFaultTest, ForeignRecordInTheSlotIsALoss) {
  auto winner = RunLog::Open(run()), loser = RunLog::Open(run());
  ASSERT_OK(winner->Append(RecordType::kEnd, 1, End(1)));
  // The same content, by the same holder: still another record.
  EXPECT_EQ(loser->Append(RecordType::kEnd, 1, End(1)).code(), absl::StatusCode::kAborted);
  SetFaults({.call = Call::kLink, .error = EIO});
  EXPECT_EQ(loser->Append(RecordType::kEnd, 1, End(1)).code(), absl::StatusCode::kAborted);
}

TEST_F(CommitFaultTest, LinkThatFailsIsAnErrorAndCanBeTriedAgain) {
  auto log = RunLog::Open(run());
  const uint64_t slot = log->next_slot();
  SetFaults({.call = Call::kLink, .error = EIO});
  EXPECT_EQ(log->Append(RecordType::kEnd, 1, End(1)).code(), absl::StatusCode::kUnavailable);
  ClearFaults();
  EXPECT_EQ(log->next_slot(), slot);
  EXPECT_TRUE(fs::is_empty(run() + "/tmp"));
  EXPECT_OK(log->Append(RecordType::kEnd, 1, End(1)));
}

TEST_F(CommitFaultTest, RecordIsSyncedBeforeAndAfterItsLink) {
  auto log = RunLog::Open(run());
  SetFaults({.call = Call::kSync, .nth = 1000});
  ASSERT_OK(log->Append(RecordType::kEnd, 1, End(1)));
  EXPECT_EQ(CallsSeen(Call::kSync), 3) << "what was read, the record, its name";
  SetFaults({.call = Call::kSync, .nth = 1000});
  ASSERT_OK(log->Append(RecordType::kEnd, 1, End(1)));
  EXPECT_EQ(CallsSeen(Call::kSync), 2) << "nothing of others was read since";
  // Not linked when its bytes are not safe.
  const uint64_t slot = log->next_slot();
  SetFaults({.call = Call::kSync, .error = EIO});
  EXPECT_FALSE(log->Append(RecordType::kEnd, 1, End(1)).ok());
  EXPECT_EQ(CallsSeen(Call::kLink), 0);
  ClearFaults();
  EXPECT_EQ(RunLog::Open(run())->next_slot(), slot);
}

}  // namespace
}  // namespace perdure
