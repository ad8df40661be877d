#include "runtime/base/space.h"

#include <fcntl.h>
#include <sys/quota.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "runtime/base/status.h"

namespace perdure {
namespace {

std::string Words(std::optional<uint64_t> bytes, std::optional<uint64_t> files) {
  const auto mib = [&] { return static_cast<double>(*bytes) / (1 << 20); };
  if (!bytes.has_value()) return fmt::format("{} files", *files);
  if (!files.has_value()) return fmt::format("{:.1f} MiB", mib());
  return fmt::format("{:.1f} MiB and {} files", mib(), *files);
}

// What is left until a limit, of which 0 means none.
std::optional<uint64_t> Left(uint64_t limit, uint64_t used) {
  if (limit == 0) return std::nullopt;
  return limit > used ? limit - used : 0;
}

// By the kernel's own count: file systems of other machines (Lustre, GPFS, NFS) keep theirs to
// themselves, and kernels before 5.14 do not know the call.
void ReadQuota(int descriptor, int type, uint32_t id, const std::string& of,
               std::vector<SpaceLimit>& limits) {
#ifdef SYS_quotactl_fd
  dqblk quota{};
  if (::syscall(SYS_quotactl_fd, descriptor, QCMD(Q_GETQUOTA, type), id, &quota) != 0) return;
  constexpr uint64_t kQuotaBlock = 1024;
  SpaceLimit limit{.of = fmt::format("the quota of {} {}", of, id),
                   .bytes = Left(quota.dqb_bhardlimit * kQuotaBlock, quota.dqb_curspace),
                   .files = Left(quota.dqb_ihardlimit, quota.dqb_curinodes)};
  if (limit.bytes.has_value() || limit.files.has_value()) limits.push_back(std::move(limit));
#endif
}

}  // namespace

absl::Status CheckSpace(const std::string& directory, const std::string& what,
                        const SpaceNeed& need, std::span<const SpaceLimit> limits,
                        const std::string& advice) {
  for (const SpaceLimit& limit : limits)
    if (limit.bytes.value_or(need.bytes) < need.bytes ||
        limit.files.value_or(need.files) < need.files)
      return ResourceExhausted("{} needs {} in {}, and {} has {} left: {}", what,
                               Words(need.bytes, need.files), directory, limit.of,
                               Words(limit.bytes, limit.files), advice);
  return absl::OkStatus();
}

std::vector<SpaceLimit> ReadSpace(const std::string& directory) {
  std::vector<SpaceLimit> limits;
  const int descriptor = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return limits;
  struct statvfs info {};
  if (::fstatvfs(descriptor, &info) == 0) {
    SpaceLimit limit{.of = "the file system", .bytes = info.f_bavail * info.f_frsize, .files = {}};
    // Some (btrfs) make inodes as they go.
    if (info.f_files != 0) limit.files = info.f_favail;
    limits.push_back(std::move(limit));
  }
  struct stat owner {};
  const bool set_group = ::fstat(descriptor, &owner) == 0 && (owner.st_mode & S_ISGID) != 0;
  ReadQuota(descriptor, USRQUOTA, ::geteuid(), "user", limits);
  ReadQuota(descriptor, GRPQUOTA, set_group ? owner.st_gid : ::getegid(), "group", limits);
  ::close(descriptor);
  return limits;
}

}  // namespace perdure
