// Jobs of real processes that come to a bad step and go back for it: whatever else is done to them,
// and whatever checkpoints there are to go back to, they end in the bits of the run on one rank
// that nothing disturbs.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <filesystem>

#include "runtime/base/status.h"
#include "tests/chaos/chaos_job.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

constexpr int64_t kSteps = 14;

class SpikeTest : public testing::Test {
 protected:
  SpikeTest() : folder_(FreshFolder("bad_step")) { WriteNanoData(folder_); }
  ~SpikeTest() override { std::filesystem::remove_all(folder_); }

  const std::string folder_;
};

class BadStepTest : public SpikeTest {
 protected:
  // A bound that some step in the middle of the run is the first to exceed, and that the run gets
  // beyond by going back: `whole_` is that run. No code plants the step; the bound is chosen.
  void SetUp() override {
    const ChaosEnd plain = Alone({});
    ASSERT_EQ(plain.exit_code, 75);
    std::vector<double> norms;
    for (const std::string& norm : LossColumn(folder_ + "/undisturbed", "grad_norm"))
      norms.push_back(std::stod(norm));
    ASSERT_EQ(norms.size(), static_cast<size_t>(kSteps));
    for (size_t b = 4; b + 2 < norms.size(); ++b) {
      const double before = *std::max_element(norms.begin(), norms.begin() + static_cast<long>(b));
      if (norms[b] < 1.001 * before) continue;
      arguments_ = {
          "--set", "integrity.bad_step=rollback",
          "--set", "integrity.rollback_steps=2",
          "--set", "integrity.rollbacks_max=20",
          "--set", fmt::format("integrity.grad_norm_max={:.9g}", (norms[b] + before) / 2)};
      whole_ = Alone({"--set", "checkpoint.every_steps=1"});
      if (whole_.exit_code != 75) continue;
      bad_ = static_cast<int64_t>(b) + 1;
      rolled_back_ = Rollbacks(folder_ + "/undisturbed");
      ASSERT_EQ(rolled_back_.front()[0], bad_);
      EXPECT_EQ(rolled_back_.front()[1], bad_ - 2);
      EXPECT_EQ(whole_.loss_bits.size(), static_cast<size_t>(kSteps));
      EXPECT_TRUE(std::equal(plain.loss_bits.begin(), plain.loss_bits.begin() + bad_ - 3,
                             whole_.loss_bits.begin()));
      EXPECT_NE(plain.loss_bits[static_cast<size_t>(bad_ - 3)],
                whole_.loss_bits[static_cast<size_t>(bad_ - 3)]);
      return;
    }
    FAIL() << fmt::format("no step that has a larger norm than all before it can be left alone: {}",
                          fmt::join(norms, " "));
  }

  // On one rank, in FOLDER/undisturbed.
  ChaosEnd Alone(std::vector<std::string> more) {
    std::filesystem::remove_all(folder_ + "/undisturbed");
    more.insert(more.begin(), arguments_.begin(), arguments_.end());
    return Undisturbed(folder_, more, kSteps);
  }
  // Of each: bad step, first step, samples.
  static std::vector<std::vector<int64_t>> Rollbacks(const std::string& run) {
    std::vector<std::vector<int64_t>> rollbacks;
    for (const nlohmann::json& event : JournalEvents(run, "rolled_back"))
      rollbacks.push_back({event["step"], event["first_step"], event["samples"]});
    return rollbacks;
  }
  std::vector<std::string> With(std::vector<std::string> more) const {
    more.insert(more.begin(), arguments_.begin(), arguments_.end());
    return more;
  }
  void ExpectTheSame(const ChaosJob& job, const ChaosEnd& end) const {
    EXPECT_EQ(end.exit_code, 75) << job.Errors();
    EXPECT_EQ(end.loss_bits, whole_.loss_bits) << job.Errors();
    EXPECT_EQ(end.certificate, whole_.certificate) << job.Errors();
  }

  // The node so many places behind the coordinator's, as soon as it is said that the step is bad.
  void KillMeanwhile(int64_t places) const {
    ChaosJob job(folder_, With({"--nodes", "4", "--set", "checkpoint.every_steps=4"}), 2, kSteps);
    ASSERT_TRUE(job.AwaitEvent("remark", fmt::format("step {} is bad", bad_), absl::Minutes(2)))
        << job.Errors();
    job.SignalNode(job.Behind(places), SIGKILL);
    ExpectTheSame(job, job.Wait());
  }

  std::vector<std::string> arguments_;
  int64_t bad_ = 0;
  ChaosEnd whole_;
  std::vector<std::vector<int64_t>> rolled_back_;
};

TEST_F(BadStepTest, IsLeftAloneWhateverCheckpointsThereAre) {
  for (const char* every : {"checkpoint.every_steps=3", "checkpoint.every_steps=0"}) {
    const ChaosEnd end = Alone({"--set", every});
    EXPECT_EQ(end.exit_code, 75) << every;
    EXPECT_EQ(end.loss_bits, whole_.loss_bits) << every;
    EXPECT_EQ(end.certificate, whole_.certificate) << every;
    EXPECT_EQ(Rollbacks(folder_ + "/undisturbed"), rolled_back_) << every;
  }
  // One job up to the step before the bad one, which leaves a checkpoint that the run has no use
  // for.
  std::filesystem::remove_all(folder_ + "/undisturbed");
  const ChaosEnd first = Undisturbed(folder_, arguments_, bad_ - 1);
  EXPECT_EQ(first.exit_code, 75);
  EXPECT_EQ(first.loss_bits.size(), static_cast<size_t>(bad_ - 1));
  const ChaosEnd second = Undisturbed(folder_, arguments_, kSteps);
  EXPECT_EQ(second.exit_code, 75);
  EXPECT_EQ(second.loss_bits, whole_.loss_bits);
  EXPECT_EQ(second.certificate, whole_.certificate);
}

TEST_F(BadStepTest, IsLeftAloneByManyRanks) {
  ChaosJob job(folder_, With({"--nodes", "4", "--set", "checkpoint.every_steps=4"}), 2, kSteps);
  const ChaosEnd end = job.Wait();
  ExpectTheSame(job, end);
  EXPECT_EQ(Rollbacks(job.run()), rolled_back_);
}

TEST_F(BadStepTest, LongANodeDiesMeanwhile) { KillMeanwhile(1); }

TEST_F(BadStepTest, LongTheCoordinatorDiesMeanwhile) { KillMeanwhile(0); }

// It is asked to end as soon as it has found the step; the next job begins where that leaves it.
TEST_F(BadStepTest, LongTheJobEndsMeanwhile) {
  {
    ChaosJob job(folder_, With({"--nodes", "2", "--set", "checkpoint.every_steps=4"}), 2, kSteps);
    ASSERT_TRUE(job.AwaitEvent("remark", fmt::format("step {} is bad", bad_), absl::Minutes(2)))
        << job.Errors();
    job.Stop();
    EXPECT_EQ(job.Wait().exit_code, 75) << job.Errors();
  }
  ChaosJob job(folder_, With({"--nodes", "4"}), 2, kSteps);
  ExpectTheSame(job, job.Wait());
}

// A bound that only steps before tell, which a node that is lost, or a job before, has seen.
TEST_F(SpikeTest, IsLeftOutWhoeverSawTheStepsBefore) {
  const ChaosEnd plain = Undisturbed(folder_, {}, kSteps);
  ASSERT_EQ(plain.exit_code, 75);
  std::vector<std::string> arguments = {"--set", "integrity.bad_step=skip", "--set", ""};
  ChaosEnd whole = plain;
  // Down to the first bound that some step exceeds.
  for (double bound = 2; whole.loss_bits == plain.loss_bits; bound *= 0.8) {
    ASSERT_GT(bound, 0.5);
    arguments.back() = fmt::format("integrity.spike_max={:.9g}", bound);
    std::filesystem::remove_all(folder_ + "/undisturbed");
    whole = Undisturbed(folder_, arguments, kSteps);
    ASSERT_EQ(whole.exit_code, 75);
  }
  int64_t odd = 1;
  while (plain.loss_bits[static_cast<size_t>(odd)] == whole.loss_bits[static_cast<size_t>(odd)])
    ++odd;  // The step behind the one that was left out.
  std::filesystem::remove_all(folder_ + "/undisturbed");
  ASSERT_EQ(Undisturbed(folder_, arguments, odd - 2).exit_code, 75);
  const ChaosEnd second = Undisturbed(folder_, arguments, kSteps);
  EXPECT_EQ(second.loss_bits, whole.loss_bits);
  EXPECT_EQ(second.certificate, whole.certificate);

  std::vector<std::string> many = arguments;
  many.insert(many.end(), {"--nodes", "4"});
  ChaosJob job(folder_, many, 2, kSteps);
  ASSERT_TRUE(job.AwaitStep(odd - 3)) << job.Errors();
  job.SignalNode(job.Behind(0), SIGKILL);
  const ChaosEnd end = job.Wait();
  EXPECT_EQ(end.exit_code, 75) << job.Errors();
  EXPECT_EQ(end.loss_bits, whole.loss_bits) << job.Errors();
  EXPECT_EQ(end.certificate, whole.certificate) << job.Errors();
}

}  // namespace
}  // namespace perdure
