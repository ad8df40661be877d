// perdure run by a person in an allocation of a real Slurm: on all of its nodes, with the codes and
// bits of a run on this machine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/cluster/slurm_cluster.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

class AllocationJobTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = SlurmCluster::WhyNot(); !why.empty()) GTEST_SKIP() << why;
    folder_ = FreshFolder("allocation_job");
    WriteNanoData(folder_);
    auto started = SlurmCluster::Start({.nodes = 2, .cpus_per_node = 1});
    ASSERT_TRUE(started.ok()) << started.status();
    cluster_ = *std::move(started);
  }
  ~AllocationJobTest() override {
    cluster_.reset();
    if (!folder_.empty()) fs::remove_all(folder_);
  }

  // Words of a shell: perdure run of nano on nodes of one rank, which all are this machine.
  std::string Run(const std::string& more) const {
    std::string words = PerdurePath() + " run " + NanoToml() + " --data-dir " + folder_;
    for (const std::string& setting :
         {std::string("layout.tensor=1"), std::string("layout.pipeline=1"),
          "layout.transport=" + BuiltTransport(), std::string("job.ranks_per_node=1"),
          std::string("job.interface=lo"), std::string("checkpoint.keep_every_steps=1000"),
          std::string("phase.extension.samples=24")})
      words += " --set " + setting;
    return words + " " + more;
  }
  // A batch script of a person's own on both nodes.
  SlurmCluster::JobId Submit(const std::string& script,
                             const std::vector<std::string>& more = {}) const {
    std::vector<std::string> options = {"--nodes=2", "--no-kill"};
    options.insert(options.end(), more.begin(), more.end());
    const auto job = cluster_->Submit(options, "#!/bin/bash\n" + script);
    EXPECT_TRUE(job.ok()) << job.status();
    return job.value_or(0);
  }
  std::string run() const { return folder_ + "/run"; }

  std::string folder_;
  std::unique_ptr<SlurmCluster> cluster_;
};

// Twice in one allocation, which is one job to Slurm and two to the run.
TEST_F(AllocationJobTest, RunsOnAllNodesWithTheSameBits) {
  const std::string settings = "--set phase.pretrain.samples=640 ";
  const SlurmCluster::JobId job =
      Submit(Run(settings + "--run-dir " + run() + " --until-step 5") + "\necho code $?\n" +
             Run(settings + "--run-dir " + run()) + "\necho code $?\n");
  ASSERT_EQ(cluster_->AwaitJobState(job, {"COMPLETED"}, absl::Minutes(3)), absl::OkStatus())
      << cluster_->Output(job);
  const std::string output = cluster_->Output(job);
  EXPECT_THAT(output, HasSubstr("perdure run: on the 2 nodes of Slurm's job 1: n[1-2]"));
  const size_t stopped = output.find("code 75\n");
  ASSERT_NE(stopped, std::string::npos) << output;
  EXPECT_NE(output.find("code 0\n", stopped), std::string::npos) << output;
  EXPECT_THAT(output, HasSubstr("2 ranks on 2 nodes, from a checkpoint at step 5"));
  EXPECT_EQ(StatusOf(run())["state"], "complete");
  EXPECT_FALSE(fs::exists(run() + "/chain"));

  const std::string whole = folder_ + "/whole";
  const CommandResult undisturbed = cluster_->Run(
      {"sh", "-c", Run(settings + "--run-dir " + whole + " --nodes 1 --ranks-per-node 2 --quiet")},
      {.input = "",
       .environment = {},
       .directory = "",
       .user = std::nullopt,
       .timeout = absl::Minutes(3)});
  ASSERT_EQ(undisturbed.exit_code, 0) << undisturbed.errors;
  EXPECT_EQ(LossColumn(run(), "loss_bits"), LossColumn(whole, "loss_bits"));
  EXPECT_EQ(ListedCheckpoints(run()).back()["certificate"],
            ListedCheckpoints(whole).back()["certificate"]);
}

TEST_F(AllocationJobTest, IsStoppedFromElsewhere) {
  const SlurmCluster::JobId job =
      Submit(Run("--set phase.pretrain.samples=1000000 --run-dir " + run()) +
             "\necho code $?\nsleep 600\n");
  ASSERT_TRUE(
      SlurmCluster::Await([&] { return LossColumn(run(), "step").size() >= 3; }, absl::Minutes(3)))
      << cluster_->Output(job);
  EXPECT_EQ(cluster_->Run({PerdurePath(), "status", run()}).exit_code, 0);
  const CommandResult stopped = cluster_->Run({PerdurePath(), "stop", run()});
  EXPECT_EQ(stopped.exit_code, 0) << stopped.errors;
  EXPECT_THAT(stopped.output, HasSubstr("stopped at step"));
  EXPECT_TRUE(SlurmCluster::Await([&] {
    return cluster_->Output(job).find("code 75\n") != std::string::npos;
  })) << cluster_->Output(job);
  EXPECT_EQ(cluster_->JobState(job), "RUNNING") << "the allocation is the person's";
}

// As many copies as there are tasks would be as many jobs.
TEST_F(AllocationJobTest, IsNoTaskOfAStep) {
  const SlurmCluster::JobId job =
      Submit("srun -N2 -n2 " + Run("--run-dir " + run()) + "\necho code $?\n");
  ASSERT_EQ(cluster_->AwaitJobState(job, {"COMPLETED"}), absl::OkStatus());
  EXPECT_THAT(cluster_->Output(job), HasSubstr("it is one of 2 tasks of a step: start perdure run "
                                               "once, without srun"));
  EXPECT_THAT(cluster_->Output(job), HasSubstr("code 2\n"));
  EXPECT_FALSE(fs::exists(run()));
}

TEST_F(AllocationJobTest, LongLeavesBeforeTheAllocationEnds) {
  const SlurmCluster::JobId job =
      Submit(Run("--set phase.pretrain.samples=1000000 --run-dir " + run()) + "\necho code $?\n",
             {"--time=1"});
  ASSERT_EQ(cluster_->AwaitJobState(job, {"COMPLETED"}, absl::Minutes(2)), absl::OkStatus())
      << cluster_->Output(job);
  EXPECT_THAT(cluster_->Output(job), HasSubstr("code 75\n"));
}

}  // namespace
}  // namespace perdure
