#include "tests/agent/lying_file_system.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdarg>
#include <ctime>
#include <map>
#include <set>

namespace perdure {
namespace {

LyingPlan plan;
std::map<std::string, double> missed;  // When a name was first looked for in vain.
std::set<std::string> torn;            // Files that have been shown torn.

bool Lies(Lie lie, const std::string& path) {
  return plan.lie == lie && path.find(plan.part) != path.npos;
}

bool Fails(const char* call, const std::string& path) {
  if (!Lies(Lie::kError, path) || plan.call != call) return false;
  errno = plan.error;
  return true;
}

std::string PathOf(int fd) {
  if (plan.lie == Lie::kNone) return "";
  char path[PATH_MAX] = {};
  const std::string name = "/proc/self/fd/" + std::to_string(fd);
  const long bytes = ::syscall(SYS_readlinkat, AT_FDCWD, name.c_str(), path, sizeof path - 1);
  return bytes > 0 ? std::string(path, static_cast<size_t>(bytes)) : "";
}

double Now() {
  timespec now{};
  ::syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

void Sleep(double seconds) {
  timespec pause{};
  pause.tv_sec = static_cast<time_t>(seconds);
  pause.tv_nsec = static_cast<long>((seconds - static_cast<double>(pause.tv_sec)) * 1e9);
  ::syscall(SYS_nanosleep, &pause, nullptr);
}

int Exists(const char* path) { return ::syscall(SYS_faccessat, AT_FDCWD, path, F_OK) == 0 ? 1 : 0; }

// A copy of the first half of what `fd` reads, in place of it.
int Half(int fd) {
  struct stat info {};
  ::syscall(SYS_fstat, fd, &info);
  const int half = static_cast<int>(::syscall(SYS_memfd_create, "half", MFD_CLOEXEC));
  std::string bytes(static_cast<size_t>(info.st_size) / 2, '\0');
  ::syscall(SYS_read, fd, bytes.data(), bytes.size());
  ::syscall(SYS_write, half, bytes.data(), bytes.size());
  ::syscall(SYS_lseek, half, 0, SEEK_SET);
  ::syscall(SYS_close, fd);
  return half;
}

bool IsLongName(const char* path) {
  constexpr size_t kLongest = 143;
  const std::string name = path;
  return Lies(Lie::kNamesShort, name) && name.size() - name.rfind('/') - 1 > kLongest;
}

// Whether a lookup must say that nothing is there; remembers what is not.
bool IsLate(const std::string& path) {
  if (!Lies(Lie::kNamesLate, path)) return false;
  const auto first = missed.find(path);
  if (first != missed.end() && Now() - first->second < plan.seconds) return true;
  if (first == missed.end() && !Exists(path.c_str())) missed[path] = Now();
  return false;
}

int Open(const char* name, int flags, mode_t mode) {
  const std::string path = name;
  if ((flags & O_DIRECT) != 0 && Fails("direct", path)) return -1;
  if (Fails("open", path)) return -1;
  if (IsLongName(name)) {
    errno = ENAMETOOLONG;
    return -1;
  }
  if ((flags & O_CREAT) == 0 && IsLate(path)) {
    errno = ENOENT;
    return -1;
  }
  if (Lies(Lie::kExclusiveIgnored, path)) flags &= ~O_EXCL;
  if (Lies(Lie::kSymlinkFollowed, path)) flags &= ~O_NOFOLLOW;
  const int fd = static_cast<int>(::syscall(SYS_openat, AT_FDCWD, name, flags, mode));
  const bool reads = (flags & (O_ACCMODE | O_DIRECTORY)) == O_RDONLY;
  if (fd >= 0 && reads && Lies(Lie::kContentTorn, path) && torn.insert(path).second)
    return Half(fd);
  return fd;
}

void Twist(const std::string& path, struct stat* info) {
  if (Lies(Lie::kLinkAlwaysTwo, path)) info->st_nlink = 2;
  if (Lies(Lie::kLinkAlwaysOne, path)) info->st_nlink = 1;
  if (Lies(Lie::kModesIgnored, path)) info->st_mode = (info->st_mode & ~0777U) | 0755U;
  if (Lies(Lie::kOwnerChanged, path)) info->st_uid += 1000;
  if (Lies(Lie::kSizeShort, path) && info->st_size > 0) --info->st_size;
  if (Lies(Lie::kHolesFilled, path)) info->st_blocks = info->st_size / 512;
  if (Lies(Lie::kServerClock, path)) info->st_mtim.tv_sec += static_cast<time_t>(plan.seconds);
}

int Stat(const char* name, struct stat* info, int flags) {
  std::string path = name;
  if (Lies(Lie::kCaseFolded, path))
    std::transform(path.begin() + static_cast<std::ptrdiff_t>(path.rfind('/')), path.end(),
                   path.begin() + static_cast<std::ptrdiff_t>(path.rfind('/')),
                   [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  const long result = ::syscall(SYS_newfstatat, AT_FDCWD, path.c_str(), info, flags);
  if (result == 0) Twist(path, info);
  return static_cast<int>(result);
}

int Sync(long number, int fd) {
  const std::string path = PathOf(fd);
  struct stat info {};
  ::syscall(SYS_fstat, fd, &info);
  if (Lies(Lie::kSlow, path)) Sleep(plan.seconds);
  if (Fails(S_ISDIR(info.st_mode) ? "fsync directory" : "fsync", path)) return -1;
  return static_cast<int>(::syscall(number, fd));
}

int RealLink(const char* from, const char* to) {
  return static_cast<int>(::syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0));
}

int Replace(const char* from, const char* to) {
  ::syscall(SYS_unlinkat, AT_FDCWD, to, 0);
  return RealLink(from, to);
}

int CopyOver(const char* from, const char* to) {
  const int source = static_cast<int>(::syscall(SYS_openat, AT_FDCWD, from, O_RDONLY, 0));
  const int target =
      static_cast<int>(::syscall(SYS_openat, AT_FDCWD, to, O_WRONLY | O_CREAT, 0600));
  char piece[1024];
  for (long got = 1; got > 0; Sleep(1e-4)) {
    got = ::syscall(SYS_read, source, piece, sizeof piece);
    if (got > 0) ::syscall(SYS_write, target, piece, got);
  }
  ::syscall(SYS_close, source);
  ::syscall(SYS_close, target);
  return static_cast<int>(::syscall(SYS_unlinkat, AT_FDCWD, from, 0));
}

ssize_t Read(const std::string& path, ssize_t got, void* data) {
  constexpr ssize_t kLarge = 1 << 20;
  if (got >= kLarge && Lies(Lie::kBytesFlipped, path)) static_cast<char*>(data)[0] ^= 1;
  return got;
}

mode_t ModeOf(int flags, va_list arguments) {
  return (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(arguments, mode_t) : 0;
}

}  // namespace

void LieWith(const LyingPlan& lies) {
  plan = lies;
  missed.clear();
  torn.clear();
}

extern "C" {

int open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = ModeOf(flags, arguments);
  va_end(arguments);
  return Open(path, flags, mode);
}
int link(const char* from, const char* to) noexcept {
  if (Fails("link", to)) return -1;
  if (Lies(Lie::kLinkOverwrites, to)) return Replace(from, to);
  if (Lies(Lie::kLinkRaces, to) && !Exists(to)) {
    Sleep(1e-3);
    return Replace(from, to);
  }
  return RealLink(from, to);
}
int rename(const char* from, const char* to) noexcept {
  if (Lies(Lie::kRenameUnlinksFirst, to)) {
    ::syscall(SYS_unlinkat, AT_FDCWD, to, 0);
    Sleep(1e-4);
  }
  if (Lies(Lie::kRenameCopies, to)) return CopyOver(from, to);
  return static_cast<int>(::syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}
int mkdir(const char* path, mode_t mode) noexcept {
  if (Fails("mkdir", path)) return -1;
  return static_cast<int>(::syscall(SYS_mkdirat, AT_FDCWD, path, mode));
}
int stat(const char* path, struct stat* info) noexcept { return Stat(path, info, 0); }
int fsync(int fd) { return Sync(SYS_fsync, fd); }
int fdatasync(int fd) { return Sync(SYS_fdatasync, fd); }
int fallocate(int fd, int mode, off_t offset, off_t bytes) {
  if (Fails("reserve", PathOf(fd))) return -1;
  return static_cast<int>(::syscall(SYS_fallocate, fd, mode, offset, bytes));
}
ssize_t pwritev(int fd, const iovec* pieces, int count, off_t offset) {
  if (Fails("write", PathOf(fd))) return -1;
  return ::syscall(SYS_pwritev, fd, pieces, count, offset, 0L);
}
ssize_t pwrite(int fd, const void* data, size_t bytes, off_t offset) {
  if (Fails("write", PathOf(fd))) return -1;
  return ::syscall(SYS_pwrite64, fd, data, bytes, offset);
}
ssize_t pread(int fd, void* data, size_t bytes, off_t offset) {
  const std::string path = PathOf(fd);
  if (Lies(Lie::kUnlinkedGone, path) && path.ends_with(" (deleted)")) {
    errno = ESTALE;
    return -1;
  }
  return Read(path, ::syscall(SYS_pread64, fd, data, bytes, offset), data);
}
dirent* readdir(DIR* stream) {
  // Only the first listing is cut, so that what is there can be removed.
  static DIR* cut = nullptr;
  static int names = 0;
  constexpr int kListed = 90;
  if (Lies(Lie::kListingShort, PathOf(::dirfd(stream)))) {
    if (cut == nullptr) cut = stream;
    if (cut == stream && ++names > kListed) return nullptr;
  }
  return reinterpret_cast<dirent*>(::readdir64(stream));
}
int clock_gettime(clockid_t clock, timespec* time) noexcept {
  static thread_local int calls = 0;
  const long result = ::syscall(SYS_clock_gettime, clock, time);
  if (plan.lie == Lie::kClockBack && clock == CLOCK_MONOTONIC && ++calls % 1000 == 0)
    time->tv_sec -= 1;
  return static_cast<int>(result);
}

}  // extern "C"
}  // namespace perdure
