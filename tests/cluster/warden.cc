#include "tests/cluster/warden.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/base/status.h"

namespace perdure {

absl::StatusOr<std::unique_ptr<Warden>> Warden::Start(const std::vector<std::string>& environment,
                                                      const std::string& mark,
                                                      const std::string& directory) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
    return ErrnoStatus(errno, "socketpair of a cluster's warden");
  const std::string program = PERDURE_BINARY_DIR "/tests/cluster_warden";
  std::vector<std::string> words = {program, mark, directory}, entries = environment;
  std::vector<char*> argv, envp;
  for (std::string& word : words) argv.push_back(word.data());
  for (std::string& entry : entries) envp.push_back(entry.data());
  argv.push_back(nullptr);
  envp.push_back(nullptr);
  const pid_t pid = ::fork();
  if (pid < 0) return ErrnoStatus(errno, "fork of a cluster's warden");
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    // Its socket is its standard input, which no end of a terminal can close.
    ::dup2(ends[1], STDIN_FILENO);
    ::execve(argv[0], argv.data(), envp.data());
    ::_exit(127);
  }
  ::close(ends[1]);
  return std::unique_ptr<Warden>(new Warden(pid, ends[0]));
}

absl::StatusOr<pid_t> Warden::Run(const std::vector<std::string>& argv, const std::string& output) {
  std::string message = output;
  for (const std::string& word : argv) message += '\0' + word;
  pid_t pid = 0;
  if (::send(socket_, message.data(), message.size(), MSG_NOSIGNAL) !=
          static_cast<ssize_t>(message.size()) ||
      ::recv(socket_, &pid, sizeof pid, 0) != sizeof pid || pid <= 0)
    return Internal(
        "the warden {} of a cluster did not start {}: is it built? ninja cluster_warden", pid_,
        argv[0]);
  return pid;
}

absl::Status Warden::Stop() {
  if (pid_ == 0) return absl::OkStatus();
  ::close(socket_);
  int status = 0;
  (void)::waitpid(pid_, &status, 0);
  const pid_t pid = std::exchange(pid_, 0);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    return Internal(
        "the warden {} of a cluster ended with status {:#x}: some of the cluster's "
        "processes may be left",
        pid, status);
  return absl::OkStatus();
}

Warden::~Warden() { (void)Stop(); }

}  // namespace perdure
