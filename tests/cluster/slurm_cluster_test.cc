// The cluster that tests of SLURM stand on: that it comes up, does what it is told, and leaves
// nothing behind, whatever becomes of the test.
#include "tests/cluster/slurm_cluster.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using testing::HasSubstr;

// Processes that were started with the cluster's configuration, of any parent.
FoundProcesses Of(const std::string& conf) {
  FoundProcesses found;
  for (const FoundProcess& process : RunningProcesses())
    if (StartedWith(process.pid, "SLURM_CONF=" + conf)) found.insert(process);
  return found;
}

class SlurmClusterTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = SlurmCluster::WhyNot(); !why.empty()) GTEST_SKIP() << why;
  }
  void Begin(SlurmClusterOptions options) {
    auto started = SlurmCluster::Start(std::move(options));
    ASSERT_TRUE(started.ok()) << started.status();
    cluster_ = *std::move(started);
  }
  std::unique_ptr<SlurmCluster> cluster_;
};

TEST_F(SlurmClusterTest, RunsJobsAndLeavesNothing) {
  Begin({.nodes = 2});
  // Who gets out of his session and his environment is caught, too.
  const auto job = cluster_->Submit({"-N", "2"},
                                    "srun sh -c 'echo $SLURM_PROCID on $SLURMD_NODENAME'\n"
                                    "env -i setsid sleep 1000 </dev/null >/dev/null 2>&1 &\n"
                                    "echo $! >escaped; sleep 1000");
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_TRUE(SlurmCluster::Await([&] {
    return std::filesystem::exists(cluster_->work() + "/escaped");
  })) << cluster_->Logs();
  EXPECT_THAT(cluster_->Output(*job), HasSubstr("0 on n1"));
  EXPECT_THAT(cluster_->Output(*job), HasSubstr("1 on n2"));
  EXPECT_EQ(cluster_->BatchHost(*job), "n1");
  const FoundProcesses below = Below(cluster_->warden(), RunningProcesses());
  EXPECT_GE(below.size(), 6U);  // slurmctld, two slurmd, a step, its script, who escaped.
  const std::string conf = cluster_->conf(), directory = cluster_->directory();
  EXPECT_EQ(cluster_->Stop(), absl::OkStatus());
  EXPECT_TRUE(Of(conf).empty());
  const FoundProcesses now = RunningProcesses();
  for (const FoundProcess& process : below) {
    const auto same = now.find(process);
    EXPECT_TRUE(same == now.end() || same->start_ticks != process.start_ticks) << process.pid;
  }
  EXPECT_FALSE(std::filesystem::exists(directory));
}

TEST_F(SlurmClusterTest, ATestThatIsKilledLeavesNothing) {
  int told[2];
  ASSERT_EQ(::pipe2(told, O_CLOEXEC), 0);  // The warden must not hold it.
  const pid_t test = ::fork();
  ASSERT_GE(test, 0);
  if (test == 0) {
    const auto cluster = SlurmCluster::Start({.nodes = 1});
    const bool runs = cluster.ok() && (*cluster)->Submit({}, "sleep 1000").ok() &&
                      (*cluster)->AwaitJobState(1, {"RUNNING"}).ok();
    const std::string conf = runs ? (*cluster)->conf() : "";
    (void)!::write(told[1], conf.data(), conf.size());
    ::close(told[1]);
    while (true) ::pause();
  }
  ::close(told[1]);
  std::string conf;
  char c;
  while (::read(told[0], &c, 1) == 1) conf += c;
  ::close(told[0]);
  EXPECT_FALSE(conf.empty());
  EXPECT_FALSE(Of(conf).empty());
  ::kill(test, SIGKILL);
  EXPECT_EQ(::waitpid(test, nullptr, 0), test);
  EXPECT_TRUE(SlurmCluster::Await([&] { return Of(conf).empty(); }));
  const std::string directory = std::filesystem::path(conf).parent_path();
  EXPECT_TRUE(SlurmCluster::Await([&] { return !std::filesystem::exists(directory); })) << conf;
}

TEST_F(SlurmClusterTest, AnOrdinaryUserMayHaveOne) {
  if (::geteuid() != 0) GTEST_SKIP() << "whoever is not root has shown it with the other cases";
  const pid_t user = ::fork();
  ASSERT_GE(user, 0);
  if (user == 0) {
    // 3: what we have built is in a place where nobody else may look.
    if (::setgid(65534) != 0 || ::setuid(65534) != 0) ::_exit(2);
    if (::access(PERDURE_BINARY_DIR "/tests/cluster_warden", X_OK) != 0) ::_exit(3);
    const auto cluster = SlurmCluster::Start({.nodes = 2});
    const auto job =
        cluster.ok() ? (*cluster)->Submit({"-N", "2"}, "srun id -u") : cluster.status();
    const absl::Status done =
        job.ok() ? (*cluster)->AwaitJobState(*job, {"COMPLETED"}) : job.status();
    const bool good = done.ok() && (*cluster)->Output(*job) == "65534\n65534\n" &&
                      (*cluster)->KillNode("n2").ok() && (*cluster)->Stop().ok();
    if (!good) fmt::print(stderr, "{}\n", Message(done));
    ::_exit(good ? 0 : 1);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(user, &status, 0), user);
  ASSERT_TRUE(WIFEXITED(status)) << status;
  if (WEXITSTATUS(status) == 3) GTEST_SKIP() << "the build directory is closed to other users";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST_F(SlurmClusterTest, MungeAndDevices) {
  Begin({.nodes = 1, .gpus_per_node = 4, .munge = true});
  const auto job = cluster_->Submit({"--gpus-per-node=4"}, "srun printenv CUDA_VISIBLE_DEVICES");
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(cluster_->AwaitJobState(*job, {"COMPLETED"}), absl::OkStatus());
  EXPECT_EQ(cluster_->Output(*job), "0,1,2,3\n");
  EXPECT_THAT(cluster_->Run({"scontrol", "show", "config"}).output, HasSubstr("auth/munge"));
}

TEST_F(SlurmClusterTest, TheControllerComesBackToItsJobs) {
  Begin({.nodes = 2});
  const auto job =
      cluster_->Submit({"-N", "2"}, "srun sh -c 'echo begun; until [ -e go ]; do sleep 0.1; done'");
  ASSERT_TRUE(job.ok()) << job.status();
  // An srun that does not find the controller when it begins tries again for minutes.
  EXPECT_TRUE(SlurmCluster::Await([&] { return cluster_->Output(*job) == "begun\nbegun\n"; }));
  EXPECT_EQ(cluster_->StopController(), absl::OkStatus());
  // At once; all other commands try again for 9 to 18 seconds.
  EXPECT_THAT(cluster_->Run({"scontrol", "ping"}).output, HasSubstr(" is DOWN"));
  EXPECT_EQ(cluster_->StartController(), absl::OkStatus());
  EXPECT_EQ(cluster_->JobState(*job), "RUNNING");
  EXPECT_EQ(cluster_->AwaitSaved(*job), absl::OkStatus());
  EXPECT_EQ(cluster_->KillController(), absl::OkStatus());
  EXPECT_EQ(cluster_->StartController(), absl::OkStatus());
  EXPECT_EQ(cluster_->JobState(*job), "RUNNING");
  EXPECT_EQ(ReplaceFileFast(cluster_->work() + "/go", ""), absl::OkStatus());
  EXPECT_EQ(cluster_->AwaitJobState(*job, {"COMPLETED"}), absl::OkStatus());
}

TEST_F(SlurmClusterTest, AWaitThatFailsSaysWhatIsKnown) {
  Begin({.nodes = 1});
  const auto job = cluster_->Submit({"--hold"}, "true");
  ASSERT_TRUE(job.ok()) << job.status();
  const absl::Status status = cluster_->AwaitJobState(*job, {"RUNNING"}, absl::Milliseconds(1));
  EXPECT_TRUE(absl::IsDeadlineExceeded(status));
  EXPECT_THAT(Message(status), HasSubstr("Reason=JobHeldUser"));
  EXPECT_TRUE(absl::IsInvalidArgument(cluster_->Submit({"-p", "nowhere"}, "true").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(cluster_->Requeue(999)));
  EXPECT_TRUE(absl::IsInvalidArgument(cluster_->DownNode("n9")));
  const CommandResult slow = cluster_->Run({"sleep", "1000"}, {.timeout = absl::Milliseconds(10)});
  EXPECT_EQ(slow.exit_code, 137);
  EXPECT_EQ(cluster_->Run({"no-such-program"}).exit_code, 127);
}

// By the scheduler's own time-outs.
TEST_F(SlurmClusterTest, LongLostAndFrozenNodesAreFoundAndComeBack) {
  Begin({.nodes = 3, .slurmd_timeout = absl::Seconds(5)});
  const auto job = cluster_->Submit({"-N", "1", "-w", "n1", "--no-requeue"}, "sleep 1000");
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(cluster_->AwaitJobState(*job, {"RUNNING"}), absl::OkStatus());
  // slurmd, step, script, its sleep.
  EXPECT_TRUE(SlurmCluster::Await([&] { return cluster_->ProcessesOf("n1").size() >= 4; }));
  EXPECT_EQ(cluster_->KillNode("n1"), absl::OkStatus());
  EXPECT_TRUE(cluster_->ProcessesOf("n1").empty());
  EXPECT_EQ(cluster_->FreezeNode("n2"), absl::OkStatus());
  EXPECT_EQ(cluster_->AwaitNodeState("n1", {"down*"}, absl::Minutes(2)), absl::OkStatus());
  EXPECT_EQ(cluster_->AwaitJobState(*job, {"NODE_FAIL"}), absl::OkStatus());
  EXPECT_EQ(cluster_->AwaitNodeState("n2", {"down*"}, absl::Minutes(2)), absl::OkStatus());
  EXPECT_EQ(cluster_->NodeState("n3"), "idle");
  EXPECT_EQ(cluster_->StartNode("n1"), absl::OkStatus());
  EXPECT_EQ(cluster_->ThawNode("n2"), absl::OkStatus());
  EXPECT_EQ(cluster_->AwaitNodeState("n1", {"idle"}), absl::OkStatus());
  EXPECT_EQ(cluster_->AwaitNodeState("n2", {"idle"}), absl::OkStatus());
}

}  // namespace
}  // namespace perdure
