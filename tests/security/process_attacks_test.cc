// The agents' processes: what others can see of them, and do to them. What holds against any other
// user is asked for a process of the job's own user, too, where the system can refuse even that.
#include <fcntl.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "runtime/base/files.h"
#include "tests/security/security_test.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

class ProcessAttack : public SecurityTest {
 protected:
  static pid_t Target() { return job().pid(job().Lead()); }
  static void Expect(const std::function<std::string()>& attack, uid_t user = kAttackerUser) {
    EXPECT_EQ(Attack(attack, user), "");
  }
  static void ExpectEvenOfOurUser(const std::function<std::string()>& attack) {
    Expect(attack);
    Expect(attack, kJobUser);
  }
};

// What `name` of /proc/PID tells this process.
std::string Look(pid_t pid, const std::string& name) {
  const std::string path = fmt::format("/proc/{}/{}", pid, name);
  char text[4096];
  if (name == "cwd" || name == "root" || name == "exe")
    return Denied("readlink " + path, ::readlink(path.c_str(), text, sizeof text));
  const UniqueFd file(::open(path.c_str(), O_RDONLY));
  if (!file.open()) return Denied("open " + path, -1);
  return Denied("read " + path, ::read(file.get(), text, sizeof text));
}

class ProcAttack : public ProcessAttack, public testing::WithParamInterface<const char*> {};

TEST_P(ProcAttack, CannotLook) {
  ExpectEvenOfOurUser([pid = Target(), name = std::string(GetParam())] {
    if (!fs::exists("/proc/self/" + name)) return std::string();  // Not in this kernel.
    return Look(pid, name);
  });
}

INSTANTIATE_TEST_SUITE_P(Each, ProcAttack,
                         testing::Values("mem", "environ", "maps", "smaps", "pagemap", "auxv",
                                         "cwd", "root", "exe", "stack", "syscall", "io",
                                         "personality"),
                         [](const auto& one) { return std::string(one.param); });

TEST_F(ProcessAttack, Descriptors) {
  ExpectEvenOfOurUser([pid = Target()] {
    const std::string path = fmt::format("/proc/{}/fd", pid);
    return Denied("list " + path, ::open(path.c_str(), O_RDONLY | O_DIRECTORY));
  });
}

// The tool works where nothing is hidden: a process that does not protect itself is an open book to
// its own user.
TEST_F(ProcessAttack, WhoDoesNotProtectHimselfIsSeen) {
  const pid_t open = ::fork();
  if (open == 0) {
    if (!BecomeUser(kJobUser) || ::prctl(PR_SET_DUMPABLE, 1) != 0) ::_exit(1);
    ::pause();
    ::_exit(0);
  }
  const std::string path = fmt::format("/proc/{}/environ", open);
  // It has become what it is to be.
  EXPECT_TRUE(Job::Until([&] {
    struct stat info {};
    return ::stat(path.c_str(), &info) == 0 && info.st_uid == kJobUser;
  }));
  EXPECT_EQ(Attack([open] { return Look(open, "environ"); }, kJobUser),
            "read " + path + " succeeded");
  EXPECT_EQ(Attack([open] { return Look(open, "environ"); }), "");
  ::kill(open, SIGKILL);
  ::waitpid(open, nullptr, 0);
}

TEST_F(ProcessAttack, Trace) {
  ExpectEvenOfOurUser([pid = Target()] {
    const std::string attach = Denied("attach", ::ptrace(PTRACE_ATTACH, pid, nullptr, nullptr));
    return attach.empty() ? Denied("seize", ::ptrace(PTRACE_SEIZE, pid, nullptr, nullptr)) : attach;
  });
}

TEST_F(ProcessAttack, ReadAndWriteMemory) {
  ExpectEvenOfOurUser([pid = Target()] {
    char bytes[16];
    const iovec here{.iov_base = bytes, .iov_len = sizeof bytes};
    const iovec there{.iov_base = reinterpret_cast<void*>(0x400000), .iov_len = sizeof bytes};
    const std::string read = Denied("read", ::process_vm_readv(pid, &here, 1, &there, 1, 0));
    return read.empty() ? Denied("write", ::process_vm_writev(pid, &here, 1, &there, 1, 0)) : read;
  });
}

TEST_F(ProcessAttack, TakeADescriptor) {
  ExpectEvenOfOurUser([pid = Target()] {
    const long process = ::syscall(SYS_pidfd_open, pid, 0);
    if (process < 0) return Denied("pidfd_open", process);
    for (int fd = 0; fd < 16; ++fd)
      if (std::string what = Denied("pidfd_getfd", ::syscall(SYS_pidfd_getfd, process, fd, 0));
          !what.empty())
        return what;
    return std::string();
  });
}

TEST_F(ProcessAttack, Count) {
  Expect([pid = Target()] {
    perf_event_attr what{};
    what.type = PERF_TYPE_SOFTWARE;
    what.size = sizeof what;
    what.config = PERF_COUNT_SW_TASK_CLOCK;
    const long fd = ::syscall(SYS_perf_event_open, &what, pid, -1, -1, 0);
    return fd < 0 && (errno == ENOSYS || errno == ENOENT) ? "" : Denied("perf_event_open", fd);
  });
}

TEST_F(ProcessAttack, Signals) {
  Expect([pid = Target()] {
    for (const int signal : {SIGKILL, SIGSTOP, SIGTERM, SIGCONT, SIGHUP, SIGUSR1, SIGSEGV, SIGABRT})
      if (std::string what = Denied(fmt::format("signal {}", signal), ::kill(pid, signal));
          !what.empty())
        return what;
    const long process = ::syscall(SYS_pidfd_open, pid, 0);
    siginfo_t* const none = nullptr;
    return process < 0 ? ""
                       : Denied("pidfd_send_signal",
                                ::syscall(SYS_pidfd_send_signal, process, SIGKILL, none, 0));
  });
}

TEST_F(ProcessAttack, SlowItDown) {
  Expect([pid = Target()] {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    const rlimit none{.rlim_cur = 0, .rlim_max = 0};
    const sched_param idle{};
    for (const std::string& what :
         {Denied("setpriority", ::setpriority(PRIO_PROCESS, static_cast<id_t>(pid), 19)),
          Denied("sched_setaffinity", ::sched_setaffinity(pid, sizeof one, &one)),
          Denied("sched_setscheduler", ::sched_setscheduler(pid, SCHED_IDLE, &idle)),
          Denied("prlimit", ::prlimit(pid, RLIMIT_NOFILE, &none, nullptr)),
          Denied("oom_score_adj",
                 ::open(fmt::format("/proc/{}/oom_score_adj", pid).c_str(), O_WRONLY)),
          Denied("clear_refs", ::open(fmt::format("/proc/{}/clear_refs", pid).c_str(), O_WRONLY)),
          Denied("coredump_filter",
                 ::open(fmt::format("/proc/{}/coredump_filter", pid).c_str(), O_WRONLY))})
      if (!what.empty()) return what;
    return std::string();
  });
}

// Its own user may send it any signal; nothing of it must land in a file.
TEST_F(ProcessAttack, ACrashLeavesNoCore) {
  ASSERT_TRUE(LateNodeJoins());
  const pid_t pid = job().pid(kLateNode);
  ASSERT_EQ(Attack([pid] { return ::kill(pid, SIGSEGV) == 0 ? "" : "it could not"; }, kJobUser),
            "");
  const int status = job().WaitFor(kLateNode);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV) << status;
  EXPECT_FALSE(WCOREDUMP(status));
  // Where the system is set to leave it in the working directory.
  for (const auto& entry : fs::directory_iterator(job().directory()))
    EXPECT_THAT(entry.path().filename().string(), testing::Not(testing::HasSubstr("core")));
}

// What everybody may read of it: its words, and that it can gain nothing.
TEST_F(ProcessAttack, CommandLineAndStatus) {
  const std::string key = job().FileKey();
  std::string hex;
  for (const char c : key) hex += fmt::format("{:02x}", static_cast<uint8_t>(c));
  EXPECT_EQ(Attack([pid = Target(), key, hex]() -> std::string {
              const auto words = ReadFile(fmt::format("/proc/{}/cmdline", pid));
              const auto status = ReadFile(fmt::format("/proc/{}/status", pid));
              if (!words.ok() || !status.ok()) return "they could not be read";
              for (const std::string& text : {*words, *status})
                if (text.find(key) != text.npos || text.find(hex) != text.npos)
                  return "the key is there";
              if (status->find("NoNewPrivs:\t1") == status->npos) return "it may gain privileges";
              if (status->find("CapEff:\t0000000000000000") == status->npos)
                return "it has privileges";
              return "";
            }),
            "");
  // Root sees more, and there is nothing either.
  const auto environment = ReadFile(fmt::format("/proc/{}/environ", Target()));
  if (environment.ok()) {
    EXPECT_EQ(environment->find(key), std::string::npos);
    EXPECT_EQ(environment->find(hex), std::string::npos);
  }
}

TEST_F(ProcessAttack, WhatAnAgentSaysHoldsNoKey) {
  const std::string key = job().FileKey();
  std::string hex;
  for (const char c : key) hex += fmt::format("{:02x}", static_cast<uint8_t>(c));
  for (uint32_t node = 0; node < kJobNodes; ++node) {
    EXPECT_EQ(job().Log(node).find(key), std::string::npos);
    EXPECT_EQ(job().Log(node).find(hex), std::string::npos);
  }
}

}  // namespace
}  // namespace perdure
