// What a rank has worked itself since its generation began, without what it waited for others.
// Measured by runtime/train, judged by runtime/control.
#pragma once

#include <cstdint>

namespace perdure {

struct WorkDone {
  int64_t steps = 0;   // Finished,
  int64_t leaves = 0;  // and its replica's leaves in them.
  int64_t nanoseconds = 0;
  friend bool operator==(const WorkDone&, const WorkDone&) = default;
};

}  // namespace perdure
