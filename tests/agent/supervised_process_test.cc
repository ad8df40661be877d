#include "runtime/agent/supervised_process.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "runtime/agent/process.h"
#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class SupervisedProcessTest : public testing::Test {
 protected:
  SupervisedProcessTest() : loop_(*EventLoop::New()), oom_((Oom(3), OomFile())) {}

  std::string OomFile() const { return directory_.path() + "/memory.events"; }
  void Oom(int count) const {
    std::ofstream(OomFile()) << "low 0\noom 7\noom_kill " << count << "\noom_group_kill 0\n";
  }
  ProcessOptions Shell(const std::string& script) const {
    return {.argv = {"/bin/sh", "-c", script}, .log_path = directory_.path() + "/log"};
  }
  void Start(const ProcessOptions& options,
             absl::Duration unkillable_after = SupervisedProcess::kUnkillableAfter) {
    auto process = SupervisedProcess::Start(loop_.get(), &oom_, options,
                                            {.ended = [this](const ProcessEnd& e) { end_ = e; },
                                             .unkillable = [this] { ++unkillable_; }},
                                            unkillable_after);
    ASSERT_OK(process.status());
    process_ = *std::move(process);
  }
  bool Until(const std::function<bool()>& done) {
    const absl::Time limit = MonotonicNow() + absl::Seconds(60);
    while (!done() && MonotonicNow() < limit)
      loop_->RunOnce(MonotonicNow() + absl::Milliseconds(5));
    return done();
  }
  std::string EndOf(const std::string& script) {
    end_.reset();
    Start(Shell(script));
    EXPECT_TRUE(Until([&] { return end_.has_value(); }));
    return end_->Text();
  }
  std::string Log() const { return Slurp(directory_.path() + "/log"); }
  bool Said(const std::string& word) {
    return Until([&] { return Log().find(word) != std::string::npos; });
  }

  const TestDirectory directory_;
  const std::unique_ptr<EventLoop> loop_;
  OomKills oom_;
  std::optional<ProcessEnd> end_;
  int unkillable_ = 0;
  std::unique_ptr<SupervisedProcess> process_;  // Uses the above.
};

TEST_F(SupervisedProcessTest, ItsEndIsToldWithTheCause) {
  EXPECT_EQ(EndOf("exit 0"), "exited with code 0");
  EXPECT_TRUE(end_->Good());
  EXPECT_FALSE(process_->running());
  EXPECT_EQ(EndOf("exit 93"), "exited with code 93");
  EXPECT_FALSE(end_->Good() || end_->asked);
  EXPECT_EQ(end_->kind, EvidenceKind::kRankCrashed);
  EXPECT_EQ(EndOf("kill -SEGV $$"), "was killed by signal 11 (Segmentation fault)");
  EXPECT_EQ(end_->kind, EvidenceKind::kRankKilled);
  EXPECT_EQ(EndOf("kill -KILL $$"), "was killed by signal 9 (Killed)");
}

TEST_F(SupervisedProcessTest, WantOfMemoryIsNamedOnceForEach) {
  EXPECT_EQ(EndOf("kill -KILL $$"), "was killed by signal 9 (Killed)");
  Oom(4);
  EXPECT_EQ(EndOf("kill -TERM $$"), "was killed by signal 15 (Terminated)");
  EXPECT_EQ(EndOf("kill -KILL $$"), "was killed for want of memory");
  EXPECT_EQ(end_->kind, EvidenceKind::kOutOfMemory);
  EXPECT_EQ(EndOf("kill -KILL $$"), "was killed by signal 9 (Killed)");
  // Whom we have killed ourselves had memory enough.
  Oom(5);
  Start(Shell("echo up; exec sleep 1000"));
  process_->Kill();
  ASSERT_TRUE(Until([&] { return end_.has_value() && !process_->running(); }));
  EXPECT_TRUE(end_->asked);
  EXPECT_EQ(end_->Text(), "was killed by signal 9 (Killed)");
}

TEST_F(SupervisedProcessTest, TheCountOfThisProcessCanBeRead) {
  OomKills ours = OomKills::OfThisProcess();
  EXPECT_FALSE(ours.Take());
  OomKills none("/nowhere");
  EXPECT_FALSE(none.Take());
}

TEST_F(SupervisedProcessTest, IsAskedBeforeItIsKilled) {
  Start(Shell("trap 'echo asked; exit 7' TERM; echo up; while :; do sleep 0.01; done"));
  ASSERT_TRUE(Said("up"));
  process_->End(absl::Seconds(60));
  ASSERT_TRUE(Until([&] { return end_.has_value(); }));
  EXPECT_EQ(end_->Text(), "exited with code 7");
  EXPECT_TRUE(end_->asked);
  EXPECT_THAT(Log(), HasSubstr("asked"));
  process_->End(absl::ZeroDuration());  // Nobody is there.
}

TEST_F(SupervisedProcessTest, WhoDoesNotListenIsKilled) {
  Start(Shell("trap '' TERM; echo up; while :; do sleep 0.01; done"));
  ASSERT_TRUE(Said("up"));
  process_->End(absl::Seconds(3600));
  process_->End(absl::Milliseconds(50));  // Sooner counts,
  process_->End(absl::Seconds(3600));     // later does not.
  ASSERT_TRUE(Until([&] { return end_.has_value(); }));
  EXPECT_EQ(end_->number, SIGKILL);
}

// As a process in uninterruptible sleep looks for long, any looks for the moment of its death.
TEST_F(SupervisedProcessTest, WhoIsStillThereAfterItsKillIsTold) {
  for (int i = 0; i < 1000 && unkillable_ == 0; ++i) {
    end_.reset();
    Start(Shell("exec sleep 1000"), absl::ZeroDuration());
    process_->Kill();
    ASSERT_TRUE(Until([&] { return end_.has_value(); }));
  }
  EXPECT_GT(unkillable_, 0);
}

TEST_F(SupervisedProcessTest, AStoppedProcessIsKilledToo) {
  Start(Shell("echo up; kill -STOP $$; sleep 1000"), absl::Milliseconds(50));
  ASSERT_TRUE(Said("up"));
  process_->End(absl::Milliseconds(20));  // A stopped process does not see SIGTERM.
  ASSERT_TRUE(Until([&] { return end_.has_value(); }));
  EXPECT_EQ(end_->number, SIGKILL);
}

TEST_F(SupervisedProcessTest, WhoCannotBeExecutedIsNamed) {
  const auto start = [&](ProcessOptions options) {
    return SupervisedProcess::Start(loop_.get(), &oom_, options, {}).status();
  };
  const absl::Status none = start({.argv = {"/no/such/program"}});
  EXPECT_TRUE(absl::IsNotFound(none)) << none;
  EXPECT_THAT(Message(none), HasSubstr("execute /no/such/program"));
  const absl::Status denied = start({.argv = {"/etc/passwd"}});
  EXPECT_TRUE(absl::IsPermissionDenied(denied)) << denied;
  const absl::Status log = start({.argv = {"/bin/true"}, .log_path = "/no/such/log"});
  EXPECT_THAT(Message(log), HasSubstr("open /no/such/log"));
  const absl::Status descriptor = start({.argv = {"/bin/true"}, .descriptors = {{987654, 3}}});
  EXPECT_FALSE(descriptor.ok());
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1) << "a child was left behind";
}

TEST_F(SupervisedProcessTest, InheritsWhatIsNamedAndNothingElse) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);  // Inheritable, for whoever does not mind.
  ::setenv("PERDURE_TEST_KEPT", "kept", 1);
  ::setenv("PERDURE_TEST_CHANGED", "before", 1);
  // Crosswise: each gets the number that the other has now.
  ProcessOptions options = Shell(
      "echo $PERDURE_TEST_KEPT $PERDURE_TEST_CHANGED $PERDURE_TEST_NEW; echo three >&3;"
      "echo four >&4; ls /proc/self/fd | wc -l");
  options.environment = {"PERDURE_TEST_CHANGED=after", "PERDURE_TEST_NEW=new"};
  const UniqueFd a(::open((directory_.path() + "/a").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  const UniqueFd b(::open((directory_.path() + "/b").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  options.descriptors = {{b.get(), 3}, {a.get(), 4}};
  Start(options);
  ASSERT_TRUE(Until([&] { return end_.has_value(); }));
  EXPECT_EQ(end_->Text(), "exited with code 0");
  EXPECT_EQ(Slurp(directory_.path() + "/b"), "three\n");
  EXPECT_EQ(Slurp(directory_.path() + "/a"), "four\n");
  // ls: the standard three, ours two, its directory.
  EXPECT_EQ(Log(), "kept after new\n6\n");
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST_F(SupervisedProcessTest, DiesWithItsObjectAndWithItsParent) {
  Start(Shell("echo up; exec sleep 1000"));
  const pid_t pid = process_->pid();
  EXPECT_EQ(::getpgid(pid), pid);
  process_.reset();
  EXPECT_TRUE(AwaitProcessEnd(pid, absl::Seconds(20)));
  EXPECT_FALSE(end_.has_value());
  // A parent that is killed.
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const pid_t parent = ::fork();
  if (parent == 0) {
    const auto loop = *EventLoop::New();
    auto child = SupervisedProcess::Start(loop.get(), &oom_, Shell("exec sleep 1000"), {});
    const pid_t grandchild = child.ok() ? (*child)->pid() : 0;
    (void)!::write(ends[1], &grandchild, sizeof grandchild);
    ::pause();
  }
  pid_t grandchild = 0;
  ASSERT_EQ(::read(ends[0], &grandchild, sizeof grandchild),
            static_cast<ssize_t>(sizeof grandchild));
  ASSERT_GT(grandchild, 0);
  EXPECT_TRUE(ProcessLives(grandchild, 0));
  ::kill(parent, SIGKILL);
  ::waitpid(parent, nullptr, 0);
  EXPECT_TRUE(AwaitProcessEnd(grandchild, absl::Seconds(20)));
  ::close(ends[0]);
  ::close(ends[1]);
}

// It may be destroyed by who hears of its end.
TEST_F(SupervisedProcessTest, ItsEndMayDestroyIt) {
  bool ended = false;
  std::unique_ptr<SupervisedProcess> process;
  process = *SupervisedProcess::Start(loop_.get(), &oom_, Shell("exit 1"),
                                      {.ended = [&](const ProcessEnd&) {
                                        ended = true;
                                        process.reset();
                                      }});
  ASSERT_TRUE(Until([&] { return ended; }));
}

}  // namespace
}  // namespace perdure
