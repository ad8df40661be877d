// Submitting, waiting, changing what waits. What was seen on SLURM 22.05.8; a comment says where
// the manual says less or something else.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/cluster/scheduler_facts.h"

namespace perdure {
namespace {

using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;
using testing::MatchesRegex;
using testing::Not;
using testing::StartsWith;

std::string Text(SlurmCluster::JobId job) { return std::to_string(job); }
// Ends when the case has written the file.
std::string UntilFile(const std::string& name) {
  return "until [ -e " + name + " ]; do sleep 0.05; done\n";
}

TEST_F(SchedulerFacts, ParsablePrintsTheIdAlone) {
  const CommandResult result = Run({"sbatch", "--parsable", "--wrap", "true"});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(result.output, MatchesRegex("[0-9]+\n"));  // A cluster's name only with -M.
  EXPECT_THAT(Run({"sbatch", "--wrap", "true"}).output, StartsWith("Submitted batch job "));
}

TEST_F(SchedulerFacts, AfteranyStartsBehindTheEndHoweverItEnds) {
  const JobId good = Submit({"-N1"}, UntilFile("go"));
  const JobId bad = Submit({"-N1"}, UntilFile("go") + "exit 75");
  const JobId behind_good = Submit({"-N1", "-d", "afterany:" + Text(good)}, "true");
  const JobId behind_bad = Submit({"-N1", "-d", "afterany:" + Text(bad)}, "true");
  // Nobody is held up by one that nobody ever heard of.
  const JobId behind_nobody = Submit({"-N1", "-d", "afterany:999999"}, "true");
  EXPECT_TRUE(Reaches(bad, {"RUNNING"}));
  EXPECT_EQ(Queue(behind_bad, "%T %r"), "PENDING Dependency");
  EXPECT_EQ(Queue(behind_bad, "%E"), "afterany:" + Text(bad) + "(unfulfilled)");
  Write("go", "");
  EXPECT_TRUE(Completes(behind_good));
  EXPECT_TRUE(Completes(behind_bad));
  EXPECT_TRUE(Completes(behind_nobody));
  EXPECT_TRUE(Reaches(bad, {"FAILED"}));
  EXPECT_EQ(cluster().JobField(bad, "ExitCode"), "75:0");
  EXPECT_EQ(Queue(behind_bad, "%E"), "(null)");  // Forgotten once it is fulfilled.
  // Nor by one that is over already.
  EXPECT_TRUE(Completes(Submit({"-N1", "-d", "afterany:" + Text(good)}, "true")));
}

// "," means all of them, "?" any. The manual forbids both in one list; sbatch takes it without a
// word, and one "?" makes all of it "any".
TEST_F(SchedulerFacts, SeveralDependenciesOfOneJob) {
  const JobId first = Submit({"-N1", "-J", "link"}, UntilFile("first"));
  const JobId second = Submit({"-N1", "-J", "other"}, UntilFile("second"));
  const std::string a = "afterany:" + Text(first), b = "afterany:" + Text(second);
  const JobId both = Submit({"-N1", "-d", a + "," + b}, "true");
  const JobId any = Submit({"-N1", "-d", a + "?" + b}, "true");
  // A link of a chain: behind its predecessor by id, and beside nobody of its name.
  const JobId link = Submit({"-N1", "-J", "link", "-d", b + ",singleton"}, "true");
  EXPECT_EQ(Queue(link, "%E"), b + "(unfulfilled),singleton(unfulfilled)");
  const JobId mixed = Submit({"-N1", "-d", a + "," + b + "?singleton"}, "true");
  EXPECT_EQ(Queue(mixed, "%E"), a + "(unfulfilled)?" + b + "(unfulfilled)?singleton(unfulfilled)");
  EXPECT_TRUE(Reaches(second, {"RUNNING"}));
  Write("second", "");
  EXPECT_TRUE(Completes(any));
  EXPECT_TRUE(Reaches(second, {"COMPLETED"}));
  EXPECT_EQ(Queue(both, "%T"), "PENDING");
  EXPECT_EQ(Queue(link, "%T"), "PENDING");
  Write("first", "");
  EXPECT_TRUE(Completes(both));
  EXPECT_TRUE(Completes(link));
}

// By user and name alone; the time of submission decides who is first.
TEST_F(SchedulerFacts, SingletonSerialisesJobsOfOneName) {
  const std::string alone =
      "mkdir taken || echo overlap >>trouble\necho $SLURM_JOB_ID >>order\nsleep 0.3\nrmdir taken";
  std::vector<JobId> jobs;
  for (int i = 0; i < 2; ++i)
    jobs.push_back(Submit({"-N1", "-J", "a chain", "-d", "singleton"}, alone));
  EXPECT_TRUE(Completes(Submit({"-N1", "-J", "another", "-d", "singleton"}, "true")));
  std::string order;
  for (const JobId job : jobs) {
    EXPECT_TRUE(Completes(job));
    order += Text(job) + "\n";
  }
  EXPECT_EQ(File("trouble"), "");
  EXPECT_EQ(File("order"), order);
}

TEST_F(SchedulerFacts, ARangeOfNodesTakesWhatIsThere) {
  ASSERT_EQ(cluster().DrainNode("n4"), absl::OkStatus());
  const JobId job = Submit({"--nodes=2-4"}, UntilFile("go"));
  EXPECT_TRUE(Reaches(job, {"RUNNING"}));
  EXPECT_EQ(Queue(job, "%D %N"), "3 n[1-3]");
  const JobId more = Submit({"--nodes=2-4"}, "true");
  // What is shown of a job that waits is the scheduler's guess of what it will get; the range can
  // be read back only while it has not been looked at.
  const JobId held = Submit({"--hold", "--nodes=2-4"}, "true");
  EXPECT_EQ(cluster().JobField(held, "NumNodes"), "2-4");
  EXPECT_EQ(Queue(held, "%D"), "2");
  Write("go", "");
  EXPECT_TRUE(Completes(more));
}

TEST_F(SchedulerFacts, ExcludedNodesAreNotTaken) {
  const JobId job = Submit({"-N2", "--exclude=n1,n3"}, "true");
  EXPECT_TRUE(Completes(job));
  EXPECT_EQ(Queue(job, "%N"), "n[2,4]");
  // Names that the cluster does not have refuse the whole job: evidence of nodes that were taken
  // out of service must be dropped first.
  const CommandResult unknown = Run({"sbatch", "-x", "n1,gone7", "--wrap", "true"});
  EXPECT_NE(unknown.exit_code, 0);
  EXPECT_THAT(unknown.errors, HasSubstr("Invalid node name"));
}

// All by the owner, who is no administrator.
TEST_F(SchedulerFacts, AnOwnerChangesWhatWaits) {
  const auto user = Somebody();
  const JobId job = SubmitAs(user, {"--hold", "-N4", "-t", "60"}, "true");
  const auto update = [&](const std::string& what) {
    return RunAs(user, {"scontrol", "update", "JobId=" + Text(job), what});
  };
  EXPECT_EQ(update("ExcNodeList=n2,n3").exit_code, 0);
  EXPECT_EQ(cluster().JobField(job, "ExcNodeList"), "n2,n3");  // As it was said.
  EXPECT_EQ(update("NumNodes=1-3").exit_code, 0);
  EXPECT_EQ(cluster().JobField(job, "NumNodes"), "1-3");
  EXPECT_EQ(update("TimeLimit=5").exit_code, 0);
  EXPECT_EQ(cluster().JobField(job, "TimeLimit"), "00:05:00");
  // Higher, too, while it waits; not when it runs (EndAndTimeLeftAreKnown).
  EXPECT_EQ(update("TimeLimit=90").exit_code, 0);
  EXPECT_EQ(update("Dependency=afterany:1").exit_code, 0);
  EXPECT_EQ(update("Comment=for a reason").exit_code, 0);
  EXPECT_EQ(RunAs(user, {"scontrol", "release", Text(job)}).exit_code, 0);
  EXPECT_TRUE(Completes(job));
  EXPECT_EQ(Queue(job, "%N"), "n[1,4]");
}

TEST_F(SchedulerFacts, HoldAndReleaseKeepTheTimeOfSubmission) {
  const auto user = Somebody();
  const JobId first = Submit({"-N4", "-J", "all"}, UntilFile("go"));
  EXPECT_TRUE(Reaches(first, {"RUNNING"}));
  const JobId job = SubmitAs(user, {"-N4"}, "true");
  const std::string submitted = cluster().JobField(job, "SubmitTime");
  EXPECT_EQ(RunAs(user, {"scontrol", "hold", Text(job)}).exit_code, 0);
  // Whoever runs the cluster holds as its administrator, and may do all that follows, too.
  EXPECT_EQ(Queue(job, "%T %r"), user ? "PENDING JobHeldUser" : "PENDING JobHeldAdmin");
  EXPECT_EQ(cluster().JobField(job, "Priority"), "0");
  EXPECT_EQ(RunAs(user, {"scontrol", "release", Text(job)}).exit_code, 0);
  EXPECT_NE(cluster().JobField(job, "Priority"), "0");
  EXPECT_EQ(cluster().JobField(job, "SubmitTime"), submitted);
  // A held predecessor has not ended.
  Write("go", "");
  EXPECT_TRUE(Completes(job));
}

TEST_F(SchedulerFacts, OthersMayDoNothingToAJob) {
  const auto user = Somebody();
  if (!user.has_value()) GTEST_SKIP() << "being somebody else needs root";
  const JobId job = Submit({"--hold", "-J", "mine"}, "true");
  for (const char* verb : {"hold", "release", "requeue"})
    EXPECT_NE(RunAs(user, {"scontrol", verb, Text(job)}).exit_code, 0) << verb;
  EXPECT_NE(RunAs(user, {"scancel", Text(job)}).exit_code, 0);
  // A name means everybody's jobs of that name, so without --me it fails at other people's.
  EXPECT_NE(RunAs(user, {"scancel", "--name", "mine"}).exit_code, 0);
  EXPECT_EQ(RunAs(user, {"scancel", "--me", "--name", "mine"}).exit_code, 0);
  EXPECT_EQ(Queue(job, "%T"), "PENDING");
}

TEST_F(SchedulerFacts, ScancelByNameAndState) {
  const JobId runs = Submit({"-N1", "-J", "run-7"}, UntilFile("go"));
  const JobId waits = Submit({"-N1", "-J", "run-7", "-d", "singleton"}, "true");
  const JobId other = Submit({"-N1", "-J", "run-8", "-d", "afterany:" + Text(runs)}, "true");
  EXPECT_TRUE(Reaches(runs, {"RUNNING"}));
  EXPECT_EQ(Run({"scancel", "--name", "run-7", "--state", "PENDING"}).exit_code, 0);
  EXPECT_TRUE(Reaches(waits, {"CANCELLED"}));
  EXPECT_EQ(Queue(runs, "%T"), "RUNNING");
  Write("go", "");
  EXPECT_TRUE(Completes(other));
}

TEST_F(SchedulerFacts, NamesMayHoldAnything) {
  const std::string name = "a b'c\"d$(touch bad)`touch bad`;|&%j\\é*[1]";
  const JobId job = Submit({"-N1", "-J", name, "--comment", name + " x=y"},
                           "printf '%s' \"$SLURM_JOB_NAME\" >name\n" + UntilFile("go"));
  EXPECT_TRUE(Appears("name", name));
  EXPECT_EQ(File("name"), name);
  EXPECT_EQ(Queue(job, "%j"), name);
  EXPECT_EQ(Queue(job, "%k"), name + " x=y");
  const JobId next = Submit({"-N1", "-J", name, "-d", "singleton"}, "true");
  EXPECT_EQ(Queue(next, "%T"), "PENDING");
  EXPECT_EQ(Run({"squeue", "-h", "--name", name, "-o", "%A"}).output,
            Text(next) + "\n" + Text(job) + "\n");
  // A comma separates names in squeue and scancel, so a name had better have none.
  const JobId comma = Submit({"-N1", "-J", "x,y", "--hold"}, "true");
  EXPECT_EQ(Run({"squeue", "-h", "--name", "x,y", "-o", "%A"}).output, "") << comma;
  Write("go", "");
  EXPECT_TRUE(Completes(next));
  EXPECT_FALSE(std::filesystem::exists(folder() + "/bad"));
}

// Command line before environment before #SBATCH.
TEST_F(SchedulerFacts, SbatchReadsItsVariables) {
  const auto submit = [&](const std::vector<std::string>& options,
                          const std::vector<std::string>& environment) {
    const auto job = cluster().Submit(options, "#!/bin/sh\n#SBATCH -t 3\ntrue",
                                      {.environment = environment, .directory = folder()});
    EXPECT_TRUE(job.ok()) << job.status();
    return job.value_or(0);
  };
  EXPECT_EQ(Queue(submit({"-H"}, {}), "%P %l %j"), "main 3:00 sbatch");
  EXPECT_EQ(Queue(submit({"-H"}, {"SBATCH_TIMELIMIT=4", "SBATCH_PARTITION=urgent",
                                  "SBATCH_JOB_NAME=named"}),
                  "%P %l %j"),
            "urgent 4:00 named");
  EXPECT_EQ(Queue(submit({"-H", "-t", "5", "-J", "mine"},
                         {"SBATCH_TIMELIMIT=4", "SBATCH_JOB_NAME=named"}),
                  "%l %j"),
            "5:00 mine");
  // SBATCH_ACCOUNT, _CONSTRAINT and _QOS are read likewise, but mean nothing without a database.
}

TEST_F(SchedulerFacts, ExportChoosesTheEnvironment) {
  const std::string print = "echo ${A-none} ${B-none} ${SLURM_CONF:+conf}";
  const auto submit = [&](const std::string& option) {
    const auto job = cluster().Submit({"-N1", option}, print + "\nsrun /bin/sh -c '" + print + "'",
                                      {.environment = {"A=1", "B=2"}, .directory = folder()});
    EXPECT_TRUE(job.ok()) << job.status();
    return job.value_or(0);
  };
  const JobId all = submit("--export=ALL"), one = submit("--export=A"),
              more = submit("--export=ALL,B=3"), none = submit("--export=NONE");
  for (const JobId job : {all, one, more, none}) EXPECT_TRUE(Completes(job));
  EXPECT_EQ(cluster().Output(all), "1 2 conf\n1 2 conf\n");
  EXPECT_EQ(cluster().Output(more), "1 3 conf\n1 3 conf\n");
  // Here srun has no PATH either: programs must be named whole.
  EXPECT_EQ(cluster().Output(one), "1 none conf\n1 none conf\n");
  EXPECT_EQ(cluster().Output(none), "none none conf\nnone none conf\n");
}

TEST_F(SchedulerFacts, MailIsSentForWhatIsAskedFor) {
  const JobId job = Submit({"-N1", "--mail-type=END,FAIL,REQUEUE,TIME_LIMIT_80",
                            "--mail-user=someone@example.org", "-J", "letter"},
                           "exit 93");
  EXPECT_TRUE(Reaches(job, {"FAILED"}));
  EXPECT_TRUE(SlurmCluster::Await([&] { return !cluster().Mails().empty(); }));
  EXPECT_THAT(cluster().Mails(), AllOf(HasSubstr("Name=letter Failed"), HasSubstr("ExitCode 93"),
                                       HasSubstr("someone@example.org")));
}

// Where the site says nothing else (EnforcePartLimits), what exceeds a limit is not refused: it
// waits for ever, and says why.
TEST_F(SchedulerFacts, LimitsOfAPartition) {
  EXPECT_EQ(Queue(Submit({"-H"}, "true"), "%l"), "10:00");                // DefaultTime.
  EXPECT_EQ(Queue(Submit({"-H", "-p", "small"}, "true"), "%l"), "5:00");  // MaxTime.
  const JobId longer = Submit({"-p", "small", "-t", "6"}, "true");
  const JobId wider = Submit({"-p", "small", "-N3"}, "true");
  const auto reason = [&](JobId job, const std::string& word) {
    return SlurmCluster::Await([&] { return Queue(job, "%T %r") == "PENDING " + word; });
  };
  EXPECT_TRUE(reason(longer, "PartitionTimeLimit")) << Queue(longer, "%T %r");
  EXPECT_TRUE(reason(wider, "PartitionNodeLimit")) << Queue(wider, "%T %r");
  // More than the cluster has, likewise.
  const JobId widest = Submit({"-N5"}, "true");
  EXPECT_TRUE(reason(widest, "PartitionNodeLimit")) << Queue(widest, "%T %r");
  const std::string shown = Run({"scontrol", "show", "partition", "small", "-o"}).output;
  EXPECT_THAT(shown, AllOf(HasSubstr("MaxTime=00:05:00"), HasSubstr("MaxNodes=2")));
}

TEST_F(SchedulerFacts, EndAndTimeLeftAreKnown) {
  const auto user = Somebody();
  const JobId job = SubmitAs(user, {"-N1", "-t", "7"},
                             "squeue -h -j $SLURM_JOB_ID -o '%e %L' >left\n"
                             "echo ${SLURM_JOB_END_TIME-unset} >>left\n" +
                                 UntilFile("go"));
  EXPECT_TRUE(Appears("left", "\n"));
  // Local time without a zone. 22.05 tells the job itself nothing.
  EXPECT_TRUE(Appears("left", "unset"));
  EXPECT_THAT(File("left"), MatchesRegex("20[0-9-]+T[0-9:]+ ([67]:[0-5][0-9])\nunset\n"));
  // Lower, by the owner, while it runs: the end moves.
  const std::string end = Queue(job, "%e");
  const auto limit = [&](const std::string& minutes) {
    return RunAs(user, {"scontrol", "update", "JobId=" + Text(job), "TimeLimit=" + minutes});
  };
  EXPECT_EQ(limit("3").exit_code, 0);
  EXPECT_LT(Queue(job, "%e"), end);
  if (user.has_value()) EXPECT_NE(limit("5").exit_code, 0);  // An administrator may raise it.
  Write("go", "");
  EXPECT_TRUE(Completes(job));
}

}  // namespace
}  // namespace perdure
