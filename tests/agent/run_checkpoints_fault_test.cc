// Saves and loads of RunCheckpoints with the process killed, and with system calls failing, at
// every place; and the order in which things become durable. As crash_test, where one
// process does it all. Apart, because it replaces system calls of the whole program.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <map>
#include <set>

#include "ckpt/view.h"
#include "runtime/base/status.h"
#include "tests/agent/checkpoint_desk.h"
#include "tests/ckpt/fault_hooks.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

class StoreFaultTest : public testing::Test {
 protected:
  // A run with checkpoints of steps 1 and 2, and what is left of it.
  void SetUp() override {
    CheckpointDesk desk(original_);
    desk.Lead();
    ASSERT_EQ(desk.Load(), -1);
    for (const StepIndex step : {1, 2}) ASSERT_OK(desk.Save(step));
  }
  void TearDown() override { ClearFaults(); }

  void NewRun() {
    fs::remove_all(run_);
    fs::copy(original_, run_, fs::copy_options::recursive);
  }
  // Every checkpoint that the log names, and was not let go, is whole; the newest's step.
  StepIndex CheckRun() {
    const auto log = RunLog::Open(run_);
    EXPECT_OK(log.status());
    if (!log.ok()) return -1;
    StepIndex newest = -1;
    int good = 0;
    for (const CheckpointEntry& entry : ListCheckpoints(*log, run_)) {
      if (entry.retired) continue;
      EXPECT_FALSE(entry.quarantined) << entry.path;
      const auto manifest = ReadManifest(entry.path, &entry.commit.manifest);
      EXPECT_OK(manifest.status());
      if (manifest.ok()) EXPECT_OK(VerifyCheckpoint(entry.path, *manifest));
      newest = std::max<StepIndex>(newest, entry.commit.step);
      ++good;
    }
    EXPECT_GE(good, 2);
    return newest;
  }
  // What must hold whatever happened.
  void CheckAfter(StepIndex acknowledged) {
    const StepIndex newest = CheckRun();
    ASSERT_GE(newest, acknowledged) << "an acknowledged checkpoint is lost";
    CheckpointDesk next(run_);
    next.generation = RunLog::Open(run_)->generation();
    next.Lead();
    ASSERT_EQ(next.Load(), newest);
    ASSERT_OK(next.Save(13));
    ASSERT_EQ(CheckRun(), 13);
    const RunLog log = next.Log();
    for (const CheckpointEntry& entry : ListCheckpoints(log, run_))
      ASSERT_EQ(fs::exists(entry.path), !entry.retired) << entry.path;
  }

  TestDirectory directory_{MemoryDirectory()};
  const std::string original_ = directory_.Make("original");
  const std::string run_ = directory_.path() + "/run";

  void KilledEverywhere(int stride) {
    auto* acknowledged = static_cast<std::atomic<int64_t>*>(
        ::mmap(nullptr, sizeof(std::atomic<int64_t>), PROT_READ | PROT_WRITE,
               MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(acknowledged, MAP_FAILED);
    int deaths = 0, before = 0;
    for (int nth = 1;; nth += stride) {
      NewRun();
      *acknowledged = 2;
      const pid_t child = ::fork();
      if (child == 0) {
        SetFaults({.nth = nth, .exit = true, .under = run_});
        CheckpointDesk desk(run_);
        desk.generation = 1;
        desk.Lead();
        if (desk.Load() != 2 || !desk.Save(5, /*settles=*/false).ok()) ::_exit(1);
        *acknowledged = 5;
        desk.Settle();
        ::_exit(HasFailure() ? 1 : 0);
      }
      int status = 0;
      ASSERT_EQ(::waitpid(child, &status, 0), child);
      const bool clean = WEXITSTATUS(status) == 0;
      ASSERT_TRUE(clean || WEXITSTATUS(status) == 137) << status;
      SCOPED_TRACE(fmt::format("killed at call {}", nth));
      before += CheckRun() == 2;
      ASSERT_NO_FATAL_FAILURE(CheckAfter(*acknowledged));
      ASSERT_FALSE(HasFailure());
      if (clean) break;
      ++deaths;
    }
    ::munmap(acknowledged, sizeof(std::atomic<int64_t>));
    EXPECT_GT(deaths * stride, 100);
    EXPECT_GT(before * stride, 40);
    EXPECT_LT(before, deaths);
  }
};

TEST_F(StoreFaultTest, KilledAtSomeCalls) { KilledEverywhere(9); }
TEST_F(StoreFaultTest, LongKilledAtEveryCall) { KilledEverywhere(1); }

// A COMMIT that is in the log is of a whole checkpoint, whatever failed while it was made, and
// whichever try of it got there.
TEST_F(StoreFaultTest, PublishingFailsAtEveryCall) {
  for (const bool after : {false, true}) {
    int hits = 0;
    for (int nth = 1;; nth += after ? 3 : 1) {
      NewRun();
      CheckpointDesk desk(run_);
      desk.generation = 1;
      desk.Lead();
      ASSERT_EQ(desk.Load(), 2);
      ASSERT_TRUE(desk.Measure(5));
      ASSERT_TRUE(desk.Join(5, desk.Write(5))->ok);
      const LogEntry entry = desk.Entry(EntryKind::kCommit, 5);
      SetFaults({.nth = nth, .error = EIO, .after = after, .under = run_});
      ControlLog::Filled filled = desk.Commit(entry);
      const bool hit = FaultsHit() > 0;
      ClearFaults();
      SCOPED_TRACE(fmt::format("call {} after {}: {}", nth, after, filled.status.ToString()));
      // As the coordinator does: again, or a second attempt.
      if (!filled.status.ok() && !filled.no_body) filled = desk.Commit(entry);
      const bool committed = CheckRun() == 5;
      if (filled.no_body) {
        ASSERT_FALSE(committed);
        ASSERT_TRUE(desk.Join(5, desk.Write(5, 2), 2)->ok);
        ASSERT_OK(desk.Commit(5, 2).status);
      } else {
        ASSERT_TRUE(committed);
      }
      desk.store().Do(Coordinator::SaveOver{.generation = 2, .step = 5, .committed = true});
      desk.Settle();
      ASSERT_NO_FATAL_FAILURE(CheckAfter(5));
      if (!hit) break;
      ++hits;
    }
    EXPECT_GT(hits * (after ? 3 : 1), 15);
  }
}

// Never an older one, never a verdict, because of a file system that has trouble.
TEST_F(StoreFaultTest, ChoosingFailsAtEveryCall) {
  NewRun();
  CheckpointDesk desk(run_);
  desk.generation = 1;
  desk.Lead();
  ASSERT_TRUE(desk.Choose().has_value());
  int unanswered = 0;
  for (const int times : {1, 1000})
    for (int nth = 1;; ++nth) {
      SetFaults({.nth = nth, .times = times, .error = EIO, .under = run_});
      const auto chosen = desk.Choose();
      const bool hit = FaultsHit() > 0;
      ClearFaults();
      SCOPED_TRACE(fmt::format("{} calls from {} on", times, nth));
      if (chosen.has_value()) {
        ASSERT_TRUE(chosen->ok) << chosen->words;
        ASSERT_EQ(chosen->step, 2);
      }
      unanswered += chosen.has_value() ? 0 : 1;
      ASSERT_FALSE(fs::exists(run_ + "/quarantine"));
      if (!hit) break;
    }
  EXPECT_GT(unanswered, 3);
  EXPECT_EQ(desk.Choose()->step, 2);
}

// What is retired goes in the end, and nothing else, whatever fails meanwhile.
TEST_F(StoreFaultTest, RetiringFailsAtEveryCall) {
  for (int nth = 1;; ++nth) {
    NewRun();
    CheckpointDesk desk(run_);
    desk.generation = 1;
    desk.Lead();
    ASSERT_EQ(desk.Load(), 2);
    ASSERT_OK(desk.Save(5, /*settles=*/false));
    SCOPED_TRACE(nth);
    // VERIFIED, so that RETIRE is due.
    ASSERT_EQ(desk.tags.size(), 2u);
    const uint64_t retire = desk.tags.back();
    (void)desk.Append(RecordType::kVerified, desk.store().NoteBody(desk.tags.front())->body);
    desk.store().Finish();
    const auto body = desk.store().NoteBody(retire);
    ASSERT_OK(body.status());
    (void)desk.Append(RecordType::kRetire, body->body);
    SetFaults({.nth = nth, .error = EIO, .under = run_});
    desk.store().Do(Coordinator::Noted{.tag = retire});
    desk.store().Finish();
    const bool hit = FaultsHit() > 0;
    ClearFaults();
    ASSERT_EQ(CheckRun(), 5);
    desk.LoseLead();
    ASSERT_NO_FATAL_FAILURE(CheckAfter(5));
    if (!hit) break;
    ASSERT_LT(nth, 500);
  }
}

// What is to go is not known: then nothing goes, and the record is made another time.
TEST_F(StoreFaultTest, PlanningFailsAtEveryCall) {
  int failures = 0;
  for (int nth = 1;; ++nth) {
    NewRun();
    CheckpointDesk desk(run_);
    desk.generation = 1;
    desk.Lead();
    ASSERT_EQ(desk.Load(), 2);
    ASSERT_OK(desk.Save(5, /*settles=*/false));
    ASSERT_EQ(desk.tags.size(), 2u);
    (void)desk.Append(RecordType::kVerified, desk.store().NoteBody(desk.tags.front())->body);
    desk.store().Finish();
    SetFaults({.nth = nth, .error = EIO, .under = run_});
    const auto body = desk.store().NoteBody(desk.tags.back());
    const bool hit = FaultsHit() > 0;
    ClearFaults();
    SCOPED_TRACE(fmt::format("call {}: {}", nth, body.status().ToString()));
    if (body.ok()) ASSERT_EQ(ParseRetire(body->body)->names.size(), 1u);
    failures += body.ok() ? 0 : 1;
    ASSERT_NO_FATAL_FAILURE(CheckAfter(5));
    if (!hit) break;
  }
  EXPECT_GT(failures, 2);
}

// ---- order

bool IsRecord(const TracedCall& call) {
  return call.call == Call::kLink && call.path.ends_with(".rec");
}

// Before the COMMIT all files of the checkpoint, and all names that lead to them, are durable;
// behind it only the view is made; nothing is deleted before the RETIRE.
TEST_F(StoreFaultTest, DurableInOrder) {
  NewRun();
  CheckpointDesk desk(run_);
  desk.generation = 1;
  desk.Lead();
  ASSERT_EQ(desk.Load(), 2);
  StartTrace();
  ASSERT_OK(desk.Save(5));
  std::vector<TracedCall> calls = TakeTrace();
  std::erase_if(calls, [this](const TracedCall& call) { return !call.path.starts_with(run_); });
  std::vector<size_t> records;
  for (size_t i = 0; i < calls.size(); ++i)
    if (IsRecord(calls[i])) records.push_back(i);
  ASSERT_EQ(records.size(), 3u);  // COMMIT, VERIFIED, RETIRE.
  std::map<std::string, bool> synced;
  std::set<std::string> unsynced;
  size_t written = 0;
  for (size_t i = 0; i < records[0]; ++i) {
    const TracedCall& call = calls[i];
    if (call.call == Call::kWrite || call.call == Call::kSmallWrite) synced[call.path] = false;
    if (call.call == Call::kSync && synced.contains(call.path)) synced[call.path] = true;
    if (call.creates && call.path.find("/tmp/") == std::string::npos)
      unsynced.insert(fs::path(call.path).parent_path());
    if (call.call == Call::kSync) unsynced.erase(call.path);
    written += call.path.find("/ckpt/") != std::string::npos ? 1 : 0;
  }
  EXPECT_GE(synced.size(), 4u);  // Two parts, manifest, record.
  for (const auto& [path, done] : synced) EXPECT_TRUE(done) << path;
  EXPECT_TRUE(unsynced.empty()) << *unsynced.begin();
  EXPECT_GT(written, 5u);
  int deleted = 0;
  for (size_t i = records[0]; i < calls.size(); ++i) {
    if (calls[i].path.find("/ckpt/") == std::string::npos || calls[i].call == Call::kSync) continue;
    if (calls[i].call == Call::kUnlink && calls[i].path.find(kViewFile) == std::string::npos) {
      EXPECT_GT(i, records[2]) << calls[i].path;
      ++deleted;
    } else {
      EXPECT_NE(calls[i].path.find(kViewFile), std::string::npos) << calls[i].path;
    }
  }
  EXPECT_GE(deleted, 4);
}

}  // namespace
}  // namespace perdure
