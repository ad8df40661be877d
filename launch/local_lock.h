// Who of this host works for a run: a lock that a local job's processes, all of them, inherit and
// hold as long as they live.
//
// Whoever gets it knows that no process of an earlier local job of this host is left, however that
// job ended; so what that job did not say itself, its END, may be said for it. Other hosts cannot
// be known in this way: their jobs are asked, and waited for, by the control plane.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/base/unique_fd.h"

namespace perdure {

class LocalLock {
 public:
  // RUN/control/local.lock. FailedPrecondition: a job of this host lives, named by its process.
  // `run_directory` is a run.
  static absl::StatusOr<LocalLock> Take(const std::string& run_directory);

  // To be inherited by every process of the job.
  int fd() const { return fd_.get(); }
  // The job that held it before, if that was on this host.
  const std::optional<uint64_t>& last_job() const { return last_job_; }
  // Says that it is now held for `job`, by this process.
  absl::Status Hold(uint64_t job);

 private:
  explicit LocalLock(UniqueFd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}

  UniqueFd fd_;
  std::string path_;
  std::optional<uint64_t> last_job_;
};

}  // namespace perdure
