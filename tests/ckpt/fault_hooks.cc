#include "tests/ckpt/fault_hooks.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

namespace perdure {
namespace {

FaultPlan plan;
std::atomic<bool> armed{false};
std::atomic<int> matching{0}, hit{0};
std::array<std::atomic<int>, static_cast<size_t>(Call::kCount)> seen;

// Whether this call is one that the plan spoils. Does not return when it kills.
bool Spoiled(Call call) {
  if (!armed) return false;
  ++seen[static_cast<size_t>(call)];
  if (plan.call != Call::kCount && plan.call != call) return false;
  const int number = ++matching;
  if (number < plan.nth || number >= plan.nth + plan.times) return false;
  ++hit;
  if (plan.exit) ::_exit(137);
  return true;
}

template <typename Real>
auto Hooked(Call call, const Real& real) -> decltype(real()) {
  if (!Spoiled(call) || plan.error == 0) return real();
  if (plan.after) real();
  errno = plan.error;
  return -1;
}

ssize_t Vectored(Call call, long number, int fd, const iovec* pieces, int count, off_t offset) {
  if (Spoiled(call)) {
    if (plan.error != 0) {
      errno = plan.error;
      return -1;
    }
    if (plan.short_bytes > 0) {
      const iovec first{pieces[0].iov_base, std::min(pieces[0].iov_len, plan.short_bytes)};
      return ::syscall(number, fd, &first, 1, offset, 0L);
    }
  }
  return ::syscall(number, fd, pieces, count, offset, 0L);
}

}  // namespace

void SetFaults(const FaultPlan& faults) {
  plan = faults;
  matching = hit = 0;
  for (auto& count : seen) count = 0;
  armed = true;
}

void ClearFaults() { armed = false; }
int CallsSeen(Call call) { return seen[static_cast<size_t>(call)]; }
int FaultsHit() { return hit; }

extern "C" {

ssize_t pwritev(int fd, const iovec* pieces, int count, off_t offset) {
  return Vectored(Call::kWrite, SYS_pwritev, fd, pieces, count, offset);
}
ssize_t preadv(int fd, const iovec* pieces, int count, off_t offset) {
  return Vectored(Call::kRead, SYS_preadv, fd, pieces, count, offset);
}
ssize_t pwrite(int fd, const void* data, size_t bytes, off_t offset) {
  return Hooked(Call::kLibraryWrite,
                [&]() -> ssize_t { return ::syscall(SYS_pwrite64, fd, data, bytes, offset); });
}
int ftruncate(int fd, off_t bytes) noexcept {
  return Hooked(Call::kTruncate,
                [&] { return static_cast<int>(::syscall(SYS_ftruncate, fd, bytes)); });
}
int fallocate(int fd, int mode, off_t offset, off_t bytes) {
  return Hooked(Call::kReserve, [&] {
    return static_cast<int>(::syscall(SYS_fallocate, fd, mode, offset, bytes));
  });
}
int fsync(int fd) {
  return Hooked(Call::kSync, [&] { return static_cast<int>(::syscall(SYS_fsync, fd)); });
}
int link(const char* from, const char* to) noexcept {
  return Hooked(Call::kLink, [&] {
    return static_cast<int>(::syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0));
  });
}
int unlink(const char* path) noexcept {
  return Hooked(Call::kUnlink,
                [&] { return static_cast<int>(::syscall(SYS_unlinkat, AT_FDCWD, path, 0)); });
}

}  // extern "C"
}  // namespace perdure
