#include "runtime/agent/worker.h"

#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <utility>

#include "runtime/base/status.h"

namespace perdure {
namespace {

// Of the calling thread and of those that it starts. Its disk priority follows (the lowest of the
// best-effort class). Not the idle class: a commit's fsync waits for the file system's journal, and
// that for the idle writes, which on a busy disk took minutes.
void BecomeLow() { (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), 19); }

}  // namespace

absl::StatusOr<std::unique_ptr<Worker>> Worker::Start(Priority priority) {
  const int event_fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (event_fd < 0) return ErrnoStatus(errno, "eventfd");
  return std::unique_ptr<Worker>(new Worker(event_fd, priority));
}

Worker::Worker(int event_fd, Priority priority)
    : event_fd_(event_fd), thread_([this, priority] {
        if (priority == Priority::kLow) BecomeLow();
        Run();
      }) {}

Worker::~Worker() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    changed_.notify_all();
  }
  thread_.join();
  ::close(event_fd_);
}

void Worker::Post(std::function<Then()> work) {
  const std::lock_guard lock(mutex_);
  work_.push_back(std::move(work));
  changed_.notify_all();
}

void Worker::Drain() {
  uint64_t count = 0;
  (void)::read(event_fd_, &count, sizeof count);  // Only the signal.
  std::unique_lock lock(mutex_);
  while (!done_.empty()) {
    const Then then = std::move(done_.front());
    done_.pop_front();
    lock.unlock();
    if (then) then();
    lock.lock();
  }
}

void Worker::Finish() {
  for (;;) {
    Drain();
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !done_.empty() || (work_.empty() && !busy_); });
    if (done_.empty()) return;
  }
}

void Worker::Run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return !work_.empty() || stop_; });
    if (work_.empty()) return;
    const std::function<Then()> work = std::move(work_.front());
    work_.pop_front();
    busy_ = true;
    lock.unlock();
    Then then = work();
    lock.lock();
    done_.push_back(std::move(then));
    busy_ = false;
    changed_.notify_all();
    const uint64_t one = 1;
    (void)::write(event_fd_, &one, sizeof one);  // Full is readable, too.
  }
}

}  // namespace perdure
