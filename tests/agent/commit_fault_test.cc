// The commit as a whole, part files to COMMIT record, with a system call failing or the process
// dying at every place.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "ckpt/checkpoint.h"
#include "runtime/agent/records.h"
#include "runtime/agent/run_log.h"
#include "runtime/base/status.h"
#include "tests/ckpt/fault_hooks.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class CommitFaultTest : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directory(run() + "/ckpt");
    auto log = RunLog::Open(run());
    ASSERT_OK(log.status());
    ASSERT_OK(log->Append(RecordType::kStart, 1, SerializeStart({1, 1, "x", -1})));
    ASSERT_OK(Commit(0));
  }
  void TearDown() override { ClearFaults(); }
  const std::string& run() const { return directory_.path(); }

  // Writes a checkpoint of `step` and commits it.
  absl::Status Commit(int64_t step) {
    ASSIGN_OR_RETURN(RunLog log, RunLog::Open(run()));
    const std::string name = CheckpointName(step, 1, static_cast<uint32_t>(step));
    const std::string path = run() + "/ckpt/" + name;
    fs::create_directory(path);
    TestState state(table_, static_cast<uint64_t>(step));
    Manifest manifest = TestManifest(table_, step);
    ASSIGN_OR_RETURN(PartReport part, WritePart(path, "part-00000.h5", table_, state.states(), step,
                                                manifest.generation, manifest.run_id));
    manifest.parts.push_back(std::move(part));
    ASSIGN_OR_RETURN(const Digest digest, WriteManifest(path, table_, manifest));
    return log.Append(RecordType::kCommit, 1,
                      SerializeCommit({name, step, manifest.samples, digest, manifest.certificate,
                                       manifest.parts[0].bytes, 1}));
  }

  // Every checkpoint that the log names is whole and verified; returns how many.
  int64_t GoodCommits() {
    const auto log = RunLog::Open(run());
    EXPECT_OK(log.status());
    if (!log.ok()) return -1;
    const auto entries = ListCheckpoints(*log, run());
    for (const CheckpointEntry& entry : entries) {
      const auto manifest = ReadManifest(entry.path, &entry.commit.manifest);
      EXPECT_OK(manifest.status());
      if (!manifest.ok()) return -1;
      EXPECT_OK(VerifyCheckpoint(entry.path, *manifest));
      TestState state(table_, static_cast<uint64_t>(entry.commit.step)), read(table_, 99);
      EXPECT_OK(ReadAtoms(entry.path, *manifest, table_, read.states()));
      EXPECT_TRUE(read == state);
    }
    return static_cast<int64_t>(entries.size());
  }

  const AtomTable table_{OddTensors(), 16};
  TestDirectory directory_;
};

TEST_F(CommitFaultTest, DeathAtEveryCallLeavesOldOrNew) {
  bool clean = false;
  int without = 0;
  for (int nth = 1; !clean && nth < 500; ++nth) {
    const int64_t before = GoodCommits();
    const pid_t child = ::fork();
    if (child == 0) {
      SetFaults({.nth = nth, .exit = true});
      ::_exit(Commit(nth).ok() ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    clean = WEXITSTATUS(status) == 0;
    ASSERT_TRUE(clean || WEXITSTATUS(status) == 137) << status;
    const int64_t after = GoodCommits();
    ASSERT_TRUE(after == before || after == before + 1) << nth;
    if (clean) {
      EXPECT_EQ(after, before + 1);
    }
    without += after == before;
  }
  EXPECT_TRUE(clean);
  EXPECT_GT(without, 8);  // Deaths before the link, of which there are many.
}

TEST_F(CommitFaultTest, FailureAtEveryCallLeavesOldOrNew) {
  for (const Call call : {Call::kWrite, Call::kTruncate, Call::kSync, Call::kLink})
    for (int nth = 1; nth < 100; ++nth) {
      const int64_t before = GoodCommits();
      SetFaults({.call = call, .nth = nth, .error = EIO});
      const absl::Status status = Commit(1000 * (1 + static_cast<int>(call)) + nth);
      const int hit = FaultsHit();
      ClearFaults();
      ASSERT_EQ(status.ok(), hit == 0) << static_cast<int>(call) << " " << nth << status;
      const int64_t after = GoodCommits();
      // The fsync of log/ fails after the link: the record stands, and nobody was told that it
      // does.
      ASSERT_TRUE(after == before + (hit == 0) || call == Call::kSync) << nth;
      if (hit == 0) break;
    }
}

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
  EXPECT_EQ(CallsSeen(Call::kSync), 2);
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
