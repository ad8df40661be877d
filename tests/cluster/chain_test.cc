// A run as a chain of jobs of a real Slurm, whatever happens to them: it ends by itself, in the
// same losses and the same certificate as on this machine alone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "absl/time/clock.h"
#include "launch/node_book.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/cluster/chain_fixture.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

TEST_F(ChainTest, ARunOfOneJob) {
  Begin({.nodes = 2});
  const std::string hook = folder_ + "/hook";
  ASSERT_TRUE(ReplaceFile(hook, "#!/bin/sh\necho \"$1 $PERDURE_JOB $PERDURE_STEP\" >>" + folder_ +
                                    "/told\nexit 3\n")
                  .ok());
  fs::permissions(hook, fs::perms::owner_all);
  const std::vector<std::string> settings = {"job.nodes=2", "job.time_limit=5min",
                                             "job.hook=" + hook, "phase.pretrain.samples=640",
                                             "phase.extension.samples=24"};
  const CommandResult submitted = Submit(settings, {"--comment=from-a-test"});
  ASSERT_EQ(submitted.exit_code, 0) << submitted.errors;
  EXPECT_THAT(submitted.output, HasSubstr("is queued behind it"));
  EXPECT_THAT(PerdureOf("status").output, HasSubstr("queued, 2 nodes"));
  const std::string chain = ReadFile(run() + "/chain/chain.json").value_or("");
  const CommandResult again = Submit(settings, {"--comment=another"});
  EXPECT_EQ(ReadFile(run() + "/chain/chain.json").value_or(""), chain) << "nothing was changed";
  EXPECT_EQ(again.exit_code, 2);
  EXPECT_THAT(again.errors, HasSubstr("has a chain already"));
  ASSERT_TRUE(AwaitComplete(absl::Minutes(3))) << Story();
  EXPECT_EQ(cluster_->AwaitJobState(1, {"COMPLETED"}), absl::OkStatus());
  EXPECT_EQ(cluster_->AwaitJobState(2, {"CANCELLED"}), absl::OkStatus());
  EXPECT_EQ(cluster_->JobField(1, "Comment"), "from-a-test");
  EXPECT_EQ(Jobs().size(), 1U);
  const std::string last = Jobs()[0]["last_step"].dump();
  EXPECT_EQ(ReadFile(folder_ + "/told").value_or(""), "began 1 0\ncomplete 1 " + last + "\n");
  EXPECT_THAT(Story(), HasSubstr("complete ended with 3")) << "and nothing came of it";
  ExpectSameAsUndisturbed(settings);
}

TEST_F(ChainTest, WhatTheSiteDoesNotHaveIsRefused) {
  Begin({.nodes = 2, .partitions = {{.name = "main", .max_time = "1:00:00"}, {.name = "other"}}});
  const CommandResult time = Submit({"job.nodes=2", "job.time_limit=2h"});
  EXPECT_EQ(time.exit_code, 2);
  EXPECT_THAT(time.errors, HasSubstr("partition main ends jobs after 1h"));
  const CommandResult nodes = Submit({"job.nodes=3", "job.time_limit=1h"});
  EXPECT_EQ(nodes.exit_code, 2);
  EXPECT_THAT(nodes.errors, HasSubstr("needs 3 nodes"));
  const CommandResult partition = Submit({"job.nodes=2", "slurm.partition=gpu"});
  EXPECT_EQ(partition.exit_code, 2);
  EXPECT_THAT(partition.errors, HasSubstr("no such partition; there are main, other"));
  const CommandResult refused = Submit({"job.nodes=2", "job.time_limit=1h"}, {"--no-such-option"});
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(refused.errors, HasSubstr("no-such-option"));
  EXPECT_THAT(cluster_->Run({"squeue", "-h"}).output, testing::IsEmpty());
  // What it takes all the same and never starts.
  const CommandResult never = Submit({"job.nodes=2", "job.time_limit=1h"}, {"--time=2:00:00"});
  EXPECT_EQ(never.exit_code, 0) << never.errors;
  EXPECT_THAT(never.errors, HasSubstr("job 1 never starts by itself (PartitionTimeLimit): the "
                                      "partition ends jobs earlier"));
  EXPECT_THAT(PerdureOf("status").output, HasSubstr("a shorter job.time_limit"));
  const CommandResult check = PerdureOf("status", {"--check"});
  EXPECT_EQ(check.exit_code, 1);
  EXPECT_THAT(check.output, HasSubstr("job 1 never starts by itself (PartitionTimeLimit)"));
  ASSERT_EQ(cluster_->CancelAll(), absl::OkStatus());
  EXPECT_THAT(PerdureOf("status", {"--check"}).output, HasSubstr("and nothing is queued"));
}

// n1 is no host's name, and on other machines agents would not be where nobody looks for them.
TEST_F(ChainTest, NodesWithoutAnAddressAreSaid) {
  Begin({.nodes = 2});
  ASSERT_EQ(Submit({"job.nodes=2", "job.time_limit=5min", "job.interface=''"}).exit_code, 0);
  EXPECT_TRUE(SlurmCluster::Await([&] {
    return Story().find("where other nodes reach node n1 is not known") != std::string::npos;
  })) << Story();
  EXPECT_THAT(Story(), HasSubstr("--set job.interface=ib0"));
}

TEST_F(ChainTest, IsHeldAndStoppedAndGoesOn) {
  Begin({.nodes = 2});
  const std::vector<std::string> settings = {"job.nodes=2", "job.time_limit=10min",
                                             "phase.pretrain.samples=800"};
  ASSERT_EQ(Submit(settings).exit_code, 0);
  ASSERT_TRUE(AwaitStep(3)) << Story();
  const json status = Status();
  EXPECT_EQ(status["state"], "running") << status;
  EXPECT_EQ(status["slurm_job"], 1);
  EXPECT_EQ(status["chain"]["jobs"][0]["ended"], "runs");
  EXPECT_EQ(status["chain"]["queued"][0]["job"], 2);
  EXPECT_EQ(status["chain"]["dry"], false);
  EXPECT_GT(status["chain"]["left"]["seconds"], 0);
  EXPECT_THAT(PerdureOf("status").output, HasSubstr("queued, 2 nodes: Dependency"));
  EXPECT_THAT(PerdureOf("pause").output, HasSubstr("job 2 is held"));
  EXPECT_THAT(cluster_->JobField(2, "Reason"), HasSubstr("JobHeld"));
  EXPECT_EQ(PerdureOf("status", {"--check"}).exit_code, 1);
  EXPECT_THAT(PerdureOf("resume").output, HasSubstr("job 2 is released"));
  EXPECT_TRUE(SlurmCluster::Await([&] { return cluster_->JobField(2, "Reason") == "Dependency"; }));
  EXPECT_EQ(PerdureOf("status", {"--check"}).exit_code, 0);
  const CommandResult stopped = PerdureOf("stop");
  EXPECT_EQ(stopped.exit_code, 0) << stopped.errors;
  EXPECT_THAT(stopped.output, HasSubstr("stopped at step"));
  EXPECT_EQ(cluster_->JobState(1), "COMPLETED");
  EXPECT_EQ(cluster_->JobState(2), "CANCELLED");
  EXPECT_EQ(Status()["chain"]["stopped"], "perdure stop");
  EXPECT_EQ(PerdureOf("pause").exit_code, 2) << "nothing is queued";
  ASSERT_EQ(Submit(settings).exit_code, 0);
  ASSERT_TRUE(AwaitComplete(absl::Minutes(3))) << Story();
  const json complete = Status();
  EXPECT_EQ(complete["state"], "complete");
  EXPECT_GT(complete["chain"]["goodput"], 0);
  EXPECT_LT(complete["chain"]["goodput"], 1);
  ExpectSameAsUndisturbed(settings);
}

// What is known of nodes goes along with what the user wants, as far as enough others are left.
TEST_F(ChainTest, PendingJobsDoWithoutBadNodes) {
  Begin({.nodes = 4});
  const auto hold = [&](const std::string& node) {
    return NodeBook(run()).Append("8-0", {.node = node,
                                          .time = absl::Now(),
                                          .kind = EvidenceKind::kSilentCorruption,
                                          .generation = 3,
                                          .job = "7"});
  };
  fs::create_directories(run());
  ASSERT_EQ(hold("n3"), absl::OkStatus());
  ASSERT_EQ(hold("n9"), absl::OkStatus()) << "which this cluster does not have";
  const auto queue = [&](const std::string& nodes, const std::vector<std::string>& options) {
    fs::remove_all(run() + "/chain");
    std::vector<std::string> more = {"--hold"};
    more.insert(more.end(), options.begin(), options.end());
    return Submit({"job.nodes=" + nodes, "job.time_limit=5min"}, more);
  };
  const auto without = [&](int job) { return cluster_->JobField(job, "ExcNodeList"); };
  CommandResult queued = queue("2", {"-x", "n[1]"});
  ASSERT_EQ(queued.exit_code, 0) << queued.errors;
  EXPECT_THAT(queued.output, HasSubstr("does without n3: 1 x silent corruption"));
  EXPECT_EQ(without(1), "n[1,3]");
  EXPECT_EQ(without(2), "n[1,3]");
  // Those that wait are told at once.
  CommandResult told = Nodes({"pin", run(), "n3"});
  EXPECT_EQ(told.exit_code, 0) << told.errors;
  EXPECT_EQ(told.errors, "");
  EXPECT_EQ(without(1), "n1");
  EXPECT_EQ(without(2), "n1");
  told = Nodes({"unpin", run(), "n3"});
  EXPECT_EQ(without(2), "n[1,3]") << told.errors;
  told = Nodes({"clear", run(), "n3"});
  EXPECT_EQ(without(2), "n1") << told.errors;
  EXPECT_EQ(VerdictOn("n3"), "used");
  // Without it too few would be left.
  ASSERT_EQ(cluster_->CancelAll(), absl::OkStatus());
  ASSERT_EQ(hold("n4"), absl::OkStatus());
  queued = queue("4", {});
  ASSERT_EQ(queued.exit_code, 0) << queued.errors;
  EXPECT_THAT(queued.output, HasSubstr("1 more would be done without, but 4 nodes are needed"));
  EXPECT_EQ(without(3), "(null)");
}

// Each job leaves before its limit, and the next goes on.
TEST_F(ChainTest, LongRunOfSeveralJobs) {
  Begin({.nodes = 2});
  const std::vector<std::string> settings = {"job.nodes=2", "job.time_limit=1min",
                                             "phase.pretrain.samples=19200"};
  const CommandResult submitted = Submit(settings);
  ASSERT_EQ(submitted.exit_code, 0) << submitted.errors;
  ASSERT_TRUE(AwaitComplete(absl::Minutes(15))) << Story();
  const std::vector<json> jobs = Jobs();
  EXPECT_GE(jobs.size(), 4U);
  for (const json& job : jobs) {
    EXPECT_EQ(job["exit_code"], job == jobs.back() ? 0 : 75) << job;
    if (job == jobs.back()) continue;
    const double unused = job["time_over"].get<double>() - job["left"].get<double>();
    EXPECT_GT(unused, 0) << job;
    EXPECT_LT(unused, 15) << job;
    EXPECT_EQ(cluster_->JobState(job["job"]), "COMPLETED");
  }
  ExpectSameAsUndisturbed(settings);
}

// Somebody queues the script by hand, beside the chain: Slurm lets both run.
TEST_F(ChainTest, LongAnotherJobBesideIt) {
  Begin({.nodes = 4});
  CommandResult queued;
  RunThrough({"job.nodes=2", "job.time_limit=10min", "phase.pretrain.samples=16000"}, 5,
             [&]() -> absl::Status {
               queued = cluster_->Run(
                   {"sbatch", "--nodes=2", "--job-name=by-hand", run() + "/chain/job.sh"});
               return cluster_->AwaitJobState(3, {"COMPLETED"}, absl::Minutes(3));
             });
  EXPECT_EQ(queued.exit_code, 0) << queued.errors;
  EXPECT_THAT(ReadFile(run() + "/jobs/slurm-3.log").value_or(""), HasSubstr("job 1 runs this run"));
}

// Certain evidence is enough by itself. The job that waits keeps its place.
TEST_F(ChainTest, LongANodeIsFoundBad) {
  Begin({.nodes = 3});
  const CommandResult submitted =
      Submit({"job.nodes=2", "job.time_limit=20min", "phase.pretrain.samples=1000000"});
  ASSERT_EQ(submitted.exit_code, 0) << submitted.errors;
  ASSERT_TRUE(AwaitStep(1)) << Story();
  EXPECT_EQ(Jobs().back()["nodes"], (json{"n1", "n2"}));
  // It flips a bit and is found out.
  const CommandResult drilled = cluster_->Run(
      {PerdurePath(), "drill", run(), "--kind", "corrupt", "--seed", "1", "--hold-against"},
      {.input = "", .environment = {}, .directory = "", .user = std::nullopt});
  ASSERT_EQ(drilled.exit_code, 0) << drilled.output << drilled.errors << Story();
  const bool first = VerdictOn("n1") == "excluded";
  const std::string bad = first ? "n1" : "n2", good = first ? "n2" : "n1";
  EXPECT_EQ(VerdictOn(bad), "excluded") << Nodes({run()}).output;
  EXPECT_EQ(VerdictOn(good), "");
  EXPECT_EQ(cluster_->JobField(2, "ExcNodeList"), "(null)");
  ASSERT_EQ(cluster_->Run({"scancel", "--signal=TERM", "1"}).exit_code, 0);
  ASSERT_TRUE(AwaitJobs(2)) << Story();
  EXPECT_EQ(Jobs().back()["job"], 2);
  EXPECT_EQ(Jobs().back()["nodes"], (json{good, "n3"})) << Story();
}

// What is left goes on in the same job, and ends it: nobody else would.
TEST_F(ChainTest, LongANodeIsLost) {
  Begin({.nodes = 3});
  RunThrough({"job.nodes=\"2-3\"", "job.time_limit=10min"}, 10,
             [&] { return cluster_->LoseNode("n2"); });
  EXPECT_EQ(Jobs().size(), 1U);
  EXPECT_THAT(JournalEvents(run(), "generation").back()["nodes"], 2);
}

// Once may be chance. It is back each time, but the third job does without it, until somebody says
// that it is good again.
TEST_F(ChainTest, LongANodeIsLostAgainAndAgain) {
  Begin({.nodes = 3});
  const CommandResult submitted =
      Submit({"job.nodes=\"2-3\"", "job.time_limit=20min", "phase.pretrain.samples=1000000"});
  ASSERT_EQ(submitted.exit_code, 0) << submitted.errors;
  for (size_t job = 1; job <= 2; ++job) {
    ASSERT_TRUE(AwaitJobs(job)) << Story();
    EXPECT_EQ(Jobs().back()["nodes"].size(), 3U) << "it is back";
    ASSERT_TRUE(AwaitTrainingOn(3)) << Story();
    ASSERT_EQ(cluster_->LoseNode("n3"), absl::OkStatus());
    ASSERT_TRUE(AwaitTrainingOn(2)) << Story();
    EXPECT_EQ(VerdictOn("n3"), job == 1 ? "used" : "excluded") << Nodes({run()}).output;
    ASSERT_EQ(cluster_->StartNode("n3"), absl::OkStatus());
    ASSERT_EQ(cluster_->ResumeNode("n3"), absl::OkStatus());
    ASSERT_EQ(cluster_->AwaitNodeState("n3", {"idle"}), absl::OkStatus());
    ASSERT_TRUE(Leave()) << Story();
  }
  EXPECT_EQ(Jobs().back()["nodes"], (json{"n1", "n2"})) << Story();
  EXPECT_THAT(Story(), HasSubstr("does without n3: 2 x node lost"));
  ASSERT_TRUE(AwaitTrainingOn(2)) << Story();
  const std::string next = cluster_->Run({"squeue", "-h", "-t", "PD", "-o", "%A"}).output;
  ASSERT_NE(next, "");
  const auto without = [&] { return cluster_->JobField(std::stoll(next), "ExcNodeList"); };
  EXPECT_EQ(without(), "n3");
  EXPECT_EQ(VerdictOn("n1") + VerdictOn("n2"), "") << "their connections broke with it";
  EXPECT_EQ(Nodes({"pin", run(), "n1"}).exit_code, 0);
  EXPECT_EQ(without(), "n3") << "also where somebody says something of another";
  const CommandResult cleared = Nodes({"clear", run(), "n3"});
  ASSERT_EQ(cleared.exit_code, 0) << cleared.errors;
  EXPECT_EQ(without(), "(null)") << cleared.errors;
  ASSERT_TRUE(Leave()) << Story();
  EXPECT_EQ(Jobs().back()["nodes"].size(), 3U);
  EXPECT_TRUE(AwaitTrainingOn(3)) << Story();
}

// Who would have ended the job was lost with it: the others do, and what it would have done for the
// chain.
TEST_F(ChainTest, LongTheBatchHostIsLost) {
  Begin({.nodes = 3});
  RunThrough({"job.nodes=\"2-3\"", "job.time_limit=10min"}, 10,
             [&] { return cluster_->LoseNode("n1"); });
  ExpectEndedWithoutBatchHost();
  EXPECT_EQ(cluster_->BatchHost(1), "n1");
  EXPECT_EQ(VerdictOn("n1"), "used") << ReadFile(run() + "/journal.jsonl").value_or("");
}

// Slurm does not know yet that it is lost when the others have done their work.
TEST_F(ChainTest, LongTheBatchHostIsLostUnnoticed) {
  Begin({.nodes = 3, .slurmd_timeout = absl::Seconds(60)});
  RunThrough({"job.nodes=\"2-3\"", "job.time_limit=10min", "phase.pretrain.samples=1600"}, 10,
             [&] { return cluster_->KillNode(cluster_->BatchHost(1)); });
  ExpectEndedWithoutBatchHost();
}

// Nobody can be asked until the controller is back.
TEST_F(ChainTest, LongTheBatchHostAndTheControllerAreLost) {
  Begin({.nodes = 3});
  RunThrough({"job.nodes=\"2-3\"", "job.time_limit=10min", "phase.pretrain.samples=1600"}, 10,
             [&]() -> absl::Status {
               const std::string batch_host = cluster_->BatchHost(1);
               RETURN_IF_ERROR(cluster_->StopController());
               RETURN_IF_ERROR(cluster_->KillNode(batch_host));
               // It is complete, and the allocation is still there.
               EXPECT_TRUE(SlurmCluster::Await(
                   [&] { return Story().find("Slurm is asked again") != std::string::npos; },
                   absl::Minutes(5)))
                   << Story();
               return cluster_->StartController();
             });
  ExpectEndedWithoutBatchHost();
}

TEST_F(ChainTest, LongAJobIsRequeued) {
  Begin({.nodes = 2});
  RunThrough({"job.nodes=2", "job.time_limit=10min"}, 10, [&] { return cluster_->Requeue(1); });
  const std::vector<json> jobs = Jobs();
  ASSERT_EQ(jobs.size(), 2U);
  EXPECT_EQ(jobs[0]["job"], jobs[1]["job"]);
  EXPECT_EQ(jobs[1]["restarts"], 1);
  EXPECT_GT(jobs[1]["first_step"], 0);
}

TEST_F(ChainTest, LongTheControllerIsAway) {
  Begin({.nodes = 2});
  RunThrough({"job.nodes=2", "job.time_limit=10min"}, 10, [&]() -> absl::Status {
    absl::Status done = cluster_->AwaitSaved(1);
    done.Update(cluster_->KillController());
    EXPECT_TRUE(AwaitStep(60)) << "training does not need it";
    done.Update(cluster_->StartController());
    return done;
  });
  EXPECT_EQ(Jobs().size(), 1U);
}

TEST_F(ChainTest, LongAJobIsPreempted) {
  Begin(
      {.nodes = 2,
       .partitions = {{.name = "main", .preempt_mode = "REQUEUE", .grace_time = absl::Seconds(20)},
                      {.name = "urgent", .priority_tier = 10}},
       .lines = {"PreemptType=preempt/partition_prio", "PreemptMode=REQUEUE"}});
  RunThrough({"job.nodes=2", "job.time_limit=10min"}, 10, [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const SlurmCluster::JobId urgent, cluster_->Preempt("urgent", 2));
    RETURN_IF_ERROR(cluster_->AwaitJobState(urgent, {"RUNNING"}));
    return cluster_->Run({"scancel", std::to_string(urgent)}).exit_code == 0
               ? absl::OkStatus()
               : Internal("scancel failed");
  });
  EXPECT_GT(Jobs().back()["first_step"], 0) << "the notice was enough for a checkpoint";
}

// Each job takes what it gets.
TEST_F(ChainTest, LongFewerNodesAndMoreAgain) {
  Begin({.nodes = 2});
  const std::vector<std::string> settings = {"job.nodes=\"1-2\"", "job.time_limit=1min",
                                             "phase.pretrain.samples=12000"};
  const CommandResult submitted = Submit(settings);
  ASSERT_EQ(submitted.exit_code, 0) << submitted.errors;
  ASSERT_TRUE(AwaitStep(5)) << Story();
  ASSERT_EQ(cluster_->DrainNode("n2"), absl::OkStatus());
  ASSERT_TRUE(AwaitJobs(2)) << Story();
  ASSERT_EQ(cluster_->ResumeNode("n2"), absl::OkStatus());
  ASSERT_TRUE(AwaitComplete(absl::Minutes(10))) << Story();
  const std::vector<json> jobs = Jobs();
  ASSERT_GE(jobs.size(), 3U);
  EXPECT_EQ(jobs[0]["nodes"].size(), 2U);
  EXPECT_EQ(jobs[1]["nodes"].size(), 1U);
  EXPECT_EQ(jobs[2]["nodes"].size(), 2U);
  ExpectSameAsUndisturbed(settings);
}

TEST_F(ChainTest, LongAPhaseOnOtherNodes) {
  Begin({.nodes = 4});
  const std::vector<std::string> settings = {"job.nodes=4", "job.time_limit=10min",
                                             "phase.pretrain.samples=1600",
                                             "phase.extension.nodes=1"};
  const CommandResult submitted = Submit(settings);
  ASSERT_EQ(submitted.exit_code, 0) << submitted.errors;
  ASSERT_TRUE(AwaitComplete(absl::Minutes(10))) << Story();
  const std::vector<json> jobs = Jobs();
  ASSERT_EQ(jobs.size(), 2U);
  EXPECT_EQ(jobs[0]["nodes"].size(), 4U);
  EXPECT_EQ(jobs[0]["exit_code"], 75);
  EXPECT_EQ(jobs[1]["nodes"].size(), 1U);
  EXPECT_EQ(jobs[0]["last_step"], jobs[1]["first_step"]);
  ExpectSameAsUndisturbed(settings);
}

}  // namespace
}  // namespace perdure
