// Which checkpoint a job loads; tests/agent/public_failures_test.cc has what went wrong with
// others'.
#include "runtime/agent/start_checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

class StartCheckpointTest : public testing::Test {
 protected:
  // A run with committed checkpoints of steps 10 and 20, of generation 1.
  void SetUp() override {
    absl::StatusOr<RunLog> log = RunLog::Open(run_);
    ASSERT_OK(log.status());
    log_ = *std::move(log);
    ASSERT_OK(log_->Append(RecordType::kStart, 1, SerializeStart(OneRankStart(0))));
    run_directory_.Make("ckpt");
    TestState state(table_, 1);
    for (const auto& [name, step] : {std::pair{ten_, 10}, {twenty_, 20}}) {
      CommitRecord commit{.checkpoint = name, .step = step};
      (void)WriteCheckpoint(run_directory_.Make("ckpt/" + name), table_, state, 2, 1, step,
                            &commit.manifest);
      ASSERT_OK(log_->Append(RecordType::kCommit, 1, SerializeCommit(commit)));
    }
  }
  // Generation `generation` of `job` begins to load.
  void Attempt(uint64_t job, uint64_t generation, const std::string& name) {
    WriteAs(job);
    ASSERT_OK(log_->Append(RecordType::kStart, generation, SerializeStart(OneRankStart(0))));
    ASSERT_OK(log_->Append(RecordType::kAttempt, generation, SerializeAttempt({.name = name})));
  }
  void End(uint64_t job, uint64_t generation, int exit_code) {
    WriteAs(job);
    ASSERT_OK(log_->Append(RecordType::kEnd, generation,
                           SerializeEnd({.reason = "test", .exit_code = exit_code, .step = 0})));
  }
  void WriteAs(uint64_t job) { log_->WriteAs({.at = {.job = job, .node = 0}, .incarnation = 1}); }
  int64_t Failed(const std::string& name) const {
    for (const CheckpointEntry& entry : ListCheckpoints(*log_, run_))
      if (entry.commit.checkpoint == name) return entry.failed_attempts;
    return -1;
  }
  // Step; -1: DataLoss.
  int64_t Choose(const LoadRule& rule = {}) {
    lines_.clear();
    const auto start =
        ChooseStart(*log_, run_, rule, [this](const std::string& line) { lines_.push_back(line); });
    if (absl::IsDataLoss(start.status())) return -1;
    EXPECT_OK(start.status());
    return start.ok() && start->has_value() ? (*start)->manifest.step : -2;
  }

  const AtomTable table_{OddTensors(), 16};
  const std::string ten_ = CheckpointName(10, 1, 1), twenty_ = CheckpointName(20, 1, 2);
  TestDirectory run_directory_;
  const std::string run_ = run_directory_.path();
  std::optional<RunLog> log_;
  std::vector<std::string> lines_;
};

TEST_F(StartCheckpointTest, ChosenIsOpenedElsewhere) {
  const auto start = ChooseStart(*log_, run_, {}, [](const std::string&) {});
  ASSERT_OK(start.status());
  const std::string packed = PackChosen(**start);
  EXPECT_LT(packed.size(), 1024u);
  const auto opened = OpenChosen(run_, packed);
  ASSERT_OK(opened.status());
  EXPECT_EQ(opened->path, run_ + "/ckpt/" + twenty_);
  EXPECT_EQ(opened->manifest.step, 20);
  EXPECT_EQ(opened->digest, (*start)->digest);
  // Another manifest than was committed.
  fs::copy_file(run_ + "/ckpt/" + ten_ + "/manifest.json",
                run_ + "/ckpt/" + twenty_ + "/manifest.json", fs::copy_options::overwrite_existing);
  EXPECT_TRUE(absl::IsDataLoss(OpenChosen(run_, packed).status()));
  fs::remove_all(run_ + "/ckpt/" + twenty_);
  EXPECT_TRUE(absl::IsNotFound(OpenChosen(run_, packed).status()));
}

TEST_F(StartCheckpointTest, HostileNames) {
  const auto start = ChooseStart(*log_, run_, {}, [](const std::string&) {});
  ASSERT_OK(start.status());
  const std::string good = PackChosen(**start), hex = (*start)->digest.Hex();
  ASSERT_OK(ParseChosen(good).status());
  for (const std::string& bad :
       {std::string(), std::string("{}"), std::string("[]"), good + " x", good.substr(1),
        good.substr(0, good.size() - 1), fmt::format(R"({{"name":"{}"}})", twenty_),
        fmt::format(R"({{"name":"../{}","manifest":"{}"}})", twenty_, hex),
        fmt::format(R"({{"name":"{}/..","manifest":"{}"}})", twenty_, hex),
        fmt::format(R"({{"name":"/etc/passwd","manifest":"{}"}})", hex),
        fmt::format(R"({{"name":"","manifest":"{}"}})", hex),
        fmt::format(R"({{"name":7,"manifest":"{}"}})", hex),
        fmt::format(R"({{"name":"{}","manifest":"{}"}})", twenty_, hex.substr(2)),
        fmt::format(R"({{"name":"{}","manifest":"{}","more":1}})", twenty_, hex),
        std::string(1025, ' '), good + std::string(1024, ' '), std::string(900, '[')})
    EXPECT_TRUE(absl::IsDataLoss(OpenChosen(run_, bad).status())) << bad;
}

TEST_F(StartCheckpointTest, TwoAttemptsAreTheMost) {
  EXPECT_EQ(Choose(), 20);
  Attempt(7, 2, twenty_);
  EXPECT_EQ(Choose(), 20);
  Attempt(7, 3, twenty_);
  EXPECT_EQ(Choose(), 10);
  EXPECT_THAT(lines_, ElementsAre(HasSubstr("was loaded 2 times without a good step")));
  Attempt(7, 4, ten_);
  Attempt(7, 5, ten_);
  EXPECT_EQ(Choose(), -1);
  // Another job forgives what this one has tried, and has two attempts itself.
  EXPECT_EQ(Choose({.retry = true, .job = 7}), -1);
  EXPECT_EQ(Choose({.retry = true, .job = 8}), 20);
  EXPECT_THAT(lines_, IsEmpty());
  Attempt(8, 6, twenty_);
  EXPECT_EQ(Choose({.retry = true, .job = 8}), 20);
  Attempt(8, 7, twenty_);
  EXPECT_EQ(Choose({.retry = true, .job = 8}), 10);
  EXPECT_EQ(Choose({.retry = true, .job = 0}), 20);
}

// By what the run is to have behind it, not by what its newest START says.
TEST_F(StartCheckpointTest, OnlyOfStepsThatTheRunTakes) {
  const auto gap = [](int64_t first_step) {
    return Gaps{{.first_step = first_step, .samples = 8, .bad_step = 25, .number = 1}};
  };
  EXPECT_EQ(Choose({.gaps = gap(21)}), 20);
  EXPECT_EQ(Choose({.gaps = gap(20)}), 10);
  EXPECT_EQ(Choose({.gaps = gap(11)}), 10);
  EXPECT_EQ(Choose({.gaps = gap(10)}), -2) << "the run begins";
  StartRecord start = OneRankStart(10);
  start.gaps = gap(11);
  ASSERT_OK(log_->Append(RecordType::kStart, 2, SerializeStart(start)));
  EXPECT_EQ(Choose(), 10);
  EXPECT_THAT(lines_, IsEmpty());
  // To begin again because what there was has been let go is nobody's wish.
  ASSERT_OK(log_->Append(RecordType::kRetire, 2, SerializeRetire({{ten_}})));
  EXPECT_EQ(Choose(), -1);
}

// It would be loaded as another state than the log says.
TEST_F(StartCheckpointTest, AManifestWithOtherGapsThanTheLogsIsBad) {
  StartRecord start = OneRankStart(10);
  start.gaps = {{.first_step = 11, .samples = 8, .bad_step = 12, .number = 1}};
  ASSERT_OK(log_->Append(RecordType::kStart, 2, SerializeStart(start)));
  CommitRecord commit{.checkpoint = CheckpointName(12, 2, 3), .step = 12};
  TestState state(table_, 1);
  (void)WriteCheckpoint(run_directory_.Make("ckpt/" + commit.checkpoint), table_, state, 2, 2, 12,
                        &commit.manifest);
  ASSERT_OK(log_->Append(RecordType::kCommit, 2, SerializeCommit(commit)));
  EXPECT_EQ(Choose(), 10);
  EXPECT_THAT(lines_, ElementsAre(HasSubstr("has 0 gaps behind it, the run log says 1")));
}

TEST_F(StartCheckpointTest, GoodStepsForgive) {
  Attempt(7, 2, twenty_);
  Attempt(7, 3, twenty_);
  ASSERT_OK(
      log_->Append(RecordType::kVerified, 3, SerializeVerified({.name = twenty_, .kind = "ran"})));
  EXPECT_EQ(Choose(), 20);
  EXPECT_EQ(Failed(twenty_), 0);
}

// A job whose later generations went on from memory has loaded its checkpoint well.
TEST_F(StartCheckpointTest, CleanEndOfTheJobForgivesTheLastAttempt) {
  Attempt(7, 2, twenty_);
  ASSERT_OK(log_->Append(RecordType::kStart, 3, SerializeStart(OneRankStart(21))));
  End(7, 3, 75);
  EXPECT_EQ(Failed(twenty_), 0);
  // The one before the last failed.
  Attempt(9, 4, twenty_);
  Attempt(9, 5, twenty_);
  End(9, 5, 0);
  EXPECT_EQ(Failed(twenty_), 1);
  // An end that is none.
  Attempt(10, 6, ten_);
  End(10, 6, 93);
  EXPECT_EQ(Failed(ten_), 1);
  // A job that came to no attempt says nothing about another's.
  ASSERT_OK(log_->Append(RecordType::kStart, 7, SerializeStart(OneRankStart(0))));
  End(11, 7, 75);
  EXPECT_EQ(Failed(ten_), 1);
  // Jobs without a number are not one job.
  Attempt(0, 8, ten_);
  ASSERT_OK(log_->Append(RecordType::kStart, 9, SerializeStart(OneRankStart(0))));
  End(0, 9, 75);
  EXPECT_EQ(Failed(ten_), 2);
}

}  // namespace
}  // namespace perdure
