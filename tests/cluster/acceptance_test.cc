// What a chain of jobs of a real Slurm promises, at length: on 4 to 8 nodes, all that may happen to
// it, one after the other. Each case says what it has measured.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>

#include "absl/time/clock.h"
#include "runtime/base/status.h"
#include "tests/cluster/chain_fixture.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

constexpr uid_t kOrdinaryUser = 65534;

class AcceptanceTest : public ChainTest {
 protected:
  // Of each start of a job, for whoever reads the test's output; how long all of it took.
  void Print() const {
    const std::vector<json> jobs = Jobs();
    for (const json& job : jobs) {
      std::string line = fmt::format("job {} start {}: {} nodes, from step {}", job["job"].dump(),
                                     job["restarts"].get<int>() + 1, job["nodes"].size(),
                                     job["first_step"].dump());
      if (job.contains("left"))
        line += fmt::format(" to {}, code {}, {:.1f} s of {:.0f} s unused: {}",
                            job["last_step"].dump(), job["exit_code"].dump(), Unused(job),
                            job.value("time_over", 0.0) - job["began"].get<double>(),
                            job["why"].get<std::string>());
      std::printf("%s\n", line.c_str());
    }
    if (!jobs.empty())
      std::printf(
          "%zu starts of jobs in %.0f s\n", jobs.size(),
          jobs.back().value("left", absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch())) -
              jobs.front()["began"].get<double>());
    std::fflush(stdout);
  }
  // On all four nodes, in jobs of a minute: it ends by itself, in the bits of an undisturbed run.
  void ExpectAChainOfMinutes() {
    const std::vector<std::string> settings = {"job.nodes=4", "job.time_limit=1min",
                                               "phase.pretrain.samples=8000"};
    const CommandResult submitted = Submit(settings);
    ASSERT_EQ(submitted.exit_code, 0) << submitted.errors;
    ASSERT_TRUE(AwaitComplete(absl::Minutes(10))) << Story();
    Print();
    const std::vector<json> jobs = Jobs();
    EXPECT_GE(jobs.size(), 2U);
    for (const json& job : jobs)
      if (job != jobs.back()) ExpectLittleUnused(job);
    ExpectSameAsUndisturbed(settings);
  }
  static double Unused(const json& job) {
    return job.value("time_over", 0.0) - job.value("left", 0.0);
  }
  // Each that has left by its clock did it in time, and not long before it had to.
  void ExpectLittleUnused(const json& job) const {
    EXPECT_GT(Unused(job), 0) << job;
    EXPECT_LT(Unused(job), 15) << job;
    EXPECT_EQ(cluster_->JobState(job["job"]), "COMPLETED");
  }
};

TEST_F(AcceptanceTest, LongNanoInJobsOfTwoMinutes) {
  ranks_per_node_ = 2;
  Begin({.nodes = 4});
  // As the file has it: two slices, two stages, and what is left of the ranks are replicas.
  base_ = {"job.nodes=4", "job.ranks_per_node=2", "job.interface=lo", "job.time_limit=2min",
           "phase.pretrain.samples=52000"};
  const CommandResult submitted = Submit({});
  ASSERT_EQ(submitted.exit_code, 0) << submitted.errors;
  ASSERT_TRUE(AwaitComplete(absl::Minutes(40))) << Story();
  Print();
  const std::vector<json> jobs = Jobs();
  EXPECT_GE(jobs.size(), 4U);
  for (const json& job : jobs) {
    EXPECT_EQ(job["nodes"].size(), 4U);
    EXPECT_EQ(job["exit_code"], job == jobs.back() ? 0 : 75) << job;
    if (job != jobs.back()) ExpectLittleUnused(job);
  }
  ExpectSameAsUndisturbed({"layout.tensor=1", "layout.pipeline=1"});
}

// All that may happen to a chain, in one; each strikes at the job that runs then. Jobs leave by a
// notice as of Slurm's when they have been through it, so that the run is long enough for all.
TEST_F(AcceptanceTest, LongEverythingHappens) {
  Begin(
      {.nodes = 6,
       .partitions = {{.name = "main", .preempt_mode = "REQUEUE", .grace_time = absl::Seconds(20)},
                      {.name = "urgent", .priority_tier = 10}},
       .lines = {"PreemptType=preempt/partition_prio", "PreemptMode=REQUEUE"}});
  const std::vector<std::string> settings = {"job.nodes=\"3-5\"", "job.time_limit=10min",
                                             "phase.pretrain.samples=56000"};
  const auto pending = [&]() -> SlurmCluster::JobId {
    return std::atoll(cluster_->Run({"squeue", "-h", "-t", "PD", "-o", "%A"}).output.c_str());
  };
  const auto running = [&]() -> SlurmCluster::JobId { return Jobs().back()["job"]; };
  const auto train = [&](int64_t steps) { return AwaitStep(Step() + steps); };
  const auto told = [&](const std::string& what) {
    std::printf("-- %s: job %lld, step %lld\n", what.c_str(), static_cast<long long>(running()),
                static_cast<long long>(Step()));
    std::fflush(stdout);
  };
  const CommandResult submitted = Submit(settings);
  ASSERT_EQ(submitted.exit_code, 0) << submitted.errors;
  ASSERT_TRUE(AwaitStep(5)) << Story();
  EXPECT_EQ(Jobs().back()["nodes"].size(), 5U);

  told("submitted once more, and the script queued by hand");
  const CommandResult again = Submit(settings);
  EXPECT_EQ(again.exit_code, 2);
  EXPECT_THAT(again.errors, HasSubstr("has a chain already"));
  EXPECT_EQ(cluster_->Run({"sbatch", "--nodes=1", run() + "/chain/job.sh"}).exit_code, 0);
  told("node n3 dies");
  ASSERT_EQ(cluster_->KillNode("n3"), absl::OkStatus());
  ASSERT_TRUE(AwaitTrainingOn(4)) << Story();
  EXPECT_EQ(cluster_->AwaitJobState(3, {"COMPLETED"}, absl::Minutes(3)), absl::OkStatus());
  EXPECT_THAT(Story(), HasSubstr("job 1 runs this run: nothing is left to do here"));
  ASSERT_EQ(cluster_->AwaitNodeState("n3", {"down*", "down"}, absl::Minutes(2)), absl::OkStatus());
  ASSERT_EQ(cluster_->StartNode("n3"), absl::OkStatus());
  ASSERT_EQ(cluster_->AwaitNodeState("n3", {"idle"}), absl::OkStatus());
  EXPECT_EQ(VerdictOn("n3"), "used") << Nodes({run()}).output;
  ASSERT_TRUE(Leave()) << Story();

  ASSERT_TRUE(AwaitTrainingOn(5)) << Story();
  ASSERT_TRUE(train(10)) << Story();
  const SlurmCluster::JobId second = running(), third = pending();
  const std::string batch_host = cluster_->BatchHost(second);
  ASSERT_NE(batch_host, "n3");
  told("node n3 dies again, and then the batch host " + batch_host);
  ASSERT_EQ(cluster_->LoseNode("n3"), absl::OkStatus());
  ASSERT_TRUE(AwaitTrainingOn(4)) << Story();
  ASSERT_EQ(cluster_->LoseNode(batch_host), absl::OkStatus());
  ASSERT_TRUE(AwaitTrainingOn(3)) << Story();
  EXPECT_EQ(cluster_->JobField(third, "ExcNodeList"), "(null)");
  for (const std::string& node : {std::string("n3"), batch_host}) {
    ASSERT_EQ(cluster_->StartNode(node), absl::OkStatus());
    ASSERT_EQ(cluster_->ResumeNode(node), absl::OkStatus());
    ASSERT_EQ(cluster_->AwaitNodeState(node, {"idle"}), absl::OkStatus());
  }
  ASSERT_TRUE(train(5)) << Story();
  ASSERT_TRUE(Leave()) << Story();
  // Who would have told the third was lost: others have.
  EXPECT_EQ(cluster_->JobState(second), "CANCELLED");
  EXPECT_EQ(cluster_->JobField(third, "ExcNodeList"), "n3");
  std::printf("%s", Nodes({run()}).output.c_str());
  EXPECT_EQ(VerdictOn("n3"), "excluded");
  EXPECT_EQ(VerdictOn(batch_host), "used");

  ASSERT_EQ(running(), third);
  EXPECT_THAT(Jobs().back()["nodes"], testing::Not(testing::Contains("n3")));
  EXPECT_EQ(Jobs().back()["nodes"].size(), 5U);
  ASSERT_TRUE(train(15)) << Story();
  told("scontrol requeue");
  const size_t starts = Jobs().size();
  ASSERT_EQ(cluster_->Requeue(third), absl::OkStatus());
  ASSERT_TRUE(AwaitJobs(starts + 1)) << Story();
  EXPECT_EQ(running(), third);
  EXPECT_EQ(Jobs().back()["restarts"], 1);
  ASSERT_TRUE(train(15)) << Story();
  ASSERT_TRUE(Leave()) << Story();

  ASSERT_TRUE(train(15)) << Story();
  told("preempted");
  const auto urgent = cluster_->Preempt("urgent", 6);
  ASSERT_TRUE(urgent.ok()) << urgent.status();
  ASSERT_EQ(cluster_->AwaitJobState(*urgent, {"RUNNING"}), absl::OkStatus());
  ASSERT_EQ(cluster_->Run({"scancel", std::to_string(*urgent)}).exit_code, 0);
  ASSERT_TRUE(AwaitJobs(starts + 3)) << Story();

  ASSERT_TRUE(train(15)) << Story();
  told("the controller dies");
  ASSERT_EQ(cluster_->AwaitSaved(running()), absl::OkStatus());
  ASSERT_EQ(cluster_->KillController(), absl::OkStatus());
  const int64_t before = Step();
  absl::SleepFor(absl::Seconds(60));
  EXPECT_GT(Step(), before + 20) << "training does not need it";
  ASSERT_EQ(cluster_->StartController(), absl::OkStatus());

  told("fewer nodes");
  for (const char* node : {"n5", "n6"}) ASSERT_EQ(cluster_->DrainNode(node), absl::OkStatus());
  ASSERT_TRUE(Leave()) << Story();
  EXPECT_EQ(Jobs().back()["nodes"].size(), 3U);
  ASSERT_TRUE(train(15)) << Story();
  told("and more again");
  for (const char* node : {"n5", "n6"}) ASSERT_EQ(cluster_->ResumeNode(node), absl::OkStatus());
  ASSERT_TRUE(Leave()) << Story();
  EXPECT_EQ(Jobs().back()["nodes"].size(), 5U);
  EXPECT_THAT(Jobs().back()["nodes"], testing::Not(testing::Contains("n3")));
  ASSERT_TRUE(AwaitComplete(absl::Minutes(30))) << Story();
  Print();
  std::printf("%s%s", Nodes({run()}).output.c_str(), PerdureOf("status").output.c_str());
  EXPECT_GE(Jobs().size(), 8U);
  EXPECT_THAT(cluster_->Run({"squeue", "-h"}).output, testing::IsEmpty());
  ExpectSameAsUndisturbed(settings);
}

TEST_F(AcceptanceTest, LongAPhaseOnFewerNodes) {
  Begin({.nodes = 8});
  const std::vector<std::string> settings = {"layout.tensor=2", "job.nodes=8",
                                             "job.time_limit=20min", "phase.pretrain.samples=1600",
                                             "phase.extension.nodes=2"};
  const CommandResult submitted = Submit(settings);
  ASSERT_EQ(submitted.exit_code, 0) << submitted.errors;
  ASSERT_TRUE(AwaitComplete(absl::Minutes(20))) << Story();
  Print();
  const std::vector<json> jobs = Jobs();
  ASSERT_EQ(jobs.size(), 2U);
  EXPECT_EQ(jobs[0]["nodes"].size(), 8U);
  EXPECT_EQ(jobs[0]["exit_code"], 75);
  EXPECT_EQ(jobs[1]["nodes"].size(), 2U);
  EXPECT_EQ(jobs[0]["last_step"], jobs[1]["first_step"]);
  ExpectSameAsUndisturbed(settings);
}

// An administrator takes time from a job that has asked a moment ago how much it has: what tells it
// is Slurm's signal.
TEST_F(AcceptanceTest, LongTheSecondNotice) {
  Begin({.nodes = 4});
  const CommandResult submitted =
      Submit({"job.nodes=4", "job.time_limit=20min", "phase.pretrain.samples=1000000"});
  ASSERT_EQ(submitted.exit_code, 0) << submitted.errors;
  ASSERT_TRUE(AwaitStep(5)) << Story();
  ASSERT_EQ(cluster_->SetTimeLimit(1, "2"), absl::OkStatus());
  ASSERT_TRUE(AwaitJobs(2)) << Story();
  Print();
  const std::vector<json> jobs = Jobs(), leaves = JournalEvents(run(), "leaves");
  ASSERT_EQ(leaves.size(), 1U);
  EXPECT_LT(leaves[0]["left"].get<double>(), 20) << leaves[0];
  EXPECT_EQ(jobs[0]["exit_code"], 75) << jobs[0];
  EXPECT_EQ(jobs[0]["last_step"], jobs[1]["first_step"]);
  EXPECT_EQ(cluster_->JobState(1), "COMPLETED");
  EXPECT_EQ(cluster_->JobField(1, "TimeLimit"), "00:02:00");
  int minutes = 0, seconds = 0;
  const std::string took = cluster_->JobField(1, "RunTime");
  ASSERT_EQ(std::sscanf(took.c_str(), "00:%d:%d", &minutes, &seconds), 2) << took;
  const int unused = 120 - (60 * minutes + seconds);
  std::printf("unused of the two minutes that were left of twenty: %d s\n", unused);
  EXPECT_GT(unused, 0);
  EXPECT_LT(unused, 15);
  EXPECT_EQ(PerdureOf("stop").exit_code, 0);
}

// As at most sites: Slurm is root's, and believes MUNGE alone.
TEST_F(AcceptanceTest, LongUnderMunge) {
  Begin({.nodes = 4, .munge = true});
  if (::geteuid() == 0) Become(kOrdinaryUser);
  ExpectAChainOfMinutes();
  if (::geteuid() == 0)
    EXPECT_THAT(cluster_->JobField(1, "UserId"), HasSubstr(std::to_string(kOrdinaryUser)));
}

// Root has it done by somebody else, in a process that is this test again.
TEST_F(AcceptanceTest, LongAClusterOfAnOrdinaryUser) {
  if (::geteuid() == 0) {
    const std::string folder = FreshFolder("ordinary");
    ASSERT_EQ(::chown(folder.c_str(), kOrdinaryUser, kOrdinaryUser), 0);
    const pid_t user = ::fork();
    ASSERT_GE(user, 0);
    if (user == 0) {
      if (::setgid(kOrdinaryUser) != 0 || ::setuid(kOrdinaryUser) != 0) ::_exit(2);
      if (::access(PerdurePath().c_str(), X_OK) != 0) ::_exit(3);
      ::setenv("TEST_TMPDIR", folder.c_str(), 1);
      ::execl(PERDURE_BINARY_DIR "/tests/acceptance_test", "acceptance_test",
              "--gtest_filter=*LongAClusterOfAnOrdinaryUser", nullptr);
      ::_exit(3);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(user, &status, 0), user);
    fs::remove_all(folder);
    ASSERT_TRUE(WIFEXITED(status)) << status;
    if (WEXITSTATUS(status) == 3) GTEST_SKIP() << "the build directory is closed to other users";
    EXPECT_EQ(WEXITSTATUS(status), 0);
    return;
  }
  Begin({.nodes = 4});
  ExpectAChainOfMinutes();
}

}  // namespace
}  // namespace perdure
