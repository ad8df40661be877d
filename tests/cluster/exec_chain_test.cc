// A trainer that is not ours in a chain of a real Slurm: bounded jobs, a crash, a lost node.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/cluster/chain_fixture.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

using nlohmann::json;
using testing::HasSubstr;

class ExecChain : public ChainTest {
 protected:
  CommandResult SubmitTrainer(const std::vector<std::string>& settings,
                              const std::vector<std::string>& trainer) const {
    std::vector<std::string> argv = {
        PerdurePath(), "submit",           "--run-dir", run(),
        "--set",       "job.interface=lo", "--set",     "exec.directory=" + folder_,
        "--set",       "exec.leave=5s"};
    for (const std::string& setting : settings) argv.insert(argv.end(), {"--set", setting});
    argv.insert(argv.end(), {"--comment=theirs", "--exec", "python3", ExecTrainer(), "state"});
    argv.insert(argv.end(), trainer.begin(), trainer.end());
    return cluster_->Run(argv);
  }
  json State() const {
    return json::parse(ReadFile(folder_ + "/state/state.json").value_or(""), nullptr, false);
  }
  bool AwaitProgress(int64_t step) const {
    return SlurmCluster::Await(
        [&] {
          const json status = StatusOf(run());
          return status.is_object() && status.contains("progress") &&
                 status["progress"].is_object() && status["progress"]["step"] >= step;
        },
        absl::Minutes(2));
  }
};

TEST_F(ExecChain, ACrashedTrainerIsStartedAgainInItsJob) {
  Begin({.nodes = 2});
  const CommandResult submitted =
      SubmitTrainer({"job.nodes=2", "job.time_limit=5min"}, {"60", "--crash-at", "25"});
  ASSERT_EQ(submitted.exit_code, 0) << submitted.errors;
  ASSERT_TRUE(AwaitComplete(absl::Minutes(2))) << Story();
  EXPECT_EQ(State()["total"], 1830) << Story();
  EXPECT_EQ(State()["world"], 2);
  EXPECT_EQ(cluster_->AwaitJobState(1, {"COMPLETED"}), absl::OkStatus());
  EXPECT_EQ(cluster_->AwaitJobState(2, {"CANCELLED"}), absl::OkStatus());
  EXPECT_EQ(cluster_->JobField(1, "Comment"), "theirs");
  ASSERT_EQ(Jobs().size(), 1U);
  EXPECT_EQ(Jobs()[0]["last_step"], 60);
  EXPECT_EQ(JournalEvents(run(), "generation").size(), 2U);
  // One that asks for more than there is.
  const CommandResult more = SubmitTrainer({"job.nodes=3", "job.time_limit=5min"}, {"60"});
  EXPECT_EQ(more.exit_code, 2);
  EXPECT_THAT(more.errors, HasSubstr("the run needs 3 nodes"));
}

// Each job is told in time, leaves with a checkpoint, and the next goes on there.
TEST_F(ExecChain, LongAChainOfJobs) {
  Begin({.nodes = 2});
  const CommandResult submitted =
      SubmitTrainer({"job.nodes=2", "job.time_limit=1min", "job.leave_margin=5s"},
                    {"1500", "--seconds", "0.1", "--crash-at", "705"});
  ASSERT_EQ(submitted.exit_code, 0) << submitted.errors;
  ASSERT_TRUE(AwaitComplete(absl::Minutes(10))) << Story();
  EXPECT_EQ(State()["total"], 1500 * 1501 / 2) << "each step once";
  const std::vector<json> jobs = Jobs();
  EXPECT_GE(jobs.size(), 3U);
  for (size_t i = 0; i + 1 < jobs.size(); ++i) {
    EXPECT_EQ(jobs[i]["exit_code"], 75) << jobs[i];
    const double unused = jobs[i]["time_over"].get<double>() - jobs[i]["left"].get<double>();
    RecordProperty(fmt::format("unused_{}", i), fmt::format("{:.1f}", unused));
    EXPECT_GT(unused, 0) << jobs[i];
    EXPECT_LT(unused, 15) << jobs[i];
  }
  for (const json& left : JournalEvents(run(), "trainer_left")) EXPECT_EQ(left["killed"], 0);
}

TEST_F(ExecChain, LongANodeIsLost) {
  Begin({.nodes = 3});
  const CommandResult submitted =
      SubmitTrainer({"job.nodes=\"2-3\"", "job.time_limit=10min"}, {"800", "--seconds", "0.05"});
  ASSERT_EQ(submitted.exit_code, 0) << submitted.errors;
  ASSERT_TRUE(AwaitProgress(50)) << Story();
  ASSERT_EQ(cluster_->LoseNode("n2"), absl::OkStatus());
  ASSERT_TRUE(AwaitComplete(absl::Minutes(3))) << Story();
  EXPECT_EQ(State()["total"], 800 * 801 / 2);
  EXPECT_EQ(State()["world"], 2) << "the two that were left";
  EXPECT_EQ(Jobs().size(), 1U);
}

}  // namespace
}  // namespace perdure
