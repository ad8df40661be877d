// A child process that an agent answers for: started with nothing inherited but what is named, its
// end noticed at once by pidfd and told with its cause, ended by SIGTERM, then SIGKILL, and when
// even that does not help (a process in uninterruptible sleep) said to be so.
//
// Lives in an EventLoop, whose thread calls everything and must be the one that starts children for
// as long as they live: the kernel kills them (PR_SET_PDEATHSIG) when that thread is gone.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/control/evidence.h"
#include "runtime/wire/event_loop.h"

namespace perdure {

// The kernel's count of processes of this process's control group that it killed for want of
// memory. Who was killed by SIGKILL while the count rose was one of them.
class OomKills {
 public:
  // Of this process's group, version 2 or 1; where there is none, nobody is ever found.
  static OomKills OfThisProcess();
  // `path`: a file with a line "oom_kill N".
  explicit OomKills(std::string path);
  // Whether the count has risen by one that was not taken yet; takes it.
  bool Take();

 private:
  int64_t Count() const;
  std::string path_;
  int64_t taken_ = 0;
};

// How a process ended.
struct ProcessEnd {
  EvidenceKind kind = EvidenceKind::kRankCrashed;  // Or kRankKilled, kOutOfMemory.
  int64_t number = 0;                              // Exit code; signal.
  bool asked = false;                              // After End or Kill.
  bool Good() const { return kind == EvidenceKind::kRankCrashed && number == 0; }
  // "exited with code 1", "was killed by signal 9 (Killed)", "was killed for want of memory".
  std::string Text() const;
};

// The end of what a child has written into its log from `begins` on (bytes), for people.
std::string TailOfLog(const std::string& path, int64_t begins);

struct ProcessOptions {
  std::vector<std::string> argv;         // argv[0] is the path, not searched for.
  std::vector<std::string> environment;  // "NAME=value", beside or in place of our own.
  // Ours, the child's: what it inherits beside the standard three; each number of the child's once,
  // from 3 on.
  std::vector<std::pair<int, int>> descriptors;
  std::string log_path;  // Its output, appended; made with mode 0600. Empty: to where ours goes.
  pid_t group = 0;       // Process group to join; 0: a new one.
};

class SupervisedProcess {
 public:
  struct Callbacks {
    std::function<void(const ProcessEnd&)> ended;  // Once, from the loop.
    // Killed `unkillable_after` ago, and still there. Repeated every so long; may be empty.
    std::function<void()> unkillable;
  };
  static constexpr absl::Duration kUnkillableAfter = absl::Seconds(5);

  // NotFound and the like, naming argv[0]: the program could not be executed. `loop` and `oom`
  // outlive it.
  static absl::StatusOr<std::unique_ptr<SupervisedProcess>> Start(
      EventLoop* loop, OomKills* oom, const ProcessOptions& options, Callbacks callbacks,
      absl::Duration unkillable_after = kUnkillableAfter);
  // Kills it; waits for its end for at most a second (who cannot be killed becomes init's).
  ~SupervisedProcess();
  SupervisedProcess(const SupervisedProcess&) = delete;
  SupervisedProcess& operator=(const SupervisedProcess&) = delete;

  pid_t pid() const { return pid_; }
  bool running() const { return running_; }
  // SIGTERM now, SIGKILL after `grace`. Nothing happens when it has ended, or is ending sooner.
  void End(absl::Duration grace);
  void Kill();
  // For what has a meaning of its own. Nothing happens when it has ended.
  void Signal(int signal);

 private:
  SupervisedProcess(EventLoop* loop, OomKills* oom, pid_t pid, Callbacks callbacks,
                    absl::Duration unkillable_after);
  void Ended(int wait_status);
  void WatchKill();

  EventLoop* const loop_;
  OomKills* const oom_;
  const pid_t pid_;
  const Callbacks callbacks_;
  const absl::Duration unkillable_after_;
  bool running_ = true, asked_ = false, killed_ = false;
  absl::Time kill_at_ = absl::InfiniteFuture();
  EventLoop::TimerId timer_;
};

}  // namespace perdure
