// What a command line names when it names a checkpoint, and how a long command shows that it lives.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/checkpoint.h"
#include "runtime/agent/records.h"

namespace perdure {

inline constexpr int kCkptGood = 0, kCkptBad = 1, kCkptUsage = 2;

// Prints the error; the exit code that fits it.
int FailCkpt(const absl::Status& status);

// One line that rewrites itself on a terminal; a plain line now and then elsewhere. On standard
// error. One thread at a time.
class ProgressLine {
 public:
  explicit ProgressLine(std::string what);
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  // Lives no longer than this.
  Progress callback() {
    return [this](uint64_t done, uint64_t total) { Show(done, total); };
  }

 private:
  void Show(uint64_t done, uint64_t total);

  const std::string what_;
  const bool terminal_;
  bool shown_ = false;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// A checkpoint on the command line, with what the run log says of it when it stands inside a run.
struct CheckpointTarget {
  std::string path;
  bool in_run = false;
  std::optional<CheckpointEntry> entry;
};

// Normal, without a slash at its end.
std::string AbsolutePath(const std::string& path);

// InvalidArgument: not a run's directory. Nothing is created.
absl::StatusOr<std::vector<CheckpointEntry>> CheckpointsOfRun(const std::string& run);

// A checkpoint's directory stands for itself, a run's for all that it has, newest first.
absl::StatusOr<std::vector<CheckpointTarget>> ResolveCheckpoints(const std::string& argument);
absl::StatusOr<CheckpointTarget> ResolveNewestCheckpoint(const std::string& argument);

// Held against its COMMIT record where there is one.
absl::StatusOr<Manifest> ManifestOf(const CheckpointTarget& target);
// FailedPrecondition: it stands in a run that never committed it.
absl::Status CheckCommitted(const CheckpointTarget& target);

}  // namespace perdure
