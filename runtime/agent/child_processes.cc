#include "runtime/agent/child_processes.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr int kChildrenMax = 64;

// How a child hands its status on.
struct Said {
  int code = 0;
  std::array<char, 1000> message = {};
};

void Say(const absl::Status& status, Said& said) {
  said.code = static_cast<int>(status.code());
  const std::string message = Message(status);
  const size_t bytes = std::min(message.size(), said.message.size() - 1);
  std::memcpy(said.message.data(), message.data(), bytes);
}

absl::Status Heard(pid_t child, const Said& said) {
  int status = 0;
  while (::waitpid(child, &status, 0) < 0)
    if (errno != EINTR) return ErrnoStatus(errno, "wait for a child");
  if (WIFSIGNALED(status))
    return Internal("a child process was killed by signal {}", WTERMSIG(status));
  if (said.code == 0) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(said.code), said.message.data());
}

}  // namespace

absl::StatusOr<pid_t> StartChild(const std::function<int()>& work) {
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child < 0) return ErrnoStatus(errno, "start a process (fork)");
  if (child > 0) return child;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(1);  // It died before it could take us along.
  ::_exit(work());
}

absl::Status RunInChildren(int count, const std::function<absl::Status(int)>& work) {
  PERDURE_CHECK(count <= kChildrenMax);
  const SharedMemory<std::array<Said, kChildrenMax>> said;
  std::vector<pid_t> children;
  absl::Status result;
  for (int i = 0; i < count && result.ok(); ++i) {
    const absl::StatusOr<pid_t> child = StartChild([&, i] {
      Say(work(i), (*said)[static_cast<size_t>(i)]);
      return 0;
    });
    if (child.ok())
      children.push_back(*child);
    else
      result = child.status();
  }
  // Too few to wait for one another.
  if (!result.ok())
    for (const pid_t child : children) ::kill(child, SIGKILL);
  for (size_t i = 0; i < children.size(); ++i) {
    const absl::Status heard = Heard(children[i], (*said)[i]);
    if (result.ok()) result = heard;
  }
  return result;
}

}  // namespace perdure
