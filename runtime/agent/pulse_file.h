// RUN/control/pulse: the coordinator's sign of life, for agents that cannot hear it but do reach
// the run's directory. One small file, written over and over; nothing hangs on any one of its
// contents.
//
// Its methods may take as long as the file system does; different threads may write and read.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "runtime/control/log_view.h"

namespace perdure {

class PulseFile {
 public:
  // RUN/control is there: RunLog::Open makes it.
  explicit PulseFile(const std::string& run_directory) : path_(run_directory + "/control/pulse") {}

  absl::Status Leave(const Pulse& pulse) const;
  // Nothing: there is none that is whole.
  std::optional<Pulse> Find() const;

 private:
  std::string path_;
};

}  // namespace perdure
