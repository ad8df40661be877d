// srun and its tasks, signals, requeues, preemption. What was seen on SLURM 22.05.8.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

#include "tests/cluster/scheduler_facts.h"

namespace perdure {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::MatchesRegex;
using testing::Not;

std::string Text(SlurmCluster::JobId job) { return std::to_string(job); }

std::vector<std::string> SortedLines(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  std::sort(lines.begin(), lines.end());
  return lines;
}

// A batch script that runs once and waits; in its second life it ends.
const char kTwoLives[] =
    "echo life ${SLURM_RESTART_COUNT-unset}\n"
    "[ -n \"$SLURM_RESTART_COUNT\" ] && exit 0\n";

TEST_F(SchedulerFacts, ARequeueTruncatesTheLogUnlessItIsAppended) {
  const std::string script = std::string(kTwoLives) + "sleep 1000";
  const JobId kept = Submit({"-N1", "--requeue", "--open-mode=append"}, script);
  const JobId lost = Submit({"-N1", "--requeue"}, script);
  EXPECT_TRUE(Prints(kept, "life unset\n"));
  EXPECT_TRUE(Prints(lost, "life unset\n"));
  EXPECT_EQ(cluster().Requeue(kept), absl::OkStatus());
  EXPECT_EQ(cluster().Requeue(lost), absl::OkStatus());
  EXPECT_TRUE(Prints(kept, "life 1\n"));
  EXPECT_TRUE(Prints(lost, "life 1\n"));
  EXPECT_TRUE(Completes(kept));
  EXPECT_THAT(cluster().Output(kept), HasSubstr("life unset\n"));
  EXPECT_THAT(cluster().Output(lost), Not(HasSubstr("life unset\n")));
  EXPECT_EQ(cluster().JobField(kept, "Restarts"), "1");
}

// By the job's owner, from inside. The call returns before the signals come, and the place in the
// queue is a new one, but dependants wait on.
TEST_F(SchedulerFacts, LongAJobRequeuesItself) {
  const auto user = Somebody();
  const JobId job = SubmitAs(user, {"-N1", "--requeue", "--open-mode=append"},
                             std::string(kTwoLives) +
                                 "trap 'echo got TERM' TERM\n"
                                 "scontrol requeue $SLURM_JOB_ID\n"
                                 "echo code $?\n"
                                 "sleep 1000 &\nwait\nwait\n");
  const JobId behind = SubmitAs(user, {"-N1", "-d", "afterany:" + Text(job)}, "true");
  const JobId refused =
      SubmitAs(user, {"-N1", "--no-requeue"}, "scontrol requeue $SLURM_JOB_ID 2>&1\necho code $?");
  EXPECT_TRUE(Prints(job, "life 1\n"));
  EXPECT_THAT(cluster().Output(job), AllOf(HasSubstr("code 0\n"), HasSubstr("got TERM\n")));
  EXPECT_TRUE(Completes(behind));
  EXPECT_TRUE(Completes(refused));
  EXPECT_THAT(cluster().Output(refused), HasSubstr("code 1\n"));
}

// What sbatch does not set anew goes from the submitting task to the job, and on to its srun:
// another job's restart count, number of tasks, place. So a link of a chain is submitted without
// SLURM_*.
TEST_F(SchedulerFacts, ASuccessorInheritsWhatItsPredecessorKnew) {
  Write("next.sh", "#!/bin/sh\nenv | grep ^SLURM | sort\necho end\n");
  Write("submit.sh",
        "[ $SLURM_PROCID = 1 ] || exit 0\n"
        "sbatch --parsable -N1 -o as_it_is next.sh\n"
        "for name in $(env | sed -n 's/^\\(SLURM[A-Z0-9_]*\\)=.*/\\1/p'); do\n"
        "  [ $name = SLURM_CONF ] || unset $name\n"
        "done\n"
        "sbatch --parsable -N1 -o without next.sh\n");
  const JobId job = Submit({"-w", "n[1-2]", "--ntasks-per-node=1"},
                           "export SLURM_RESTART_COUNT=3\nsrun sh submit.sh");
  EXPECT_TRUE(Completes(job));
  EXPECT_TRUE(Appears("as_it_is", "end"));
  EXPECT_TRUE(Appears("without", "end"));
  for (const char* leak : {"SLURM_RESTART_COUNT=3\n", "SLURM_NTASKS=2\n", "SLURM_STEP_ID=0\n",
                           "SLURM_STEP_NODELIST=n[1-2]\n", "SLURM_NTASKS_PER_NODE=1\n"}) {
    EXPECT_THAT(File("as_it_is"), HasSubstr(leak));
    EXPECT_THAT(File("without"), Not(HasSubstr(leak)));
  }
}

TEST_F(SchedulerFacts, OneTaskANodeKnowsWhereItIs) {
  const JobId job = Submit({"-w", "n[1-3]", "--ntasks-per-node=1"},
                           "srun --distribution=block sh -c 'echo $SLURM_PROCID $SLURM_NODEID "
                           "$SLURM_LOCALID $SLURMD_NODENAME $SLURM_NTASKS $SLURM_JOB_NUM_NODES "
                           "$SLURM_JOB_NODELIST $SLURM_STEP_NODELIST $SLURM_CPUS_ON_NODE'");
  EXPECT_TRUE(Completes(job));
  EXPECT_THAT(SortedLines(cluster().Output(job)),
              testing::ElementsAre("0 0 0 n1 3 3 n[1-3] n[1-3] 2", "1 1 0 n2 3 3 n[1-3] n[1-3] 2",
                                   "2 2 0 n3 3 3 n[1-3] n[1-3] 2"));
}

TEST_F(SchedulerFacts, BlocksOfTasksFillNodeAfterNode) {
  const JobId job = Submit({"-w", "n[1-2]", "--ntasks-per-node=2"},
                           "srun --distribution=block:block sh -c 'echo $SLURM_PROCID "
                           "$SLURMD_NODENAME $SLURM_LOCALID'");
  EXPECT_TRUE(Completes(job));
  EXPECT_THAT(SortedLines(cluster().Output(job)),
              testing::ElementsAre("0 n1 0", "1 n1 1", "2 n2 0", "3 n2 1"));
}

TEST_F(SchedulerFacts, SrunsCodeIsTheHighest) {
  const auto run = [&](const std::string& task, const std::string& options) {
    return Submit({"-w", "n[1-2]", "--ntasks-per-node=1"},
                  "srun " + options + " bash -c '" + task + "'\necho code $?");
  };
  const JobId codes = run("exit $((70 + SLURM_PROCID))", "");
  const JobId killed = run("[ $SLURM_PROCID = 0 ] || kill -9 $$", "");
  EXPECT_TRUE(Prints(codes, "code 71\n"));
  EXPECT_TRUE(Prints(killed, "code 137\n"));
  // The survivors end by SIGTERM, and the code is theirs: of the victim it says nothing.
  const JobId ended = run("[ $SLURM_PROCID = 0 ] && exec sleep 1000; kill -9 $$", "-K");
  EXPECT_TRUE(Prints(ended, "code 143\n"));
  EXPECT_TRUE(Completes(ended));  // What the script ends with is the job's code.
}

TEST_F(SchedulerFacts, ATaskMayEndAndTheOthersGoOn) {
  const JobId job = Submit({"-w", "n[1-2]", "--ntasks-per-node=1"},
                           "srun --kill-on-bad-exit=0 --wait=0 bash -c '"
                           "[ $SLURM_PROCID = 1 ] && exit 3\n"
                           "until [ -e go ]; do sleep 0.05; done; echo lived'\necho code $?");
  // Long enough for srun to have seen it, because it says so.
  EXPECT_TRUE(Prints(job, "task 1: Exited with exit code 3"));
  EXPECT_THAT(cluster().Output(job), Not(HasSubstr("lived")));
  Write("go", "");
  EXPECT_TRUE(Prints(job, "\ncode 3\n"));
  EXPECT_THAT(cluster().Output(job), HasSubstr("lived\n"));
}

// The signals of a task and of the script, one a line; both end a moment after SIGTERM, so that the
// task would see it twice.
const char kSignals[] =
    "srun bash -c 'trap \"echo CONT >>signals\" CONT; trap \"echo TERM >>signals; told=1\" TERM\n"
    "trap \"echo USR1 >>signals\" USR1; echo ready >>signals\n"
    "while [ -z \"$told\" ]; do sleep 0.05; done; sleep 0.5; sleep 0.5' &\n"
    "trap 'echo batch TERM >>signals; exit 1' TERM; trap 'echo batch USR1 >>signals' USR1\n"
    "while :; do sleep 0.05; done\n";

TEST_F(SchedulerFacts, CancelSendsContAndTerm) {
  const JobId job = Submit({"-N1"}, kSignals);
  EXPECT_TRUE(Appears("signals", "ready"));
  EXPECT_EQ(Run({"scancel", Text(job)}).exit_code, 0);
  EXPECT_TRUE(Reaches(job, {"CANCELLED"}));
  EXPECT_TRUE(Appears("signals", "TERM"));
  EXPECT_TRUE(Appears("signals", "CONT"));
}

TEST_F(SchedulerFacts, ScancelSignalsStepsOrTheScript) {
  const JobId job = Submit({"-N1"}, kSignals);
  EXPECT_TRUE(Appears("signals", "ready"));
  EXPECT_EQ(Run({"scancel", "--signal=USR1", Text(job)}).exit_code, 0);
  EXPECT_TRUE(Appears("signals", "USR1"));
  EXPECT_THAT(File("signals"), Not(HasSubstr("batch")));
  EXPECT_EQ(Run({"scancel", "--batch", "--signal=USR1", Text(job)}).exit_code, 0);
  EXPECT_TRUE(Appears("signals", "batch USR1"));
  EXPECT_EQ(Queue(job, "%T"), "RUNNING");
}

// Notice (CONT, TERM) comes at once, to the steps and not to the script; grace_time later the end.
TEST_F(SchedulerFacts, LongAPreemptedJobIsToldAndRequeued) {
  const JobId job =
      Submit({"-N4", "--requeue", "--open-mode=append"}, std::string(kTwoLives) + kSignals);
  EXPECT_TRUE(Appears("signals", "ready"));
  const auto preemptor = cluster().Preempt("urgent", 4);
  ASSERT_TRUE(preemptor.ok()) << preemptor.status();
  EXPECT_TRUE(Appears("signals", "TERM"));
  EXPECT_TRUE(Reaches(*preemptor, {"RUNNING"}));
  EXPECT_TRUE(Reaches(job, {"PENDING"}));
  EXPECT_EQ(Run({"scancel", Text(*preemptor)}).exit_code, 0);
  EXPECT_TRUE(Completes(job));
  EXPECT_EQ(cluster().JobField(job, "Restarts"), "1");
}

// ---- By the scheduler's own timers: it looks every 30 s ----

TEST_F(SchedulerFacts, LongSignalBeforeTheEndOfTheJob) {
  // With a limit of two minutes the first look after 30 s is early enough for 89 s.
  const JobId steps = Submit({"-N1", "-t", "2", "--signal=USR1@89", "-o", "steps"}, kSignals);
  EXPECT_TRUE(Appears("signals", "ready"));
  const JobId script =
      Submit({"-N1", "-t", "2", "--signal=B:USR1@89"},
             "trap 'echo script USR1 >>script' USR1\nsleep 1000 &\nwait\nsleep 1000 & wait");
  EXPECT_TRUE(Reaches(script, {"RUNNING"}));
  EXPECT_TRUE(SlurmCluster::Await(
      [&] { return File("signals").find("\nUSR1") != std::string::npos; }, absl::Minutes(2)));
  EXPECT_TRUE(SlurmCluster::Await(
      [&] { return File("script").find("script USR1") != std::string::npos; }, absl::Minutes(2)));
  EXPECT_THAT(File("signals"), AllOf(HasSubstr("CONT"), Not(HasSubstr("batch USR1"))));
  EXPECT_EQ(Queue(steps, "%T"), "RUNNING");
}

TEST_F(SchedulerFacts, LongTheTimeLimitEndsScriptAndSteps) {
  const JobId job = Submit({"-N1", "-t", "1"}, kSignals);
  EXPECT_TRUE(Reaches(job, {"TIMEOUT"}, absl::Minutes(3)));
  EXPECT_THAT(File("signals"),
              AllOf(HasSubstr("CONT"), HasSubstr("\nTERM"), HasSubstr("batch TERM")));
  // srun forwards its own: a task may see it twice.
  const std::vector<std::string> lines = SortedLines(File("signals"));
  EXPECT_GE(std::count(lines.begin(), lines.end(), "TERM"), 1);
}

}  // namespace
}  // namespace perdure
