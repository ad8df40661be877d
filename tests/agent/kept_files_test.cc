#include "runtime/agent/kept_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "runtime/agent/records.h"
#include "tests/agent/one_rank_start.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

TEST(KeptFiles, WarnWhenNoneIsLeftToFallBackTo) {
  const TestDirectory directory;
  const std::string run = directory.Make("run"), name = "s000000120.g1.9f3c21aa";
  const AtomTable table(OddTensors(), 16);
  TestState state(table, 3);
  absl::StatusOr<RunLog> log = RunLog::Open(run);
  ASSERT_OK(log.status());
  ASSERT_OK(log->Append(RecordType::kStart, 1, SerializeStart(OneRankStart(0))));
  EXPECT_THAT(TendKeptFiles(*log, {.run_directory = run, .refresh = false, .data_files = {}}),
              IsEmpty());
  const std::string path = directory.Make("run/ckpt") + "/" + name;
  std::filesystem::create_directory(path);
  CommitRecord commit{.checkpoint = name, .step = 120};
  const Manifest manifest = WriteCheckpoint(path, table, state, 1, 1, 120, &commit.manifest);
  commit.certificate = manifest.certificate;
  commit.files = 1;
  ASSERT_OK(log->Append(RecordType::kCommit, 1, SerializeCommit(commit)));
  const KeptFilesOptions options{.run_directory = run, .refresh = true, .data_files = {}};
  EXPECT_THAT(TendKeptFiles(*log, options),
              ElementsAre(HasSubstr("of 1 kept checkpoints none is whole and was read back")));
  ASSERT_OK(
      log->Append(RecordType::kVerified, 1, SerializeVerified({.name = name, .kind = "read"})));
  EXPECT_THAT(TendKeptFiles(*log, options), IsEmpty());
  // A folder cannot be read; what is not there is not missed here.
  EXPECT_THAT(
      TendKeptFiles(
          *log, {.run_directory = run, .refresh = true, .data_files = {run, run + "/absent.bin"}}),
      ElementsAre(HasSubstr("1 kept files could not be accessed")));
  std::filesystem::remove_all(path);
  EXPECT_THAT(TendKeptFiles(*log, options),
              ElementsAre(HasSubstr(name + " is gone"), HasSubstr("none is whole")));
}

}  // namespace
}  // namespace perdure
