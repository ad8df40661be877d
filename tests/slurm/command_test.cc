#include "launch/slurm/command.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <sstream>

#include "absl/time/clock.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

Invocation Shell(const std::string& script) { return {.argv = {"sh", "-c", script}}; }

InvocationResult ResultOf(const Invocation& command) {
  const absl::StatusOr<InvocationResult> result = RunCommand(command);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.value_or(InvocationResult{.exit_code = -1});
}

TEST(Command, GivesCodeAndBothOutputs) {
  const InvocationResult result = ResultOf(Shell("echo out; echo err >&2; exit 7"));
  EXPECT_EQ(result.exit_code, 7);
  EXPECT_EQ(result.output, "out\n");
  EXPECT_EQ(result.errors, "err\n");
  EXPECT_EQ(ResultOf({.argv = {"true"}}).exit_code, 0);
}

TEST(Command, NoShellReadsTheWords) {
  EXPECT_EQ(ResultOf({.argv = {"printf", "%s|", "$HOME", "a b", "*", ";echo", ""}}).output,
            "$HOME|a b|*|;echo||");
}

TEST(Command, SignalsAreCodesFrom128) {
  EXPECT_EQ(ResultOf(Shell("kill -9 $$")).exit_code, 128 + SIGKILL);
}

TEST(Command, GetsItsInputWhole) {
  // More than a pipe or a socket holds, so that both directions have to go on together.
  std::string input;
  for (int i = 0; i < 200'000; ++i) input += std::to_string(i) + "\n";
  EXPECT_EQ(ResultOf({.argv = {"cat"}, .input = input}).output, input);
  EXPECT_EQ(ResultOf({.argv = {"cat"}}).output, "");
}

TEST(Command, WhoDoesNotReadItsInputIsNoTrouble) {
  EXPECT_EQ(ResultOf({.argv = {"true"}, .input = std::string(8 << 20, 'x')}).exit_code, 0);
  EXPECT_EQ(
      ResultOf({.argv = {"sh", "-c", "exec <&-; echo done"}, .input = std::string(8 << 20, 'x')})
          .output,
      "done\n");
}

TEST(Command, EnvironmentIsOursWithChanges) {
  ASSERT_EQ(::setenv("PERDURE_TEST_A", "ours", 1), 0);
  ASSERT_EQ(::setenv("PERDURE_TEST_B", "ours", 1), 0);
  ASSERT_EQ(::setenv("PERDURE_TEST_C", "ours", 1), 0);
  Invocation command =
      Shell("echo \"$PERDURE_TEST_A.$PERDURE_TEST_B.$PERDURE_TEST_C.$PERDURE_TEST_D\"");
  command.environment = {{"PERDURE_TEST_A", "theirs"}, {"PERDURE_TEST_D", "new"}};
  command.without = [](const std::string& name) { return name == "PERDURE_TEST_B"; };
  EXPECT_EQ(ResultOf(command).output, "theirs..ours.new\n");
}

TEST(Command, StartsWithNoSignalBlockedOrIgnored) {
  sigset_t term, before;
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  ASSERT_EQ(::sigprocmask(SIG_BLOCK, &term, &before), 0);
  const auto handler = ::signal(SIGPIPE, SIG_IGN);
  const InvocationResult result =
      ResultOf({.argv = {"sed", "-n", "s/^Sig\\(Blk\\|Ign\\):\\s*//p", "/proc/self/status"}});
  ::signal(SIGPIPE, handler);
  ::sigprocmask(SIG_SETMASK, &before, nullptr);
  // Two masks in hexadecimal; signals 32 and 33 are the C library's own.
  std::istringstream masks(result.output);
  uint64_t blocked = ~0ULL, ignored = ~0ULL;
  masks >> std::hex >> blocked >> ignored;
  EXPECT_EQ(blocked & 0x7fffffffULL, 0U) << result.output;
  EXPECT_EQ(ignored & 0x7fffffffULL, 0U) << result.output;
}

TEST(Command, AMissingProgramIsNamed) {
  const absl::Status status = RunCommand({.argv = {"perdure-no-such-program", "x"}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(status), HasSubstr("'perdure-no-such-program'"));
  const absl::Status directory = RunCommand({.argv = {"/tmp"}}).status();
  EXPECT_FALSE(directory.ok());
  EXPECT_THAT(Message(directory), HasSubstr("/tmp"));
}

// Waits until all processes of a group have ended. What lost its parent is ours to reap.
void AwaitEndOf(pid_t group) {
  ASSERT_GT(group, 1);
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (::kill(-group, 0) == 0 && absl::Now() < deadline) {
    ::waitpid(-group, nullptr, WNOHANG);
    absl::SleepFor(absl::Milliseconds(2));
  }
  EXPECT_NE(::kill(-group, 0), 0);
  EXPECT_EQ(errno, ESRCH);
}

TEST(Command, TimeOutKillsTheWholeGroup) {
  ASSERT_EQ(::prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
  // The child ignores SIGTERM, closes nothing, and has a child of its own. Its group's number comes
  // by a file, because a time-out gives no output back.
  char path[] = "/tmp/perdure_command_test_XXXXXX";
  const int file = ::mkstemp(path);
  ASSERT_GE(file, 0);
  Invocation command = Shell("trap '' TERM; sleep 1000 & echo words >&2; echo $$ > " +
                          std::string(path) + "; wait; sleep 1000");
  char text[32] = {};
  absl::Status status;
  // On a busy machine it may take longer to get so far.
  for (command.timeout = absl::Milliseconds(100); text[0] == 0; command.timeout *= 2) {
    status = RunCommand(command).status();
    ASSERT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
    ASSERT_GE(::pread(file, text, sizeof text - 1, 0), 0);
  }
  ::close(file);
  ::unlink(path);
  EXPECT_THAT(Message(status), HasSubstr("did not end within"));
  EXPECT_THAT(Message(status), HasSubstr("words"));
  AwaitEndOf(std::atoi(text));
}

TEST(Command, WhoStaysBehindIsKilledAndNotWaitedFor) {
  ASSERT_EQ(::prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
  const InvocationResult result = ResultOf(Shell("sleep 1000 & echo $$"));
  EXPECT_EQ(result.exit_code, 0);
  AwaitEndOf(std::atoi(result.output.c_str()));
}

TEST(Command, OutputIsBounded) {
  const absl::Status status = RunCommand({.argv = {"yes"}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(status), StartsWith("'yes' wrote more than 64 MiB"));
  EXPECT_EQ(RunCommand(Shell("yes >&2")).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(Command, LineIsQuotedForPeople) {
  EXPECT_EQ(CommandLine({"sbatch", "-J", "a b", "--x=1", "", "it's", "n[1-2]"}),
            "sbatch -J 'a b' --x=1 '' 'it'\\''s' 'n[1-2]'");
}

TEST(CommandDeathTest, WantsAProgram) { EXPECT_DEATH((void)RunCommand({}), "argv"); }

}  // namespace
}  // namespace perdure
