#include "launch/slurm/command.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <string_view>

#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/base/unique_fd.h"

namespace perdure {
namespace {

// How often we look whether the program has ended while something else holds its output open.
constexpr absl::Duration kLook = absl::Milliseconds(20);

// Since some fixed moment; it does not jump when somebody sets the clock.
absl::Duration MonotonicNow() {
  return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

std::vector<std::string> EnvironmentOf(const Invocation& command) {
  std::vector<std::string> all;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view ours = *entry;
    const std::string name(ours.substr(0, ours.find('=')));
    const bool replaced = std::any_of(command.environment.begin(), command.environment.end(),
                                      [&](const auto& variable) { return variable.first == name; });
    if (!replaced && !(command.without && command.without(name))) all.emplace_back(ours);
  }
  for (const auto& [name, value] : command.environment) all.push_back(name + "=" + value);
  return all;
}

std::vector<char*> Pointers(const std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (const std::string& text : texts) pointers.push_back(const_cast<char*>(text.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

struct Ends {
  UniqueFd ours, theirs;
};

// Where the child writes and we read.
absl::StatusOr<Ends> OutputPipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
  Ends pipe{UniqueFd(ends[0]), UniqueFd(ends[1])};
  ::fcntl(pipe.ours.get(), F_SETFL, O_NONBLOCK);
  return pipe;
}

// Where we write and the child reads: a socket, because writing to one that nobody reads any more
// can be asked to raise no SIGPIPE.
absl::StatusOr<Ends> InputSocket(const std::string& input) {
  Ends ends;
  if (input.empty()) {
    ends.theirs = UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    if (!ends.theirs.open()) return ErrnoStatus(errno, "open /dev/null");
    return ends;
  }
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
    return ErrnoStatus(errno, "socketpair");
  ends.ours = UniqueFd(pair[0]);
  ends.theirs = UniqueFd(pair[1]);
  ::shutdown(pair[0], SHUT_RD);
  return ends;
}

class Spawned {
 public:
  explicit Spawned(const Invocation& command) : command_(command) {}
  // Nothing of the group outlives this.
  ~Spawned() {
    if (pid_ <= 0) return;
    ::kill(-pid_, SIGKILL);
    while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }

  absl::Status Start();
  absl::StatusOr<InvocationResult> Finish();

 private:
  // False at the end of it.
  absl::StatusOr<bool> Take(UniqueFd& from, std::string& to) const;
  void GiveInput();
  bool HasEnded();
  absl::Status Look(absl::Duration wait, InvocationResult& result);

  const Invocation& command_;
  pid_t pid_ = 0;
  UniqueFd input_, output_, errors_;
  size_t given_ = 0;
};

absl::Status Spawned::Start() {
  ASSIGN_OR_RETURN(Ends input, InputSocket(command_.input));
  ASSIGN_OR_RETURN(Ends output, OutputPipe());
  ASSIGN_OR_RETURN(Ends errors, OutputPipe());
  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;
  PERDURE_CHECK(::posix_spawn_file_actions_init(&files) == 0);
  PERDURE_CHECK(::posix_spawnattr_init(&attributes) == 0);
  ::posix_spawn_file_actions_adddup2(&files, input.theirs.get(), STDIN_FILENO);
  ::posix_spawn_file_actions_adddup2(&files, output.theirs.get(), STDOUT_FILENO);
  ::posix_spawn_file_actions_adddup2(&files, errors.theirs.get(), STDERR_FILENO);
  // We may have signals blocked or ignored; a program that answers expects neither.
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setsigdefault(&attributes, &all);
  ::posix_spawnattr_setpgroup(&attributes, 0);
  ::posix_spawnattr_setflags(
      &attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  const std::vector<std::string> environment = EnvironmentOf(command_);
  const int error = ::posix_spawnp(&pid_, command_.argv[0].c_str(), &files, &attributes,
                                   Pointers(command_.argv).data(), Pointers(environment).data());
  ::posix_spawn_file_actions_destroy(&files);
  ::posix_spawnattr_destroy(&attributes);
  if (error != 0) {
    pid_ = 0;
    if (error == ENOENT)
      return NotFound("there is no program '{}' in PATH: is this a machine with Slurm's commands?",
                      command_.argv[0]);
    return ErrnoStatus(error, "start " + CommandLine(command_.argv));
  }
  input_ = std::move(input.ours);
  output_ = std::move(output.ours);
  errors_ = std::move(errors.ours);
  return absl::OkStatus();
}

absl::StatusOr<bool> Spawned::Take(UniqueFd& from, std::string& to) const {
  char bytes[1 << 16];
  for (;;) {
    const ssize_t got = ::read(from.get(), bytes, sizeof bytes);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return true;
    if (got <= 0) {
      from.Close();
      return false;
    }
    to.append(bytes, static_cast<size_t>(got));
    if (to.size() > kCommandOutputMax)
      return ResourceExhausted("'{}' wrote more than {} MiB and was killed",
                               CommandLine(command_.argv), kCommandOutputMax >> 20);
  }
}

void Spawned::GiveInput() {
  while (given_ < command_.input.size()) {
    const ssize_t sent = ::send(input_.get(), command_.input.data() + given_,
                                command_.input.size() - given_, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno == EAGAIN) return;
    if (sent <= 0) break;  // It reads no further, which is its own business.
    given_ += static_cast<size_t>(sent);
  }
  input_.Close();
}

bool Spawned::HasEnded() {
  siginfo_t info{};
  // It stays a zombie, so that its number names its group for as long as we may kill that.
  if (::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) != 0)
    return errno == ECHILD;  // This process ignores SIGCHLD; Finish says so.
  return info.si_pid == pid_;
}

absl::Status Spawned::Look(absl::Duration wait, InvocationResult& result) {
  pollfd fds[3];
  nfds_t count = 0;
  if (output_.open()) fds[count++] = {output_.get(), POLLIN, 0};
  if (errors_.open()) fds[count++] = {errors_.get(), POLLIN, 0};
  if (input_.open()) fds[count++] = {input_.get(), POLLOUT, 0};
  const absl::Duration most = std::min(wait, kLook);
  if (::poll(fds, count, static_cast<int>(absl::ToInt64Milliseconds(most)) + 1) < 0 &&
      errno != EINTR)
    return ErrnoStatus(errno, "poll");
  if (output_.open()) RETURN_IF_ERROR(Take(output_, result.output).status());
  if (errors_.open()) RETURN_IF_ERROR(Take(errors_, result.errors).status());
  if (input_.open()) GiveInput();
  return absl::OkStatus();
}

absl::StatusOr<InvocationResult> Spawned::Finish() {
  InvocationResult result;
  const absl::Duration deadline = MonotonicNow() + command_.timeout;
  for (;;) {
    // Asked first: what it wrote before its end is then in the pipes, and taken below.
    const bool ended = HasEnded();
    const absl::Duration left = deadline - MonotonicNow();
    RETURN_IF_ERROR(
        Look(ended ? absl::ZeroDuration() : std::max(left, absl::ZeroDuration()), result));
    if (ended) break;
    if (left <= absl::ZeroDuration())
      return DeadlineExceeded("'{}' did not end within {} and was killed; it had written '{}'",
                              CommandLine(command_.argv), absl::FormatDuration(command_.timeout),
                              result.errors.substr(0, 500));
  }
  ::kill(-pid_, SIGKILL);  // Whoever it left behind.
  int status = 0;
  pid_t waited = 0;
  while ((waited = ::waitpid(pid_, &status, 0)) < 0 && errno == EINTR) {
  }
  pid_ = 0;
  if (waited < 0) return ErrnoStatus(errno, "wait for " + CommandLine(command_.argv));
  result.exit_code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  return result;
}

}  // namespace

absl::StatusOr<InvocationResult> RunCommand(const Invocation& command) {
  PERDURE_CHECK(!command.argv.empty());
  Spawned spawned(command);
  RETURN_IF_ERROR(spawned.Start());
  return spawned.Finish();
}

std::string CommandLine(const std::vector<std::string>& argv) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=:,./@%^";
  std::string line;
  for (const std::string& word : argv) {
    if (!line.empty()) line += ' ';
    if (!word.empty() && word.find_first_not_of(kPlain) == std::string::npos) {
      line += word;
      continue;
    }
    line += '\'';
    for (const char c : word) line += c == '\'' ? "'\\''" : std::string(1, c);
    line += '\'';
  }
  return line;
}

}  // namespace perdure
