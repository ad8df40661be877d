// When a job has to begin to leave, so that its last checkpoint is written and its processes are
// gone before its time is over: by what steps, saves and leaving have taken, not by a constant.
// Pure.
//
// To leave takes the step under way, one more in which the ranks agree, the save of the state, and
// the end of all processes. Of each the longest that was seen counts, because being late costs all
// steps since the last checkpoint and being early a few seconds.
#pragma once

#include <deque>

#include "absl/time/time.h"

namespace perdure {

class LeaveTime {
 public:
  struct Options {
    // As long as nothing was seen: of a save and of leaving.
    absl::Duration save = absl::Seconds(30), stop = absl::Seconds(3);
    absl::Duration margin = absl::Seconds(10);  // Kept besides.
  };
  explicit LeaveTime(const Options& options) : options_(options) {}

  // A step of this job took so long; a save, from the freezing of the state until it was committed.
  void Stepped(absl::Duration took);
  void Saved(absl::Duration took);

  // What leaving takes, margin included.
  absl::Duration Needs() const;
  // REQUIRES: end is of the clock that the caller compares with.
  absl::Time At(absl::Time end) const { return end - Needs(); }

  // Of the last kStepsMax; zero: none was seen.
  absl::Duration step() const;
  absl::Duration save() const;

 private:
  static constexpr size_t kStepsMax = 64, kSavesMax = 5;
  const Options options_;
  std::deque<absl::Duration> steps_, saves_;
};

}  // namespace perdure
