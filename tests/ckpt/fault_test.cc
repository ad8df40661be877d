#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <functional>

#include "runtime/base/status.h"
#include "tests/ckpt/fault_hooks.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

using testing::HasSubstr;

class FaultTest : public testing::Test {
 protected:
  void TearDown() override { ClearFaults(); }
  absl::StatusOr<PartReport> Write(const std::string& file) {
    return WritePart(directory_.path(), file, table_, state_.states(), 1, 1, "run");
  }
  std::string path(const std::string& file) const { return directory_.path() + "/" + file; }

  const AtomTable table_{BigTensors(600'000), 5000};
  TestState state_{table_, 7};
  TestDirectory directory_;
};

// The n-th call fails, for every n until a run is clean: an error each time, the name stays used.
TEST_F(FaultTest, EveryFailingCallOfAWriteIsAnError) {
  for (const Call call : {Call::kWrite, Call::kTruncate, Call::kReserve, Call::kSync})
    for (const int error : {EIO, ENOSPC, EDQUOT, ESTALE}) {
      int clean = 0;
      for (int nth = 1; clean == 0 && nth < 200; ++nth) {
        const std::string file = fmt::format("p-{}-{}-{}.h5", static_cast<int>(call), error, nth);
        SetFaults({.call = call, .nth = nth, .error = error});
        const auto report = Write(file);
        const int hit = FaultsHit();
        ClearFaults();
        ASSERT_EQ(report.ok(), hit == 0) << file << report.status();
        clean = hit == 0 ? nth : 0;
        if (hit == 0) continue;
        const bool full = error == ENOSPC || error == EDQUOT;
        EXPECT_EQ(report.status().code(),
                  full ? absl::StatusCode::kResourceExhausted : absl::StatusCode::kUnavailable)
            << file << report.status();
        EXPECT_THAT(Message(report.status()), HasSubstr(directory_.path()));
        EXPECT_TRUE(std::filesystem::exists(path(file)));
        EXPECT_EQ(Write(file).status().code(), absl::StatusCode::kAlreadyExists);
        // A full disk gets its space back.
        if (full && call != Call::kSync) {
          EXPECT_EQ(std::filesystem::file_size(path(file)), 0u);
        }
        std::filesystem::remove(path(file));
      }
      EXPECT_GT(clean, 1) << "no call was hit";
    }
}

// A failure inside libhdf5 cannot be recovered from: it is given nothing that can fail.
TEST_F(FaultTest, LibraryTouchesNoFile) {
  SetFaults({.call = Call::kLibraryWrite, .times = 1000, .error = EIO});
  ASSERT_OK(Write("part-00000.h5").status());
  EXPECT_EQ(CallsSeen(Call::kLibraryWrite), 0);
  EXPECT_EQ(CallsSeen(Call::kRead), 0);
  EXPECT_EQ(CallsSeen(Call::kTruncate), 1);
}

TEST_F(FaultTest, FailedFsyncIsFinal) {
  SetFaults({.call = Call::kSync, .error = EIO});
  const auto report = Write("part-00000.h5");
  EXPECT_EQ(report.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(report.status()), HasSubstr("final"));
  EXPECT_EQ(CallsSeen(Call::kSync), 1);
}

TEST_F(FaultTest, FileAndDirectoryAreSynced) {
  SetFaults({.call = Call::kSync, .nth = 1000});
  ASSERT_OK(Write("part-00000.h5").status());
  EXPECT_EQ(CallsSeen(Call::kSync), 2);
  Manifest manifest = TestManifest(table_, 1);
  manifest.run_id = "run";
  manifest.generation = 1;
  manifest.parts.push_back(*Write("part-00001.h5"));
  const int before = CallsSeen(Call::kSync);
  ASSERT_OK(WriteManifest(directory_.path(), table_, manifest).status());
  EXPECT_EQ(CallsSeen(Call::kSync), before + 3);  // File, directory, its parent.
}

TEST_F(FaultTest, EveryFailingCallOfTheManifestIsAnError) {
  Manifest manifest = TestManifest(table_, 1);
  manifest.parts.push_back(*Write("part-00000.h5"));
  for (const Call call : {Call::kWrite, Call::kSync})
    for (int nth = 1; nth <= (call == Call::kSync ? 3 : 1); ++nth) {
      SetFaults({.call = call, .nth = nth, .error = EIO});
      EXPECT_EQ(WriteManifest(directory_.path(), table_, manifest).status().code(),
                absl::StatusCode::kUnavailable);
      EXPECT_EQ(FaultsHit(), 1);
      ClearFaults();
      std::filesystem::remove(path("manifest.json"));
    }
}

TEST_F(FaultTest, ShortAndInterruptedCallsAreCompleted) {
  Manifest manifest = TestManifest(table_, 1);
  manifest.run_id = "run";
  manifest.generation = 1;
  SetFaults({.call = Call::kWrite, .times = 1000, .short_bytes = 4093});
  auto report = Write("part-00000.h5");
  EXPECT_GT(FaultsHit(), 100);
  ASSERT_OK(report.status());
  manifest.parts.push_back(*report);
  SetFaults({.call = Call::kWrite, .times = 3, .error = EINTR});
  ASSERT_OK(WriteManifest(directory_.path(), table_, manifest).status());
  EXPECT_EQ(FaultsHit(), 3);
  SetFaults({.call = Call::kRead, .times = 1000, .short_bytes = 4093});
  TestState read(table_, 8);
  ASSERT_OK(ReadAtoms(directory_.path(), manifest, table_, read.states()));
  EXPECT_GT(FaultsHit(), 100);
  EXPECT_TRUE(read == state_);
  SetFaults({.call = Call::kRead, .times = 5, .error = EINTR});
  ASSERT_OK(VerifyCheckpoint(directory_.path(), manifest));
  EXPECT_EQ(FaultsHit(), 5);
}

// One EIO is not evidence against a checkpoint: no DataLoss, so that nobody falls back in silence.
TEST_F(FaultTest, FailingReadsAreNotCalledCorruption) {
  Manifest manifest = TestManifest(table_, 1);
  manifest.run_id = "run";
  manifest.generation = 1;
  manifest.parts.push_back(*Write("part-00000.h5"));
  ASSERT_OK(WriteManifest(directory_.path(), table_, manifest).status());
  TestState read(table_, 8);
  SetFaults({.call = Call::kRead, .error = EIO});
  ASSERT_OK(ReadAtoms(directory_.path(), manifest, table_, read.states()));
  EXPECT_EQ(FaultsHit(), 1);
  EXPECT_TRUE(read == state_);
  SetFaults({.call = Call::kRead, .times = 1000, .error = EIO});
  EXPECT_EQ(ReadAtoms(directory_.path(), manifest, table_, read.states()).code(),
            absl::StatusCode::kUnavailable);
  // Also in the reads behind those for the digests.
  bool clean = false;
  for (int nth = 1; !clean; ++nth) {
    SetFaults({.call = Call::kRead, .nth = nth, .times = 1000, .error = ESTALE});
    const absl::Status status = VerifyCheckpoint(directory_.path(), manifest);
    clean = FaultsHit() == 0;
    ASSERT_EQ(status.code(), clean ? absl::StatusCode::kOk : absl::StatusCode::kUnavailable);
    ASSERT_TRUE(!clean || nth > 5);
  }
}

// Runs `test` in a child; its result is the child's exit code.
int InChild(const std::function<int()>& test) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(test());
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST_F(FaultTest, FileSizeLimitIsNoSpace) {
  // Before the layout, between, and inside the payload.
  for (const rlim_t limit : {rlim_t{100}, rlim_t{1} << 20, rlim_t{5} << 20}) {
    const std::string file = fmt::format("part-{:05}.h5", limit);
    const int result = InChild([&] {
      ::signal(SIGXFSZ, SIG_IGN);
      const rlimit bound{limit, limit};
      if (::setrlimit(RLIMIT_FSIZE, &bound) != 0) return 100;
      return static_cast<int>(Write(file).status().code());
    });
    EXPECT_EQ(result, static_cast<int>(absl::StatusCode::kResourceExhausted)) << limit;
  }
}

TEST_F(FaultTest, ReadOnlyDirectoryIsNamed) {
  ASSERT_EQ(::chmod(directory_.path().c_str(), 0555), 0);
  const int result = InChild([&] {
    if (::geteuid() == 0 && (::setegid(65534) != 0 || ::seteuid(65534) != 0)) return 100;
    const auto report = Write("part-00000.h5");
    if (Message(report.status()).find(path("part-00000.h5")) == std::string::npos) return 101;
    return static_cast<int>(report.status().code());
  });
  EXPECT_EQ(result, static_cast<int>(absl::StatusCode::kPermissionDenied));
  ASSERT_EQ(::chmod(directory_.path().c_str(), 0700), 0);
}

}  // namespace
}  // namespace perdure
