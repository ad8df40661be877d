#include "runtime/agent/file_system_probe.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <set>
#include <thread>

#include "runtime/agent/child_processes.h"
#include "runtime/agent/file_system_checks.h"
#include "runtime/agent/file_system_prober.h"
#include "runtime/agent/file_system_tasks.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using Json = nlohmann::json;

constexpr double kRemoveSeconds = 10;  // For what a probe that was cut short has left.

// Holds the signals back that end a command, and says which one has come.
class HeldSignals {
 public:
  HeldSignals() {
    sigset_t held;
    ::sigemptyset(&held);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP}) ::sigaddset(&held, signal);
    ::sigprocmask(SIG_BLOCK, &held, &before_);
    fd_ = ::signalfd(-1, &held, SFD_CLOEXEC | SFD_NONBLOCK);
    PERDURE_CHECK(fd_ >= 0);
  }
  ~HeldSignals() {
    while (Take() != 0) continue;
    ::close(fd_);
    Release();
  }
  void Release() const { ::sigprocmask(SIG_SETMASK, &before_, nullptr); }
  int fd() const { return fd_; }
  // 0: none.
  int Take() const {
    signalfd_siginfo info{};
    return ::read(fd_, &info, sizeof info) == sizeof info ? static_cast<int>(info.ssi_signo) : 0;
  }

 private:
  int fd_ = -1;
  sigset_t before_;
};

class Watch {
 public:
  Watch(const ProbeOptions& options, const std::function<void(const std::string&)>& progress)
      : options_(options), progress_(progress) {
    for (const std::string& name : ProbeCheckNames()) {
      report_.checks.push_back(Skip("not reached"));
      report_.checks.back().name = name;
    }
  }

  ProbeReport Run() {
    std::array<int, 2> pipe = {};
    PERDURE_CHECK(::pipe2(pipe.data(), O_CLOEXEC) == 0);
    const absl::StatusOr<pid_t> child = StartChild([&] {
      ::setpgid(0, 0);  // So that it can be ended with its own children, and Ctrl-C is ours.
      signals_.Release();
      ::signal(SIGPIPE, SIG_IGN);
      ::signal(SIGXFSZ, SIG_IGN);  // A write that ulimit forbids fails instead.
      ::umask(0077);
      RunProbe(options_, pipe[1]);
      return 0;
    });
    ::close(pipe[1]);
    if (child.ok()) {
      ::setpgid(*child, *child);
      Follow(pipe[0]);
      End(*child, pipe[0]);
    } else {
      Put(kDirectoryCheck, RefuseFor(child.status()));
    }
    ::close(pipe[0]);
    if (claimed_ || !finished_) Clean();
    return std::move(report_);
  }

 private:
  void Put(const std::string& name, ProbeCheck check) {
    for (ProbeCheck& place : report_.checks)
      if (place.name == name) {
        place = std::move(check);
        place.name = name;
      }
  }

  void Hear(const std::string& line) {
    const Json what = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!what.is_object()) return;
    if (what.contains("begin")) {
      current_ = what["begin"];
      progress_(current_);
    }
    if (what.contains("found")) {
      ProbeCheck check = CheckFromJson(what["found"]);
      const std::string name = check.name;
      Put(name, std::move(check));
    }
    if (what.contains("making")) made_.insert(what["making"].get<std::string>());
    if (what.contains("not_made")) made_.erase(what["not_made"].get<std::string>());
    if (what.contains("handed_over")) report_.handed_over = true;
    if (what.contains("claimed")) claimed_ = what["claimed"].get<bool>();
    if (what.contains("finished")) finished_ = true;
  }

  // False: the other end is closed.
  bool Read(int fd) {
    std::array<char, 65536> piece;
    const ssize_t got = ::read(fd, piece.data(), piece.size());
    if (got < 0) return errno == EINTR || errno == EAGAIN;
    text_.append(piece.data(), static_cast<size_t>(got));
    for (size_t end = text_.find('\n'); end != text_.npos; end = text_.find('\n')) {
      Hear(text_.substr(0, end));
      text_.erase(0, end + 1);
    }
    return got > 0;
  }

  // Until it ends, a signal comes, or nothing is heard for too long.
  void Follow(int fd) {
    for (;;) {
      std::array<pollfd, 2> ready = {pollfd{fd, POLLIN, 0}, pollfd{signals_.fd(), POLLIN, 0}};
      const int patience = static_cast<int>(absl::ToInt64Milliseconds(options_.stall_after));
      const int count = ::poll(ready.data(), ready.size(), patience);
      if (count < 0 && errno == EINTR) continue;
      if (ready[1].revents != 0) report_.signal = signals_.Take();
      if (report_.signal != 0) return Cut("stopped by a signal");
      if (count == 0) {
        Put(current_,
            Refuse(fmt::format("no answer for {} s", absl::ToDoubleSeconds(options_.stall_after)),
                   "the file system stalls: training goes on meanwhile, but no checkpoint is made",
                   "ask whoever runs it; run this again when it answers"));
        return Cut("the file system did not answer before");
      }
      if (Read(fd)) continue;
      if (!finished_)
        Put(current_, Refuse("the probing process ended in the midst of it",
                             "what it found before stands, the rest is not known",
                             "see the kernel log: was it killed for memory? then run it again"));
      return;
    }
  }

  // What has not been reached never will be.
  void Cut(const std::string& why) {
    for (ProbeCheck& check : report_.checks)
      if (check.outcome == ProbeOutcome::kNotTested && check.seen == "not reached")
        check.seen = why;
  }

  // A process that the kernel keeps in a call cannot be waited for.
  void End(pid_t child, int fd) {
    ::kill(-child, SIGKILL);
    ::kill(child, SIGKILL);
    for (int i = 0; i < 100 && ::waitpid(child, nullptr, WNOHANG) == 0; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    for (pollfd ready{fd, POLLIN, 0}; ::poll(&ready, 1, 0) > 0;)
      if (!Read(fd)) break;
  }

  // What it was not let to remove, or could not. The others may be at work: task 0 removes the
  // rest.
  void Clean() {
    const absl::StatusOr<pid_t> child =
        StartChild([&] { return RemoveProbe(claimed_ ? OwnDirectory() : "", made_).ok() ? 0 : 1; });
    int status = 1;
    const double begin = MonotonicSeconds();
    pid_t gone = 0;
    while (child.ok() && gone == 0 && MonotonicSeconds() - begin < kRemoveSeconds) {
      gone = ::waitpid(*child, &status, WNOHANG);
      if (gone == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    if (child.ok() && gone == 0) ::kill(*child, SIGKILL);
    if (gone <= 0 || status != 0)
      report_.left_behind = ProbeDirectory(options_) +
                            ": it could not be removed; remove it when the file system answers";
  }

  // Where task 0 never came, nobody else will remove anything.
  std::string OwnDirectory() const {
    ProbeOptions first = options_;
    first.task = 0;
    std::error_code error;  // Of which nobody knows is not "alone".
    const bool alone = !std::filesystem::exists(TaskDirectory(first), error) && !error;
    return options_.task == 0 || alone ? ProbeDirectory(options_) : TaskDirectory(options_);
  }

  const ProbeOptions& options_;
  const std::function<void(const std::string&)>& progress_;
  const HeldSignals signals_;
  ProbeReport report_;
  std::string text_, current_ = kDirectoryCheck;
  std::set<std::string> made_;
  bool claimed_ = false, finished_ = false;
};

}  // namespace

const char* ProbeOutcomeName(ProbeOutcome outcome) {
  switch (outcome) {
    case ProbeOutcome::kOk:
      return "ok";
    case ProbeOutcome::kWarning:
      return "warning";
    case ProbeOutcome::kRefused:
      return "refused";
    case ProbeOutcome::kNotTested:
      return "not tested";
  }
  return "?";
}

std::vector<std::string> ProbeCheckNames() {
  std::vector<std::string> names = {kDirectoryCheck};
  for (const ProbeEntry& entry : LocalChecks()) names.emplace_back(entry.name);
  for (const std::string& name : TaskCheckNames()) names.push_back(name);
  return names;
}

bool ProbeReport::may_live() const {
  return signal == 0 && Count(ProbeOutcome::kRefused) == 0 && Count(ProbeOutcome::kOk) > 0;
}

int ProbeReport::Count(ProbeOutcome outcome) const {
  return static_cast<int>(std::count_if(checks.begin(), checks.end(), [&](const ProbeCheck& check) {
    return check.outcome == outcome;
  }));
}

ProbeReport ProbeFileSystem(const ProbeOptions& options,
                            const std::function<void(const std::string& check)>& progress) {
  return Watch(options, progress).Run();
}

}  // namespace perdure
