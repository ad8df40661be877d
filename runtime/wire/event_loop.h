// The loop that an agent lives in: it sleeps until a descriptor is ready, a time has come, a child
// has ended, a signal has arrived or another thread has something to say, and calls who asked for
// it. Decides nothing.
//
// One thread calls everything but Post. Callbacks are called from RunOnce alone, never from inside
// another call of the loop, and may call anything of it but RunOnce and the destructor: a
// descriptor that a callback removes gets no event any more, also not one that had already been
// collected, and a callback that removes itself stays whole until it returns.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/base/unique_fd.h"

namespace perdure {

// CLOCK_MONOTONIC as an absl::Time, counted from absl::UnixEpoch(). **Not the time of day**: good
// for differences and for deadlines on this machine, and not to be printed as a date, sent to
// another machine or compared with absl::Now(). It stands still while the machine is suspended.
absl::Time MonotonicNow();

class EventLoop {
 public:
  using Callback = std::function<void()>;
  using FdCallback = std::function<void(uint32_t events)>;  // EPOLLIN, EPOLLOUT, ...
  static constexpr uint32_t kReadable = 1;                  // EPOLLIN, for who knows no epoll.
  static constexpr uint32_t kWritable = 4;                  // EPOLLOUT.

  static constexpr size_t kPostedMax = 1024;
  static constexpr size_t kReadBytes = size_t{256} << 10;

  static absl::StatusOr<std::unique_ptr<EventLoop>> New();
  // Closes what it has opened itself; descriptors that were added are their owners'.
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  // ---- Descriptors: level-triggered, `events` of epoll. EPOLLERR and EPOLLHUP always come.
  absl::Status AddFd(int fd, uint32_t events, FdCallback callback);
  void ChangeFd(int fd, uint32_t events);
  // Before `fd` is closed. Nothing happens when it is not there.
  void RemoveFd(int fd);
  // kReadBytes to read into, one for all who live in the loop, so that each needs none of its own.
  // Good until the callback of a descriptor that has asked for it returns; the next one overwrites
  // it, and nobody else may ask.
  std::span<uint8_t> ReadBuffer();

  // ---- Timers: once, not before `when` on the clock of MonotonicNow(), in order.
  struct TimerId {
    absl::Time when;
    uint64_t number = 0;  // 0: none.
  };
  TimerId AddTimer(absl::Time when, Callback callback);
  // Nothing happens when it has fired.
  void CancelTimer(const TimerId& timer);

  // Runs once, at the end of the present round, before the loop sleeps again: for work that is
  // cheaper done for many at once.
  void Defer(Callback callback);

  // ---- Children of this process. `callback` gets the wait status (WIFEXITED and so on) once; -1
  // when somebody else has reaped it. The loop reaps it. Unavailable: the kernel has no pidfd.
  absl::Status AddChild(pid_t pid, std::function<void(int wait_status)> callback);
  // Nobody is told any more, and the caller reaps it.
  void RemoveChild(pid_t pid);

  // ---- Signals: blocked for the calling thread, and for threads and children that it starts later
  // (which have to unblock them), until the loop's end. Once per loop.
  absl::Status AddSignals(std::span<const int> signals, std::function<void(int)> callback);

  // ---- Any thread: runs `callback` on the loop's. False: kPostedMax are waiting, it was dropped.
  [[nodiscard]] bool Post(Callback callback);

  // Sleeps until something happens, at most until `until`, and calls who has to be called.
  void RunOnce(absl::Time until = absl::InfiniteFuture());
  // Rounds until a callback calls Stop.
  void Run();
  void Stop() { stopped_ = true; }

 private:
  struct Registration {
    uint32_t generation = 0;
    FdCallback callback;
  };
  struct Child {
    UniqueFd pidfd;
    std::function<void(int)> callback;
  };

  EventLoop(UniqueFd epoll, UniqueFd wake) : epoll_(std::move(epoll)), wake_(std::move(wake)) {}
  int SleepMilliseconds(absl::Time until) const;
  void FireTimers();
  void RunPosted();
  void RunDeferred();
  void ChildReady(pid_t pid);
  void SignalReady();

  UniqueFd epoll_, wake_, signals_;
  std::vector<std::unique_ptr<Registration>> registrations_;  // [fd]
  std::vector<std::unique_ptr<Registration>> removed_;        // In this round; may be running.
  uint32_t generation_ = 0;
  std::unique_ptr<uint8_t[]> read_buffer_;  // Made when it is first asked for.
  std::map<std::pair<absl::Time, uint64_t>, Callback> timers_;
  uint64_t timer_number_ = 0;
  std::vector<Callback> deferred_;
  std::map<pid_t, Child> children_;
  std::function<void(int)> on_signal_;
  std::optional<std::vector<int>> blocked_;  // Signals that were not blocked before.
  bool stopped_ = false;

  std::mutex mutex_;  // Guards posted_.
  std::vector<Callback> posted_;
};

}  // namespace perdure
