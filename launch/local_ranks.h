// The rank processes of a local job (or, over the local transport, threads of this process): start,
// signal, reap.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/agent/frame_socket.h"

namespace perdure {

// The descriptor under which a rank process finds its socket.
inline constexpr int kControlFd = 3;

struct LocalRank {
  int rank = 0;
  int node = 0;
  pid_t pid = 0;
  int pidfd = -1;  // -1 for a thread.
  std::optional<FrameSocket> socket;
  std::thread thread;
  std::string log_path;   // Its standard output and error; empty for a thread.
  bool ended = false;     // Exited (process) or closed its socket (thread).
  std::string how;        // "exited with code 1", "was killed by signal 9 (Killed)".
  bool by_itself = true;  // False once we asked it to end.
};

class LocalRanks {
 public:
  struct Options {
    int ranks = 1;
    int ranks_per_node = 1;
    bool threads = false;
    bool cuda = false;          // They compute on GPUs,
    bool gpu_messages = false;  // and may send from one to the other without the host.
    std::string log_directory;
  };
  static absl::StatusOr<std::unique_ptr<LocalRanks>> Start(const Options& options);
  ~LocalRanks();  // Kills and reaps what is left.

  std::vector<LocalRank>& all() { return ranks_; }
  // Takes the exit of a rank whose pidfd became readable (process) or whose socket closed (thread).
  void Reap(LocalRank& rank);
  // SIGTERM, two seconds later SIGKILL; returns when all are gone. Threads are only joined.
  void EndAll();

 private:
  LocalRanks() = default;
  absl::Status StartProcess(const Options& options, LocalRank& rank, pid_t group);

  std::vector<LocalRank> ranks_;
};

}  // namespace perdure
