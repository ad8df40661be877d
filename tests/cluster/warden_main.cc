// See warden.h: cluster_warden MARK DIRECTORY, its orders on standard input.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/cluster/cluster_processes.h"

namespace perdure {
namespace {

volatile sig_atomic_t told_to_end = 0;

void Reap() {
  while (::waitpid(-1, nullptr, WNOHANG) > 0) {
  }
}

// `order`: where output goes, then the words of a command, with a NUL between each two.
pid_t StartChild(std::string order) {
  std::vector<char*> words = {order.data()};
  for (size_t at = order.find('\0'); at != std::string::npos; at = order.find('\0', at + 1))
    words.push_back(order.data() + at + 1);
  words.push_back(nullptr);
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::signal(SIGINT, SIG_DFL);
  ::setsid();  // No terminal's signals, and no job's to us.
  ::dup2(::open("/dev/null", O_RDONLY), STDIN_FILENO);
  const int output = ::open(words[0], O_WRONLY | O_CREAT | O_APPEND, 0644);
  ::dup2(output, STDOUT_FILENO);
  ::dup2(output, STDERR_FILENO);
  ::execvp(words[1], words.data() + 1);
  ::_exit(127);
}

int Main(const std::string& mark, const std::string& directory) {
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  // Signals come while we wait, and at no other time.
  sigset_t blocked, open;
  ::sigemptyset(&blocked);
  for (const int signal : {SIGCHLD, SIGTERM}) ::sigaddset(&blocked, signal);
  ::sigprocmask(SIG_BLOCK, &blocked, &open);
  struct sigaction action {};
  action.sa_handler = [](int signal) {
    if (signal == SIGTERM) told_to_end = 1;
  };
  for (const int signal : {SIGCHLD, SIGTERM}) ::sigaction(signal, &action, nullptr);
  ::signal(SIGINT, SIG_IGN);  // A terminal's; the test ends by it, and we by the test's end.
  std::array<char, 1 << 16> buffer;
  while (told_to_end == 0) {
    Reap();
    pollfd socket{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0};
    if (::ppoll(&socket, 1, nullptr, &open) <= 0) continue;
    const ssize_t size = ::recv(STDIN_FILENO, buffer.data(), buffer.size(), 0);
    if (size <= 0) break;
    const pid_t pid = StartChild(std::string(buffer.data(), static_cast<size_t>(size)));
    if (::send(STDIN_FILENO, &pid, sizeof pid, MSG_NOSIGNAL) != sizeof pid) break;
  }
  const bool ended = KillAll([&] {
    Reap();
    const FoundProcesses all = RunningProcesses();
    FoundProcesses found = Below(::getpid(), all);
    for (const FoundProcess& process : all)
      if (process.pid != ::getpid() && StartedWith(process.pid, mark)) found.insert(process);
    return found;
  });
  std::error_code error;
  std::filesystem::remove_all(directory, error);
  return ended && !error ? 0 : 1;
}

}  // namespace
}  // namespace perdure

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  return perdure::Main(argv[1], argv[2]);
}
