#include "runtime/agent/process.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <sstream>
#include <string>

#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// The fields of /proc/PID/stat behind the command's name: state is the first.
std::istringstream StatFields(pid_t pid) {
  const auto text = ReadFile(fmt::format("/proc/{}/stat", pid));
  if (!text.ok()) return std::istringstream();
  const size_t name_end = text->rfind(')');
  return std::istringstream(name_end == std::string::npos ? "" : text->substr(name_end + 1));
}

}  // namespace

uint64_t ProcessStart(pid_t pid) {
  std::istringstream fields = StatFields(pid);
  std::string field;
  for (int i = 3; i < 22; ++i) fields >> field;  // state is field 3.
  uint64_t start = 0;
  fields >> start;
  return start;
}

bool ProcessLives(pid_t pid, uint64_t start) {
  if (pid <= 0) return false;
  std::istringstream fields = StatFields(pid);
  std::string state;
  fields >> state;
  if (state.empty() || state == "Z" || state == "X") return false;
  return start == 0 || ProcessStart(pid) == start;
}

bool AwaitProcessEnd(pid_t pid, absl::Duration timeout) {
  const int fd = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
  if (fd < 0) return true;
  pollfd wait{.fd = fd, .events = POLLIN, .revents = 0};
  const int ready = ::poll(&wait, 1, static_cast<int>(absl::ToInt64Milliseconds(timeout)));
  ::close(fd);
  return ready > 0;
}

}  // namespace perdure
