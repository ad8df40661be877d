// perdure plan --queue: the arithmetic, and the command against what Slurm printed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launch/chain.h"
#include "launch/config.h"
#include "launch/plan_command.h"
#include "launch/queue_forecast.h"
#include "monitoring/loss_csv.h"
#include "runtime/base/status.h"
#include "tests/launch/command_in_process.h"
#include "tests/slurm/recorded_command.h"

namespace perdure {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

std::string Recipe(const std::string& name) {
  return std::string(PERDURE_SOURCE_DIR) + "/launch/recipes/" + name + ".toml";
}

RunConfig Config(const std::string& name, const std::vector<std::string>& settings = {}) {
  const absl::StatusOr<RunConfig> config = LoadConfig(Recipe(name), settings);
  EXPECT_TRUE(config.ok()) << config.status();
  return config.value_or(RunConfig{});
}

// ---- the arithmetic

// Lucie: 1,024 samples are 128 leaves; a replica is four nodes.
TEST(UsefulSizes, AreThoseThatSaveARound) {
  const absl::StatusOr<std::vector<JobSize>> sizes =
      UsefulSizes(Config("lucie/run"), {.least = 64, .most = 128}, 1024);
  ASSERT_TRUE(sizes.ok()) << sizes.status();
  std::vector<std::vector<int64_t>> seen;
  for (const JobSize& size : *sizes) seen.push_back({size.nodes, size.replicas, size.rounds});
  // Two spares besides. 17 replicas need as many rounds as 16 do.
  EXPECT_THAT(seen,
              ElementsAre(ElementsAre(66, 16, 8), ElementsAre(78, 19, 7), ElementsAre(90, 22, 6),
                          ElementsAre(106, 26, 5), ElementsAre(130, 32, 4)));
  EXPECT_EQ(sizes->back().passes, 4 * 4 + 3);
  EXPECT_EQ(sizes->front().passes, 8 * 4 + 3);
}

TEST(UsefulSizes, AFixedNumberOfReplicasIsOneSize) {
  const RunConfig config = Config("lucie/run", {"layout.data=20"});
  const absl::StatusOr<std::vector<JobSize>> sizes =
      UsefulSizes(config, {.least = 64, .most = 128}, 1024);
  ASSERT_TRUE(sizes.ok()) << sizes.status();
  ASSERT_EQ(sizes->size(), 1U);
  EXPECT_EQ(sizes->front().nodes, 82);
  EXPECT_EQ(UsefulSizes(config, {.least = 1, .most = 64}, 1024).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// No more replicas than a step has leaves.
TEST(UsefulSizes, EndWhereReplicasWouldHaveNothingToDo) {
  const absl::StatusOr<std::vector<JobSize>> sizes =
      UsefulSizes(Config("lucie/run"), {.least = 1, .most = 1000}, 128);
  ASSERT_TRUE(sizes.ok()) << sizes.status();
  EXPECT_EQ(sizes->back().replicas, 16);
  EXPECT_EQ(sizes->back().rounds, 1);
}

// A step of 1 s a pass; jobs of 10 h, of which one is without steps.
QueueForecastOptions TenHours(int64_t steps_left) {
  return {.steps_left = steps_left,
          .time_limit = absl::Hours(10),
          .overhead = absl::Hours(1),
          .gpus_per_node = 4,
          .seconds_per_pass = 1};
}

std::vector<QueueWait> Waits(int64_t nodes, absl::Duration limit, std::vector<int> hours) {
  std::vector<QueueWait> waits;
  for (const int wait : hours)
    waits.push_back({.nodes = nodes, .time_limit = limit, .waited = absl::Hours(wait)});
  return waits;
}

TEST(ForecastSizes, CountsWaitWorkAndWhatIsLeft) {
  const std::vector<SizeForecast> forecasts =
      ForecastSizes({{.nodes = 8, .replicas = 8, .rounds = 1, .passes = 10}},
                    Waits(8, absl::Hours(10), {2, 40, 4, 6, 3}), TenHours(5000));
  ASSERT_EQ(forecasts.size(), 1U);
  const SizeForecast& forecast = forecasts.front();
  EXPECT_EQ(forecast.step_seconds, 10);
  EXPECT_EQ(forecast.steps_per_job, 9 * 360);
  EXPECT_EQ(forecast.jobs_behind, 5);
  EXPECT_TRUE(forecast.best);
  ASSERT_TRUE(forecast.estimate.has_value());
  EXPECT_EQ(forecast.estimate->wait_median, absl::Hours(4));
  EXPECT_EQ(forecast.estimate->wait_90, absl::Hours(40));
  EXPECT_DOUBLE_EQ(forecast.estimate->steps_per_day, 3240.0 * 24 / 14);
  // Two jobs: two waits, two hours without steps, and 5,000 steps.
  EXPECT_EQ(forecast.estimate->jobs, 2);
  EXPECT_DOUBLE_EQ(forecast.estimate->days, (2 * 4 + 2 * 1 + 50000.0 / 3600) / 24);
  EXPECT_DOUBLE_EQ(forecast.estimate->gpu_hours, (2 + 50000.0 / 3600) * 32);
}

TEST(ForecastSizes, ComparesJobsOfSuchASizeAndLimitAlone) {
  std::vector<QueueWait> waits = Waits(8, absl::Hours(5), {1});
  for (const auto& [nodes, limit] :
       std::vector<std::pair<int64_t, absl::Duration>>{{5, absl::Hours(10)},   // Too small,
                                                       {13, absl::Hours(10)},  // too large,
                                                       {8, absl::Hours(4)},    // too short,
                                                       {8, absl::Hours(21)},   // too long,
                                                       {8, absl::InfiniteDuration()}})
    waits.push_back({.nodes = nodes, .time_limit = limit, .waited = absl::Hours(99)});
  for (const int64_t nodes : {6, 12})
    waits.push_back({.nodes = nodes, .time_limit = absl::Hours(20), .waited = absl::Hours(1)});
  const std::vector<SizeForecast> forecasts = ForecastSizes(
      {{.nodes = 8, .replicas = 8, .rounds = 1, .passes = 10}}, waits, TenHours(1000));
  EXPECT_EQ(forecasts.front().jobs_behind, 3);
  EXPECT_EQ(forecasts.front().estimate->wait_90, absl::Hours(1));
}

// A fast size that waits long loses against a slow one; one with too few jobs is never the best.
TEST(ForecastSizes, TheBestIsDoneSoonestAndHasJobsBehindIt) {
  std::vector<QueueWait> waits = Waits(16, absl::Hours(10), {50, 50, 50, 50, 50});
  for (const QueueWait& wait : Waits(8, absl::Hours(10), {1, 1, 1, 1, 1})) waits.push_back(wait);
  for (const QueueWait& wait : Waits(4, absl::Hours(10), {0, 0, 0, 0})) waits.push_back(wait);
  const std::vector<SizeForecast> forecasts =
      ForecastSizes({{.nodes = 2, .replicas = 1, .rounds = 8, .passes = 10},
                     {.nodes = 4, .replicas = 2, .rounds = 4, .passes = 10},
                     {.nodes = 8, .replicas = 4, .rounds = 2, .passes = 16},
                     {.nodes = 16, .replicas = 8, .rounds = 1, .passes = 10}},
                    waits, TenHours(100'000));
  EXPECT_EQ(forecasts[0].estimate, std::nullopt);
  EXPECT_EQ(forecasts[1].jobs_behind, 4);
  EXPECT_LT(forecasts[1].estimate->days, forecasts[2].estimate->days);
  EXPECT_FALSE(forecasts[1].best);
  EXPECT_TRUE(forecasts[2].best);
  EXPECT_FALSE(forecasts[3].best);
}

// ---- the command

CommandOutput PlanQueue(std::vector<std::string> arguments, const CommandRunner& runner) {
  arguments.insert(arguments.begin(), {"plan", "--queue"});
  return RunInProcess(
      [&](CLI::App& app, int* exit_code) { AddPlanCommand(app, exit_code, runner); },
      std::move(arguments));
}

// The recorded cluster, whose partitions are main (n[1-4], the default) and big; its accounting
// prints that.
CommandRunner Slurm(const InvocationResult& sacct) {
  return [sacct](const Invocation& command) -> absl::StatusOr<InvocationResult> {
    if (command.argv[0] == "sacct") return sacct;
    EXPECT_EQ(command.argv, ReadRecord("22.05/partitions").argv);
    return ReadRecord("22.05/partitions").result;
  };
}

absl::StatusOr<InvocationResult> NoSlurm(const Invocation& command) {
  return NotFound("there is no program '{}' in PATH", command.argv[0]);
}

// Jobs of 20 min: six of one node that waited 60 s, six of four that waited an hour, two of two,
// one that has not begun and one without a limit of its own.
std::string History() {
  std::string text;
  int64_t id = 1, at = 1'795'883'579;
  const auto job = [&](int64_t nodes, int64_t waited) {
    text += fmt::format("{}|{}|COMPLETED|0:0|{}|{}|{}|{}|20\n", id++, nodes, at - 5'000, at,
                        at + waited, at + waited + 1'200);
  };
  for (int i = 0; i < 6; ++i) job(1, 60), job(4, 3'600);
  job(2, 10), job(2, 20);
  text += fmt::format("{}|1|PENDING|0:0|{}|{}|Unknown|Unknown|20\n", id++, at, at);
  text += fmt::format("{}|1|COMPLETED|0:0|{}|{}|{}|{}|Partition_Limit\n", id++, at, at, at, at);
  return text;
}

class RunFolder {
 public:
  RunFolder() : path_(fmt::format("{}plan_queue.{}", testing::TempDir(), ::getpid())) {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_ + "/metrics");
  }
  ~RunFolder() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }

  // `count` steps up to `last`, of so many seconds each, the last but one ten times as long.
  void Steps(int64_t last, int64_t count, double seconds, int64_t ranks) const {
    auto csv = LossCsv::Open(path_ + "/metrics/loss.csv", 0);
    ASSERT_TRUE(csv.ok()) << csv.status();
    for (int64_t step = last - count + 1; step <= last; ++step)
      ASSERT_TRUE((*csv)
                      ->Append({.step = step,
                                .batch = 48,
                                .context = 128,
                                .step_seconds = step == last - 1 ? 10 * seconds : seconds,
                                .ranks = ranks,
                                .phase = "pretrain"})
                      .ok());
  }
  // Jobs of `nodes` nodes and 20 min, each so many seconds after the one before.
  void Jobs(int64_t count, int64_t nodes, int64_t waited) const {
    const absl::StatusOr<Chain> chain =
        Chain::Create(path_, {.job_name = "perdure-x", .data_directory = "/data", .options = {}});
    ASSERT_TRUE(chain.ok()) << chain.status();
    absl::Time at = absl::FromUnixSeconds(1'795'883'579);
    for (int64_t job = 1; job <= count; ++job) {
      const absl::Time left = at + absl::Minutes(19);
      ASSERT_TRUE(chain
                      ->Tell({.job = job,
                              .nodes = std::vector<std::string>(static_cast<size_t>(nodes), "n1"),
                              .began = at,
                              .time_over = at + absl::Minutes(20),
                              .left = left,
                              .exit_code = 75})
                      .ok());
      at = left + absl::Seconds(waited);
    }
  }

 private:
  const std::string path_;
};

TEST(PlanQueue, WeighsWaitAgainstSize) {
  const CommandOutput result =
      PlanQueue({Recipe("nano"), "--step-time", "0.7", "--json"},
                Slurm({.exit_code = 0, .output = History(), .errors = ""}));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json plan = json::parse(result.out, nullptr, false);
  EXPECT_EQ(plan["phase"], "pretrain");
  EXPECT_EQ(plan["step"], 0);
  EXPECT_THAT(plan["waits_source"].get<std::string>(),
              HasSubstr("sacct, partition main, 30 days: 14 jobs that started"));
  ASSERT_EQ(plan["sizes"].size(), 4U);
  const json &one = plan["sizes"][0], &two = plan["sizes"][1], &three = plan["sizes"][2],
             &four = plan["sizes"][3];
  // 0.7 s on four replicas: 7 passes; alone a replica needs 25.
  EXPECT_DOUBLE_EQ(four["step_seconds"].get<double>(), 0.7);
  EXPECT_DOUBLE_EQ(one["step_seconds"].get<double>(), 2.5);
  EXPECT_EQ(one["jobs_behind"], 6);
  EXPECT_EQ(one["wait_median_seconds"], 60);
  EXPECT_EQ(one["steps_per_job"], 360);
  EXPECT_EQ(four["wait_median_seconds"], 3600);
  EXPECT_EQ(four["best"], false);
  EXPECT_EQ(one["best"], true);
  EXPECT_EQ(two["too_few"], true);
  EXPECT_EQ(two["jobs_behind"], 2);
  EXPECT_EQ(two["best"], false);
  EXPECT_EQ(three["jobs_behind"], 8);  // Those of two nodes and of four are such jobs.
}

TEST(PlanQueue, SaysWhatItCounted) {
  const CommandOutput result =
      PlanQueue({Recipe("nano"), "--step-time", "0.7"},
                Slurm({.exit_code = 0, .output = History(), .errors = ""}));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(HasSubstr("(--step-time)"), HasSubstr("too few jobs"),
                                HasSubstr("the whole wait lies between two jobs"),
                                HasSubstr("\n*     1      4"),
                                HasSubstr("Days and GPU-hours are those of phase pretrain")));
}

// From what a real sacct printed; its jobs are of other lengths than this run's.
TEST(PlanQueue, ReadsWhatSacctPrints) {
  const RecordedCommand history = ReadRecord("22.05/acct-history");
  const CommandOutput other = PlanQueue(
      {Recipe("nano"), "--step-time", "0.7", "--set", "job.time_limit=10h"}, Slurm(history.result));
  ASSERT_EQ(other.exit_code, 0) << other.err;
  EXPECT_THAT(other.out, AllOf(HasSubstr("3 jobs that started"),
                               HasSubstr("no size has 5 jobs behind its wait: none is marked"),
                               HasSubstr("no job of such a size is known")));
  const CommandOutput like =
      PlanQueue({Recipe("nano"), "--step-time", "0.7", "--set", "job.time_limit=10min", "--json"},
                Slurm(history.result));
  ASSERT_EQ(like.exit_code, 0) << like.err;
  const json plan = json::parse(like.out, nullptr, false);
  // Job 2: 4 nodes, 10 min, which waited 2 s.
  EXPECT_EQ(plan["sizes"][3]["jobs_behind"], 1);
  EXPECT_EQ(plan["sizes"][3]["wait_median_seconds"], 2);
}

TEST(PlanQueue, StepTimeAndPlaceComeFromTheRun) {
  const RunFolder run;
  run.Steps(/*last=*/40, /*count=*/30, /*seconds=*/1.3, /*ranks=*/8);
  const CommandOutput result =
      PlanQueue({Recipe("nano"), "--run-dir", run.path(), "--json"},
                Slurm({.exit_code = 0, .output = History(), .errors = ""}));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json plan = json::parse(result.out, nullptr, false);
  EXPECT_EQ(plan["step"], 40);
  EXPECT_DOUBLE_EQ(plan["sizes"][1]["step_seconds"].get<double>(), 1.3);
  EXPECT_DOUBLE_EQ(plan["sizes"][3]["step_seconds"].get<double>(), 0.7);
  const CommandOutput whole = PlanQueue({Recipe("nano"), "--step-time", "0.7", "--json"},
                                        Slurm({.exit_code = 0, .output = History(), .errors = ""}));
  EXPECT_EQ(plan["steps_left_of_phase"].get<int64_t>() + 40,
            json::parse(whole.out, nullptr, false)["steps_left_of_phase"].get<int64_t>());
}

TEST(PlanQueue, WithoutAccountingTheChainsOwnJobsCount) {
  const RunFolder run;
  run.Jobs(/*count=*/7, /*nodes=*/2, /*waited=*/90);
  for (const CommandRunner& runner :
       {Slurm(ReadRecord("22.05/no-history").result), CommandRunner(NoSlurm)}) {
    const CommandOutput result =
        PlanQueue({Recipe("nano"), "--run-dir", run.path(), "--step-time", "0.7"}, runner);
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_THAT(result.out,
                AllOf(HasSubstr("the chain of " + run.path() + ": 6 jobs behind others"),
                      HasSubstr("\n*     3     12"), Not(HasSubstr("sacct,"))));
  }
}

TEST(PlanQueue, RefusesToGuess) {
  const RunFolder run;
  const CommandRunner none = Slurm(ReadRecord("22.05/no-history").result);
  const auto expect = [](const CommandOutput& result, const std::string& words) {
    EXPECT_EQ(result.exit_code, 2);
    EXPECT_EQ(result.out, "");
    EXPECT_THAT(result.err, HasSubstr(words));
  };
  const std::vector<std::string> nano = {Recipe("nano"), "--step-time", "0.7"};
  expect(PlanQueue(nano, none), "no accounting database");
  expect(PlanQueue(nano, none), "--run-dir of a run with a chain");
  expect(PlanQueue({nano[0], nano[1], nano[2], "--run-dir", run.path()}, none), "chain.json");
  run.Jobs(/*count=*/1, /*nodes=*/2, /*waited=*/90);
  expect(PlanQueue({nano[0], nano[1], nano[2], "--run-dir", run.path()}, none),
         "has no two jobs yet");
  // A controller that is away is no site without accounting.
  expect(PlanQueue(nano, Slurm(ReadRecord("22.05/acct-away-history").result)), "try again later");
  const CommandRunner good = Slurm({.exit_code = 0, .output = History(), .errors = ""});
  expect(PlanQueue({Recipe("nano")}, good), "for example --step-time 4.5");
  expect(PlanQueue({Recipe("nano"), "--run-dir", run.path()}, good), "metrics/loss.csv");
  expect(PlanQueue({nano[0], nano[1], nano[2], "--job-overhead", "1200"}, good),
         "leaves nothing of job.time_limit 20m");
  expect(PlanQueue({nano[0], nano[1], nano[2], "--set", "job.nodes=5-6"}, good),
         "a job of partition main gets 4 at most");
  EXPECT_EQ(PlanQueue({nano[0], "--step-time", "0"}, good).exit_code, 2);
  EXPECT_EQ(PlanQueue({nano[0], nano[1], nano[2], "--nodes", "2"}, good).exit_code, 2);
}

TEST(PlanQueue, ARunThatIsCompleteHasNothingToPlan) {
  const RunFolder run;
  const int64_t steps = StepSchedule(Config("nano")).steps();
  run.Steps(steps, 3, 1, 8);
  const CommandOutput result = PlanQueue({Recipe("nano"), "--run-dir", run.path()}, NoSlurm);
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("is complete at step"));
}

}  // namespace
}  // namespace perdure
