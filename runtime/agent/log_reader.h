// The run log for whoever only reads it, from any thread: each reading is a value that later
// records do not change. Made by whoever looks after checkpoints, beside the ControlLog that
// appends.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/agent/run_log.h"

namespace perdure {

class LogReader {
 public:
  explicit LogReader(std::string run_directory) : run_directory_(std::move(run_directory)) {}

  // All records that are there now. Errors are RunLog's. May take long; one at a time.
  absl::StatusOr<std::shared_ptr<const RunLog>> Read();

 private:
  const std::string run_directory_;
  std::mutex mutex_;  // Guards what follows.
  std::optional<RunLog> log_;
  std::shared_ptr<const RunLog> newest_;  // As log_.
};

}  // namespace perdure
