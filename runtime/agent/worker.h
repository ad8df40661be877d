// One thread that does what may take long (file systems stall for minutes), so that whoever watches
// processes never waits for it. Work is done in order; what it leads to is run by the owner, when
// its loop finds fd() readable. The owner's thread calls everything here.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "absl/status/statusor.h"

namespace perdure {

class Worker {
 public:
  // kLow: the least nice share of processors and, where disks are scheduled by it, of disks.
  enum class Priority { kNormal, kLow };
  static absl::StatusOr<std::unique_ptr<Worker>> Start(Priority priority = Priority::kNormal);
  // Finishes what was posted; what it led to is dropped.
  ~Worker();

  // `work` runs on the worker's thread and returns what the owner shall run then.
  using Then = std::function<void()>;
  void Post(std::function<Then()> work);
  int fd() const { return event_fd_; }  // Readable: Drain has something to run.
  void Drain();
  // Waits until all that was posted is done and drained, also what that posts.
  void Finish();

 private:
  Worker(int event_fd, Priority priority);
  void Run();

  const int event_fd_;
  std::mutex mutex_;  // Guards what follows.
  std::condition_variable changed_;
  std::deque<std::function<Then()>> work_;
  std::deque<Then> done_;
  bool busy_ = false, stop_ = false;
  std::thread thread_;
};

}  // namespace perdure
