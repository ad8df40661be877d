#include "runtime/control/leave_time.h"

#include <algorithm>

namespace perdure {
namespace {

void Keep(std::deque<absl::Duration>& durations, absl::Duration took, size_t most) {
  durations.push_back(took);
  if (durations.size() > most) durations.pop_front();
}

absl::Duration Longest(const std::deque<absl::Duration>& durations) {
  return durations.empty() ? absl::ZeroDuration()
                           : *std::max_element(durations.begin(), durations.end());
}

}  // namespace

void LeaveTime::Stepped(absl::Duration took) { Keep(steps_, took, kStepsMax); }

void LeaveTime::Saved(absl::Duration took) { Keep(saves_, took, kSavesMax); }

absl::Duration LeaveTime::step() const { return Longest(steps_); }

absl::Duration LeaveTime::save() const { return saves_.empty() ? options_.save : Longest(saves_); }

absl::Duration LeaveTime::Needs() const {
  return 2 * step() + save() + options_.stop + options_.margin;
}

}  // namespace perdure
