// RUN/chain/jobs/<job>-<restarts>.pulse: the batch script's sign of life, for its job's nodes. When
// they have ended they are all that is left of a job whose batch host was lost, and Slurm may need
// minutes to notice. One small file, written over and over; it decides nothing but who ends the
// allocation.
//
// Its methods may take as long as the file system does.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace perdure {

class BatchPulse {
 public:
  // How often the script leaves one.
  static constexpr absl::Duration kBeat = absl::Seconds(1);

  BatchPulse(const std::string& run_directory, int64_t job, int restarts);

  // REQUIRES: RUN/chain/jobs is there. The batch script alone calls it.
  absl::Status Leave();
  // What was left last, to be compared with what is there later. Empty: nothing.
  std::string Find() const;
  void Remove() const;

 private:
  const std::string path_;
  int64_t count_ = 0;
};

}  // namespace perdure
