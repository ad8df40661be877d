#include "runtime/agent/retention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "runtime/base/status.h"
#include "tests/agent/one_rank_start.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// Newest first, named by step.
std::vector<CheckpointEntry> Entries(const std::vector<std::pair<int64_t, bool>>& steps) {
  std::vector<CheckpointEntry> entries;
  for (const auto& [step, verified] : steps) {
    CheckpointEntry entry;
    entry.commit.checkpoint = fmt::format("{}", step);
    entry.commit.step = step;
    entry.verified = verified;
    entries.push_back(entry);
  }
  return entries;
}

TEST(ChooseRetired, KeepsTheNewest) {
  const auto entries = Entries({{50, true}, {40, true}, {30, true}, {20, true}, {10, true}});
  EXPECT_THAT(ChooseRetired(entries, 3, 0, {}), ElementsAre("20", "10"));
  EXPECT_THAT(ChooseRetired(entries, 5, 0, {}), IsEmpty());
  EXPECT_THAT(ChooseRetired(entries, 100, 0, {}), IsEmpty());
  EXPECT_THAT(ChooseRetired({}, 1, 0, {}), IsEmpty());
}

TEST(ChooseRetired, KeepsWhatIsPinned) {
  const auto entries = Entries({{50, true}, {40, true}, {30, true}, {20, true}, {10, true}});
  const std::vector<std::string> pinned = {"10", "30", "7"};
  EXPECT_THAT(ChooseRetired(entries, 2, 0, {}, pinned), ElementsAre("20"));
}

TEST(ChooseRetired, NeverDropsToFewerThanTwo) {
  const auto entries = Entries({{50, true}, {40, true}, {30, true}});
  for (const int64_t keep : {-5, 0, 1, 2})
    EXPECT_THAT(ChooseRetired(entries, keep, 0, {}), ElementsAre("30")) << keep;
}

TEST(ChooseRetired, KeepsWhatHasNotTwoNewerVerified) {
  EXPECT_THAT(
      ChooseRetired(Entries({{50, false}, {40, false}, {30, false}, {20, false}}), 2, 0, {}),
      IsEmpty());
  EXPECT_THAT(ChooseRetired(Entries({{50, false}, {40, true}, {30, true}, {20, true}, {10, true}}),
                            2, 0, {}),
              ElementsAre("20", "10"));
  // 30 is kept for being the second verified one.
  EXPECT_THAT(ChooseRetired(Entries({{50, true}, {40, false}, {30, true}, {20, false}}), 2, 0, {}),
              ElementsAre("20"));
}

TEST(ChooseRetired, KeepsMultiplesAndPhaseEnds) {
  const auto entries =
      Entries({{60, true}, {50, true}, {45, true}, {40, true}, {30, true}, {20, true}, {10, true}});
  EXPECT_THAT(ChooseRetired(entries, 2, 20, {}), ElementsAre("45", "30", "10"));
  const std::vector<int64_t> ends = {45, 10};
  EXPECT_THAT(ChooseRetired(entries, 2, 20, ends), ElementsAre("30"));
}

// Bad is at the earliest the step behind the newest: one from which the steps before it can be
// taken again.
TEST(ChooseRetired, KeepsWhatARollbackBeginsWith) {
  const auto entries =
      Entries({{60, true}, {50, true}, {40, true}, {30, true}, {20, true}, {10, true}});
  const auto retired = [&](int64_t rollback_steps) {
    return ChooseRetired(entries, 2, 0, {}, {}, rollback_steps);
  };
  EXPECT_THAT(retired(0), ElementsAre("40", "30", "20", "10"));
  EXPECT_THAT(retired(10), ElementsAre("40", "30", "20", "10"));
  EXPECT_THAT(retired(11), ElementsAre("30", "20", "10"));
  EXPECT_THAT(retired(30), ElementsAre("40", "20", "10"));
  EXPECT_THAT(retired(1000), ElementsAre("40", "30", "20")) << "perhaps the run began there";
  auto unread = entries;
  unread[3].verified = false;
  EXPECT_THAT(ChooseRetired(unread, 2, 0, {}, {}, 30), ElementsAre("40", "30", "10"));
}

TEST(ChooseRetired, WhatTheRunHasLeftGoes) {
  auto entries = Entries({{50, true}, {40, true}, {30, true}, {20, true}, {10, true}});
  entries[0].left = entries[1].left = true;
  EXPECT_THAT(ChooseRetired(entries, 2, 25, {}), ElementsAre("50", "40", "10"));
  const std::vector<std::string> pinned = {"50"};
  EXPECT_THAT(ChooseRetired(entries, 3, 0, {}, pinned), ElementsAre("40"));
  EXPECT_THAT(ChooseRetired(entries, 2, 0, {}, {}, 20), ElementsAre("50", "40"));
  EXPECT_THAT(ChooseRetired(entries, 2, 0, {}, {}, 5), ElementsAre("50", "40", "10"));
}

TEST(ChooseRetired, RetiredOnesCountForNothing) {
  auto entries = Entries({{50, true}, {40, true}, {30, true}, {20, true}});
  entries[0].retired = entries[1].retired = true;
  EXPECT_THAT(ChooseRetired(entries, 2, 0, {}), IsEmpty());
}

// A bad one in quarantine must not cost the last good one before it.
TEST(ChooseRetired, WhatNoStartWouldLoadCountsForNothing) {
  auto entries = Entries({{50, true}, {40, true}, {30, true}, {20, true}});
  entries[1].quarantined = true;
  EXPECT_THAT(ChooseRetired(entries, 2, 0, {}), ElementsAre("20"));
  entries[1].quarantined = false;
  entries[1].failed_attempts = kLoadAttemptsMax;
  EXPECT_THAT(ChooseRetired(entries, 2, 0, {}), ElementsAre("20"));
  entries[1].failed_attempts = kLoadAttemptsMax - 1;
  EXPECT_THAT(ChooseRetired(entries, 2, 0, {}), ElementsAre("30", "20"));
}

class DeleteTest : public testing::Test {
 protected:
  void SetUp() override {
    auto log = RunLog::Open(run_.path());
    ASSERT_OK(log.status());
    ASSERT_OK(log->Append(RecordType::kStart, 1, SerializeStart(OneRankStart(0))));
    ASSERT_OK(log->Append(RecordType::kRetire, 1, SerializeRetire({{old_}})));
    run_.Make("ckpt");
    TestState state(table_, 1);
    for (const std::string& name : {old_, young_})
      WriteCheckpoint(run_.Make("ckpt/" + name), table_, state, 2);
  }
  std::string path(const std::string& name) const { return run_.path() + "/ckpt/" + name; }

  const AtomTable table_{OddTensors(), 16};
  const std::string old_ = CheckpointName(10, 1, 1), young_ = CheckpointName(20, 1, 2);
  TestDirectory run_;
};

TEST_F(DeleteTest, DeletesWhatIsRetiredAndOnlyThat) {
  EXPECT_OK(DeleteCheckpoint(run_.path(), old_));
  EXPECT_FALSE(fs::exists(path(old_)));
  EXPECT_OK(DeleteCheckpoint(run_.path(), old_));  // Gone is gone.
  const absl::Status status = DeleteCheckpoint(run_.path(), young_);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(status), HasSubstr("no RETIRE record names"));
  EXPECT_TRUE(fs::exists(path(young_) + "/part-00001.h5"));
}

TEST_F(DeleteTest, FinishesWhatWasHalfDone) {
  fs::remove(path(old_) + "/manifest.json");
  fs::remove(path(old_) + "/part-00000.h5");
  Spill(path(old_) + "/view.h5", "");
  Spill(path(old_) + "/view.h5.tmp.12.0", "");
  EXPECT_OK(DeleteCheckpoint(run_.path(), old_));
  EXPECT_FALSE(fs::exists(path(old_)));
}

TEST_F(DeleteTest, LeavesAloneWhatItDoesNotKnow) {
  Spill(path(old_) + "/notes.txt", "mine");
  EXPECT_EQ(DeleteCheckpoint(run_.path(), old_).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(fs::exists(path(old_) + "/manifest.json"));
  fs::remove(path(old_) + "/notes.txt");
  fs::create_directory(path(old_) + "/x.h5");
  EXPECT_EQ(DeleteCheckpoint(run_.path(), old_).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(DeleteTest, Pins) {
  auto log = RunLog::Open(run_.path());
  for (const std::string& name : {old_, young_})
    ASSERT_OK(log->Append(RecordType::kCommit, 1, SerializeCommit({.checkpoint = name})));
  EXPECT_TRUE(PinnedCheckpoints(run_.path())->empty());
  EXPECT_OK(PinCheckpoint(run_.path(), young_));
  EXPECT_OK(PinCheckpoint(run_.path(), young_));
  EXPECT_EQ(*PinnedCheckpoints(run_.path()), std::vector<std::string>{young_});
  EXPECT_THAT(Message(PinCheckpoint(run_.path(), old_)), HasSubstr("was retired"));
  const std::string unknown = CheckpointName(99, 1, 1);
  EXPECT_TRUE(absl::IsNotFound(PinCheckpoint(run_.path(), unknown)));
  EXPECT_TRUE(absl::IsInvalidArgument(PinCheckpoint(run_.path(), "../" + young_)));
  EXPECT_TRUE(absl::IsInvalidArgument(UnpinCheckpoint(run_.path(), "../" + young_)));
  EXPECT_OK(UnpinCheckpoint(run_.path(), young_));
  EXPECT_THAT(Message(UnpinCheckpoint(run_.path(), young_)), HasSubstr("is not pinned"));
  EXPECT_TRUE(PinnedCheckpoints(run_.path())->empty());
}

TEST_F(DeleteTest, FollowsNoLinksAndNoPaths) {
  for (const std::string& bad :
       {std::string(".."), "../ckpt/" + old_, std::string("*"), old_ + "/"})
    EXPECT_EQ(DeleteCheckpoint(run_.path(), bad).code(), absl::StatusCode::kInvalidArgument) << bad;
  fs::rename(path(old_), run_.path() + "/elsewhere");
  ASSERT_EQ(::symlink("../elsewhere", path(old_).c_str()), 0);
  EXPECT_FALSE(DeleteCheckpoint(run_.path(), old_).ok());
  EXPECT_TRUE(fs::exists(run_.path() + "/elsewhere/manifest.json"));
}

}  // namespace
}  // namespace perdure
