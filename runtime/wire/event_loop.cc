#include "runtime/wire/event_loop.h"

#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <ctime>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {

static_assert(EventLoop::kReadable == EPOLLIN);
namespace {

constexpr int kEventsPerRound = 256;

}  // namespace

absl::Time MonotonicNow() {
  timespec now{};
  PERDURE_CHECK(::clock_gettime(CLOCK_MONOTONIC, &now) == 0);
  return absl::UnixEpoch() + absl::Seconds(now.tv_sec) + absl::Nanoseconds(now.tv_nsec);
}

absl::StatusOr<std::unique_ptr<EventLoop>> EventLoop::New() {
  UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll.open()) return ErrnoStatus(errno, "epoll_create1");
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake.open()) return ErrnoStatus(errno, "eventfd");
  std::unique_ptr<EventLoop> loop(new EventLoop(std::move(epoll), std::move(wake)));
  RETURN_IF_ERROR(loop->AddFd(loop->wake_.get(), EPOLLIN,
                              [self = loop.get()](uint32_t) { self->RunPosted(); }));
  return loop;
}

EventLoop::~EventLoop() {
  if (!blocked_.has_value()) return;
  sigset_t set;
  ::sigemptyset(&set);
  for (const int signal : *blocked_) ::sigaddset(&set, signal);
  ::pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

// ---- Descriptors --------------------------------------------------------------------------------

absl::Status EventLoop::AddFd(int fd, uint32_t events, FdCallback callback) {
  PERDURE_CHECK(fd >= 0);
  const auto index = static_cast<size_t>(fd);
  if (registrations_.size() <= index) registrations_.resize(index + 1);
  PERDURE_CHECK(registrations_[index] == nullptr);
  epoll_event event{};
  event.events = events;
  event.data.u64 = uint64_t{++generation_} << 32 | index;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0)
    return ErrnoStatus(errno, fmt::format("epoll: watch descriptor {}", fd));
  registrations_[index] = std::make_unique<Registration>(
      Registration{.generation = generation_, .callback = std::move(callback)});
  return absl::OkStatus();
}

void EventLoop::ChangeFd(int fd, uint32_t events) {
  const auto index = static_cast<size_t>(fd);
  PERDURE_CHECK(index < registrations_.size() && registrations_[index] != nullptr);
  epoll_event event{};
  event.events = events;
  event.data.u64 = uint64_t{registrations_[index]->generation} << 32 | index;
  PERDURE_CHECK(::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) == 0);
}

void EventLoop::RemoveFd(int fd) {
  const auto index = static_cast<size_t>(fd);
  if (fd < 0 || index >= registrations_.size() || registrations_[index] == nullptr) return;
  (void)::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
  removed_.push_back(std::move(registrations_[index]));
}

std::span<uint8_t> EventLoop::ReadBuffer() {
  if (read_buffer_ == nullptr) read_buffer_ = std::make_unique_for_overwrite<uint8_t[]>(kReadBytes);
  return {read_buffer_.get(), kReadBytes};
}

// ---- Timers and deferred work -------------------------------------------------------------------

EventLoop::TimerId EventLoop::AddTimer(absl::Time when, Callback callback) {
  const TimerId timer{.when = when, .number = ++timer_number_};
  timers_.emplace(std::pair(when, timer.number), std::move(callback));
  return timer;
}

void EventLoop::CancelTimer(const TimerId& timer) {
  timers_.erase(std::pair(timer.when, timer.number));
}

void EventLoop::FireTimers() {
  // What callbacks add waits for the next round, so that this one ends.
  const absl::Time now = MonotonicNow();
  const uint64_t last = timer_number_;
  for (auto next = timers_.begin(); next != timers_.end() && next->first.first <= now;) {
    if (next->first.second > last) {
      ++next;
      continue;
    }
    const std::pair<absl::Time, uint64_t> key = next->first;
    const Callback callback = std::move(next->second);
    timers_.erase(next);
    callback();
    next = timers_.upper_bound(key);
  }
}

void EventLoop::Defer(Callback callback) { deferred_.push_back(std::move(callback)); }

void EventLoop::RunDeferred() {
  std::vector<Callback> now;
  now.swap(deferred_);
  for (const Callback& callback : now) callback();
}

// ---- Children and signals -----------------------------------------------------------------------

absl::Status EventLoop::AddChild(pid_t pid, std::function<void(int wait_status)> callback) {
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd.open()) {
    if (errno == ENOSYS) return Unavailable("pidfd_open: this kernel is older than Linux 5.3");
    return ErrnoStatus(errno, fmt::format("pidfd_open of process {}", pid));
  }
  RETURN_IF_ERROR(AddFd(pidfd.get(), EPOLLIN, [this, pid](uint32_t) { ChildReady(pid); }));
  const bool added =
      children_.emplace(pid, Child{.pidfd = std::move(pidfd), .callback = std::move(callback)})
          .second;
  PERDURE_CHECK(added);
  return absl::OkStatus();
}

void EventLoop::RemoveChild(pid_t pid) {
  const auto child = children_.find(pid);
  if (child == children_.end()) return;
  RemoveFd(child->second.pidfd.get());
  children_.erase(child);
}

void EventLoop::ChildReady(pid_t pid) {
  int status = 0;
  const pid_t reaped = ::waitpid(pid, &status, WNOHANG);
  if (reaped == 0 || (reaped < 0 && errno == EINTR)) return;
  const std::function<void(int)> callback = std::move(children_.at(pid).callback);
  RemoveChild(pid);  // Before the callback: the number may be given to its next child.
  callback(reaped == pid ? status : -1);
}

absl::Status EventLoop::AddSignals(std::span<const int> signals,
                                   std::function<void(int)> callback) {
  PERDURE_CHECK(!signals_.open());
  sigset_t set, before;
  ::sigemptyset(&set);
  for (const int signal : signals) ::sigaddset(&set, signal);
  PERDURE_CHECK(::pthread_sigmask(SIG_BLOCK, &set, &before) == 0);
  blocked_.emplace();
  for (const int signal : signals)
    if (::sigismember(&before, signal) == 0) blocked_->push_back(signal);
  signals_ = UniqueFd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals_.open()) return ErrnoStatus(errno, "signalfd");
  on_signal_ = std::move(callback);
  return AddFd(signals_.get(), EPOLLIN, [this](uint32_t) { SignalReady(); });
}

void EventLoop::SignalReady() {
  signalfd_siginfo info{};
  while (::read(signals_.get(), &info, sizeof info) == sizeof info)
    on_signal_(static_cast<int>(info.ssi_signo));
}

// ---- Other threads ------------------------------------------------------------------------------

bool EventLoop::Post(Callback callback) {
  const std::lock_guard lock(mutex_);
  if (posted_.size() >= kPostedMax) return false;
  posted_.push_back(std::move(callback));
  const uint64_t one = 1;
  (void)::write(wake_.get(), &one, sizeof one);  // Full is readable, too.
  return true;
}

void EventLoop::RunPosted() {
  uint64_t count = 0;
  (void)::read(wake_.get(), &count, sizeof count);  // Only the signal.
  std::vector<Callback> now;
  {
    const std::lock_guard lock(mutex_);
    now.swap(posted_);
  }
  for (const Callback& callback : now) callback();
}

// ---- Rounds -------------------------------------------------------------------------------------

int EventLoop::SleepMilliseconds(absl::Time until) const {
  if (!deferred_.empty()) return 0;
  if (!timers_.empty()) until = std::min(until, timers_.begin()->first.first);
  if (until == absl::InfiniteFuture()) return -1;
  // Rounded up, so that a timer is due when the loop wakes for it.
  const absl::Duration left =
      absl::Ceil(std::max(until - MonotonicNow(), absl::ZeroDuration()), absl::Milliseconds(1));
  return static_cast<int>(absl::ToInt64Milliseconds(std::min(left, absl::Hours(1))));
}

void EventLoop::RunOnce(absl::Time until) {
  std::array<epoll_event, kEventsPerRound> events;
  const int ready =
      ::epoll_wait(epoll_.get(), events.data(), kEventsPerRound, SleepMilliseconds(until));
  PERDURE_CHECK(ready >= 0 || errno == EINTR);
  for (int i = 0; i < ready; ++i) {
    const uint64_t data = events[static_cast<size_t>(i)].data.u64;
    const size_t fd = data & 0xffffffff;
    // Removed since, or removed and another one of the same number.
    if (fd >= registrations_.size() || registrations_[fd] == nullptr ||
        registrations_[fd]->generation != data >> 32)
      continue;
    registrations_[fd]->callback(events[static_cast<size_t>(i)].events);
  }
  FireTimers();
  RunDeferred();
  // What a callback held may remove others when it goes.
  std::vector<std::unique_ptr<Registration>>().swap(removed_);
}

void EventLoop::Run() {
  stopped_ = false;
  while (!stopped_) RunOnce();
}

}  // namespace perdure
