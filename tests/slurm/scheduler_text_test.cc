#include "launch/slurm/scheduler_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "launch/slurm/slurm_words.h"
#include "runtime/base/status.h"
#include "tests/slurm/recorded_command.h"

namespace perdure {
namespace {

using testing::HasSubstr;

TEST(SchedulerText, States) {
  const std::pair<const char*, JobState> words[] = {
      {"BOOT_FAIL", JobState::kBootFail},
      {"CANCELLED", JobState::kCancelled},
      {"COMPLETED", JobState::kCompleted},
      {"CONFIGURING", JobState::kConfiguring},
      {"COMPLETING", JobState::kCompleting},
      {"DEADLINE", JobState::kDeadline},
      {"FAILED", JobState::kFailed},
      {"NODE_FAIL", JobState::kNodeFail},
      {"OUT_OF_MEMORY", JobState::kOutOfMemory},
      {"PENDING", JobState::kPending},
      {"PREEMPTED", JobState::kPreempted},
      {"RUNNING", JobState::kRunning},
      {"REQUEUED", JobState::kRequeued},
      {"REQUEUE_HOLD", JobState::kRequeueHeld},
      {"RESIZING", JobState::kResizing},
      {"REVOKED", JobState::kRevoked},
      {"SIGNALING", JobState::kSignaling},
      {"SPECIAL_EXIT", JobState::kSpecialExit},
      {"STAGE_OUT", JobState::kStageOut},
      {"STOPPED", JobState::kStopped},
      {"SUSPENDED", JobState::kSuspended},
      {"TIMEOUT", JobState::kTimeout},
      {"CANCELLED by 1000", JobState::kCancelled},
      {"RUNNING+", JobState::kRunning},
      {"EXPEDITING", JobState::kOther},
      {"", JobState::kOther},
      {"running", JobState::kOther},
      {"RUNNINGS", JobState::kOther},
  };
  for (const auto& [word, state] : words) EXPECT_EQ(ParseJobState(word), state) << word;
}

TEST(SchedulerText, OverIsOver) {
  for (const JobState state : {JobState::kBootFail, JobState::kCancelled, JobState::kCompleted,
                               JobState::kDeadline, JobState::kFailed, JobState::kNodeFail,
                               JobState::kOutOfMemory, JobState::kPreempted, JobState::kTimeout})
    EXPECT_TRUE(IsOver(state)) << static_cast<int>(state);
  for (const JobState state :
       {JobState::kCompleting, JobState::kConfiguring, JobState::kPending, JobState::kRequeued,
        JobState::kRequeueHeld, JobState::kResizing, JobState::kRevoked, JobState::kRunning,
        JobState::kSignaling, JobState::kSpecialExit, JobState::kStageOut, JobState::kStopped,
        JobState::kSuspended, JobState::kOther})
    EXPECT_FALSE(IsOver(state)) << static_cast<int>(state);
}

TEST(SchedulerText, Times) {
  EXPECT_EQ(*ParseSlurmTime("1795880655"), absl::FromUnixSeconds(1795880655));
  for (const char* none : {"Unknown", "N/A", "NONE", "None", "(null)", ""})
    EXPECT_EQ(*ParseSlurmTime(none), std::nullopt) << none;
  // What a Slurm prints that does not know SLURM_TIME_FORMAT has no time zone.
  for (const char* wrong : {"2026-11-28T15:43:37", "-5", "12:00", "1795880655 "}) {
    const absl::Status status = ParseSlurmTime(wrong).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << wrong;
    EXPECT_THAT(Message(status), HasSubstr(wrong));
  }
}

TEST(SchedulerText, Durations) {
  EXPECT_EQ(*ParseSlurmDuration("20:00:00"), absl::Hours(20));
  EXPECT_EQ(*ParseSlurmDuration("1-02:03:04"),
            absl::Hours(26) + absl::Minutes(3) + absl::Seconds(4));
  EXPECT_EQ(*ParseSlurmDuration("2:00"), absl::Minutes(2));
  EXPECT_EQ(*ParseSlurmDuration("0:00"), absl::ZeroDuration());
  EXPECT_EQ(*ParseSlurmDuration("UNLIMITED"), absl::InfiniteDuration());
  for (const char* none : {"NONE", "NOT_SET", "INVALID", "Partition_Limit", ""})
    EXPECT_EQ(*ParseSlurmDuration(none), std::nullopt) << none;
  for (const char* wrong : {"20", "1-2", "a:00", "1:2:3:4", "-1:00", "1--1:00", "99999999999:00",
                            "9999999-00:00:00", ":"})
    EXPECT_EQ(ParseSlurmDuration(wrong).status().code(), absl::StatusCode::kInternal) << wrong;
}

TEST(SchedulerText, DurationsForSlurm) {
  EXPECT_EQ(SlurmDuration(absl::Hours(20)), "0-20:00:00");
  EXPECT_EQ(SlurmDuration(absl::Hours(100) + absl::Minutes(7)), "4-04:07:00");
  EXPECT_EQ(SlurmDuration(absl::Seconds(61)), "0-00:02:00");
  EXPECT_EQ(SlurmDuration(absl::Seconds(1)), "0-00:01:00");
  EXPECT_EQ(SlurmDuration(absl::InfiniteDuration()), "UNLIMITED");
}

TEST(SchedulerText, NodeRanges) {
  const std::tuple<const char*, int, int> ranges[] = {
      {"4", 4, 0},     {"4-4", 4, 4},         {"4-8", 4, 8},
      {"1K", 1024, 0}, {"1K-2K", 1024, 2048}, {"1024-1024", 1024, 1024}};
  for (const auto& [text, least, most] : ranges) {
    const absl::StatusOr<NodeRange> range = ParseNodeRange(text);
    ASSERT_TRUE(range.ok()) << range.status();
    EXPECT_EQ(range->least, least) << text;
    EXPECT_EQ(range->most, most) << text;
  }
  for (const char* wrong : {"", "x", "4-", "-4", "4--8", "99999999999", "4K8", "K"})
    EXPECT_EQ(ParseNodeRange(wrong).status().code(), absl::StatusCode::kInternal) << wrong;
}

TEST(SchedulerText, NodeStates) {
  const auto node = [](const std::string& state) {
    const auto nodes = ParseSinfo("n1|" + state + "|none|\n", "|");
    EXPECT_TRUE(nodes.ok()) << nodes.status();
    return nodes.ok() && nodes->size() == 1 ? nodes->front() : NodeView();
  };
  EXPECT_EQ(node("idle~").state, "idle");
  EXPECT_EQ(node("idle~").marks, "~");
  EXPECT_EQ(node("reboot_issued^").state, "reboot_issued");
  for (const char* down : {"down", "down*", "idle*", "fail", "failing", "inval", "unknown"})
    EXPECT_TRUE(node(down).down()) << down;
  for (const char* up :
       {"idle", "mixed-", "allocated+", "draining", "planned", "completing", "maint"})
    EXPECT_FALSE(node(up).down()) << up;
  EXPECT_TRUE(node("drained").drained());
  EXPECT_TRUE(node("draining@").drained());
  EXPECT_FALSE(node("down").drained());
  EXPECT_EQ(ParseSinfo("n1|*|none|\n", "|").status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(ParseSinfo("n 1|idle|none|\n", "|").status().code(), absl::StatusCode::kInternal);
}

TEST(SchedulerText, Submitted) {
  EXPECT_EQ(*ParseSubmitted("123\n"), 123);
  EXPECT_EQ(*ParseSubmitted("123;cluster-1\n"), 123);
  // Some sites put a wrapper in front of sbatch.
  EXPECT_EQ(*ParseSubmitted("Welcome to the machine!\n--> Verifying...OK\n\n123\n"), 123);
  for (const char* wrong :
       {"", "123", "Submitted batch job 123\n", "0\n", "-3\n", ";x\n", "12 3\n"})
    EXPECT_EQ(ParseSubmitted(wrong).status().code(), absl::StatusCode::kInternal) << wrong;
}

TEST(SchedulerText, Errors) {
  using Code = absl::StatusCode;
  // Words of slurm_strerror() and of the commands; the records have more.
  const std::pair<const char*, Code> errors[] = {
      {"slurm_load_jobs error: Socket timed out on send/recv operation\n", Code::kUnavailable},
      {"sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n",
       Code::kUnavailable},
      {"Rate limit exceeded, please retry momentarily\n", Code::kUnavailable},
      {"Slurm backup controller in standby mode\n", Code::kUnavailable},
      {"Job can not be altered now, try again later for job 3\n", Code::kUnavailable},
      {"Job is no longer pending execution for job 3\n", Code::kFailedPrecondition},
      {"Job/step already completing or completed\n", Code::kFailedPrecondition},
      {"Requested operation is presently disabled for job 8\n", Code::kFailedPrecondition},
      {"Only batch jobs are accepted or processed\n", Code::kFailedPrecondition},
      {"sbatch: fatal: Could not establish a configuration source\n", Code::kFailedPrecondition},
      {"something new\n", Code::kInvalidArgument},
      {"", Code::kInvalidArgument},
  };
  for (const auto& [said, code] : errors) {
    const absl::Status status =
        CommandFailure({"scontrol", "hold", "3"}, {.exit_code = 1, .output = {}, .errors = said});
    EXPECT_EQ(status.code(), code) << said;
    EXPECT_THAT(Message(status), HasSubstr("'scontrol hold 3' ended with code 1"));
  }
  // scontrol says of a partition that there is none on its standard output.
  EXPECT_THAT(Message(CommandFailure({"x"}, {.exit_code = 1, .output = "why\n", .errors = {}})),
              HasSubstr("'why'"));
}

TEST(SchedulerText, NamesThatLookLikeFieldsWantTheName) {
  const std::string text = ReadRecord("22.05/evil-name").result.output;
  EXPECT_EQ(ParseScontrolJobs(text, std::nullopt).status().code(),
            absl::StatusCode::kFailedPrecondition);
  const auto other = ParseScontrolJobs(text, "another name");
  EXPECT_EQ(other.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(Message(other.status()), HasSubstr("changed meanwhile"));
}

TEST(SchedulerText, AWrongFieldIsNamed) {
  const std::string text = ReadRecord("22.05/running").result.output;
  const std::pair<const char*, const char*> changes[] = {{"Priority=4294901759", "Priority=high"},
                                                         {"Restarts=0", "Restarts="},
                                                         {"ExitCode=0:0", "ExitCode=0"},
                                                         {"TimeLimit=00:30:00", "TimeLimit=soon"},
                                                         {"NodeList=n[1-2]", "NodeList=n[1-"},
                                                         {"NumNodes=2", "NumNodes=two"},
                                                         {"SubmitTime=", "SubmitTime=x"},
                                                         {"Requeue=1", "Again=1"},
                                                         {"JobState=", "State="},
                                                         {"JobId=", "Id="}};
  for (const auto& [from, to] : changes) {
    std::string changed = text;
    // Of several the last: ReqNodeList= and ExcNodeList= stand before NodeList=.
    const size_t at = changed.rfind(from);
    ASSERT_NE(at, std::string::npos) << from;
    changed.replace(at, std::string(from).size(), to);
    const absl::Status status = ParseScontrolJobs(changed, std::nullopt).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << to;
    EXPECT_THAT(Message(status), HasSubstr("scontrol")) << to;
  }
}

}  // namespace
}  // namespace perdure
