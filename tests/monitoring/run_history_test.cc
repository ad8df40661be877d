// The fold over a run's files: what it says of them, and of files that were cut, torn or are
// hostile.
#include "monitoring/run_history.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

class RunHistoryTest : public testing::Test {
 protected:
  RunHistoryTest() : run_(fmt::format("{}run_history.{}", testing::TempDir(), ::getpid())) {
    fs::remove_all(run_);
    fs::create_directories(run_ + "/metrics");
  }
  ~RunHistoryTest() override { fs::remove_all(run_); }

  void Row(int64_t step, double seconds, double loss = 1) {
    if (csv_ == nullptr) Resume(step - 1);
    ASSERT_TRUE(csv_->Append({.step = step,
                              .samples = 16 * step,
                              .tokens = 2048 * step,
                              .loss = loss,
                              .batch = 16,
                              .context = 128,
                              .step_seconds = seconds,
                              .tokens_per_second = 2048 / seconds,
                              .generation = 1,
                              .ranks = 2,
                              .phase = "p"})
                    .ok());
  }
  void Resume(int64_t step) {
    auto csv = LossCsv::Open(run_ + "/metrics/loss.csv", step);
    ASSERT_TRUE(csv.ok()) << csv.status();
    csv_ = *std::move(csv);
  }
  // At so many seconds of the story.
  void Event(double at, const std::string& event, const std::string& rest = "") {
    const std::string time = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ",
                                              absl::FromUnixSeconds(1800000000) + absl::Seconds(at),
                                              absl::UTCTimeZone());
    Append(fmt::format("{{\"time\":\"{}\",\"event\":\"{}\"{}{}}}\n", time, event,
                       rest.empty() ? "" : ",", rest));
  }
  void Append(const std::string& text) const {
    std::ofstream(run_ + "/journal.jsonl", std::ios::app | std::ios::binary) << text;
  }
  // A step that counts: its event and its row.
  void Step(double at, int64_t step, double seconds) {
    Event(at, "step",
          fmt::format("\"step\":{},\"generation\":1,\"loss_bits\":\"0\",\"seconds\":{},"
                      "\"wait_seconds\":{}",
                      step, seconds, seconds / 4));
    Row(step, seconds);
  }
  static absl::Time At(double seconds) {
    return absl::FromUnixSeconds(1800000000) + absl::Seconds(seconds);
  }

  const std::string run_;
  std::unique_ptr<LossCsv> csv_;
};

TEST_F(RunHistoryTest, ARunThatHasNotBegun) {
  RunHistory history(run_);
  EXPECT_EQ(history.Refresh(), absl::OkStatus());
  EXPECT_FALSE(history.last().has_value());
  EXPECT_TRUE(history.jobs().empty());
  EXPECT_EQ(history.goodput(At(0)).ratio(), 0);
}

TEST_F(RunHistoryTest, StepsAreCountedAsTheyCome) {
  RunHistory history(run_);
  Event(0, "lead");
  Step(10, 1, 2);
  Step(12, 2, 4);
  ASSERT_EQ(history.Refresh(), absl::OkStatus());
  EXPECT_EQ(history.last()->step, 2);
  EXPECT_EQ(history.steps_taken(), 2);
  EXPECT_EQ(history.productive_seconds(), 6);
  EXPECT_EQ(history.wait_seconds(), 1.5);
  Step(16, 3, 100);
  ASSERT_EQ(history.Refresh(), absl::OkStatus());
  ASSERT_EQ(history.Refresh(), absl::OkStatus());
  EXPECT_EQ(history.last()->step, 3);
  EXPECT_EQ(history.steps_taken(), 3);
  EXPECT_EQ(history.productive_seconds(), 106);
  EXPECT_EQ(history.step_durations().back(), 1) << "more than a minute";
  EXPECT_EQ(history.step_durations()[5], 1) << "2 s are at most 2 s";
}

// Rows that are cut off do not count any more, though as many come again.
TEST_F(RunHistoryTest, StepsThatAreTakenAgain) {
  RunHistory history(run_);
  Event(0, "lead");
  for (int step = 1; step <= 6; ++step) Step(step, step, 1);
  ASSERT_EQ(history.Refresh(), absl::OkStatus());
  csv_.reset();
  Resume(3);
  for (int step = 4; step <= 6; ++step) Step(10 + step, step, 2);
  ASSERT_EQ(history.Refresh(), absl::OkStatus());
  EXPECT_EQ(history.last()->step, 6);
  EXPECT_EQ(history.steps_taken(), 9);
  EXPECT_EQ(history.steps_redone(), 3);
  EXPECT_EQ(history.productive_seconds(), 9);
  EXPECT_EQ(history.taken_seconds(), 12);
  EXPECT_EQ(history.goodput(At(20)).redone, 3);
}

TEST_F(RunHistoryTest, JobsAndWhereTheirTimeWent) {
  RunHistory history(run_);
  Event(0, "lead");
  Event(30, "first_step",
        "\"generation\":1,\"why\":\"start\",\"seconds\":30,\"first\":5,\"step\":1");
  Step(30, 1, 5);
  Step(36, 2, 6);
  Event(40, "checkpoint",
        "\"step\":2,\"bytes\":1000,\"wait_seconds\":1,\"freeze_seconds\":0.5,"
        "\"copy_seconds\":0,\"write_seconds\":2");
  Event(41, "end", "\"state\":\"stopped\",\"step\":2,\"exit_code\":75");
  // One that was lost without a word, and one that runs.
  Event(100, "lead");
  Event(110, "first_step",
        "\"generation\":2,\"why\":\"start\",\"seconds\":10,\"first\":1,\"step\":3");
  Step(110, 3, 1);
  Event(200, "first_step",
        "\"generation\":3,\"why\":\"start\",\"seconds\":20,\"first\":2,\"step\":4");
  Step(200, 4, 2);
  ASSERT_EQ(history.Refresh(), absl::OkStatus());
  ASSERT_EQ(history.jobs().size(), 3U);
  EXPECT_EQ(history.jobs()[0].outcome, "stopped");
  EXPECT_EQ(history.jobs()[1].outcome, "lost");
  EXPECT_EQ(history.jobs()[1].ended, At(110));
  EXPECT_EQ(history.jobs()[2].outcome, "");
  EXPECT_EQ(history.jobs()[2].began, At(180));
  const RunHistory::Goodput goodput = history.goodput(At(210));
  EXPECT_EQ(goodput.productive, 14);
  EXPECT_EQ(goodput.starting, 25 + 9 + 18);
  EXPECT_EQ(goodput.saving, 1.5);
  EXPECT_EQ(goodput.queued, 59 + 70);
  EXPECT_NEAR(goodput.held(), 41 + 10 + 30, 1e-9);
  EXPECT_NEAR(goodput.ratio(), 14.0 / 81, 1e-12);
  EXPECT_EQ(history.last_checkpoint()->step, 2);
  EXPECT_EQ(history.last_checkpoint()->seconds, 3.5);
}

TEST_F(RunHistoryTest, FailuresAndRecoveries) {
  RunHistory history(run_);
  Event(0, "lead", "\"coordinator\":0,\"clock\":0,\"term\":0");
  Step(1, 1, 1);
  Event(2, "failure_detected",
        "\"coordinator\":0,\"clock\":2,\"generation\":1,\"kind\":\"rank-crashed\",\"node\":1,"
        "\"member\":true,\"step\":1,\"noticed\":\"reported\"");
  Event(2, "generation_stopping",
        "\"coordinator\":0,\"clock\":2,\"generation\":1,\"step\":1,"
        "\"failure\":\"rank-crashed\"");
  Event(3, "generation_starting",
        "\"coordinator\":0,\"clock\":3,\"generation\":2,\"from\":\"memory\","
        "\"step\":1,\"redone\":0");
  Event(4, "first_step",
        "\"coordinator\":0,\"clock\":4,\"generation\":2,\"why\":\"failure\",\"seconds\":2,\"stop\":"
        "0.5,"
        "\"choose\":0.25,\"first\":1,\"load\":0.25,\"step\":2");
  ASSERT_EQ(history.Refresh(), absl::OkStatus());
  EXPECT_EQ(history.failures(), (std::map<std::string, int64_t>{{"rank-crashed", 1}}));
  EXPECT_EQ(history.recoveries(), (std::map<std::string, int64_t>{{"memory", 1}}));
  EXPECT_EQ(history.recovery_seconds().at("stop"), 0.5);
  EXPECT_EQ(history.goodput(At(10)).recovering, 1);
}

TEST_F(RunHistoryTest, TornAndHostileLines) {
  RunHistory history(run_);
  Event(0, "lead");
  Append("\n[]\n{}\nnull\n{\"time\":7,\"event\":{}}\n{\"event\":\"step\"}\n");
  Append(
      "{\"time\":\"2027-01-15T08:00:00.000Z\",\"event\":\"step\",\"step\":\"x\",\"seconds\":[]}\n");
  Append(std::string(100000, '{') + "\n");
  Append(std::string("\0\xff\xfe\n", 4));
  Append("{\"time\":\"2027-01-15T08:00:01.000Z\",\"event\":\"st");
  ASSERT_EQ(history.Refresh(), absl::OkStatus());
  const int64_t taken = history.steps_taken();
  Append("ep\",\"step\":1,\"seconds\":1}\n");
  ASSERT_EQ(history.Refresh(), absl::OkStatus());
  EXPECT_EQ(history.steps_taken(), taken + 1) << "it is whole now";
  // A journal that was moved away begins anew.
  fs::remove(run_ + "/journal.jsonl");
  ASSERT_EQ(history.Refresh(), absl::OkStatus());
  EXPECT_EQ(history.steps_taken(), 0);
}

TEST_F(RunHistoryTest, ALongRun) {
  std::string text;
  for (int64_t step = 1; step <= 300000; ++step)
    text += fmt::format(
        "{{\"time\":\"2027-01-15T08:00:00.000Z\",\"event\":\"step\",\"step\":{},"
        "\"generation\":1,\"loss_bits\":\"0000000000000000\",\"seconds\":1}}\n",
        step);
  Append(text);
  RunHistory history(run_);
  ASSERT_EQ(history.Refresh(), absl::OkStatus());
  EXPECT_EQ(history.steps_taken(), 300000);
}

}  // namespace
}  // namespace perdure
