// Nodes that are lost. An administrator's word (LoseNode) stands for the scheduler's time-out,
// which the Long cases wait for. What was seen on SLURM 22.05.8.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/cluster/scheduler_facts.h"

namespace perdure {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

std::string Text(SlurmCluster::JobId job) { return std::to_string(job); }

// A task a node, each of which says in a file of its own that it lives, and does what a file tells
// it: nothing, to end, or to run a command.
const char kTasks[] =
    "srun --no-kill --wait=0 bash -c '\n"
    "while :; do\n"
    "  echo beat >>$SLURMD_NODENAME.beats\n"
    "  if [ -e $SLURMD_NODENAME.order ]; then\n"
    "    sh $SLURMD_NODENAME.order >$SLURMD_NODENAME.answer 2>&1\n"
    "    echo code $? >>$SLURMD_NODENAME.answer\n"
    "    rm $SLURMD_NODENAME.order\n"
    "  fi\n"
    "  [ -e go ] && exit 0\n"
    "  sleep 0.05\n"
    "done'\n"
    "echo code $?\n";

class SchedulerLoss : public SchedulerFacts {
 protected:
  JobId Start(const std::vector<std::string>& options, const std::vector<std::string>& nodes) {
    const JobId job = Submit(options, kTasks);
    for (const std::string& node : nodes) EXPECT_TRUE(Appears(node + ".beats", "beat")) << node;
    return job;
  }
  // From now on.
  bool Beats(const std::string& node) {
    const size_t before = File(node + ".beats").size();
    return SlurmCluster::Await([&] { return File(node + ".beats").size() > before; },
                               absl::Seconds(20));
  }
  bool Gone(const std::string& node, size_t left) {
    return SlurmCluster::Await([&] { return cluster().ProcessesOf(node).size() <= left; });
  }
  bool HasOnly(JobId job, const std::string& nodes) {
    return SlurmCluster::Await([&] { return Queue(job, "%N") == nodes; }, absl::Minutes(2));
  }
};

TEST_F(SchedulerLoss, ANodeIsLostAndTheOthersGoOn) {
  const JobId job = Start({"-w", "n[1-3]", "--no-kill"}, {"n1", "n2", "n3"});
  ASSERT_EQ(cluster().LoseNode("n3"), absl::OkStatus());
  EXPECT_TRUE(HasOnly(job, "n[1-2]"));
  EXPECT_EQ(Queue(job, "%T %D"), "RUNNING 2");
  EXPECT_EQ(cluster().BatchHost(job), "n1");
  EXPECT_TRUE(Beats("n1"));
  EXPECT_TRUE(Beats("n2"));
  // The step is said to be where it was; so is what a task has in its environment.
  EXPECT_THAT(Run({"scontrol", "show", "step", Text(job) + ".0"}).output,
              HasSubstr("NodeList=n[1-3]"));
  Write("go", "");
  EXPECT_TRUE(Completes(job));
  EXPECT_THAT(cluster().Output(job), HasSubstr("n3"));  // srun names it.
}

// sbatch's --no-kill is not srun's.
TEST_F(SchedulerLoss, WithoutNoKillTheStepIsLostWithANode) {
  const JobId job = Submit({"-w", "n[1-2]", "--no-kill"},
                           "srun bash -c 'echo beat >>$SLURMD_NODENAME.beats; sleep 1000'\n"
                           "echo code $?\nuntil [ -e go ]; do sleep 0.05; done");
  EXPECT_TRUE(Appears("n1.beats", "beat"));
  EXPECT_TRUE(Appears("n2.beats", "beat"));
  ASSERT_EQ(cluster().DownNode("n2"), absl::OkStatus());
  EXPECT_TRUE(Prints(job, "code 137\n"));
  EXPECT_EQ(Queue(job, "%T"), "RUNNING");
  Write("go", "");
  EXPECT_TRUE(Completes(job));
}

TEST_F(SchedulerLoss, WithoutNoKillAJobIsRequeuedOrFails) {
  const JobId again = Submit({"-N1", "-w", "n1", "--requeue", "--open-mode=append"},
                             "echo life ${SLURM_RESTART_COUNT-unset}; sleep 1000");
  const JobId fails = Submit({"-N1", "-w", "n2", "--no-requeue"}, "echo life; sleep 1000");
  const JobId behind = Submit({"-N1", "-d", "afterany:" + Text(fails)}, "true");
  EXPECT_TRUE(Prints(again, "life unset"));
  EXPECT_TRUE(Prints(fails, "life"));
  ASSERT_EQ(cluster().DownNode("n1"), absl::OkStatus());
  ASSERT_EQ(cluster().DownNode("n2"), absl::OkStatus());
  EXPECT_TRUE(Reaches(fails, {"NODE_FAIL"}));
  EXPECT_TRUE(Completes(behind));
  EXPECT_TRUE(Reaches(again, {"PENDING"}));
  EXPECT_EQ(cluster().JobField(again, "Restarts"), "1");
}

// The script and srun are gone, the tasks of the others go on, the job is RUNNING, and nobody will
// end it but they: BatchHost is not in NodeList.
TEST_F(SchedulerLoss, TheBatchHostIsLostAndATaskRequeuesTheJob) {
  const JobId job =
      Start({"-w", "n[1-2]", "--no-kill", "--requeue", "--open-mode=append"}, {"n1", "n2"});
  ASSERT_EQ(cluster().LoseNode("n1"), absl::OkStatus());
  EXPECT_TRUE(HasOnly(job, "n2"));
  EXPECT_TRUE(Beats("n2"));
  EXPECT_EQ(cluster().BatchHost(job), "n1");
  EXPECT_EQ(Queue(job, "%T"), "RUNNING");
  Write("n2.order", "scontrol requeue $SLURM_JOB_ID");
  EXPECT_TRUE(Reaches(job, {"PENDING"}));
  EXPECT_EQ(cluster().JobField(job, "Restarts"), "1");
  EXPECT_TRUE(Gone("n2", 1));  // Its slurmd.
}

TEST_F(SchedulerLoss, LongTheBatchHostIsLostAndATaskCancelsTheJob) {
  const JobId job = Start({"-w", "n[1-3]", "--no-kill"}, {"n1", "n2", "n3"});
  const JobId behind = Submit({"-N1", "-d", "afterany:" + Text(job)}, "true");
  ASSERT_EQ(cluster().LoseNode("n1"), absl::OkStatus());
  EXPECT_TRUE(HasOnly(job, "n[2-3]"));
  EXPECT_TRUE(Beats("n3"));
  Write("n3.order", "scancel $SLURM_JOB_ID");
  EXPECT_TRUE(Reaches(job, {"CANCELLED"}));
  EXPECT_TRUE(Completes(behind));
  EXPECT_TRUE(Gone("n2", 1));  // Its slurmd.
}

// srun has a second process, which has the step killed when it finds the first one dead. A batch
// host that dies does not do that: both are gone at once.
TEST_F(SchedulerLoss, LongAnSrunThatIsKilledTakesItsStepAlong) {
  const JobId job = Submit({"-w", "n[1-2]", "--no-kill"},
                           "srun --no-kill --wait=0 bash -c 'echo beat >>$SLURMD_NODENAME.beats\n"
                           "trap : TERM; while :; do sleep 0.05; done' &\n"
                           "until [ -e kill ]; do sleep 0.05; done\n"
                           "kill -9 $!; wait $!; echo code $?\n"
                           "until [ -e go ]; do sleep 0.05; done");
  EXPECT_TRUE(Appears("n1.beats", "beat"));
  EXPECT_TRUE(Appears("n2.beats", "beat"));
  Write("kill", "");
  EXPECT_TRUE(Prints(job, "code 137\n"));
  EXPECT_TRUE(Gone("n2", 1));  // Its slurmd.
  EXPECT_EQ(Queue(job, "%T"), "RUNNING");
  Write("go", "");
  EXPECT_TRUE(Completes(job));
}

// A batch host that is set down while its slurmd lives is another matter: slurmd says how the
// script ended, and that is the job's end, with --requeue too.
TEST_F(SchedulerLoss, LongABatchHostThatIsSetDownEndsTheJob) {
  const JobId job = Start({"-w", "n[1-2]", "--no-kill", "--requeue"}, {"n1", "n2"});
  ASSERT_EQ(cluster().DownNode("n1"), absl::OkStatus());
  // As srun and script happen to end: FAILED, mostly.
  EXPECT_TRUE(Reaches(job, {"FAILED", "COMPLETED"}));
  EXPECT_TRUE(Gone("n1", 1));  // Its slurmd.
  EXPECT_TRUE(Gone("n2", 1));
}

// Who asks waits for 9 s (sbatch) or 18 s (the others), and then hears it; jobs do not notice.
TEST_F(SchedulerLoss, LongWithoutAControllerCommandsFailAndJobsGoOn) {
  const JobId job = Start({"-w", "n[1-2]"}, {"n1", "n2"});
  ASSERT_EQ(cluster().AwaitSaved(job), absl::OkStatus());
  ASSERT_EQ(cluster().KillController(), absl::OkStatus());
  for (const std::vector<std::string>& argv : std::vector<std::vector<std::string>>{
           {"squeue"}, {"scontrol", "show", "job", Text(job)}, {"sbatch", "--wrap", "true"}}) {
    const CommandResult result = Run(argv);
    EXPECT_NE(result.exit_code, 0) << argv[0];
    EXPECT_THAT(result.output + result.errors,
                HasSubstr("Unable to contact slurm controller (connect failure)"));
  }
  // Some say less: this one has "Unexpected message received".
  EXPECT_NE(Run({"scontrol", "requeue", Text(job)}).exit_code, 0);
  EXPECT_TRUE(Beats("n1"));
  EXPECT_TRUE(Beats("n2"));
  // It ends while nobody hears of it; that is told when somebody does.
  Write("go", "");
  ASSERT_EQ(cluster().StartController(), absl::OkStatus());
  EXPECT_TRUE(Completes(job));
}

TEST_F(SchedulerLoss, LongRealLossOfTheBatchHost) {
  const JobId job = Start({"-w", "n[1-3]", "--no-kill"}, {"n1", "n2", "n3"});
  EXPECT_EQ(cluster().KillNode(cluster().BatchHost(job)), absl::OkStatus());
  EXPECT_TRUE(Beats("n2"));
  EXPECT_TRUE(HasOnly(job, "n[2-3]"));
  EXPECT_TRUE(Beats("n2"));
  EXPECT_TRUE(Beats("n3"));
  EXPECT_EQ(Queue(job, "%T"), "RUNNING");
  EXPECT_EQ(cluster().BatchHost(job), "n1");
  EXPECT_EQ(cluster().StartNode("n1"), absl::OkStatus());
  EXPECT_EQ(cluster().AwaitNodeState("n1", {"idle"}), absl::OkStatus());
}

// Declared dead and removed, its task trains on until its slurmd is back: a fence must not rest on
// the scheduler.
TEST_F(SchedulerLoss, LongAFrozenNodesTasksLiveOn) {
  const JobId job = Start({"-w", "n[1-2]", "--no-kill"}, {"n1", "n2"});
  EXPECT_EQ(cluster().FreezeNode("n2"), absl::OkStatus());
  EXPECT_TRUE(HasOnly(job, "n1"));
  EXPECT_TRUE(Beats("n2"));
  EXPECT_TRUE(Beats("n1"));
  EXPECT_EQ(cluster().ThawNode("n2"), absl::OkStatus());
  EXPECT_TRUE(Gone("n2", 1));
  EXPECT_TRUE(Beats("n1"));
}

}  // namespace
}  // namespace perdure
