// The last so many measured times of a step, and their 99th percentile. Pure.
#pragma once

#include <cstddef>
#include <vector>

#include "absl/time/time.h"

namespace perdure {

class StepTimes {
 public:
  // REQUIRES: times_max >= 1.
  explicit StepTimes(int times_max);

  // Takes O(times_max): they are kept sorted.
  void Add(absl::Duration time);
  void Clear();

  bool empty() const { return sorted_.empty(); }
  std::size_t size() const { return sorted_.size(); }
  // By the nearest-rank rule: the least time that at least 99 of 100 do not exceed; the longest as
  // long as there are fewer than 100. REQUIRES: not empty.
  absl::Duration P99() const;

  friend bool operator==(const StepTimes&, const StepTimes&) = default;

 private:
  std::size_t times_max_;
  std::size_t oldest_ = 0;              // Index into recent_, once that is full.
  std::vector<absl::Duration> recent_;  // A ring.
  std::vector<absl::Duration> sorted_;  // The same, ascending.
};

}  // namespace perdure
