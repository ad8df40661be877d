// The long chain: what must hold of it on many seeds, one seed's figures, and that the checks
// notice when something does not hold.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "launch/config.h"
#include "tests/sim/chain_world.h"

namespace perdure::sim {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kPretraining = 753'851, kSteps = 756'291;

ChainOptions Lucie(std::vector<std::string> more = {}) {
  std::vector<std::string> settings = {"job.nodes=128", "slurm.site=jean-zay-h100"};
  settings.insert(settings.end(), more.begin(), more.end());
  const absl::StatusOr<RunConfig> config =
      LoadConfig(PERDURE_SOURCE_DIR "/launch/recipes/lucie/run.toml", settings);
  EXPECT_TRUE(config.ok()) << config.status();
  return {.assumed = {}, .config = config.value_or(RunConfig{})};
}

// Books of its own: from the rows alone.
void ExpectWhole(const ChainOutcome& outcome, uint64_t seed) {
  ASSERT_EQ(outcome.violation, "") << "seed " << seed;
  int64_t step = 0;
  bool changed = false;
  for (const ChainRow& row : outcome.rows) {
    ASSERT_EQ(row.first_step, step) << "seed " << seed << ", job " << row.job;
    ASSERT_GE(row.last_step, step);
    ASSERT_FALSE(row.first_step < kPretraining && row.last_step > kPretraining);
    step = row.last_step;
    changed |= step == kPretraining;
    ASSERT_GE(row.began, row.eligible);
    ASSERT_NEAR(row.hours.held(),
                absl::ToDoubleHours(row.left - row.began) * static_cast<double>(row.nodes) * 4,
                row.hours.held() * 0.05);  // Less what nodes that were lost were not held for.
  }
  ASSERT_EQ(step, kSteps);
  ASSERT_TRUE(changed);
}

TEST(LongChain, HoldsOnManySeeds) {
  ChainOptions options = Lucie();
  int failures = 0, promoted = 0, preempted = 0, batch_hosts = 0, crashed = 0, excluded = 0;
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    // Llama 3's rate of failures, and Meta RSC's.
    options.assumed.gpu_hours_between = seed % 2 == 0 ? 50'700 : 8'100;
    const ChainOutcome outcome = SimulateChain(options, seed);
    ASSERT_NO_FATAL_FAILURE(ExpectWhole(outcome, seed));
    EXPECT_EQ(outcome.by_limit, 0) << "seed " << seed;
    EXPECT_GE(outcome.rows.size(), 48U);
    for (const ChainRow& row : outcome.rows) {
      // What the site's margin keeps, and no more than a few steps and a save besides.
      if (row.at_its_end) EXPECT_LT(row.unused, absl::Seconds(180)) << row.job;
      // A job that goes on with the extension has its phase's nodes.
      const bool late = row.first_step >= kPretraining;
      if (!late || outcome.batch_hosts_lost == 0) EXPECT_EQ(row.nodes, late ? 34 : 130);
    }
    failures += outcome.failures;
    promoted += outcome.promoted;
    preempted += outcome.preempted;
    batch_hosts += outcome.batch_hosts_lost;
    crashed += outcome.crashed;
    excluded = std::max(excluded, outcome.excluded_max);
  }
  // What is to disturb it did.
  EXPECT_GT(failures, 1'000);
  EXPECT_GT(promoted, 500);
  EXPECT_GT(preempted, 10);
  EXPECT_GT(batch_hosts, 0);
  EXPECT_GT(crashed, 2);
  EXPECT_GT(excluded, 1);
}

TEST(LongChain, HoldsAtSixTimesTheFailuresWithoutSpares) {
  ChainOptions options = Lucie({"job.spares=0"});
  options.assumed.gpu_hours_between = 8'100;
  int shrunk = 0;
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    const ChainOutcome outcome = SimulateChain(options, seed);
    ASSERT_NO_FATAL_FAILURE(ExpectWhole(outcome, seed));
    shrunk += outcome.shrunk;
  }
  EXPECT_GT(shrunk, 100);
}

TEST(LongChain, TheScriptTakesEachStepOnceToo) {
  for (uint64_t seed = 1; seed <= 6; ++seed)
    ASSERT_NO_FATAL_FAILURE(ExpectWhole(SimulateScript(Lucie(), seed), seed));
}

// The failures of one seed are the same for both, by GPU-hours held.
TEST(LongChain, LosesLessThanTheScript) {
  ChainOptions options = Lucie({"job.spares=1"});
  double ours = 0, theirs = 0;
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    ours += SimulateChain(options, seed).hours().lost();
    theirs += SimulateScript(options, seed).hours().lost();
  }
  EXPECT_LT(ours, theirs);
}

// The checks see what is to be seen: without its margin a job is killed when a last save takes
// longer than any before.
TEST(LongChain, TooLittleMarginIsNoticed) {
  ChainOptions options = Lucie({"job.leave_margin=1s"});
  options.assumed.slow_save_share = 0.2;
  options.assumed.slow_save_factor = 40;
  int by_limit = 0;
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    const ChainOutcome outcome = SimulateChain(options, seed);
    by_limit += outcome.by_limit;
    if (outcome.by_limit > 0)
      EXPECT_THAT(outcome.violation, HasSubstr("was ended by its time limit"));
  }
  EXPECT_GT(by_limit, 0);
}

TEST(LongChain, AChainThatDoesNotGetOnStops) {
  ChainOptions options = Lucie();
  options.assumed.crashed_share = 1;
  options.config.checkpoint.every = absl::Hours(30);  // None before the crash.
  EXPECT_THAT(SimulateChain(options, 1).violation, HasSubstr("no progress since step 0"));
}

TEST(CountedLine, NoticesStepsThatAreMissingDoubleOrOutOfOrder) {
  CountedLine line(3);
  line.Took(0, 1, 0);
  line.Took(1, 1, 0);
  EXPECT_EQ(line.Commit(1).productive, 1);
  EXPECT_EQ(line.Lose().redone, 1);
  EXPECT_EQ(line.next(), 1);
  EXPECT_EQ(line.Check(), "step 1 was taken 0 times");
  line.Took(1, 1, 0);
  line.Took(1, 1, 0);
  line.Commit(3);
  EXPECT_EQ(line.Check(), "step 1 was taken where 2 was next");
}

// The same seed, the same chain: UPDATE_GOLDEN=1 writes the file anew.
TEST(LongChain, SeedOne) {
  const std::string path = PERDURE_SOURCE_DIR "/tests/golden/long_chain.txt";
  const ChainOptions options = Lucie();
  const ChainOutcome chain = SimulateChain(options, 1);
  const std::string timeline = Timeline(chain);
  const std::string text = timeline + "\n" + Summary(chain, SimulateScript(options, 1));
  EXPECT_EQ(timeline, Timeline(SimulateChain(options, 1)));
  if (std::getenv("UPDATE_GOLDEN") != nullptr) std::ofstream(path) << text;
  std::ifstream file(path);
  std::stringstream golden;
  golden << file.rdbuf();
  EXPECT_EQ(text, golden.str());
}

}  // namespace
}  // namespace perdure::sim
