#include "runtime/agent/process.h"

#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <sstream>
#include <string>

#include "absl/time/clock.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// The fields of /proc/PID/stat behind the command's name: state is the first. NotFound: no process.
absl::StatusOr<std::istringstream> StatFields(pid_t pid) {
  const auto text = ReadFile(fmt::format("/proc/{}/stat", pid));
  if (!text.ok()) return text.status();
  const size_t name_end = text->rfind(')');
  return std::istringstream(name_end == std::string::npos ? "" : text->substr(name_end + 1));
}

}  // namespace

uint64_t ProcessStart(pid_t pid) {
  absl::StatusOr<std::istringstream> fields = StatFields(pid);
  if (!fields.ok()) return 0;
  std::string field;
  for (int i = 3; i < 22; ++i) *fields >> field;  // state is field 3.
  uint64_t start = 0;
  *fields >> start;
  return start;
}

bool ProcessLives(pid_t pid, uint64_t start) {
  if (pid <= 0) return false;
  absl::StatusOr<std::istringstream> fields = StatFields(pid);
  // Where /proc cannot be read (no free descriptor), the number has to do.
  if (!fields.ok() && !absl::IsNotFound(fields.status()))
    return ::kill(pid, 0) == 0 || errno == EPERM;
  std::string state;
  if (fields.ok()) *fields >> state;
  if (state.empty() || state == "Z" || state == "X") return false;
  return start == 0 || ProcessStart(pid) == start;
}

char ProcessState(pid_t pid) {
  absl::StatusOr<std::istringstream> fields = StatFields(pid);
  char state = 0;
  if (fields.ok()) *fields >> state;
  return state;
}

bool AwaitProcessEnd(pid_t pid, absl::Duration timeout) {
  const absl::Time until = absl::Now() + timeout;
  const int fd = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
  if (fd < 0 && (errno == ESRCH || errno == EINVAL)) return true;
  bool ended = false;
  while (true) {
    // Without a pidfd (no free descriptor), only looking again and again is left.
    const absl::Duration nap = fd < 0 ? absl::Milliseconds(20) : absl::Hours(1);
    const absl::Duration left = std::max(absl::ZeroDuration(), until - absl::Now());
    const auto milliseconds = static_cast<int>(
        absl::ToInt64Milliseconds(absl::Ceil(std::min(left, nap), absl::Milliseconds(1))));
    pollfd wait{.fd = fd, .events = POLLIN, .revents = 0};
    ended = ::poll(&wait, 1, milliseconds) > 0 || (fd < 0 && !ProcessLives(pid, 0));
    if (ended || absl::Now() >= until) break;
  }
  if (fd >= 0) ::close(fd);
  return ended;
}

}  // namespace perdure
