#include "launch/local_ranks.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>

#include "launch/config.h"
#include "runtime/agent/rank_process.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// In the child, between fork and exec: only calls that are safe there.
[[noreturn]] void BecomeRank(int socket, int log, pid_t parent, pid_t group) {
  ::setpgid(0, group);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(1);  // The parent died before the line above.
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::dup2(log, STDOUT_FILENO);
  ::dup2(log, STDERR_FILENO);
  if (socket == kControlFd) {
    ::fcntl(socket, F_SETFD, 0);
  } else {
    ::dup2(socket, kControlFd);
  }
  ::execl("/proc/self/exe", "perdure", "rank", static_cast<char*>(nullptr));
  ::_exit(127);
}

}  // namespace

absl::Status LocalRanks::StartProcess(const Options& options, LocalRank& rank, pid_t group) {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
    return ErrnoStatus(errno, "socketpair");
  rank.socket.emplace(pair[0]);
  rank.log_path = fmt::format("{}/rank-{:05}.log", options.log_directory, rank.rank);
  const int log = ::open(rank.log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (log < 0) {
    ::close(pair[1]);
    return ErrnoStatus(errno, "open " + rank.log_path);
  }
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid == 0) BecomeRank(pair[1], log, parent, group);
  const int error = errno;
  ::close(pair[1]);
  ::close(log);
  if (pid < 0) return ErrnoStatus(error, fmt::format("fork rank {}", rank.rank));
  rank.pid = pid;
  rank.pidfd = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
  if (rank.pidfd < 0) return ErrnoStatus(errno, "pidfd_open");
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<LocalRanks>> LocalRanks::Start(const Options& options) {
  std::unique_ptr<LocalRanks> ranks(new LocalRanks());
  // Read by the ranks' libraries; set before any thread exists. Waiting OpenMP threads must not
  // burn a shared core.
  ::setenv("OMP_WAIT_POLICY", "passive", /*overwrite=*/0);
  ::setenv("UCX_HANDLE_ERRORS", "none", /*overwrite=*/0);
  // Read when the driver starts. A stream of its own for each lane of a pipeline and for what is
  // computed: of eight hardware queues two streams would share one, and one wait behind the other.
  if (options.cuda) ::setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", /*overwrite=*/0);
  // Loading a kernel at its first use may wait for all that run, hence for other ranks' messages.
  if (options.cuda && options.gpu_messages)
    ::setenv("CUDA_MODULE_LOADING", "EAGER", /*overwrite=*/0);
  const std::shared_ptr<LocalHub> hub = options.threads ? NewLocalHub(options.ranks) : nullptr;
  pid_t group = 0;
  ranks->ranks_.reserve(static_cast<size_t>(options.ranks));
  for (int r = 0; r < options.ranks; ++r) {
    LocalRank& rank = ranks->ranks_.emplace_back();
    rank.rank = r;
    rank.node = r / options.ranks_per_node;
    if (r % options.ranks_per_node == 0)
      group = 0;  // The first rank of a node leads its process group.
    if (options.threads) {
      int pair[2];
      if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        return ErrnoStatus(errno, "socketpair");
      rank.socket.emplace(pair[0]);
      rank.pid = ::getpid();
      rank.thread = std::thread([fd = pair[1], hub] {
        RunRank(FrameSocket(fd), hub,
                [](const std::string& toml) { return ParseConfig(toml, "run.toml", {}); });
      });
      continue;
    }
    RETURN_IF_ERROR(ranks->StartProcess(options, rank, group));
    if (group == 0) group = rank.pid;
  }
  return ranks;
}

void LocalRanks::Reap(LocalRank& rank) {
  if (rank.ended) return;
  rank.ended = true;
  rank.how = "ended";
  if (rank.pidfd < 0) {
    if (rank.thread.joinable()) rank.thread.join();
    return;
  }
  int status = 0;
  while (::waitpid(rank.pid, &status, 0) < 0 && errno == EINTR) {
  }
  ::close(rank.pidfd);
  rank.pidfd = -1;
  if (WIFSIGNALED(status))
    rank.how = fmt::format("was killed by signal {} ({})", WTERMSIG(status),
                           ::strsignal(WTERMSIG(status)));
  else
    rank.how = fmt::format("exited with code {}", WEXITSTATUS(status));
}

void LocalRanks::EndAll() {
  for (LocalRank& rank : ranks_) {
    if (rank.ended) continue;
    rank.by_itself = false;
    if (rank.pidfd >= 0)
      ::kill(rank.pid, SIGTERM);
    else if (rank.socket.has_value())
      ::shutdown(rank.socket->fd(), SHUT_RDWR);
  }
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  for (LocalRank& rank : ranks_) {
    if (rank.ended) continue;
    if (rank.pidfd >= 0) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          deadline - std::chrono::steady_clock::now());
      pollfd wait{.fd = rank.pidfd, .events = POLLIN, .revents = 0};
      if (::poll(&wait, 1, static_cast<int>(std::max<int64_t>(0, left.count()))) <= 0)
        ::kill(rank.pid, SIGKILL);
    }
    Reap(rank);
  }
}

LocalRanks::~LocalRanks() { EndAll(); }

}  // namespace perdure
