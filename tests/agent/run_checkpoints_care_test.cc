// What happens beside saves: what is let go, exported, looked after, told.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <set>
#include <thread>

#include "runtime/agent/retention.h"
#include "runtime/base/status.h"
#include "tests/agent/checkpoint_desk.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::SizeIs;

// ---- what is let go

TEST_F(RunCheckpointsTest, OldOnesGo) {
  Begin();
  for (const StepIndex step : {1, 2, 3, 4}) {
    ASSERT_OK(desk_.Save(step));
    EXPECT_LE(There().size(), 2u);
  }
  EXPECT_THAT(There(), ElementsAre(3, 4));
  EXPECT_THAT(desk_.Story(), ElementsAre("commit 1", "read 1", "commit 2", "read 2", "commit 3",
                                         "read 3", "retire 1", "commit 4", "read 4", "retire 2"));
  const auto events = desk_.Events("retire");
  ASSERT_THAT(events, SizeIs(2));
  EXPECT_EQ(events[0]["checkpoint"], desk_.Name(1));
  EXPECT_EQ(events[0]["deleted"], true);
}

TEST_F(RunCheckpointsTest, NothingGoesBeforeItsRecord) {
  Begin();
  for (const StepIndex step : {1, 2}) ASSERT_OK(desk_.Save(step));
  ASSERT_OK(desk_.Save(3, /*settles=*/false));
  desk_.store().Finish();
  EXPECT_THAT(There(), ElementsAre(1, 2, 3));
  // The body alone deletes nothing either, and stays what it was.
  ASSERT_THAT(desk_.tags, SizeIs(2));
  const uint64_t retire = desk_.tags.back();
  ASSERT_TRUE(desk_.Append(RecordType::kVerified, desk_.store().NoteBody(desk_.tags[0])->body)
                  .entry.has_value());
  const auto body = desk_.store().NoteBody(retire);
  ASSERT_OK(body.status());
  EXPECT_EQ(body->type, RecordType::kRetire);
  ASSERT_OK(PinCheckpoint(run_, desk_.Name(1)));
  EXPECT_EQ(desk_.store().NoteBody(retire)->body, body->body);
  desk_.store().Finish();
  EXPECT_THAT(There(), ElementsAre(1, 2, 3));
  (void)desk_.Append(RecordType::kRetire, body->body);
  desk_.store().Do(Coordinator::Noted{.tag = retire});
  desk_.store().Finish();
  EXPECT_THAT(There(), ElementsAre(2, 3));
}

TEST_F(RunCheckpointsTest, PinnedOnesAndPhaseEndsStay) {
  Begin();
  ASSERT_OK(desk_.Save(9));
  ASSERT_OK(desk_.Save(10));  // The first phase ends.
  ASSERT_OK(PinCheckpoint(run_, desk_.Name(9)));
  for (const StepIndex step : {11, 12, 13}) ASSERT_OK(desk_.Save(step));
  EXPECT_THAT(There(), ElementsAre(9, 10, 12, 13));
}

// What a generation has begun to load may have to be loaded again.
TEST_F(RunCheckpointsTest, WhatIsLoadedStays) {
  Begin();
  for (const StepIndex step : {1, 2}) ASSERT_OK(desk_.Save(step));
  const std::string two = desk_.Choose()->packed;
  desk_.Present(two);
  ASSERT_OK(desk_.Save(3, /*settles=*/false));
  desk_.MakeNotes();
  desk_.store().Finish();
  EXPECT_THAT(There(), ElementsAre(2, 3));
}

TEST_F(RunCheckpointsTest, WhatIsHalfDeletedGoes) {
  Begin();
  for (const StepIndex step : {1, 2, 3}) ASSERT_OK(desk_.Save(step));
  ASSERT_THAT(There(), ElementsAre(2, 3));
  const std::string three = desk_.PathOf(3);
  // A coordinator died after its RETIRE, in the middle of it.
  (void)desk_.Append(RecordType::kRetire, SerializeRetire({.names = {desk_.Name(2)}}));
  fs::remove(desk_.PathOf(2) + "/manifest.json");
  desk_.LoseLead();
  desk_.Lead();
  desk_.Start();
  desk_.Present();
  desk_.Settle();
  EXPECT_THAT(There(), ElementsAre(3));
  // What cannot be deleted is told, and costs nothing else.
  ASSERT_OK(desk_.Save(4));
  Spill(three + "/mine.txt", "");
  ASSERT_OK(desk_.Save(5));
  EXPECT_THAT(There(), ElementsAre(3, 4, 5));
  EXPECT_TRUE(desk_.Warned("mine.txt is not of a checkpoint"));
}

// ---- exports

class ExportsTest : public RunCheckpointsTest {
 protected:
  void SetUp() override {
    desk_.hooks.missing_exports = [this](const RunLog& log) {
      std::vector<CheckpointEntry> missing;
      const std::lock_guard lock(mutex_);
      for (const CheckpointEntry& entry : ListCheckpoints(log, run_))
        if (!entry.retired && entry.commit.step % 2 == 1 && !exported_.contains(entry.commit.step))
          missing.insert(missing.begin(), entry);
      return missing;
    };
    desk_.hooks.export_checkpoint = [this](const CheckpointEntry& entry) -> absl::Status {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return open_; });
      ++tries_;
      if (!fails_.ok()) return fails_;
      EXPECT_TRUE(fs::exists(entry.path + "/manifest.json"));
      exported_.insert(entry.commit.step);
      return absl::OkStatus();
    };
  }
  void Open(bool open = true) {
    const std::lock_guard lock(mutex_);
    open_ = open;
    changed_.notify_all();
  }
  // Notes of a save without waiting for exports.
  void SaveOnly(StepIndex step) {
    ASSERT_OK(desk_.Save(step, /*settles=*/false));
    desk_.MakeNotes();
    ASSERT_TRUE(desk_.Until([&] { return desk_.tags.empty(); }));
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = true;
  int tries_ = 0;
  absl::Status fails_;
  std::set<StepIndex> exported_;
};

TEST_F(ExportsTest, AreMadeOnce) {
  Begin();
  for (const StepIndex step : {1, 2, 3}) ASSERT_OK(desk_.Save(step));
  EXPECT_THAT(exported_, ElementsAre(1, 3));
  EXPECT_EQ(tries_, 2);
  const auto events = desk_.Events("export");
  ASSERT_THAT(events, SizeIs(2));
  EXPECT_EQ(events[0]["step"], 1);
  EXPECT_EQ(events[0]["written"], true);
  EXPECT_THAT(There(), ElementsAre(2, 3));
}

TEST_F(ExportsTest, KeepTheirCheckpointUntilTheyAreThere) {
  Begin();
  Open(false);
  const auto settle = [&] {
    desk_.MakeNotes();
    // The worker's turn, not the exporter's.
    EXPECT_TRUE(desk_.Measure(9));
  };
  for (const StepIndex step : {1, 2, 3, 4}) {
    ASSERT_TRUE(desk_.Measure(step));
    const auto members = desk_.Write(step);
    std::optional<Coordinator::PartsJoined> joined;
    desk_.store().Do(
        Coordinator::JoinParts{.generation = 1,
                               .step = step,
                               .attempt = 1,
                               .packed = {PackNodeRuns(members[0]), PackNodeRuns(members[1])}},
        [&](const Coordinator::PartsJoined& j) { joined = j; });
    ASSERT_TRUE(desk_.Until([&] { return joined.has_value(); }));
    ASSERT_OK(desk_.Commit(step).status);
    desk_.store().Do(Coordinator::SaveOver{.generation = 1, .step = step, .committed = true});
    settle();
    settle();
  }
  EXPECT_THAT(There(), ElementsAre(1, 3, 4));
  Open();
  desk_.Settle();
  desk_.Settle();
  EXPECT_THAT(exported_, ElementsAre(1, 3));
  EXPECT_THAT(There(), ElementsAre(3, 4));
}

// Then the job is over: its records come before END.
TEST_F(ExportsTest, AreWaitedForAtTheEnd) {
  Begin();
  for (const StepIndex step : {1, 2}) SaveOnly(step);
  Open(false);
  SaveOnly(3);
  int wound_up = 0;
  std::vector<uint64_t> wanted;
  desk_.store().Do(Coordinator::WindUp{}, [&](Coordinator::WoundUp) {
    ++wound_up;
    wanted.assign(desk_.tags.begin(), desk_.tags.end());
  });
  EXPECT_FALSE(desk_.Until([&, rounds = 0]() mutable { return wound_up > 0 || ++rounds > 20; }) &&
               wound_up > 0);
  Open();
  ASSERT_TRUE(desk_.Until([&] { return wound_up > 0; }));
  EXPECT_TRUE(exported_.contains(3));
  EXPECT_THAT(wanted, testing::Not(testing::IsEmpty())) << "what it was kept for is over";
  desk_.Settle();
  EXPECT_EQ(wound_up, 1);
  EXPECT_THAT(There(), ElementsAre(2, 3));
  // Nothing is left to do: at once.
  desk_.store().Do(Coordinator::WindUp{}, [&](Coordinator::WoundUp) { ++wound_up; });
  EXPECT_EQ(wound_up, 2);
}

TEST_F(ExportsTest, FailingOnesAreToldAndNotTriedAgain) {
  Begin();
  fails_ = ResourceExhausted("no space for exports");
  for (const StepIndex step : {1, 2, 3, 4}) ASSERT_OK(desk_.Save(step));
  EXPECT_EQ(tries_, 2);
  EXPECT_TRUE(desk_.Warned("step 1 was not exported: no space for exports; training goes on"));
  EXPECT_EQ(desk_.Events("export")[0]["written"], false);
  EXPECT_THAT(There(), ElementsAre(3, 4));
  // Nor by the same agent's next lead; by another agent it is.
  desk_.LoseLead();
  desk_.Lead();
  desk_.Start();
  desk_.Present();
  desk_.Settle();
  EXPECT_EQ(tries_, 2);
}

// What the coordinator before was not given the time for.
TEST_F(ExportsTest, AreMadeUpForByTheNextLead) {
  Begin();
  ASSERT_OK(desk_.Save(1));
  exported_.clear();
  CheckpointDesk next(run_);
  next.hooks.missing_exports = desk_.hooks.missing_exports;
  next.hooks.export_checkpoint = desk_.hooks.export_checkpoint;
  next.generation = 1;
  next.Lead();
  EXPECT_EQ(next.Load(), 1);
  EXPECT_THAT(exported_, ElementsAre(1));
}

// ---- what is looked after

TEST_F(RunCheckpointsTest, KeptFilesAreLookedAfterOncePerLead) {
  Begin();
  for (const StepIndex step : {1, 2}) ASSERT_OK(desk_.Save(step));
  fs::remove(desk_.PathOf(1) + "/part-00000.h5");
  desk_.LoseLead();
  desk_.Lead();
  EXPECT_EQ(desk_.Load(), 2);
  EXPECT_TRUE(fs::exists(InQuarantine(1)) ||
              fs::exists(run_ + "/quarantine/" + desk_.Entries()[1].commit.checkpoint));
  EXPECT_THAT(desk_.Events("kept_files"), SizeIs(1));
  EXPECT_TRUE(desk_.Warned("part-00000.h5 is gone"));
  const size_t before = desk_.warnings.size();
  desk_.Start();
  desk_.Present();
  desk_.Settle();
  EXPECT_EQ(desk_.warnings.size(), before);
}

TEST_F(RunCheckpointsTest, WhatTakesLongIsTold) {
  std::atomic<bool> held = true;
  desk_.patience = absl::Milliseconds(10);
  desk_.hooks.print = [&held, print = desk_.hooks.print](const RunConfig& config) {
    while (held) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return print(config);
  };
  Begin();
  ASSERT_TRUE(desk_.Measure(2));
  EXPECT_THAT(desk_.store().UnderWay(), SizeIs(0)) << "what the ranks do is theirs to say";
  const auto members = desk_.Write(2);
  std::optional<Coordinator::PartsJoined> joined;
  desk_.store().Do(
      Coordinator::JoinParts{.generation = 1,
                             .step = 2,
                             .attempt = 1,
                             .packed = {PackNodeRuns(members[0]), PackNodeRuns(members[1])}},
      [&](const Coordinator::PartsJoined& j) { joined = j; });
  const auto under_way = desk_.store().UnderWay();
  ASSERT_THAT(under_way, SizeIs(1));
  EXPECT_EQ(under_way[0].what, "putting together what the ranks wrote");
  EXPECT_LT(under_way[0].rank, 0);
  ASSERT_TRUE(desk_.Until([&] { return !desk_.Events("save_stalls").empty(); }));
  const auto stall = desk_.Events("save_stalls")[0];
  EXPECT_EQ(stall["step"], 2);
  EXPECT_EQ(stall["under_way"][0]["what"], "putting together what the ranks wrote");
  EXPECT_TRUE(desk_.Warned(
      "checkpoint of step 2: the coordinator has been putting together what the ranks wrote for"));
  held = false;
  ASSERT_TRUE(desk_.Until([&] { return joined.has_value(); }));
  EXPECT_THAT(desk_.store().UnderWay(), SizeIs(0));
}

// Why there is none is said where the coordinator knows it.
TEST_F(RunCheckpointsTest, ASaveThatIsGivenUpIsToldWithItsReason) {
  Begin();
  ASSERT_TRUE(desk_.Measure(2));
  ASSERT_TRUE(desk_.Join(2, std::vector<std::string>{"nonsense", "more of it"}).has_value());
  desk_.store().Do(Coordinator::SaveOver{.generation = 1, .step = 2, .committed = false});
  const auto failed = desk_.Events("checkpoint_failed");
  ASSERT_THAT(failed, SizeIs(1));
  EXPECT_EQ(failed[0]["step"], 2);
  EXPECT_THAT(failed[0]["why"].get<std::string>(), testing::HasSubstr("member 0"));
  EXPECT_TRUE(desk_.Warned("no checkpoint of step 2: member 0"));
}

}  // namespace
}  // namespace perdure
