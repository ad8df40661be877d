#include "launch/batch_pulse.h"

#include <fcntl.h>
#include <unistd.h>

#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "runtime/base/unique_fd.h"

namespace perdure {

BatchPulse::BatchPulse(const std::string& run_directory, int64_t job, int restarts)
    : path_(fmt::format("{}/chain/jobs/{}-{}.pulse", run_directory, job, restarts)) {}

// In place and synced: a network file system sends it, and whoever opens the file then sees it.
absl::Status BatchPulse::Leave() {
  const UniqueFd file(::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file.open()) return ErrnoStatus(errno, "open " + path_);
  const std::string text = fmt::format("{:020}\n", ++count_);
  const ssize_t written = ::pwrite(file.get(), text.data(), text.size(), 0);
  if (written != std::ssize(text))
    return ErrnoStatus(written < 0 ? errno : ENOSPC, "write " + path_);
  return ::fdatasync(file.get()) == 0 ? absl::OkStatus() : ErrnoStatus(errno, "sync " + path_);
}

std::string BatchPulse::Find() const { return ReadFile(path_).value_or(""); }

void BatchPulse::Remove() const { ::unlink(path_.c_str()); }

}  // namespace perdure
