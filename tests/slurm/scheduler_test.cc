// The Scheduler against what a real Slurm 22.05 answered: each test also checks that exactly the
// recorded commands are run.
#include "launch/slurm/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/base/status.h"
#include "tests/slurm/recorded_command.h"

namespace perdure {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

Scheduler Recorded(std::vector<std::string> names) {
  return Scheduler(Replay(std::move(names)), {.separator = kRecordedSeparator, .user = "0"});
}

JobView Job(const std::string& record, const std::string& job) {
  const absl::StatusOr<JobView> view = Recorded({record}).Job(job);
  EXPECT_TRUE(view.ok()) << record << ": " << view.status();
  return view.value_or(JobView());
}

// ---- jobs

TEST(Scheduler, RunningJob) {
  const JobView job = Job("running", "1");
  EXPECT_EQ(job.id, 1);
  EXPECT_EQ(job.array_job_id, 0);
  EXPECT_EQ(job.name, "run-a");
  EXPECT_EQ(job.user, "root");
  EXPECT_EQ(job.state, JobState::kRunning);
  EXPECT_EQ(job.state_word, "RUNNING");
  EXPECT_EQ(job.reason, "");
  EXPECT_EQ(job.partition, "main");
  EXPECT_EQ(job.account, "");
  EXPECT_EQ(job.qos, "");
  EXPECT_EQ(job.nodes_min, 2);
  EXPECT_EQ(job.nodes_max, 2);
  EXPECT_THAT(job.nodes, ElementsAre("n1", "n2"));
  EXPECT_EQ(job.batch_host, "n1");
  EXPECT_FALSE(job.batch_host_lost());
  EXPECT_EQ(job.time_limit, absl::Minutes(30));
  ASSERT_TRUE(job.start && job.end && job.submitted && job.eligible);
  EXPECT_EQ(*job.end - *job.start, absl::Minutes(30));
  EXPECT_LE(*job.submitted, *job.start);
  EXPECT_GT(job.priority, 0);
  EXPECT_EQ(job.dependency, "");
  EXPECT_THAT(job.excluded, IsEmpty());
  EXPECT_EQ(job.restarts, 0);
  EXPECT_EQ(job.requeue, true);
  ASSERT_TRUE(job.exit.has_value());
  EXPECT_EQ(*job.exit, JobExit());
}

TEST(Scheduler, PendingJobWithDependencyRangeAndExclusion) {
  const JobView job = Job("pending", "2");
  EXPECT_EQ(job.state, JobState::kPending);
  EXPECT_EQ(job.reason, "Dependency");
  EXPECT_EQ(job.dependency, "afterany:1(unfulfilled),singleton(unfulfilled)");
  EXPECT_EQ(job.nodes_min, 2);
  EXPECT_EQ(job.nodes_max, 3);
  EXPECT_THAT(job.nodes, IsEmpty());
  EXPECT_EQ(job.batch_host, "");
  EXPECT_THAT(job.excluded, ElementsAre("n1", "n3"));
  EXPECT_EQ(job.time_limit, absl::Hours(26) + absl::Minutes(30));
  EXPECT_TRUE(job.submitted.has_value());
  EXPECT_EQ(job.eligible, std::nullopt);
  EXPECT_EQ(job.start, std::nullopt);
  EXPECT_EQ(job.end, std::nullopt);
}

TEST(Scheduler, HeldAndNeverStartedJobs) {
  const JobView held = Job("held", "3");
  EXPECT_EQ(held.name, "held, one");
  EXPECT_EQ(held.reason, "JobHeldUser");
  EXPECT_EQ(held.priority, 0);
  EXPECT_EQ(held.nodes_min, 4);
  EXPECT_EQ(held.nodes_max, 4);
  // sbatch had not refused it, and it waits for ever.
  const JobView never = Job("never", "5");
  EXPECT_EQ(never.reason, "PartitionTimeLimit");
  EXPECT_EQ(never.account, "alpha");
  EXPECT_EQ(never.partition, "big");
  EXPECT_EQ(never.time_limit, absl::InfiniteDuration());
}

TEST(Scheduler, Arrays) {
  // Its answer has several lines, and the first of them might be the name's.
  const absl::StatusOr<JobView> view = Recorded({"array", "array-asked"}).Job("4");
  ASSERT_TRUE(view.ok()) << view.status();
  const JobView& waiting = *view;
  EXPECT_EQ(waiting.id, 4);
  EXPECT_EQ(waiting.array_job_id, 4);
  EXPECT_EQ(waiting.array_task, "1-53%1");
  EXPECT_EQ(waiting.state, JobState::kPending);
  EXPECT_EQ(waiting.reason, "JobArrayTaskLimit");
  // The same answer has the one that runs.
  const JobView running = Job("array-running", "4_0");
  EXPECT_EQ(running.id, 7);
  EXPECT_EQ(running.array_job_id, 4);
  EXPECT_EQ(running.array_task, "0");
  EXPECT_EQ(running.state, JobState::kRunning);
  EXPECT_THAT(running.nodes, ElementsAre("n4"));
  const JobView pending = Job("array-pending", "4_3");
  EXPECT_EQ(pending.array_job_id, 4);
  EXPECT_EQ(pending.array_task, "3");
  EXPECT_EQ(pending.state, JobState::kPending);
}

TEST(Scheduler, ANameMayHoldAnything) {
  const absl::StatusOr<JobView> job = Recorded({"evil-name", "evil-name-asked"}).Job("6");
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->name,
            "evil UserId=x(0) JobState=FAILED\nJobId=1 JobName=z UserId=root(0) \x1f<~|>");
  EXPECT_EQ(job->id, 6);
  EXPECT_EQ(job->user, "root");
  EXPECT_EQ(job->state, JobState::kPending);
  EXPECT_EQ(job->dependency, "afterany:1(unfulfilled)");
}

TEST(Scheduler, ANameMayHoldAWholeRecord) {
  // Job 6 is named like the rest of its record, and then the head of another job's.
  const std::string completed = ReadRecord("22.05/completed").result.output;
  const std::string rest = completed.substr(completed.find(" UserId="));
  const std::string name = "x" + rest.substr(0, rest.size() - 1) + "\nJobId=7 JobName=y";
  std::string text = ReadRecord("22.05/pending").result.output;
  text.replace(0, text.find(" UserId="), "JobId=6 JobName=" + name);
  const auto runner = [&](const Invocation& command) -> absl::StatusOr<InvocationResult> {
    if (command.argv[0] == "scontrol") return InvocationResult{.output = text};
    return InvocationResult{.output = "6<~|~>" + name + "<~|~>\n"};
  };
  const auto job = Scheduler(runner, {.separator = kRecordedSeparator}).Job("6");
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->name, name);
  EXPECT_EQ(job->state, JobState::kPending);
}

TEST(Scheduler, EndedJobs) {
  const JobView failed = Job("failed", "8");
  EXPECT_EQ(failed.state, JobState::kFailed);
  EXPECT_EQ(failed.reason, "NonZeroExitCode");
  EXPECT_EQ(failed.exit->code, 3);
  EXPECT_EQ(failed.exit->signal, 0);
  EXPECT_EQ(Job("completed", "9").state, JobState::kCompleted);
  EXPECT_EQ(Job("cancelled", "1").state, JobState::kCancelled);
  const JobView lost = Job("node-failed", "11");
  EXPECT_EQ(lost.state, JobState::kNodeFail);
  EXPECT_EQ(lost.reason, "NodeDown");
  EXPECT_EQ(lost.exit->signal, 15);
  EXPECT_EQ(lost.requeue, false);
  EXPECT_THAT(lost.nodes, ElementsAre("n2"));
  const JobView slow = Job("timed-out", "13");
  EXPECT_EQ(slow.state, JobState::kTimeout);
  EXPECT_EQ(slow.reason, "TimeLimit");
  for (const char* record : {"failed", "completed", "cancelled", "node-failed", "timed-out"}) {
    const JobView job = Job(record, ReadRecord("22.05/" + std::string(record)).argv.back());
    EXPECT_TRUE(IsOver(job.state)) << record;
    EXPECT_TRUE(job.start && job.end && *job.start <= *job.end) << record;
  }
}

TEST(Scheduler, RequeuedJobs) {
  const JobView again = Job("requeued", "12");
  EXPECT_EQ(again.state, JobState::kPending);
  EXPECT_EQ(again.reason, "BeginTime");
  EXPECT_EQ(again.restarts, 1);
  EXPECT_THAT(again.nodes, IsEmpty());
  EXPECT_GT(*again.eligible, *again.submitted);
  // Its range is not shown before it is looked at again.
  EXPECT_EQ(again.nodes_max, 0);
  const JobView by_hand = Job("requeued-by-hand", "15");
  EXPECT_EQ(by_hand.state, JobState::kCompleting);
  EXPECT_EQ(by_hand.restarts, 1);
  EXPECT_FALSE(IsOver(by_hand.state));
}

TEST(Scheduler, ALostBatchHostIsSeen) {
  const JobView job = Job("batch-host-lost", "10");
  EXPECT_EQ(job.state, JobState::kRunning);
  EXPECT_EQ(job.nodes_min, 3);
  EXPECT_EQ(job.nodes.size(), 3U);
  EXPECT_TRUE(job.batch_host_lost());
  const JobView ended = Job("batch-host-lost-cancelled", "10");
  EXPECT_TRUE(IsOver(ended.state));
  EXPECT_FALSE(ended.batch_host_lost());
}

TEST(Scheduler, JobsByName) {
  const absl::StatusOr<std::vector<JobView>> jobs = Recorded({"jobs"}).JobsNamed("run-a");
  ASSERT_TRUE(jobs.ok()) << jobs.status();
  ASSERT_EQ(jobs->size(), 2U);
  // squeue says the same as scontrol, less what it does not know.
  JobView running = Job("running", "1"), pending = Job("pending", "2");
  for (JobView* job : {&running, &pending}) {
    job->restarts = std::nullopt;
    job->exit = std::nullopt;
    job->requeue = std::nullopt;
    job->eligible = std::nullopt;
  }
  pending.nodes_max = 0;
  EXPECT_EQ((*jobs)[0], running);
  EXPECT_EQ((*jobs)[1], pending);
}

TEST(Scheduler, JobsByAnyName) {
  const auto held = Recorded({"jobs"}).JobsNamed("held, one");
  ASSERT_TRUE(held.ok() && held->size() == 1);
  EXPECT_EQ(held->front().id, 3);
  const auto evil = Recorded({"jobs"}).JobsNamed(
      "evil UserId=x(0) JobState=FAILED\nJobId=1 JobName=z UserId=root(0) \x1f<~|>");
  ASSERT_TRUE(evil.ok() && evil->size() == 1);
  EXPECT_EQ(evil->front().id, 6);
  const auto array = Recorded({"jobs"}).JobsNamed("arr");
  ASSERT_TRUE(array.ok() && array->size() == 2);
  EXPECT_EQ(array->front().array_task, "1-53%1");
  EXPECT_EQ(array->back().id, 7);
  EXPECT_EQ(array->back().array_job_id, 4);
  const auto none = Recorded({"jobs"}).JobsNamed("nobody");
  ASSERT_TRUE(none.ok());
  EXPECT_THAT(*none, IsEmpty());
}

TEST(Scheduler, JobsOfAnAccountingCluster) {
  Scheduler scheduler = Recorded({"acct-jobs"});
  const auto jobs = scheduler.JobsNamed("wrap");
  ASSERT_TRUE(jobs.ok()) << jobs.status();
  EXPECT_EQ(jobs->size(), 6U);
  EXPECT_EQ((*jobs)[3].qos, "long");
  EXPECT_EQ((*jobs)[3].account, "alpha");
  EXPECT_EQ((*jobs)[5].time_limit, absl::InfiniteDuration());
}

// ---- what is told

TEST(Scheduler, Submits) {
  const absl::StatusOr<int64_t> id =
      Recorded({"submitted"})
          .Submit({.options = {"-N1", "-J", "fails", "-o", "/dev/null", "--wrap", "exit 3"}});
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_EQ(*id, 8);
}

TEST(Scheduler, TellsOfPendingJobs) {
  const std::vector<std::string> nodes = {"n4", "n1", "n2"};
  EXPECT_TRUE(Recorded({"hold"}).Hold("14").ok());
  EXPECT_TRUE(Recorded({"release"}).Release("14").ok());
  EXPECT_TRUE(Recorded({"exclude"}).SetExcludedNodes("14", nodes).ok());
  EXPECT_TRUE(Recorded({"exclude-none"}).SetExcludedNodes("14", {}).ok());
  EXPECT_TRUE(Recorded({"nodes-range"}).SetNumNodes("14", 2, 4).ok());
  const JobView changed = Job("nodes-range-set", "14");
  EXPECT_EQ(changed.nodes_min, 2);
  EXPECT_EQ(changed.nodes_max, 4);
  EXPECT_TRUE(Recorded({"limit"}).SetTimeLimit("14", absl::Hours(2)).ok());
  EXPECT_TRUE(Recorded({"dependency"}).SetDependency("14", "afterany:12").ok());
  EXPECT_TRUE(Recorded({"dependency-none"}).SetDependency("14", "").ok());
  EXPECT_TRUE(Recorded({"requeue-running"}).Requeue("15").ok());
  EXPECT_TRUE(Recorded({"cancel-named"}).CancelPendingNamed("held, one").ok());
}

TEST(Scheduler, CancellingWhatIsGoneIsFine) {
  EXPECT_TRUE(Recorded({"cancel-ended"}).Cancel("9").ok());
  EXPECT_TRUE(Recorded({"unknown-cancel"}).Cancel("99999").ok());
}

// ---- errors, by what a caller does next

using Code = absl::StatusCode;

void Expect(const absl::Status& status, Code code, const std::string& words) {
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(Message(status), HasSubstr(words));
}

TEST(Scheduler, UnknownJobs) {
  Expect(Recorded({"unknown-job"}).Job("99999").status(), Code::kNotFound,
         "'scontrol -o -a show job 99999' ended with code 1 and said "
         "'slurm_load_jobs error: Invalid job id specified'");
  Expect(Recorded({"unknown-hold"}).Hold("99999"), Code::kNotFound, "Invalid job id specified");
  Expect(Recorded({"unknown-element"}).Job("4_99").status(), Code::kNotFound, "Job 4_99 not found");
  // Forgotten between the answer and the question for its name.
  Scheduler forgetful([](const Invocation& command) -> absl::StatusOr<InvocationResult> {
    return ReadRecord(command.argv[0] == "squeue" ? "22.05/unknown-name" : "22.05/evil-name")
        .result;
  });
  Expect(forgetful.Job("6").status(), Code::kNotFound, "squeue");
}

TEST(Scheduler, OthersJobs) {
  const std::vector<std::string> node = {"n1"};
  Expect(Recorded({"stranger-updates"}).SetExcludedNodes("3", node), Code::kPermissionDenied,
         "Invalid user id for job 3");
  Expect(Recorded({"stranger-cancels"}).Cancel("3"), Code::kPermissionDenied, "permission denied");
  Expect(Recorded({"stranger-requeues"}).Requeue("12"), Code::kPermissionDenied,
         "permission denied");
  // Also its owner may not go beyond the partition.
  Expect(Recorded({"limit-too-long"}).SetTimeLimit("14", absl::Hours(9 * 24)),
         Code::kPermissionDenied, "permission denied");
}

TEST(Scheduler, JobsInAnotherState) {
  const std::vector<std::string> node = {"n1"};
  Expect(Recorded({"exclude-ended"}).SetExcludedNodes("9", node), Code::kFailedPrecondition,
         "already finished");
  Expect(Recorded({"hold-ended"}).Hold("9"), Code::kFailedPrecondition, "already finished");
  Expect(Recorded({"requeue-pending"}).Requeue("14"), Code::kFailedPrecondition, "pending");
}

TEST(Scheduler, RefusedInSlurmsWords) {
  const std::vector<std::string> node = {"zz9"};
  Expect(Recorded({"exclude-unknown"}).SetExcludedNodes("14", node), Code::kInvalidArgument,
         "Invalid node name specified for job 14");
  Expect(Recorded({"dependency-wrong"}).SetDependency("14", "nonsense"), Code::kInvalidArgument,
         "Job dependency problem");
  const std::pair<const char*, const char*> refused[] = {
      {"refused-partition", "invalid partition specified: nope"},
      {"refused-nodes", "Node count specification invalid"},
      {"refused-option", "unrecognized option '--frobnicate'"},
      {"refused-dependency", "Job dependency problem"},
      {"refused-memory", "Memory specification can not be satisfied"},
      {"acct-refused-nodes", "More processors requested than permitted"},
      {"acct-refused-limit", "Requested time limit is invalid"},
      {"acct-refused-submit", "QOSMaxSubmitJobPerUserLimit"},
      {"acct-refused-account", "Invalid account or account/partition combination"},
      {"acct-refused-qos", "Invalid qos specification"}};
  for (const auto& [record, words] : refused) {
    const std::vector<std::string> argv = ReadRecord("22.05/" + std::string(record)).argv;
    Submission submission{.options = {argv.begin() + 2, argv.end()}};
    Expect(Recorded({record}).Submit(submission).status(), Code::kInvalidArgument, words);
  }
  Expect(Recorded({"refused-file"}).Submit({.script_path = "/nowhere/job.sh"}).status(),
         Code::kInvalidArgument, "Unable to open file /nowhere/job.sh");
}

TEST(Scheduler, AControllerThatDoesNotAnswer) {
  const std::vector<std::string> node = {"n1"};
  const char* const words = "try again later";
  Expect(Recorded({"away-job"}).Job("9").status(), Code::kUnavailable, words);
  Expect(Recorded({"away-jobs"}).JobsNamed("x").status(), Code::kUnavailable, words);
  Expect(Recorded({"away-cancel"}).Cancel("9"), Code::kUnavailable, words);
  Expect(Recorded({"away-nodes"}).Nodes().status(), Code::kUnavailable, words);
  Expect(Recorded({"away-update"}).SetExcludedNodes("9", node), Code::kUnavailable, words);
  Expect(Recorded({"away-submit"}).Submit({.options = {"-N1", "--wrap", "true"}}).status(),
         Code::kUnavailable, words);
  Expect(Recorded({"acct-away-history"}).History(absl::FromUnixSeconds(86400), "").status(),
         Code::kUnavailable, words);
  Expect(Recorded({"acct-away-qos"}).Qos().status(), Code::kUnavailable, words);
}

TEST(Scheduler, NoAccounting) {
  const char* const words = "no accounting database";
  Expect(Recorded({"no-qos"}).Qos().status(), Code::kUnimplemented, words);
  Expect(Recorded({"no-history"}).History(absl::FromUnixSeconds(86400), "").status(),
         Code::kUnimplemented, words);
}

TEST(Scheduler, NoSlurmHere) {
  Expect(Recorded({"no-cluster"}).JobsNamed("x").status(), Code::kFailedPrecondition,
         "belongs to no Slurm cluster");
  Scheduler without([](const Invocation&) -> absl::StatusOr<InvocationResult> {
    return NotFound("there is no program 'squeue' in PATH");
  });
  Expect(without.JobsNamed("x").status(), Code::kFailedPrecondition, "no program 'squeue'");
}

TEST(Scheduler, ATimeOutMaySubmitAllTheSame) {
  Scheduler slow([](const Invocation&) -> absl::StatusOr<InvocationResult> {
    return DeadlineExceeded("'sbatch' did not end");
  });
  Expect(slow.Hold("3"), Code::kUnavailable, "did not end");
  Expect(slow.Submit({.script = "#!/bin/sh\n"}).status(), Code::kUnavailable,
         "may have been queued all the same");
}

TEST(Scheduler, WhatIsNoJobIsNotAsked) {
  Scheduler scheduler = Recorded({});
  for (const char* job : {"", "1,2", "-u", "1 2", "1_", "_1", "1_2_3", "1.0", "0x1", "１"}) {
    Expect(scheduler.Cancel(job), Code::kInvalidArgument, "is no job's id");
    Expect(scheduler.Hold(job), Code::kInvalidArgument, "is no job's id");
    Expect(scheduler.Release(job), Code::kInvalidArgument, "is no job's id");
    Expect(scheduler.Requeue(job), Code::kInvalidArgument, "is no job's id");
    Expect(scheduler.SetDependency(job, ""), Code::kInvalidArgument, "is no job's id");
    Expect(scheduler.Job(job).status(), Code::kInvalidArgument, "is no job's id");
  }
  Expect(scheduler.CancelPendingNamed(""), Code::kInvalidArgument, "name is empty");
  Expect(scheduler.JobsNamed("").status(), Code::kInvalidArgument, "name is empty");
  Expect(scheduler.SetNumNodes("3", 8, 4), Code::kInvalidArgument, "8 to 4 nodes");
  Expect(scheduler.SetNumNodes("3", 0, 4), Code::kInvalidArgument, "0 to 4 nodes");
  Expect(scheduler.SetTimeLimit("3", absl::ZeroDuration()), Code::kInvalidArgument, "time limit");
  const std::vector<std::string> nodes = {"n[1-2]"};
  Expect(scheduler.SetExcludedNodes("3", nodes), Code::kInvalidArgument,
         "'n[1-2]' is no node's name");
}

// ---- the site

TEST(Scheduler, Partitions) {
  const auto parts = Recorded({"partitions"}).Partitions();
  ASSERT_TRUE(parts.ok()) << parts.status();
  ASSERT_EQ(parts->size(), 3U);
  const PartitionView &main = (*parts)[0], &big = (*parts)[1], &closed = (*parts)[2];
  EXPECT_EQ(main.name, "main");
  EXPECT_TRUE(main.is_default);
  EXPECT_EQ(main.state, "UP");
  EXPECT_EQ(main.time_max, absl::Hours(20));
  EXPECT_EQ(main.time_default, absl::Minutes(10));
  EXPECT_EQ(main.nodes_min, 0);
  EXPECT_EQ(main.nodes_max, std::nullopt);
  EXPECT_EQ(main.nodes_total, 4);
  EXPECT_THAT(main.nodes, ElementsAre("n1", "n2", "n3", "n4"));
  EXPECT_EQ(main.accounts, std::nullopt);
  EXPECT_EQ(main.qos_allowed, std::nullopt);
  EXPECT_EQ(main.qos, "");
  EXPECT_EQ(main.preempt_mode, "OFF");
  EXPECT_EQ(main.over_time_limit, absl::ZeroDuration());
  EXPECT_FALSE(big.is_default);
  EXPECT_EQ(big.time_max, absl::Hours(48));
  EXPECT_EQ(big.time_default, std::nullopt);
  EXPECT_EQ(big.nodes_min, 2);
  EXPECT_EQ(big.nodes_max, 4);
  EXPECT_THAT(big.nodes, ElementsAre("f08", "f09", "f10", "f11", "f12"));
  EXPECT_EQ(big.accounts, (std::vector<std::string>{"alpha", "beta"}));
  EXPECT_EQ(big.qos_allowed, (std::vector<std::string>{"normal", "long"}));
  EXPECT_EQ(closed.state, "DOWN");
  EXPECT_EQ(closed.time_max, absl::InfiniteDuration());
  EXPECT_EQ(closed.accounts_denied, (std::vector<std::string>{"gamma"}));
  EXPECT_EQ(closed.over_time_limit, absl::InfiniteDuration());
}

TEST(Scheduler, OnePartition) {
  const auto big = Recorded({"partitions"}).Partition("big");
  ASSERT_TRUE(big.ok());
  EXPECT_EQ(big->name, "big");
  Expect(Recorded({"partitions"}).Partition("huge").status(), Code::kNotFound,
         "no partition 'huge'; there are: main, big, closed");
}

TEST(Scheduler, Qos) {
  const auto all = Recorded({"acct-qos"}).Qos();
  ASSERT_TRUE(all.ok()) << all.status();
  ASSERT_EQ(all->size(), 2U);
  QosView normal;
  normal.name = "normal";
  normal.preempt_mode = "cluster";
  EXPECT_EQ((*all)[0], normal);
  const QosView& qos = (*all)[1];
  EXPECT_EQ(qos.name, "long");
  EXPECT_EQ(qos.priority, 10);
  EXPECT_EQ(qos.wall_max, absl::Hours(100));
  EXPECT_EQ(qos.job_max, (ResourceLimits{.nodes = 3, .gpus = 64, .cpus = std::nullopt}));
  EXPECT_EQ(qos.user_max, (ResourceLimits{.nodes = 32, .gpus = 128, .cpus = std::nullopt}));
  EXPECT_EQ(qos.user_jobs_max, 4);
  EXPECT_EQ(qos.user_submit_max, 3);
  EXPECT_EQ(qos.group_max,
            (ResourceLimits{.nodes = 1024, .gpus = std::nullopt, .cpus = std::nullopt}));
  EXPECT_EQ(qos.flags, "DenyOnLimit");
  EXPECT_FALSE(qos.before_partition());
  EXPECT_EQ(qos.preempt_mode, "requeue");
}

TEST(Scheduler, Associations) {
  const auto all = Recorded({"acct-user"}).Associations("root");
  ASSERT_TRUE(all.ok()) << all.status();
  ASSERT_EQ(all->size(), 3U);
  const AssociationView& beta = (*all)[0];
  EXPECT_EQ(beta.user, "root");
  EXPECT_EQ(beta.default_account, "root");
  EXPECT_EQ(beta.cluster, "acct");
  EXPECT_EQ(beta.account, "beta");
  EXPECT_EQ(beta.partition, "main");
  EXPECT_EQ(beta.default_qos, "long");
  EXPECT_THAT(beta.qos, ElementsAre("long", "normal"));
  EXPECT_EQ(beta.wall_max, std::nullopt);
  EXPECT_EQ(beta.job_max, (ResourceLimits{.nodes = 2, .gpus = std::nullopt, .cpus = 64}));
  EXPECT_EQ(beta.jobs_max, std::nullopt);
  EXPECT_EQ(beta.submit_max, 1);
  EXPECT_EQ(beta.group_max,
            (ResourceLimits{.nodes = std::nullopt, .gpus = 16, .cpus = std::nullopt}));
  const AssociationView& alpha = (*all)[1];
  EXPECT_EQ(alpha.partition, "");
  EXPECT_EQ(alpha.default_qos, "");
  EXPECT_EQ(alpha.wall_max, absl::Hours(10)) << "the account's";
  EXPECT_EQ(alpha.jobs_max, 7);
  const auto nobody = Recorded({"acct-no-user"}).Associations("nobody");
  ASSERT_TRUE(nobody.ok()) << nobody.status();
  EXPECT_THAT(*nobody, IsEmpty());
}

TEST(Scheduler, Config) {
  const auto config = Recorded({"config"}).Config();
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->version, "22.05.8");
  EXPECT_EQ(config->cluster, "plain");
  EXPECT_EQ(config->kill_wait, absl::Seconds(5));
  EXPECT_TRUE(config->job_requeue);
  EXPECT_EQ(config->array_size_max, 1001);
  EXPECT_EQ(config->slurmd_timeout, absl::Seconds(15));
  EXPECT_EQ(config->job_age_min, absl::Seconds(3600));
  EXPECT_EQ(config->accounting, "accounting_storage/none");
  EXPECT_EQ(config->preempt_mode, "OFF");
  EXPECT_EQ(config->over_time_limit, absl::ZeroDuration());
  const SchedulerConfig with = *Recorded({"acct-config"}).Config();
  EXPECT_EQ(with.accounting, "accounting_storage/slurmdbd");
  EXPECT_EQ(with.enforced, "associations,limits,qos,safe");
}

TEST(Scheduler, Nodes) {
  const auto nodes = Recorded({"nodes"}).Nodes();
  ASSERT_TRUE(nodes.ok()) << nodes.status();
  ASSERT_EQ(nodes->size(), 9U);
  const NodeView& unbuilt = nodes->front();
  EXPECT_EQ(unbuilt.name, "f08");
  EXPECT_EQ(unbuilt.state, "down");
  EXPECT_EQ(unbuilt.marks, "*");
  EXPECT_EQ(unbuilt.reason, "not built");
  EXPECT_TRUE(unbuilt.down());
  EXPECT_EQ((*nodes)[5].reason, "Not responding");
  EXPECT_EQ((*nodes)[6].state, "allocated");
  EXPECT_EQ((*nodes)[6].reason, "");
  EXPECT_FALSE((*nodes)[6].down());
  const auto drained = Recorded({"nodes-drained"}).Nodes();
  ASSERT_TRUE(drained.ok() && drained->size() == 9);
  EXPECT_EQ((*drained)[7].name, "n3");
  EXPECT_TRUE((*drained)[7].drained());
  EXPECT_EQ((*drained)[7].reason, "bad memory");
}

TEST(Scheduler, History) {
  const absl::Time since = absl::FromUnixSeconds(86400);
  const auto jobs = Recorded({"acct-history"}).History(since, "");
  ASSERT_TRUE(jobs.ok()) << jobs.status();
  std::vector<int64_t> ids;
  for (const PastJob& job : *jobs) ids.push_back(job.id);
  EXPECT_THAT(ids, ElementsAre(1, 2, 4, 5, 6));
  const PastJob &failed = (*jobs)[0], &waited = (*jobs)[1], &lost = (*jobs)[2],
                &cancelled = (*jobs)[3], &pending = (*jobs)[4];
  EXPECT_EQ(failed.nodes, 2);
  EXPECT_EQ(failed.state, JobState::kFailed);
  EXPECT_EQ(failed.exit.code, 3);
  EXPECT_EQ(failed.time_limit, absl::Minutes(5));
  EXPECT_EQ(waited.state, JobState::kCompleted);
  ASSERT_TRUE(waited.waited().has_value());
  EXPECT_EQ(*waited.waited(), *waited.start - *waited.eligible);
  EXPECT_GE(*waited.waited(), absl::Seconds(1));
  EXPECT_EQ(lost.state, JobState::kNodeFail);
  EXPECT_EQ(lost.time_limit, absl::Hours(6));
  // Cancelled before it had begun.
  EXPECT_EQ(cancelled.state, JobState::kCancelled);
  EXPECT_EQ(cancelled.state_word, "CANCELLED by 0");
  EXPECT_EQ(cancelled.start, std::nullopt);
  EXPECT_EQ(cancelled.waited(), std::nullopt);
  EXPECT_EQ(pending.state, JobState::kPending);
  EXPECT_EQ(pending.end, std::nullopt);
  EXPECT_EQ(pending.time_limit, std::nullopt);
  const auto closed = Recorded({"acct-history-closed"}).History(since, "closed");
  ASSERT_TRUE(closed.ok());
  EXPECT_EQ(closed->size(), 1U);
}

// ---- how commands are run

TEST(Scheduler, QuestionsHaveOneLanguageAndClock) {
  Invocation asked;
  Scheduler scheduler([&](const Invocation& command) -> absl::StatusOr<InvocationResult> {
    asked = command;
    return InvocationResult{};
  });
  EXPECT_TRUE(scheduler.JobsNamed("x").ok());
  EXPECT_THAT(asked.environment,
              testing::IsSupersetOf({testing::Pair("LC_ALL", "C"), testing::Pair("TZ", "UTC"),
                                     testing::Pair("SLURM_TIME_FORMAT", "%s")}));
  EXPECT_TRUE(asked.without("SQUEUE_FORMAT"));
  EXPECT_TRUE(asked.without("SACCT_FORMAT"));
  EXPECT_FALSE(asked.without("SLURM_CONF"));
  EXPECT_EQ(asked.timeout, absl::Seconds(90));
}

TEST(Scheduler, JobsGetTheEnvironmentOfTheirUser) {
  Invocation asked;
  const auto runner = [&](const Invocation& command) -> absl::StatusOr<InvocationResult> {
    asked = command;
    return InvocationResult{.output = "7\n"};
  };
  Submission submission{.options = {"--time=1"}, .script = "#!/bin/sh\ntrue\n"};
  EXPECT_EQ(*Scheduler(runner).Submit(submission), 7);
  EXPECT_THAT(asked.argv, ElementsAre("sbatch", "--parsable", "--time=1"));
  EXPECT_EQ(asked.input, "#!/bin/sh\ntrue\n");
  EXPECT_THAT(asked.environment, IsEmpty());
  EXPECT_EQ(asked.without, nullptr);
  EXPECT_EQ(*Scheduler(runner, {.inside_job = true}).Submit(submission), 7);
  ASSERT_NE(asked.without, nullptr);
  for (const char* name : {"SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_CPU_BIND", "SLURMD_NODENAME"})
    EXPECT_TRUE(asked.without(name)) << name;
  for (const char* name : {"SLURM_CONF", "SBATCH_ACCOUNT", "PATH", "SLURM_JWT"})
    EXPECT_FALSE(asked.without(name)) << name;
  EXPECT_TRUE(
      Scheduler(runner)
          .Submit({.options = {"-N1"}, .script_path = "/a/job.sh", .arguments = {"x", "y z"}})
          .ok());
  EXPECT_THAT(asked.argv, ElementsAre("sbatch", "--parsable", "-N1", "/a/job.sh", "x", "y z"));
}

TEST(Scheduler, SeparatorsCannotBeGuessed) {
  std::vector<std::string> formats;
  const auto runner = [&](const Invocation& command) -> absl::StatusOr<InvocationResult> {
    formats.push_back(command.argv.back());
    return InvocationResult{};
  };
  EXPECT_TRUE(Scheduler(runner).JobsNamed("x").ok());
  EXPECT_TRUE(Scheduler(runner).JobsNamed("x").ok());
  EXPECT_NE(formats[0], formats[1]);
  EXPECT_THAT(formats, Each(testing::StartsWith("%A<~")));
}

TEST(SchedulerDeathTest, ProgrammersErrors) {
  EXPECT_DEATH(Scheduler(nullptr), "runner_");
  EXPECT_DEATH(Scheduler(Always({}), {.separator = "%"}), "separator");
  EXPECT_DEATH((void)Scheduler(Always({})).Submit({.script = "#!/bin/sh\n", .script_path = "/x"}),
               "script_path");
}

}  // namespace
}  // namespace perdure
