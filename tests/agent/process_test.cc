#include "runtime/agent/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "absl/time/clock.h"
#include "runtime/base/check.h"

namespace perdure {
namespace {

// A child that waits to be killed; reaped by the destructor unless it was before.
class Child {
 public:
  explicit Child(const char* name = "child") {
    int ready[2];
    PERDURE_CHECK(::pipe2(ready, O_CLOEXEC) == 0);
    pid_ = ::fork();
    PERDURE_CHECK(pid_ >= 0);
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::prctl(PR_SET_NAME, name);
      if (::write(ready[1], "x", 1) != 1) ::_exit(1);
      while (true) ::pause();
    }
    char byte;
    PERDURE_CHECK(::read(ready[0], &byte, 1) == 1);
    ::close(ready[0]);
    ::close(ready[1]);
  }
  ~Child() {
    if (pid_ > 0) Kill();
    Reap();
  }
  void Kill() { ::kill(pid_, SIGKILL); }
  void Reap() {
    if (pid_ > 0) ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_;
};

TEST(Process, OwnLives) {
  const uint64_t start = ProcessStart(::getpid());
  EXPECT_GT(start, 0);
  EXPECT_EQ(ProcessStart(::getpid()), start);
  EXPECT_TRUE(ProcessLives(::getpid(), start));
  EXPECT_TRUE(ProcessLives(::getpid(), 0));
}

TEST(Process, AnotherStartIsAnotherProcess) {
  const uint64_t start = ProcessStart(::getpid());
  EXPECT_FALSE(ProcessLives(::getpid(), start + 1));
  EXPECT_FALSE(ProcessLives(::getpid(), start - 1));
}

TEST(Process, NoSuchProcess) {
  for (const pid_t pid : {0, -1, 1 << 30}) {
    EXPECT_FALSE(ProcessLives(pid, 0)) << pid;
    EXPECT_EQ(ProcessStart(pid), 0) << pid;
  }
  EXPECT_TRUE(AwaitProcessEnd(1 << 30, absl::ZeroDuration()));
}

TEST(Process, AZombieDoesNotLive) {
  Child child;
  const uint64_t start = ProcessStart(child.pid());
  EXPECT_TRUE(ProcessLives(child.pid(), start));
  child.Kill();
  ASSERT_TRUE(AwaitProcessEnd(child.pid(), absl::Seconds(30)));
  ASSERT_EQ(::kill(child.pid(), 0), 0);  // It is still there, unreaped.
  EXPECT_FALSE(ProcessLives(child.pid(), start));
  EXPECT_FALSE(ProcessLives(child.pid(), 0));
}

// The command's name may hold what separates fields.
TEST(Process, NamesWithParentheses) {
  const Child child(") Z 1 (");
  EXPECT_TRUE(ProcessLives(child.pid(), ProcessStart(child.pid())));
  EXPECT_GE(ProcessStart(child.pid()), ProcessStart(::getpid()));
}

TEST(Process, AwaitEnd) {
  Child child;
  const absl::Time before = absl::Now();
  EXPECT_FALSE(AwaitProcessEnd(child.pid(), absl::Milliseconds(50)));
  EXPECT_GE(absl::Now() - before, absl::Milliseconds(49));
  EXPECT_FALSE(AwaitProcessEnd(child.pid(), absl::ZeroDuration()));
  const pid_t pid = child.pid();
  child.Kill();
  EXPECT_TRUE(AwaitProcessEnd(pid, absl::Seconds(30)));
  child.Reap();
  EXPECT_TRUE(AwaitProcessEnd(pid, absl::ZeroDuration()));
}

extern "C" void OnAlarm(int) {}

TEST(Process, StateSaysWhetherItWasStopped) {
  Child child;
  ASSERT_EQ(::kill(child.pid(), SIGSTOP), 0);
  ASSERT_EQ(::waitpid(child.pid(), nullptr, WUNTRACED), child.pid());
  EXPECT_EQ(ProcessState(child.pid()), 'T');
  EXPECT_EQ(ProcessState(::getpid()), 'R');
  const pid_t pid = child.pid();
  child.Kill();
  child.Reap();
  EXPECT_EQ(ProcessState(pid), 0);
}

// A signal is not the end of anybody.
TEST(Process, AwaitEndThroughSignals) {
  const Child child;
  struct sigaction action {};
  action.sa_handler = OnAlarm;
  struct sigaction before {};
  ASSERT_EQ(::sigaction(SIGALRM, &action, &before), 0);
  const absl::Time start = absl::Now();
  const itimerval timer{.it_interval = {0, 20000}, .it_value = {0, 20000}};
  ASSERT_EQ(::setitimer(ITIMER_REAL, &timer, nullptr), 0);
  EXPECT_FALSE(AwaitProcessEnd(child.pid(), absl::Milliseconds(200)));
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(199));
  const itimerval off{};
  ::setitimer(ITIMER_REAL, &off, nullptr);
  ::sigaction(SIGALRM, &before, nullptr);
}

// Without a free descriptor, a process that runs is not taken for one that has ended.
TEST(Process, AwaitEndWithoutDescriptors) {
  Child child;
  const uint64_t start = ProcessStart(child.pid());
  const pid_t pid = child.pid();
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit none{.rlim_cur = 0, .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  const bool lives = ProcessLives(pid, start);
  const bool ended = AwaitProcessEnd(pid, absl::Milliseconds(60));
  child.Kill();
  child.Reap();
  const bool ended_when_gone = AwaitProcessEnd(pid, absl::Seconds(5));
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_TRUE(lives);
  EXPECT_FALSE(ended);
  EXPECT_TRUE(ended_when_gone);
}

}  // namespace
}  // namespace perdure
