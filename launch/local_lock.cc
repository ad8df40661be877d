#include "launch/local_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <utility>

#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using Json = nlohmann::json;

std::string HostName() {
  char name[256] = "";
  return ::gethostname(name, sizeof name - 1) == 0 ? name : "unknown";
}

// What is written in it; an empty or torn one says nothing.
struct Holder {
  std::string host;
  int64_t pid = 0;
  std::optional<uint64_t> job;
};

Holder ReadHolder(const std::string& path) {
  Holder holder;
  const absl::StatusOr<std::string> text = ReadFile(path);
  const Json json =
      text.ok() ? Json::parse(*text, nullptr, /*allow_exceptions=*/false) : Json::object();
  if (!json.is_object()) return holder;
  if (const auto host = json.find("host"); host != json.end() && host->is_string())
    holder.host = host->get<std::string>();
  if (const auto pid = json.find("pid"); pid != json.end() && pid->is_number_integer())
    holder.pid = pid->get<int64_t>();
  if (const auto job = json.find("job"); job != json.end() && job->is_number_unsigned())
    holder.job = job->get<uint64_t>();
  return holder;
}

}  // namespace

absl::StatusOr<LocalLock> LocalLock::Take(const std::string& run_directory) {
  const std::string path = run_directory + "/control/local.lock";
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.open()) return ErrnoStatus(errno, "open " + path);
  const Holder holder = ReadHolder(path);
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoStatus(errno, "lock " + path);
    return FailedPrecondition(
        "run directory {} has a live job (process {} of host {}); stop it with: perdure stop {}",
        run_directory, holder.pid, holder.host, run_directory);
  }
  LocalLock lock(std::move(fd), path);
  if (holder.host == HostName()) lock.last_job_ = holder.job;
  return lock;
}

absl::Status LocalLock::Hold(uint64_t job) {
  const std::string text =
      Json{{"job", job}, {"host", HostName()}, {"pid", ::getpid()}}.dump() + "\n";
  if (::ftruncate(fd_.get(), 0) != 0 ||
      ::pwrite(fd_.get(), text.data(), text.size(), 0) != static_cast<ssize_t>(text.size()))
    return ErrnoStatus(errno, "write " + path_);
  return absl::OkStatus();
}

}  // namespace perdure
