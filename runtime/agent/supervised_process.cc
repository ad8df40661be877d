#include "runtime/agent/supervised_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <string_view>

#include "runtime/agent/process.h"
#include "runtime/base/check.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "runtime/base/unique_fd.h"

namespace perdure {
namespace {

// Where the child keeps descriptors before they get their numbers, so that none is overwritten.
constexpr int kAside = 1000;

constexpr int64_t kTailBytes = 800;

// Everything that the child needs between fork and exec, where nothing may be allocated.
struct Launch {
  const ProcessOptions& options;
  std::vector<char*> argv, environment;
  int log = -1;
  int report = -1;  // Gets the errno of what failed; closed by exec.
  pid_t parent = 0;
};

[[noreturn]] void Fail(const Launch& launch) {
  const int error = errno;
  (void)!::write(launch.report, &error, sizeof error);
  ::_exit(127);
}

// What a library or our own parent has left open is nobody's business.
void CloseOthersAtExec() {
  if (::syscall(SYS_close_range, 3U, ~0U, CLOSE_RANGE_CLOEXEC) == 0) return;
  rlimit files{};  // Kernels before 5.11.
  ::getrlimit(RLIMIT_NOFILE, &files);
  const int most = static_cast<int>(std::min<rlim_t>(files.rlim_cur, 1 << 16));
  for (int fd = 3; fd < most; ++fd) ::fcntl(fd, F_SETFD, FD_CLOEXEC);
}

[[noreturn]] void BecomeChild(Launch& launch) {
  ::setpgid(0, launch.options.group);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != launch.parent) ::_exit(1);  // The parent died before the line above.
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  launch.report = ::fcntl(launch.report, F_DUPFD_CLOEXEC, kAside);
  if (launch.report < 0) ::_exit(127);
  if (launch.log >= 0 &&
      (::dup2(launch.log, STDOUT_FILENO) < 0 || ::dup2(launch.log, STDERR_FILENO) < 0))
    Fail(launch);
  CloseOthersAtExec();
  // Aside first: one's number may be another's place.
  int aside[16];
  size_t count = 0;
  for (const auto& [ours, theirs] : launch.options.descriptors)
    if ((aside[count++] = ::fcntl(ours, F_DUPFD_CLOEXEC, kAside)) < 0) Fail(launch);
  count = 0;
  for (const auto& [ours, theirs] : launch.options.descriptors)
    if (::dup2(aside[count++], theirs) < 0) Fail(launch);
  ::execve(launch.argv[0], launch.argv.data(), launch.environment.data());
  Fail(launch);
}

std::vector<char*> Pointers(const std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (const std::string& text : texts) pointers.push_back(const_cast<char*>(text.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

// Ours, with those that are given in place of those of the same name.
std::vector<std::string> Environment(const std::vector<std::string>& given) {
  std::vector<std::string> all = given;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view ours = *entry;
    const std::string_view name = ours.substr(0, ours.find('=') + 1);
    if (std::none_of(given.begin(), given.end(),
                     [&](const std::string& text) { return text.starts_with(name); }))
      all.emplace_back(ours);
  }
  return all;
}

}  // namespace

// ---- want of memory

OomKills::OomKills(std::string path) : path_(std::move(path)), taken_(Count()) {}

OomKills OomKills::OfThisProcess() {
  const absl::StatusOr<std::string> groups = ReadFile("/proc/self/cgroup");
  std::string_view rest = groups.ok() ? std::string_view(*groups) : std::string_view();
  std::string unified, memory;
  while (!rest.empty()) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    if (line.starts_with("0::"))
      unified = fmt::format("/sys/fs/cgroup{}/memory.events", line.substr(3));
    else if (const size_t at = line.find(":memory:"); at != std::string_view::npos)
      memory = fmt::format("/sys/fs/cgroup/memory{}/memory.oom_control", line.substr(at + 8));
  }
  return OomKills(memory.empty() ? unified : memory);
}

int64_t OomKills::Count() const {
  constexpr std::string_view kLabel = "oom_kill ";
  const absl::StatusOr<std::string> text = ReadFile(path_);
  if (!text.ok()) return 0;
  size_t at = text->starts_with(kLabel) ? 0 : text->find("\noom_kill ");
  if (at == std::string::npos) return 0;
  at = text->find(kLabel, at) + kLabel.size();
  int64_t count = 0;
  std::from_chars(text->data() + at, text->data() + text->size(), count);
  return count;
}

bool OomKills::Take() {
  if (Count() <= taken_) return false;
  ++taken_;
  return true;
}

std::string ProcessEnd::Text() const {
  if (kind == EvidenceKind::kOutOfMemory) return "was killed for want of memory";
  if (kind == EvidenceKind::kRankKilled)
    return fmt::format("was killed by signal {} ({})", number,
                       ::strsignal(static_cast<int>(number)));
  return fmt::format("exited with code {}", number);
}

std::string TailOfLog(const std::string& path, int64_t begins) {
  std::ifstream file(path, std::ios::binary);
  if (!file.seekg(0, std::ios::end)) return "";
  const int64_t end = file.tellg();
  const int64_t begin = std::max(begins, end - kTailBytes);
  if (begin >= end) return "";
  std::string tail(static_cast<size_t>(end - begin), '\0');
  file.seekg(begin);
  file.read(tail.data(), end - begin);
  tail.resize(static_cast<size_t>(std::max<std::streamsize>(0, file.gcount())));
  while (!tail.empty() && tail.back() == '\n') tail.pop_back();
  return (begin > begins ? "..." : "") + tail;
}

// ---- the process

absl::StatusOr<std::unique_ptr<SupervisedProcess>> SupervisedProcess::Start(
    EventLoop* loop, OomKills* oom, const ProcessOptions& options, Callbacks callbacks,
    absl::Duration unkillable_after) {
  PERDURE_CHECK(!options.argv.empty() && options.descriptors.size() <= 16);
  UniqueFd log;
  if (!options.log_path.empty()) {
    log = UniqueFd(::open(options.log_path.c_str(),
                          O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!log.open()) return ErrnoStatus(errno, "open " + options.log_path);
  }
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
  const UniqueFd reads(ends[0]);
  UniqueFd writes(ends[1]);
  const std::vector<std::string> environment = Environment(options.environment);
  Launch launch{.options = options,
                .argv = Pointers(options.argv),
                .environment = Pointers(environment),
                .log = log.get(),
                .report = writes.get(),
                .parent = ::getpid()};
  const pid_t pid = ::fork();
  if (pid == 0) BecomeChild(launch);
  if (pid < 0) return ErrnoStatus(errno, "fork for " + options.argv[0]);
  ::setpgid(pid, options.group == 0 ? pid : options.group);  // Whoever is first.
  writes.Close();
  int error = 0;
  ssize_t got = 0;
  while ((got = ::read(reads.get(), &error, sizeof error)) < 0 && errno == EINTR) {
  }
  if (got != 0) {
    while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
    }
    return ErrnoStatus(got == sizeof error ? error : EIO, "execute " + options.argv[0]);
  }
  std::unique_ptr<SupervisedProcess> process(
      new SupervisedProcess(loop, oom, pid, std::move(callbacks), unkillable_after));
  SupervisedProcess* const p = process.get();
  RETURN_IF_ERROR(loop->AddChild(pid, [p](int wait_status) { p->Ended(wait_status); }));
  return process;
}

SupervisedProcess::SupervisedProcess(EventLoop* loop, OomKills* oom, pid_t pid, Callbacks callbacks,
                                     absl::Duration unkillable_after)
    : loop_(loop),
      oom_(oom),
      pid_(pid),
      callbacks_(std::move(callbacks)),
      unkillable_after_(unkillable_after) {}

SupervisedProcess::~SupervisedProcess() {
  loop_->CancelTimer(timer_);
  if (!running_) return;
  loop_->RemoveChild(pid_);
  ::kill(pid_, SIGKILL);
  if (AwaitProcessEnd(pid_, absl::Seconds(1))) (void)::waitpid(pid_, nullptr, WNOHANG);
}

void SupervisedProcess::Ended(int wait_status) {
  running_ = false;
  loop_->CancelTimer(timer_);
  ProcessEnd end{.asked = asked_};
  if (WIFSIGNALED(wait_status)) {
    end.number = WTERMSIG(wait_status);
    const bool memory = end.number == SIGKILL && !killed_ && oom_->Take();
    end.kind = memory ? EvidenceKind::kOutOfMemory : EvidenceKind::kRankKilled;
  } else {
    end.number = WEXITSTATUS(wait_status);
  }
  if (callbacks_.ended) callbacks_.ended(end);  // May destroy this.
}

void SupervisedProcess::Signal(int signal) {
  if (running_) ::kill(pid_, signal);
}

void SupervisedProcess::End(absl::Duration grace) {
  if (!running_ || killed_) return;
  if (!asked_) Signal(SIGTERM);
  asked_ = true;
  const absl::Time when = MonotonicNow() + grace;
  if (when >= kill_at_) return;
  kill_at_ = when;
  loop_->CancelTimer(timer_);
  timer_ = loop_->AddTimer(when, [this] { Kill(); });
}

void SupervisedProcess::Kill() {
  if (!running_ || killed_) return;
  asked_ = killed_ = true;
  Signal(SIGKILL);
  loop_->CancelTimer(timer_);
  WatchKill();
}

void SupervisedProcess::WatchKill() {
  timer_ = loop_->AddTimer(MonotonicNow() + unkillable_after_, [this] {
    WatchKill();
    if (callbacks_.unkillable) callbacks_.unkillable();  // May destroy this.
  });
}

}  // namespace perdure
