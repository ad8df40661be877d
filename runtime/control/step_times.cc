#include "runtime/control/step_times.h"

#include <algorithm>

#include "runtime/base/check.h"

namespace perdure {

StepTimes::StepTimes(int times_max) : times_max_(static_cast<std::size_t>(times_max)) {
  PERDURE_CHECK(times_max >= 1);
}

void StepTimes::Add(absl::Duration time) {
  if (recent_.size() < times_max_) {
    recent_.push_back(time);
  } else {
    sorted_.erase(std::lower_bound(sorted_.begin(), sorted_.end(), recent_[oldest_]));
    recent_[oldest_] = time;
    oldest_ = (oldest_ + 1) % times_max_;
  }
  sorted_.insert(std::upper_bound(sorted_.begin(), sorted_.end(), time), time);
}

void StepTimes::Clear() {
  oldest_ = 0;
  recent_.clear();
  sorted_.clear();
}

absl::Duration StepTimes::P99() const {
  PERDURE_CHECK(!empty());
  return sorted_[(99 * sorted_.size() + 99) / 100 - 1];
}

}  // namespace perdure
