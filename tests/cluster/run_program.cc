#include "tests/cluster/run_program.h"

#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/base/check.h"

namespace perdure {
namespace {

// A file that has no name, so nobody has to remove it.
class NamelessFile {
 public:
  explicit NamelessFile(const std::string& text) {
    PERDURE_CHECK(fd_ >= 0);
    PERDURE_CHECK(::pwrite(fd_, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()));
  }
  ~NamelessFile() { ::close(fd_); }
  NamelessFile(const NamelessFile&) = delete;
  NamelessFile& operator=(const NamelessFile&) = delete;
  int fd() const { return fd_; }
  std::string Text() const {
    std::string text(static_cast<size_t>(::lseek(fd_, 0, SEEK_END)), '\0');
    const ssize_t size = ::pread(fd_, text.data(), text.size(), 0);
    text.resize(static_cast<size_t>(std::max<ssize_t>(size, 0)));
    return text;
  }

 private:
  const int fd_ = ::memfd_create("test", MFD_CLOEXEC);
};

}  // namespace

CommandResult RunProgram(const std::vector<std::string>& argv, const RunProgramOptions& options) {
  const NamelessFile input(options.input), output(""), errors("");
  std::vector<std::string> words = argv, entries = options.environment;
  std::vector<char*> arguments, environment;
  for (std::string& word : words) arguments.push_back(word.data());
  for (std::string& entry : entries) environment.push_back(entry.data());
  arguments.push_back(nullptr);
  environment.push_back(nullptr);
  const pid_t pid = ::fork();
  PERDURE_CHECK(pid >= 0);
  if (pid == 0) {
    ::setpgid(0, 0);
    ::dup2(input.fd(), STDIN_FILENO);
    ::dup2(output.fd(), STDOUT_FILENO);
    ::dup2(errors.fd(), STDERR_FILENO);
    if (options.user.has_value() && (::setgroups(0, nullptr) != 0 || ::setgid(*options.user) != 0 ||
                                     ::setuid(*options.user) != 0))
      ::_exit(126);
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // A change of user would have taken it back.
    if (::chdir(options.directory.c_str()) != 0) ::_exit(126);
    ::execvpe(arguments[0], arguments.data(), environment.data());
    ::_exit(127);
  }
  const auto held = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
  pollfd ended{.fd = held, .events = POLLIN, .revents = 0};
  int left;
  do left = ::poll(&ended, 1, static_cast<int>(absl::ToInt64Milliseconds(options.timeout)));
  while (left < 0 && errno == EINTR);
  if (left == 0) ::kill(-pid, SIGKILL);
  int status = 0;
  PERDURE_CHECK(::waitpid(pid, &status, 0) == pid);
  ::close(held);
  return {.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
          .output = output.Text(),
          .errors = errors.Text()};
}

}  // namespace perdure
