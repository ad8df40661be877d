// What went wrong in public with the checkpoints of others, one test each; the names say what.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <map>
#include <set>

#include "runtime/agent/records.h"
#include "runtime/agent/retention.h"
#include "runtime/base/status.h"
#include "tests/agent/run_cycle.h"
#include "tests/ckpt/fault_hooks.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class PublicFailure : public testing::Test {
 protected:
  void SetUp() override { MakeCycleRun(run_); }
  void TearDown() override { ClearFaults(); }

  std::vector<CheckpointEntry> Entries() const {
    return ListCheckpoints(*RunLog::Open(run_), run_);
  }
  std::string Newest() const { return Entries()[0].path; }
  std::string LastRecord() const {
    return fmt::format("{}/log/{:08}.rec", run_, RunLog::Open(run_)->next_slot() - 1);
  }
  // The step that a job would resume; then good steps follow, or not.
  int64_t StartStep(bool ran = true) {
    RunCycle cycle(run_);
    const absl::Status status = cycle.Start();
    EXPECT_OK(status);
    if (status.ok() && ran) EXPECT_OK(cycle.Ran());
    return status.ok() ? cycle.step() : -2;
  }
  void SaveNext(int64_t step, bool some_gone = false) {
    RunCycle cycle(run_);
    ASSERT_OK(cycle.Start());
    ASSERT_OK(cycle.Ran());
    ASSERT_OK(cycle.Save(step));
    ASSERT_OK(cycle.End());
    ASSERT_EQ(CheckRun(run_, some_gone), step);
  }
  // The calls of one save that retires another checkpoint.
  std::vector<TracedCall> TraceOfSave() {
    RunCycle cycle(run_);
    EXPECT_OK(cycle.Start());
    StartTrace();
    EXPECT_OK(cycle.Save(10));
    return TakeTrace();
  }

  TestDirectory directory_{MemoryDirectory()};
  const std::string run_ = directory_.Make("run");
};

bool IsRecord(const TracedCall& call) {
  return call.call == Call::kLink && call.path.ends_with(".rec");
}

// Position of the n-th link of a record (0: the first).
size_t RecordAt(const std::vector<TracedCall>& calls, int n) {
  for (size_t i = 0; i < calls.size(); ++i)
    if (IsRecord(calls[i]) && n-- == 0) return i;
  ADD_FAILURE() << "no such record";
  return 0;
}

TEST_F(PublicFailure, torn_newest_record) {
  const std::string path = LastRecord(), good = Slurp(path);
  for (const size_t length : {size_t{0}, size_t{1}, good.size() / 2, good.size() - 1}) {
    for (const bool zeros : {false, true}) {
      std::string torn = good.substr(0, length);
      if (zeros) torn.resize(good.size());
      if (torn == good) continue;  // one digest in 256 ends in zero
      Spill(path, torn);
      RunCycle cycle(run_);
      const absl::Status status = cycle.Start();
      // Neither an older state in silence nor a crash: a person is told which slot.
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
      EXPECT_THAT(Message(status), HasSubstr(path));
    }
  }
  Spill(path, good);
  // A record that was being written when the power went is no record.
  Spill(run_ + "/tmp/0123.rec", good.substr(0, 50));
  EXPECT_EQ(StartStep(), 4);
}

TEST_F(PublicFailure, stale_newest_record) {
  // An older record in the newest slot.
  const std::string path = LastRecord(), good = Slurp(path);
  Spill(path, Slurp(fmt::format("{}/log/{:08}.rec", run_, 1)));
  RunCycle cycle(run_);
  EXPECT_EQ(cycle.Start().code(), absl::StatusCode::kDataLoss);
  Spill(path, good);
  // The newest COMMIT never reached the disk: the one before it is resumed, progress is made, and
  // what nobody names is left alone.
  const std::string newest = Newest();
  const std::vector<Record> records = RunLog::Open(run_)->records();
  size_t commit = records.size();
  while (records[--commit].type != RecordType::kCommit) continue;
  for (size_t slot = records.size(); slot-- > commit;)
    fs::remove(fmt::format("{}/log/{:08}.rec", run_, slot));
  EXPECT_EQ(StartStep(), 3);
  SaveNext(4, /*some_gone=*/true);
  SaveNext(5, /*some_gone=*/true);
  EXPECT_NE(Newest(), newest);
  EXPECT_TRUE(fs::exists(newest + "/manifest.json"));
}

// The last write of every file comes before its last sync, and that before the COMMIT.
TEST_F(PublicFailure, fsync_after_flush) {
  const std::vector<TracedCall> calls = TraceOfSave();
  const size_t commit = RecordAt(calls, 0);
  std::map<std::string, bool> synced;
  for (size_t i = 0; i < commit; ++i) {
    if (calls[i].call == Call::kWrite || calls[i].call == Call::kSmallWrite)
      synced[calls[i].path] = false;
    else if (calls[i].call == Call::kSync && synced.contains(calls[i].path))
      synced[calls[i].path] = true;
  }
  EXPECT_GE(synced.size(), 3u);  // Part, manifest, record.
  for (const auto& [path, done] : synced) EXPECT_TRUE(done) << path;
}

// Every new name is in a directory that was synced behind it, before the COMMIT; and the COMMIT's
// own before anybody is told.
TEST_F(PublicFailure, commit_is_synced) {
  for (const bool is_new : {false, true}) {
    if (is_new) fs::remove_all(run_);
    RunCycle cycle(run_);
    StartTrace();
    ASSERT_OK(cycle.Start());
    ASSERT_OK(cycle.Save(10));
    const std::vector<TracedCall> calls = TakeTrace();
    const size_t commit = RecordAt(calls, is_new ? 1 : 2);
    std::set<std::string> unsynced;
    for (size_t i = 0; i < calls.size(); ++i) {
      if (calls[i].creates && calls[i].path.find("/tmp/") == std::string::npos)
        unsynced.insert(fs::path(calls[i].path).parent_path());
      if (calls[i].call == Call::kSync) unsynced.erase(calls[i].path);
      if (i + 1 == commit) {
        EXPECT_TRUE(unsynced.empty()) << *unsynced.begin();
      }
    }
    // tmp/ holds nothing that must last.
    unsynced.erase(run_ + "/tmp");
    EXPECT_TRUE(unsynced.empty()) << *unsynced.begin();
  }
}

TEST_F(PublicFailure, pointer_before_durable) {
  const std::vector<TracedCall> calls = TraceOfSave();
  const size_t commit = RecordAt(calls, 0);
  size_t checkpoint_calls = 0;
  for (size_t i = 0; i < calls.size(); ++i) {
    if (calls[i].path.find("/ckpt/") == std::string::npos || calls[i].call == Call::kUnlink)
      continue;
    ++checkpoint_calls;
    EXPECT_LT(i, commit) << calls[i].path << " is touched behind its COMMIT";
  }
  EXPECT_GT(checkpoint_calls, 5u);
}

TEST_F(PublicFailure, gc_before_commit) {
  const std::vector<TracedCall> calls = TraceOfSave();
  const size_t retire = RecordAt(calls, 2);  // COMMIT, VERIFIED, RETIRE.
  int deleted = 0;
  for (size_t i = 0; i < calls.size(); ++i)
    if (calls[i].call == Call::kUnlink && calls[i].path.find("/ckpt/") != std::string::npos) {
      EXPECT_GT(i, retire) << calls[i].path;
      ++deleted;
    }
  EXPECT_GE(deleted, 3);
  // A commit that does not come deletes nothing.
  const auto before = Entries();
  RunCycle cycle(run_);
  ASSERT_OK(cycle.Start());
  SetFaults({.call = Call::kLink, .times = 1000, .error = ENOSPC, .under = run_});
  EXPECT_FALSE(cycle.Save(11).ok());
  ClearFaults();
  EXPECT_FALSE(cycle.lost());
  const auto after = Entries();
  ASSERT_EQ(after.size(), before.size());
  for (const CheckpointEntry& entry : after)
    EXPECT_EQ(fs::exists(entry.path), !entry.retired) << entry.path;
}

// Killed at each call that changes a name: there is always something to load.
TEST_F(PublicFailure, no_window_without_checkpoint) {
  for (const Call call : {Call::kLink, Call::kUnlink, Call::kRename, Call::kMakeDirectory})
    for (int nth = 1;; ++nth) {
      const pid_t child = ::fork();
      if (child == 0) {
        SetFaults({.call = call, .nth = nth, .exit = true, .under = run_});
        RunCycle cycle(run_);
        ::_exit(cycle.Start().ok() && cycle.Ran().ok() && cycle.Save(20 + nth).ok() ? 0 : 1);
      }
      int status = 0;
      ASSERT_EQ(::waitpid(child, &status, 0), child);
      const auto log = RunLog::Open(run_);
      ASSERT_OK(log.status());
      const auto start = ChooseStart(*log, run_, {.retry = true}, [](const std::string&) {});
      ASSERT_OK(start.status());
      ASSERT_TRUE(start->has_value());
      ASSERT_GE(CheckRun(run_), 4);
      if (WEXITSTATUS(status) == 0) break;
      ASSERT_EQ(WEXITSTATUS(status), 137);
    }
}

TEST_F(PublicFailure, gc_keeps_two_verified) {
  RunCycle cycle(run_);
  ASSERT_OK(cycle.Start());
  for (int64_t step = 5; step < 15; ++step) {
    ASSERT_OK(cycle.Save(step));
    int64_t kept = 0;
    for (const CheckpointEntry& entry : Entries()) kept += !entry.retired && entry.verified;
    EXPECT_GE(kept, 2);
  }
  // The newest turns out to be bad: hardly anything is lost.
  fs::resize_file(Newest() + "/part-00000.h5", 100);
  EXPECT_EQ(StartStep(), 13);
}

// A copy that is bad although it was good when it was read back: never loaded, and kept.
TEST_F(PublicFailure, corrupt_replica) {
  const std::string bad = Newest();
  const auto manifest = ReadManifest(bad, nullptr);
  ASSERT_OK(manifest.status());
  std::string bytes = Slurp(bad + "/part-00000.h5");
  bytes[manifest->parts[0].offsets[2] + 5] ^= 2;
  Spill(bad + "/part-00000.h5", bytes);
  EXPECT_EQ(StartStep(), 3);
  const std::string name = fs::path(bad).filename();
  EXPECT_TRUE(fs::exists(run_ + "/quarantine/" + name + "/part-00000.h5"));
  EXPECT_THAT(Slurp(run_ + "/quarantine/" + name + ".why"), HasSubstr("differs from its digest"));
  EXPECT_EQ(StartStep(), 3);
}

TEST_F(PublicFailure, no_endless_restart) {
  // Twice without a good step, then the one before, then an end that a person sees.
  for (const int64_t step : {4, 4, 3, 3}) EXPECT_EQ(StartStep(/*ran=*/false), step);
  RunCycle cycle(run_);
  const absl::Status status = cycle.Start();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(status), HasSubstr("--retry"));
  const auto log = RunLog::Open(run_);
  const auto again = ChooseStart(*log, run_, {.retry = true}, [](const std::string&) {});
  ASSERT_OK(again.status());
  EXPECT_EQ((*again)->manifest.step, 4);
}

TEST_F(PublicFailure, missing_shard) {
  fs::remove(Newest() + "/part-00000.h5");
  EXPECT_EQ(StartStep(), 3);
  // Nor can a manifest be written that lacks one.
  Manifest manifest = TestManifest(CycleTable(), 9);
  const auto entries = Entries();
  const auto good = ReadManifest(entries[1].path, &entries[1].commit.manifest);
  ASSERT_OK(good.status());
  manifest.parts = good->parts;
  manifest.parts[0].atoms.pop_back();
  manifest.parts[0].atom_digests.pop_back();
  --manifest.parts[0].runs[0];
  const std::string folder = directory_.Make("other");
  EXPECT_THAT(Message(WriteManifest(folder, CycleTable(), manifest).status()),
              HasSubstr("a shard is missing"));
}

// A whole checkpoint that is gone (purged, or left out of a copy) is not the end of the run.
TEST_F(PublicFailure, missing_directory) {
  fs::remove_all(Newest());
  EXPECT_EQ(StartStep(), 3);
  SaveNext(5, /*some_gone=*/true);
}

TEST_F(PublicFailure, transient_eio_no_fallback) {
  for (const Call call : {Call::kSmallRead, Call::kRead, Call::kOpen, Call::kStat}) {
    for (const int error : {EIO, ESTALE}) {
      // One error is waited out; many are told. Never an older state, never a verdict.
      SetFaults({.call = call, .error = error, .under = Newest()});
      EXPECT_TRUE(call == Call::kStat || StartStep() == 4) << static_cast<int>(call);
      ClearFaults();
      SetFaults({.call = call, .times = 1000, .error = error, .under = Newest()});
      RunCycle cycle(run_);
      const absl::Status status = cycle.Start();
      EXPECT_GT(FaultsHit(), 0);
      ClearFaults();
      EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
      EXPECT_FALSE(fs::exists(run_ + "/quarantine"));
      EXPECT_EQ(StartStep(), 4);
    }
  }
}

TEST_F(PublicFailure, partial_directory) {
  const pid_t child = ::fork();
  if (child == 0) {
    RunCycle cycle(run_);
    if (!cycle.Start().ok()) ::_exit(1);
    SetFaults({.call = Call::kSync, .nth = 2, .exit = true, .under = run_});
    (void)cycle.Save(5);
    ::_exit(1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_EQ(WEXITSTATUS(status), 137);
  const auto directories = [&] {
    return std::distance(fs::directory_iterator(run_ + "/ckpt"), fs::directory_iterator());
  };
  ASSERT_EQ(directories(), 3);
  EXPECT_EQ(StartStep(), 4);
  SaveNext(5);
  // Only what a record names is deleted.
  EXPECT_EQ(directories(), 3);
}

TEST_F(PublicFailure, copied_run_directory) {
  const std::string copy = directory_.path() + "/copy";
  fs::copy(run_, copy, fs::copy_options::recursive);
  RunCycle cycle(copy);
  ASSERT_OK(cycle.Start());
  EXPECT_EQ(cycle.step(), 4);
  ASSERT_OK(cycle.Save(5));
  EXPECT_EQ(CheckRun(copy), 5);
  EXPECT_FALSE(fs::exists(copy + "/quarantine"));
  EXPECT_EQ(CheckRun(run_), 4);
}

void Ignore(int) {}

// Signals that interrupt every call: the save is as good as any.
TEST_F(PublicFailure, signal_during_save) {
  struct sigaction action {
  }, before{};
  action.sa_handler = Ignore;  // Without SA_RESTART.
  ASSERT_EQ(::sigaction(SIGALRM, &action, &before), 0);
  const itimerval often{.it_interval = {0, 150}, .it_value = {0, 150}}, never{};
  RunCycle cycle(run_);
  ASSERT_OK(cycle.Start());
  ASSERT_OK(cycle.Ran());
  ASSERT_EQ(::setitimer(ITIMER_REAL, &often, nullptr), 0);
  std::vector<absl::Status> results;
  for (int64_t step = 5; step < 10; ++step) results.push_back(cycle.Save(step));
  ASSERT_EQ(::setitimer(ITIMER_REAL, &never, nullptr), 0);
  ::sigaction(SIGALRM, &before, nullptr);
  for (const absl::Status& status : results) EXPECT_OK(status);
  EXPECT_EQ(CheckRun(run_), 9);
}

// The place of the part files is full, the rest of the run directory is not: the checkpoint is
// given up, the job goes on, and the next one comes as soon as there is space.
TEST_F(PublicFailure, one_target_full) {
  RunCycle cycle(run_);
  ASSERT_OK(cycle.Start());
  for (const Call call : {Call::kWrite, Call::kReserve, Call::kOpen}) {
    SetFaults({.call = call, .times = 1000, .error = ENOSPC, .under = run_ + "/ckpt"});
    EXPECT_EQ(cycle.Save(5).code(), absl::StatusCode::kResourceExhausted);
    EXPECT_GE(FaultsHit(), 2);  // Both attempts.
    ClearFaults();
    EXPECT_FALSE(cycle.lost());
    EXPECT_EQ(CheckRun(run_), 4);
  }
  ASSERT_OK(cycle.Save(6));
  EXPECT_EQ(CheckRun(run_), 6);
}

// ... and where the log is full: nothing was said, so the job goes on as well.
TEST_F(PublicFailure, full_log) {
  RunCycle cycle(run_);
  ASSERT_OK(cycle.Start());
  SetFaults({.call = Call::kSmallWrite, .times = 1000, .error = ENOSPC, .under = run_ + "/tmp"});
  EXPECT_EQ(cycle.Save(5).code(), absl::StatusCode::kResourceExhausted);
  ClearFaults();
  EXPECT_FALSE(cycle.lost());
  ASSERT_OK(cycle.Save(6));
  EXPECT_EQ(CheckRun(run_), 6);
}

TEST_F(PublicFailure, two_jobs_one_directory) {
  RunCycle first(run_), second(run_);
  ASSERT_OK(first.Start());
  ASSERT_OK(second.Start());
  ASSERT_OK(second.Save(5));
  // The one that was replaced can neither commit nor retire, and is told so.
  EXPECT_EQ(first.Save(6).code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(first.lost());
  EXPECT_FALSE(first.End().ok());
  EXPECT_EQ(CheckRun(run_), 5);
  ASSERT_OK(second.Save(7));
  EXPECT_FALSE(second.lost());
  EXPECT_EQ(CheckRun(run_), 7);
}

}  // namespace
}  // namespace perdure
