// The control plane under the simulator: fresh seeds, schedules that once failed, and the
// simulator itself.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/sim/world.h"

namespace perdure::sim {
namespace {

std::string ReadText(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string Rerun(uint64_t seed, const Outcome& outcome) {
  return "seed " + std::to_string(seed) + ": " + outcome.violation +
         "\n  again: build/tests/perdure_sim --seed " + std::to_string(seed) + " --trace";
}

constexpr uint64_t kShards = 8, kSeeds = 20'000;

// In shards, so that all cores are of use.
class Seeds : public testing::TestWithParam<uint64_t> {};

TEST_P(Seeds, HoldAndGoOn) {
  uint32_t hit = 0;
  uint64_t from_memory = 0;
  int64_t commits = 0;
  Outcome all;
  for (uint64_t seed = 1 + GetParam(); seed <= kSeeds; seed += kShards) {
    const Outcome outcome = World(DrawScenario(seed)).Run();
    ASSERT_EQ(outcome.violation, "") << Rerun(seed, outcome);
    hit |= outcome.faults_hit;
    from_memory += outcome.resumed_from_memory > 0 ? 1 : 0;
    commits += outcome.commits;
    all.bad += outcome.bad;
    all.complete += outcome.complete;
    all.noted += outcome.noted;
    all.good += outcome.good;
    all.crashes += outcome.crashes;
    all.slow_named += outcome.slow_named;
    all.slow_left += outcome.slow_left;
    all.saved_first += outcome.saved_first;
    all.rollbacks += outcome.rollbacks;
    all.exhausted += outcome.exhausted > 0 ? 1 : 0;
    all.failures_max = std::max(all.failures_max, outcome.failures_max);
  }
  // The faults took place, and what they are to disturb did too.
  EXPECT_EQ(hit, (uint32_t{1} << kFaultKinds) - 1);
  EXPECT_GT(from_memory, kSeeds / kShards / 4);
  EXPECT_GT(commits, static_cast<int64_t>(2 * kSeeds / kShards));
  EXPECT_GT(all.bad, 20);
  EXPECT_GT(all.complete, 20);
  EXPECT_GT(all.noted, 1000);
  EXPECT_GT(all.good, 20);
  EXPECT_GT(all.crashes, 20);
  EXPECT_EQ(all.failures_max, 2);
  EXPECT_GT(all.slow_named, 20);
  EXPECT_GT(all.slow_left, 20);
  EXPECT_GT(all.saved_first, 20);
  EXPECT_GT(all.rollbacks, 200);
  EXPECT_GT(all.exhausted, 10);
}
INSTANTIATE_TEST_SUITE_P(Shards, Seeds, testing::Range(uint64_t{0}, kShards));

TEST(Schedules, OnceFailedPassForEver) {
  const std::filesystem::path folder =
      std::filesystem::path(PERDURE_SOURCE_DIR) / "tests/sim/schedules";
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const absl::StatusOr<Scenario> scenario = ParseScenario(ReadText(entry.path()));
    ASSERT_TRUE(scenario.ok()) << entry.path() << ": " << scenario.status().message();
    const Outcome outcome = World(*scenario).Run();
    EXPECT_EQ(outcome.violation, "") << entry.path();
    ++count;
  }
  EXPECT_GE(count, 4);
}

TEST(Simulator, SameSeedSameHistory) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    const Outcome first = World(DrawScenario(seed)).Run();
    const Outcome second = World(DrawScenario(seed)).Run();
    EXPECT_EQ(first.digest, second.digest) << seed;
    EXPECT_EQ(first.events, second.events) << seed;
  }
}

// Of any compiler: tests/sim/digests.txt was written by g++; UPDATE_GOLDEN=1 writes it anew.
TEST(Simulator, HistoriesAreThoseOfAnyCompiler) {
  const std::string path = std::string(PERDURE_SOURCE_DIR) + "/tests/sim/digests.txt";
  std::stringstream digests;
  for (uint64_t seed = 1000; seed < 1040; ++seed)
    digests << seed << ' ' << std::hex << World(DrawScenario(seed)).Run().digest << std::dec
            << '\n';
  if (std::getenv("UPDATE_GOLDEN") != nullptr) std::ofstream(path) << digests.str();
  EXPECT_EQ(ReadText(path), digests.str());
}

TEST(Simulator, ScheduleIsTextAndBack) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    const Scenario drawn = DrawScenario(seed);
    const absl::StatusOr<Scenario> read = ParseScenario(Print(drawn));
    ASSERT_TRUE(read.ok()) << read.status().message();
    EXPECT_EQ(Print(*read), Print(drawn));
    EXPECT_EQ(read->faults, drawn.faults);
  }
  const Scenario drawn = DrawScenario(7);
  EXPECT_EQ(World(*ParseScenario(Print(drawn))).Run().digest, World(drawn).Run().digest);
}

TEST(Simulator, BadSchedulesAreRefused) {
  const auto refusal = [](const std::string& text) {
    return std::string(ParseScenario(text).status().message());
  };
  EXPECT_THAT(refusal("nodes four\n"), testing::HasSubstr("nodes four"));
  EXPECT_THAT(refusal("nodes 4\nnodes 5\n"), testing::HasSubstr("nodes 5"));
  EXPECT_THAT(refusal("noeds 4\n"), testing::HasSubstr("noeds"));
  EXPECT_THAT(refusal("fault earthquake 1 2 3 4\n"), testing::HasSubstr("earthquake"));
  EXPECT_THAT(refusal("fault isolate 1 2 3\n"), testing::HasSubstr("isolate"));
  EXPECT_THAT(refusal("lease_log 5\n"), testing::HasSubstr("lease_log"));
}

TEST(Simulator, DrawsWhatIsAllowed) {
  for (uint64_t seed = 1; seed <= 5000; ++seed)
    ASSERT_TRUE(Validate(DrawScenario(seed).control).ok()) << seed;
}

// The checks can fail: more replicas are asked for than will ever fit.
TEST(Simulator, SeesThatNothingGoesOn) {
  Scenario scenario = DrawScenario(3);
  scenario.faults.clear();
  scenario.rule.data = 0;
  scenario.rule.leaves = scenario.rule.data_min = 10'000;
  EXPECT_THAT(World(scenario).Run().violation, testing::HasSubstr("commits since"));
}

// No faults, and nothing fails by itself.
Scenario Quiet(uint64_t seed) {
  Scenario scenario = DrawScenario(seed);
  scenario.faults.clear();
  scenario.keep_back = 0;
  scenario.loss = scenario.doubled = 0;
  scenario.delay_max = 2 * kMs;
  scenario.log_delay_max = 20 * kMs;
  scenario.bad_checkpoints = scenario.bad_snapshots = scenario.manifest_fails = 0;
  scenario.crash_step = scenario.steps_max = scenario.bad_steps = 0;
  return scenario;
}

// Half a minute without faults: every step is taken, nobody is replaced.
TEST(Simulator, QuietWorldIsQuiet) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    const Scenario scenario = Quiet(seed);
    // Requests to the log that get stuck may still cost a leadership.
    const Outcome outcome = World(scenario).Run();
    EXPECT_EQ(outcome.violation, "") << seed;
    EXPECT_LE(outcome.generations, 2) << seed;
  }
}

// Where rank 0 cannot take a step, whoever it is: three tries, and then a person must look. (A
// coordinator that is replaced meanwhile may not know of one.)
TEST(Simulator, AJobThatCannotGetBeyondAStepEnds) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Scenario scenario = Quiet(seed);
    scenario.heal_at = 60 * kSecond;
    scenario.crash_step = 7;
    scenario.crash_kind = EvidenceKind::kRankCrashed;
    const Outcome outcome = World(scenario).Run();
    EXPECT_EQ(outcome.violation, "") << seed;
    EXPECT_GE(outcome.crashes, 3) << seed;
    EXPECT_LE(outcome.crashes, 4) << seed;
    EXPECT_EQ(outcome.failures_max, 2) << seed;
    scenario.crash_kind = EvidenceKind::kTrainingFailed;
    EXPECT_EQ(World(scenario).Run().crashes, 1) << seed << ": whatever is tried";
  }
}

// Where nothing else happens a run with bad steps goes back for each, and comes to its end.
TEST(Simulator, ARunGoesBackForBadSteps) {
  int64_t rollbacks = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Scenario scenario = Quiet(seed);
    scenario.heal_at = 120 * kSecond;
    scenario.steps_max = 60;
    scenario.bad_steps = 40;
    scenario.rollback_steps = 3;
    scenario.rollbacks_max = 20;
    const Outcome outcome = World(scenario).Run();
    EXPECT_EQ(outcome.violation, "") << seed;
    EXPECT_EQ(outcome.complete, 1) << seed;
    EXPECT_EQ(outcome.exhausted, 0) << seed;
    rollbacks += outcome.rollbacks;
    // As often, whatever the layout and the times: what is bad depends on the samples alone.
    scenario.rule.data = 1;
    scenario.control.save_every = absl::Seconds(9);
    const Outcome other = World(scenario).Run();
    EXPECT_EQ(other.violation, "") << seed;
    EXPECT_EQ(other.rollbacks, outcome.rollbacks) << seed;
  }
  EXPECT_GT(rollbacks, 20);
}

TEST(Simulator, ARunThatGoesBackTooOftenEnds) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    Scenario scenario = Quiet(seed);
    scenario.heal_at = 60 * kSecond;
    scenario.bad_steps = 1000;
    scenario.rollbacks_max = 3;
    const Outcome outcome = World(scenario).Run();
    EXPECT_EQ(outcome.violation, "") << seed;
    EXPECT_EQ(outcome.rollbacks, 3) << seed;
    EXPECT_GE(outcome.exhausted, 1) << seed;
  }
}

TEST(Simulator, ARunThatIsCompleteEnds) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Scenario scenario = Quiet(seed);
    scenario.heal_at = 60 * kSecond;
    scenario.steps_max = 25;
    const Outcome outcome = World(scenario).Run();
    EXPECT_EQ(outcome.violation, "") << seed;
    EXPECT_EQ(outcome.complete, 1) << seed;
    EXPECT_GE(outcome.commits, 1) << seed << ": its last state is saved";
  }
}

}  // namespace
}  // namespace perdure::sim
