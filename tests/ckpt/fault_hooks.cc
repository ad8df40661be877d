#include "tests/ckpt/fault_hooks.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdarg>
#include <mutex>
#include <utility>

namespace perdure {
namespace {

FaultPlan plan;
std::atomic<bool> armed{false}, tracing{false};
std::atomic<int> matching{0}, hit{0};
std::array<std::atomic<int>, static_cast<size_t>(Call::kCount)> seen;
std::mutex trace_mutex;
std::vector<TracedCall> trace;

std::string PathOf(int fd) {
  char path[PATH_MAX] = {};
  const std::string name = "/proc/self/fd/" + std::to_string(fd);
  const long bytes = ::syscall(SYS_readlinkat, AT_FDCWD, name.c_str(), path, sizeof path - 1);
  return bytes > 0 ? std::string(path, static_cast<size_t>(bytes)) : "";
}

std::string PathAt(int directory, const char* path) {
  if (directory == AT_FDCWD || path[0] == '/') return path;
  return PathOf(directory) + "/" + path;
}

// Whether this call is one that the plan spoils. Does not return when it kills.
template <typename Path>
bool Spoiled(Call call, const Path& path) {
  if (!armed) return false;
  if (!plan.under.empty() && !path().starts_with(plan.under)) return false;
  ++seen[static_cast<size_t>(call)];
  if (plan.call != Call::kCount && plan.call != call) return false;
  const int number = ++matching;
  if (number < plan.nth || number >= plan.nth + plan.times) return false;
  ++hit;
  if (plan.exit) ::_exit(137);
  return true;
}

template <typename Path>
void Trace(Call call, const Path& path, bool creates = false) {
  if (!tracing) return;
  const std::lock_guard lock(trace_mutex);
  trace.push_back({call, path(), creates});
}

template <typename Path, typename Real>
auto Hooked(Call call, const Path& path, const Real& real) -> decltype(real()) {
  const bool spoiled = Spoiled(call, path);
  if (spoiled && plan.pretend) return 0;
  if (!spoiled || plan.error == 0) return real();
  if (plan.after || call == Call::kClose) real();
  errno = plan.error;
  return static_cast<decltype(real())>(-1);
}

ssize_t Vectored(Call call, long number, int fd, const iovec* pieces, int count, off_t offset) {
  const auto path = [fd] { return PathOf(fd); };
  if (Spoiled(call, path)) {
    if (plan.error != 0) {
      errno = plan.error;
      return -1;
    }
    if (plan.short_bytes > 0) {
      const iovec first{pieces[0].iov_base, std::min(pieces[0].iov_len, plan.short_bytes)};
      return ::syscall(number, fd, &first, 1, offset, 0L);
    }
  }
  if (call == Call::kWrite) Trace(call, path);
  return ::syscall(number, fd, pieces, count, offset, 0L);
}

// read, write, pread: `real` moves as many bytes as it is told.
template <typename Real>
ssize_t Small(Call call, int fd, size_t bytes, const Real& real) {
  const auto path = [fd] { return PathOf(fd); };
  if (Spoiled(call, path)) {
    if (plan.error != 0) {
      errno = plan.error;
      return -1;
    }
    if (plan.short_bytes > 0) bytes = std::min(bytes, plan.short_bytes);
  }
  if (call == Call::kSmallWrite) Trace(call, path);
  return real(bytes);
}

int Open(int directory, const char* name, int flags, mode_t mode) {
  const auto path = [&] { return PathAt(directory, name); };
  return Hooked(Call::kOpen, path, [&] {
    const int fd = static_cast<int>(::syscall(SYS_openat, directory, name, flags, mode));
    if (fd >= 0 && (flags & O_CREAT) != 0) Trace(Call::kOpen, path, true);
    return fd;
  });
}

int Link(int from_directory, const char* from, int to_directory, const char* to, int flags) {
  const auto path = [&] { return PathAt(to_directory, to); };
  return Hooked(Call::kLink, path, [&] {
    const long result = ::syscall(SYS_linkat, from_directory, from, to_directory, to, flags);
    if (result == 0) Trace(Call::kLink, path, true);
    return static_cast<int>(result);
  });
}

int Unlink(int directory, const char* name, int flags) {
  const auto path = [&] { return PathAt(directory, name); };
  return Hooked(Call::kUnlink, path, [&] {
    const long result = ::syscall(SYS_unlinkat, directory, name, flags);
    if (result == 0) Trace(Call::kUnlink, path);
    return static_cast<int>(result);
  });
}

int Stat(int directory, const char* name, struct stat* info, int flags) {
  const auto path = [&] { return PathAt(directory, name); };
  return Hooked(Call::kStat, path, [&] {
    return static_cast<int>(::syscall(SYS_newfstatat, directory, name, info, flags));
  });
}

int Sync(long number, int fd) {
  const auto path = [fd] { return PathOf(fd); };
  return Hooked(Call::kSync, path, [&] {
    const long result = ::syscall(number, fd);
    if (result == 0) Trace(Call::kSync, path);
    return static_cast<int>(result);
  });
}

mode_t ModeOf(int flags, va_list arguments) {
  return (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(arguments, mode_t) : 0;
}

}  // namespace

void SetFaults(const FaultPlan& faults) {
  armed = false;
  plan = faults;
  matching = hit = 0;
  for (auto& count : seen) count = 0;
  armed = true;
}

void ClearFaults() { armed = false; }
int CallsSeen(Call call) { return seen[static_cast<size_t>(call)]; }
int CallsSeen() {
  int all = 0;
  for (const auto& count : seen) all += count;
  return all;
}
int FaultsHit() { return hit; }

void StartTrace() {
  trace.clear();
  tracing = true;
}

std::vector<TracedCall> TakeTrace() {
  tracing = false;
  return std::exchange(trace, {});
}

extern "C" {

ssize_t pwritev(int fd, const iovec* pieces, int count, off_t offset) {
  return Vectored(Call::kWrite, SYS_pwritev, fd, pieces, count, offset);
}
ssize_t preadv(int fd, const iovec* pieces, int count, off_t offset) {
  return Vectored(Call::kRead, SYS_preadv, fd, pieces, count, offset);
}
ssize_t pwrite(int fd, const void* data, size_t bytes, off_t offset) {
  return Small(Call::kLibraryWrite, fd, bytes, [&](size_t count) -> ssize_t {
    return ::syscall(SYS_pwrite64, fd, data, count, offset);
  });
}
ssize_t pread(int fd, void* data, size_t bytes, off_t offset) {
  return Small(Call::kSmallRead, fd, bytes, [&](size_t count) -> ssize_t {
    return ::syscall(SYS_pread64, fd, data, count, offset);
  });
}
ssize_t read(int fd, void* data, size_t bytes) {
  return Small(Call::kSmallRead, fd, bytes,
               [&](size_t count) -> ssize_t { return ::syscall(SYS_read, fd, data, count); });
}
ssize_t write(int fd, const void* data, size_t bytes) {
  return Small(Call::kSmallWrite, fd, bytes,
               [&](size_t count) -> ssize_t { return ::syscall(SYS_write, fd, data, count); });
}
int ftruncate(int fd, off_t bytes) noexcept {
  return Hooked(
      Call::kTruncate, [fd] { return PathOf(fd); },
      [&] { return static_cast<int>(::syscall(SYS_ftruncate, fd, bytes)); });
}
int fallocate(int fd, int mode, off_t offset, off_t bytes) {
  return Hooked(
      Call::kReserve, [fd] { return PathOf(fd); },
      [&] { return static_cast<int>(::syscall(SYS_fallocate, fd, mode, offset, bytes)); });
}
int fsync(int fd) { return Sync(SYS_fsync, fd); }
int fdatasync(int fd) { return Sync(SYS_fdatasync, fd); }
int open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = ModeOf(flags, arguments);
  va_end(arguments);
  return Open(AT_FDCWD, path, flags, mode);
}
int openat(int directory, const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = ModeOf(flags, arguments);
  va_end(arguments);
  return Open(directory, path, flags, mode);
}
DIR* opendir(const char* path) {
  const auto name = [&] { return std::string(path); };
  if (Spoiled(Call::kOpenDirectory, name) && plan.error != 0) {
    errno = plan.error;
    return nullptr;
  }
  const long fd =
      ::syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK, 0);
  return fd < 0 ? nullptr : ::fdopendir(static_cast<int>(fd));
}
int close(int fd) {
  return Hooked(
      Call::kClose, [fd] { return PathOf(fd); },
      [&] { return static_cast<int>(::syscall(SYS_close, fd)); });
}
int stat(const char* path, struct stat* info) noexcept { return Stat(AT_FDCWD, path, info, 0); }
int lstat(const char* path, struct stat* info) noexcept {
  return Stat(AT_FDCWD, path, info, AT_SYMLINK_NOFOLLOW);
}
int fstatat(int directory, const char* path, struct stat* info, int flags) noexcept {
  return Stat(directory, path, info, flags);
}
int fstat(int fd, struct stat* info) noexcept {
  return Hooked(
      Call::kStat, [fd] { return PathOf(fd); },
      [&] { return static_cast<int>(::syscall(SYS_fstat, fd, info)); });
}
int link(const char* from, const char* to) noexcept {
  return Link(AT_FDCWD, from, AT_FDCWD, to, 0);
}
int linkat(int from_directory, const char* from, int to_directory, const char* to,
           int flags) noexcept {
  return Link(from_directory, from, to_directory, to, flags);
}
int rename(const char* from, const char* to) noexcept {
  const auto path = [&] { return std::string(to); };
  return Hooked(Call::kRename, path, [&] {
    const long result = ::syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    if (result == 0) Trace(Call::kRename, path, true);
    return static_cast<int>(result);
  });
}
int unlink(const char* path) noexcept { return Unlink(AT_FDCWD, path, 0); }
int unlinkat(int directory, const char* path, int flags) noexcept {
  return Unlink(directory, path, flags);
}
int rmdir(const char* path) noexcept { return Unlink(AT_FDCWD, path, AT_REMOVEDIR); }
int mkdir(const char* name, mode_t mode) noexcept {
  const auto path = [&] { return std::string(name); };
  return Hooked(Call::kMakeDirectory, path, [&] {
    const long result = ::syscall(SYS_mkdirat, AT_FDCWD, name, mode);
    if (result == 0) Trace(Call::kMakeDirectory, path, true);
    return static_cast<int>(result);
  });
}

}  // extern "C"
}  // namespace perdure
