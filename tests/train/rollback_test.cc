// Runs that go back for a bad step, generation after generation as their host would lead them: one
// curve and one state, whatever the layout, and whatever checkpoints there are to go back to.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "ckpt/checkpoint.h"
#include "runtime/base/status.h"
#include "tests/train/trainer_harness.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

// What a run came to.
struct Course {
  absl::Status status;
  Gaps gaps;
  std::map<int64_t, uint64_t> losses;      // By step; what was taken again last.
  std::map<int64_t, Digest> certificates;  // Of checkpoints.
  int generations = 0;
};

class RollbackTest : public testing::Test {
 protected:
  RollbackTest() : directory_(fmt::format("{}/rollback_test.{}", testing::TempDir(), ::getpid())) {
    fs::create_directories(directory_);
    WriteTinyData(directory_);
  }
  ~RollbackTest() override { fs::remove_all(directory_); }

  std::string Fresh() { return directory_ + fmt::format("/run{}", ++runs_); }

  // A seed of which one step in the middle of the first phase has a larger norm than all others,
  // and a bound that only this step exceeds; the run gets on by going back for it.
  RunConfig WithABadStep() {
    RunConfig config = TinyConfig();
    for (config.seed = 1; config.seed < 100; ++config.seed) {
      const TrainingResult plain = Train(config, directory_, Fresh(), "", -1);
      EXPECT_TRUE(plain.status.ok()) << plain.status;
      std::vector<double> norms = plain.grad_norms;
      const auto largest = std::max_element(norms.begin(), norms.end());
      bad_ = largest - norms.begin() + 1;
      std::sort(norms.rbegin(), norms.rend());
      if (bad_ < 4 || bad_ > 8 || norms[0] < 1.01 * norms[1]) continue;
      config.integrity.bad_step = "rollback";
      config.integrity.rollback_steps = 2;
      config.integrity.rollbacks_max = 10;
      config.integrity.grad_norm_max = (norms[0] + norms[1]) / 2;
      const Course course = TrainOn(config, 0);
      if (course.status.ok() && course.gaps.front().first_step > 1) return config;
      config.integrity = {};
    }
    ADD_FAILURE() << "no seed has such a step";
    return config;
  }

  // With a checkpoint every `every` steps; `from`: where it begins, and what it has behind it.
  Course TrainOn(RunConfig config, int64_t every, TrainingJob job = {}, Course run = {}) {
    config.checkpoint.every_steps = every;
    job.config = config;
    job.data_directory = directory_;
    if (job.run_directory.empty()) job.run_directory = Fresh();
    while (run.generations < 20) {
      job.generation = static_cast<uint64_t>(run.generations) + 1;
      job.gaps = run.gaps;
      const TrainingResult result = RunJob(job);
      ++run.generations;
      run.status = result.status;
      if (!result.status.ok()) return run;
      for (size_t i = 0; i < result.loss_bits.size(); ++i)
        run.losses[job.start.step + 1 + static_cast<int64_t>(i)] = result.loss_bits[i];
      for (const auto& [step, certificate] : result.certificates)
        run.certificates[step] = certificate;
      if (!result.found_bad.has_value()) return run;
      for (const auto& outcome : result.outcomes) EXPECT_EQ(outcome, Outcome::kFoundBad);
      EXPECT_EQ(result.found_bad->bad_step, std::max(result.finished, job.start.step) + 1);
      run.gaps = WithGap(run.gaps, *result.found_bad);
      run.certificates.erase(run.certificates.lower_bound(result.found_bad->first_step),
                             run.certificates.end());
      run.losses.erase(run.losses.lower_bound(result.found_bad->first_step), run.losses.end());
      job.start = StartFor(job.run_directory, run.gaps);
    }
    ADD_FAILURE() << "it goes back again and again";
    return run;
  }

  // The newest checkpoint of a step that a run with `gaps` takes.
  StartPoint StartFor(const std::string& run, const Gaps& gaps) {
    StartPoint start;
    for (const auto& entry : fs::directory_iterator(run + "/ckpt")) {
      absl::StatusOr<Manifest> manifest = ReadManifest(entry.path().string(), nullptr);
      if (!manifest.ok() || manifest->gaps != GapsBehind(gaps, manifest->step) ||
          manifest->step <= start.step)
        continue;
      start = {
          .step = manifest->step, .trail = manifest->trail, .checkpoint = entry.path().string()};
      start.manifest = *std::move(manifest);
    }
    return start;
  }

  std::string directory_;
  int runs_ = 0;
  int64_t bad_ = 0;
};

TEST_F(RollbackTest, OneCurveWhateverTheLayoutAndTheCheckpoints) {
  RunConfig config = WithABadStep();
  const Course whole = TrainOn(config, 1);
  ASSERT_TRUE(whole.status.ok()) << whole.status;
  EXPECT_GT(whole.generations, 1);
  ASSERT_FALSE(whole.gaps.empty());
  EXPECT_EQ(whole.losses.size(), 12u);
  // The gaps are part of the certificate, and of the curve.
  RunConfig without = config;
  without.integrity.grad_norm_max = 0;
  const Course plain = TrainOn(without, 1);
  ASSERT_TRUE(plain.status.ok()) << plain.status;
  const int64_t first = whole.gaps.front().first_step;
  for (int64_t step = 1; step <= 12; ++step)
    EXPECT_EQ(whole.losses.at(step) == plain.losses.at(step), step < first) << step;
  EXPECT_EQ(whole.certificates.at(first - 1), plain.certificates.at(first - 1));
  EXPECT_NE(whole.certificates.at(first), plain.certificates.at(first));

  for (const int64_t every : {1, 3, 100}) {
    config.layout = {.tensor = 2, .pipeline = 1, .data = 3, .zero = 3, .transport = "local"};
    const Course other = TrainOn(config, every);
    ASSERT_TRUE(other.status.ok()) << other.status;
    EXPECT_EQ(other.losses, whole.losses) << every;
    EXPECT_EQ(other.gaps, whole.gaps) << every;
    for (const auto& [step, certificate] : other.certificates)
      EXPECT_EQ(certificate, whole.certificates.at(step)) << step;
  }
}

// A job that ends before the run has gone back, and one behind it.
TEST_F(RollbackTest, OneCurveOverJobs) {
  RunConfig config = WithABadStep();
  const Course whole = TrainOn(config, 1);
  ASSERT_TRUE(whole.status.ok()) << whole.status;
  for (const int64_t until : {bad_ - 1, bad_ + 1}) {
    TrainingJob first{.run_directory = Fresh(), .until_step = until};
    Course run = TrainOn(config, 2, first);
    ASSERT_TRUE(run.status.ok()) << run.status;
    EXPECT_EQ(run.losses.size(), static_cast<size_t>(until));
    TrainingJob second{.run_directory = first.run_directory};
    second.start = StartFor(first.run_directory, run.gaps);
    EXPECT_EQ(second.start.step, until);
    run = TrainOn(config, 2, second, run);
    ASSERT_TRUE(run.status.ok()) << run.status;
    EXPECT_EQ(run.losses, whole.losses) << until;
    EXPECT_EQ(run.certificates.at(12), whole.certificates.at(12)) << until;
  }
}

TEST_F(RollbackTest, StatesOfStepsThatAreLeftAreRefused) {
  RunConfig config = WithABadStep();
  const std::string run_directory = Fresh();
  const Course whole = TrainOn(config, 1, {.run_directory = run_directory});
  ASSERT_TRUE(whole.status.ok()) << whole.status;
  TrainingJob job{.config = config, .data_directory = directory_, .run_directory = run_directory};
  job.generation = 30;
  job.start = StartFor(run_directory, {});
  EXPECT_GE(job.start.step, whole.gaps.front().first_step) << "written before it went back";
  job.gaps = whole.gaps;
  const TrainingResult result = RunJob(job);
  EXPECT_TRUE(absl::IsDataLoss(result.status)) << result.status;
  EXPECT_THAT(Message(result.status), testing::HasSubstr("a line of steps that the run has left"));
}

TEST_F(RollbackTest, TooOftenInARowEndsLikeAStop) {
  RunConfig config = WithABadStep();
  config.integrity.grad_norm_max = 1e-9;  // Every step is bad.
  config.integrity.rollbacks_max = 2;
  const Course run = TrainOn(config, 1);
  EXPECT_TRUE(absl::IsDataLoss(run.status)) << run.status;
  EXPECT_THAT(Message(run.status), testing::HasSubstr("step 1: gradient norm"));
  EXPECT_THAT(Message(run.status), testing::HasSubstr("gone back 2 times in a row"));
  EXPECT_EQ(run.gaps.size(), 2u);
  EXPECT_EQ(run.gaps[0].first_step, 1);
}

}  // namespace
}  // namespace perdure
