#include "tests/chaos/cpu_quota.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <utility>

#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr int kPeriod = 100'000;  // In microseconds.

absl::Status Write(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text << std::flush;
  return file.good() ? absl::OkStatus()
                     : absl::UnavailableError("cannot write " + text + " to " + path);
}

std::string ParentOf(const std::string& folder) { return folder.substr(0, folder.rfind('/')); }

}  // namespace

absl::StatusOr<CpuQuota> CpuQuota::Hold(int pid, int percent, const std::string& name) {
  const std::string second = "/sys/fs/cgroup/" + name, first = "/sys/fs/cgroup/cpu/" + name;
  const bool is_second = ::access("/sys/fs/cgroup/cgroup.controllers", R_OK) == 0;
  const std::string& folder = is_second ? second : first;
  if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST)
    return absl::UnavailableError("cannot make the control group " + folder +
                                  ": it needs root, and " + "a cpu controller");
  CpuQuota quota(folder, is_second);
  RETURN_IF_ERROR(quota.Set(percent));
  RETURN_IF_ERROR(Write(folder + "/cgroup.procs", std::to_string(pid)));
  return quota;
}

CpuQuota::CpuQuota(CpuQuota&& other) noexcept
    : folder_(std::exchange(other.folder_, "")), second_(other.second_) {}

CpuQuota::~CpuQuota() {
  if (folder_.empty()) return;
  std::ifstream held(folder_ + "/cgroup.procs");
  for (std::string pid; std::getline(held, pid);)
    (void)Write(ParentOf(folder_) + "/cgroup.procs", pid);
  ::rmdir(folder_.c_str());
}

absl::Status CpuQuota::Set(int percent) const {
  const std::string quota = std::to_string(kPeriod / 100 * percent);
  return second_ ? Write(folder_ + "/cpu.max", quota + " " + std::to_string(kPeriod))
                 : Write(folder_ + "/cpu.cfs_quota_us", quota);
}

}  // namespace perdure
