#include "tests/security/attacker.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/close_range.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr int kFirstKept = 3;  // The talk, then the result.

// All but the standard ones and these two, which become 3 and 4.
void KeepOnly(int talk, int result) {
  const int talk_copy = ::fcntl(talk, F_DUPFD, 10), result_copy = ::fcntl(result, F_DUPFD, 10);
  PERDURE_CHECK(::dup2(talk_copy, kFirstKept) == kFirstKept);
  PERDURE_CHECK(::dup2(result_copy, kFirstKept + 1) == kFirstKept + 1);
  PERDURE_CHECK(::syscall(SYS_close_range, kFirstKept + 2, ~0U, 0) == 0);
}

std::string HowItEnded(pid_t pid) {
  int status = 0;
  PERDURE_CHECK(::waitpid(pid, &status, 0) == pid);
  if (WIFSIGNALED(status)) return fmt::format("the attacker died of signal {}", WTERMSIG(status));
  if (WEXITSTATUS(status) != 0)
    return fmt::format("the attacker ended with {}", WEXITSTATUS(status));
  return "";
}

}  // namespace

bool BecomeUser(uid_t user) {
  return ::setgroups(0, nullptr) == 0 && ::setresgid(user, user, user) == 0 &&
         ::setresuid(user, user, user) == 0;
}

bool CanBecomeOthers() {
  if (::geteuid() != 0) return false;
  const pid_t child = ::fork();
  if (child == 0) ::_exit(BecomeUser(kAttackerUser) ? 0 : 1);
  int status = 0;
  return child > 0 && ::waitpid(child, &status, 0) == child && status == 0;
}

void Talk::Tell(uint64_t number) { (void)::send(socket_, &number, sizeof number, MSG_NOSIGNAL); }

std::optional<uint64_t> Talk::Hear() {
  uint64_t number = 0;
  ssize_t got = 0;
  do {
    got = ::recv(socket_, &number, sizeof number, 0);
  } while (got < 0 && errno == EINTR);
  if (got != sizeof number) return std::nullopt;
  return number;
}

bool Talk::Pending(absl::Duration within) const {
  pollfd wait{.fd = socket_, .events = POLLIN, .revents = 0};
  return ::poll(&wait, 1, static_cast<int>(absl::ToInt64Milliseconds(within))) > 0;
}

Attacker::Attacker(Attack attack, uid_t user) {
  int talk[2], result[2];
  PERDURE_CHECK(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, talk) == 0);
  PERDURE_CHECK(::pipe(result) == 0);
  pid_ = ::fork();
  PERDURE_CHECK(pid_ >= 0);
  if (pid_ == 0) {
    KeepOnly(talk[1], result[1]);
    ::setsid();  // A session of his own, too.
    if (!BecomeUser(user)) ::_exit(3);
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    Talk of_mine(kFirstKept);
    const std::string text = attack(of_mine);
    ::_exit(::write(kFirstKept + 1, text.data(), text.size()) == static_cast<ssize_t>(text.size())
                ? 0
                : 4);
  }
  ::close(talk[1]);
  ::close(result[1]);
  socket_ = UniqueFd(talk[0]);
  result_ = UniqueFd(result[0]);
}

Attacker::~Attacker() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  (void)HowItEnded(pid_);
}

bool Attacker::Done() const {
  pollfd wait{.fd = result_.get(), .events = POLLIN, .revents = 0};
  return ::poll(&wait, 1, 0) > 0;
}

std::string Attacker::Wait() {
  std::string text;
  char piece[4096];
  while (true) {
    const ssize_t got = ::read(result_.get(), piece, sizeof piece);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    text.append(piece, static_cast<size_t>(got));
  }
  const std::string end = HowItEnded(std::exchange(pid_, -1));
  return end.empty() ? text : end;
}

std::string Attack(const std::function<std::string()>& attack, uid_t user) {
  return Attacker([&](Talk&) { return attack(); }, user).Wait();
}

}  // namespace perdure
