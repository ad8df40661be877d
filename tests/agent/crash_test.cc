// A whole job (start, load, save, commit, verify, retire, end) with the process killed and with a
// system call failing at every place: nothing that was acknowledged is lost, nothing bad is
// accepted, and the next job works.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <filesystem>

#include "runtime/agent/records.h"
#include "runtime/base/status.h"
#include "tests/agent/run_cycle.h"
#include "tests/ckpt/fault_hooks.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

// Memory that outlives a killed child.
class Shared {
 public:
  Shared()
      : value_(static_cast<std::atomic<int64_t>*>(::mmap(nullptr, sizeof(std::atomic<int64_t>),
                                                         PROT_READ | PROT_WRITE,
                                                         MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {
    EXPECT_NE(value_, MAP_FAILED);
  }
  ~Shared() { ::munmap(value_, sizeof(std::atomic<int64_t>)); }
  std::atomic<int64_t>& operator*() { return *value_; }

 private:
  std::atomic<int64_t>* value_;
};

class CrashTest : public testing::Test {
 protected:
  void SetUp() override { MakeCycleRun(original_); }
  void TearDown() override { ClearFaults(); }

  // A copy of a run with four checkpoints.
  std::string NewRun() {
    fs::remove_all(run_);
    fs::copy(original_, run_, fs::copy_options::recursive);
    return run_;
  }
  // One job that saves `step`; sets `acknowledged` when that is safe.
  absl::Status Job(int64_t step, std::atomic<int64_t>& acknowledged, int writers = 1) {
    RunCycle cycle(run_, {.writers = writers, .keep = {.keep_last = 2}});
    RETURN_IF_ERROR(cycle.Start());
    RETURN_IF_ERROR(cycle.Ran());
    RETURN_IF_ERROR(cycle.Save(step));
    acknowledged = step;
    return cycle.End();
  }
  // What must hold after any crash.
  void CheckAfter(int64_t acknowledged) {
    const int64_t newest = CheckRun(run_);
    ASSERT_GE(newest, acknowledged) << "an acknowledged checkpoint is lost";
    RunCycle next(run_);
    ASSERT_OK(next.Start());
    ASSERT_EQ(next.step(), newest);
    ASSERT_OK(next.Save(50));
    ASSERT_EQ(CheckRun(run_), 50);
    // What was retired is gone, whoever began to delete it.
    const auto log = RunLog::Open(run_);
    for (const CheckpointEntry& entry : ListCheckpoints(*log, run_))
      ASSERT_EQ(fs::exists(entry.path), !entry.retired) << entry.path;
  }
  // From `nth` on in steps of `stride`, until no call is hit.
  void EveryCall(FaultPlan plan, int stride) {
    plan.under = run_;
    int hits = 0;
    for (plan.nth = 1;; plan.nth += stride) {
      NewRun();
      std::atomic<int64_t> acknowledged = 4;
      SetFaults(plan);
      const absl::Status status = Job(10, acknowledged);
      const bool hit = FaultsHit() > 0;
      ClearFaults();
      SCOPED_TRACE(fmt::format("call {} error {} short {}: {}", plan.nth, plan.error,
                               plan.short_bytes, status.ToString()));
      ASSERT_NO_FATAL_FAILURE(CheckAfter(acknowledged));
      ASSERT_FALSE(HasFailure());
      if (!hit) {
        ASSERT_OK(status);
        break;
      }
      ++hits;
    }
    EXPECT_GT(hits * stride, 100);
  }
  void KilledEverywhere(int writers) {
    Shared acknowledged;
    bool clean = false;
    int deaths = 0, before = 0;
    for (int nth = 1; !clean; ++nth) {
      NewRun();
      *acknowledged = 4;
      const pid_t child = ::fork();
      if (child == 0) {
        SetFaults({.nth = nth, .exit = true, .under = run_});
        ::_exit(Job(10, *acknowledged, writers).ok() ? 0 : 1);
      }
      int status = 0;
      ASSERT_EQ(::waitpid(child, &status, 0), child);
      clean = WEXITSTATUS(status) == 0;
      ASSERT_TRUE(clean || WEXITSTATUS(status) == 137) << status;
      SCOPED_TRACE(fmt::format("killed at call {}", nth));
      before += CheckRun(run_) == 4;
      ASSERT_NO_FATAL_FAILURE(CheckAfter(*acknowledged));
      ASSERT_FALSE(HasFailure());
      deaths += clean ? 0 : 1;
    }
    EXPECT_GT(deaths, 100);
    EXPECT_GT(before, 50);
    EXPECT_LT(before, deaths);
  }

  TestDirectory directory_{MemoryDirectory()};
  const std::string original_ = directory_.Make("original");
  const std::string run_ = directory_.path() + "/run";
};

TEST_F(CrashTest, kill_at_every_syscall) { KilledEverywhere(1); }
TEST_F(CrashTest, LongKilledWithTwoWriters) { KilledEverywhere(2); }

TEST_F(CrashTest, InputOutputErrorAtEveryCall) { EveryCall({.error = EIO}, 1); }
TEST_F(CrashTest, OtherErrorsAtSomeCalls) {
  EveryCall({.error = ENOSPC}, 5);
  EveryCall({.error = ESTALE}, 13);
  EveryCall({.error = EINTR}, 7);
  EveryCall({.error = EIO, .after = true}, 9);
}
TEST_F(CrashTest, LongOtherErrorsAtEveryCall) {
  for (const int error : {ENOSPC, EDQUOT, ESTALE, EINTR}) EveryCall({.error = error}, 1);
  for (const int error : {EIO, ESTALE}) EveryCall({.error = error, .after = true}, 1);
}
TEST_F(CrashTest, ShortTransfersAtEveryCall) {
  for (const Call call : {Call::kWrite, Call::kSmallWrite, Call::kRead, Call::kSmallRead}) {
    FaultPlan plan{.call = call, .short_bytes = 1, .under = run_};
    for (plan.nth = 1;; ++plan.nth) {
      NewRun();
      std::atomic<int64_t> acknowledged = 4;
      SetFaults(plan);
      const absl::Status status = Job(10, acknowledged);
      const bool hit = FaultsHit() > 0;
      ClearFaults();
      // Nothing fails: the rest is asked for.
      ASSERT_OK(status);
      ASSERT_EQ(CheckRun(run_), 10);
      if (!hit) break;
    }
  }
}

// The disk fails for good in the middle of a job: what was acknowledged before stands.
TEST_F(CrashTest, EverythingFailsFromSomeCallOn) {
  for (int nth = 1; nth < 400; nth += 11) {
    NewRun();
    std::atomic<int64_t> acknowledged = 4;
    SetFaults({.nth = nth, .times = 1 << 20, .error = ENOSPC, .under = run_});
    (void)Job(10, acknowledged);
    const bool hit = FaultsHit() > 0;
    ClearFaults();
    SCOPED_TRACE(nth);
    ASSERT_NO_FATAL_FAILURE(CheckAfter(acknowledged));
    if (!hit) break;
  }
}

// A new run's first job, which makes the log, the key and all directories.
TEST_F(CrashTest, FirstJobKilledAtEveryCall) {
  Shared acknowledged;
  for (int nth = 1;; ++nth) {
    fs::remove_all(run_);
    *acknowledged = -1;
    const pid_t child = ::fork();
    if (child == 0) {
      SetFaults({.nth = nth, .exit = true, .under = run_});
      ::_exit(Job(10, *acknowledged).ok() ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    SCOPED_TRACE(nth);
    RunCycle next(run_);
    ASSERT_OK(next.Start());
    ASSERT_GE(next.step(), *acknowledged);
    ASSERT_OK(next.Save(50));
    ASSERT_OK(next.Save(51));
    ASSERT_EQ(CheckRun(run_), 51);
    if (WEXITSTATUS(status) == 0) break;
    ASSERT_EQ(WEXITSTATUS(status), 137);
  }
}

// A start that finds the newest checkpoint bad, interrupted anywhere.
TEST_F(CrashTest, QuarantineKilledAtEveryCall) {
  for (int nth = 1;; ++nth) {
    NewRun();
    const auto entries = ListCheckpoints(*RunLog::Open(run_), run_);
    const std::string part = entries[0].path + "/part-00000.h5";
    std::string bytes = Slurp(part);
    for (char& byte : bytes) byte = static_cast<char>(byte ^ 1);
    Spill(part, bytes);
    const pid_t child = ::fork();
    if (child == 0) {
      SetFaults({.nth = nth, .exit = true, .under = run_});
      RunCycle cycle(run_);
      ::_exit(cycle.Start().ok() && cycle.step() == 3 ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    SCOPED_TRACE(nth);
    RunCycle next(run_);
    ASSERT_OK(next.Start());
    ASSERT_EQ(next.step(), 3);
    ASSERT_TRUE(fs::exists(run_ + "/quarantine/" + entries[0].commit.checkpoint));
    ASSERT_OK(next.Save(50));
    ASSERT_EQ(CheckRun(run_), 50);
    if (WEXITSTATUS(status) == 0) break;
    ASSERT_EQ(WEXITSTATUS(status), 137);
  }
}

}  // namespace
}  // namespace perdure
