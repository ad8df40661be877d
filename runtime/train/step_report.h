// What of a step's report follows from the run's configuration alone. Pure.
#pragma once

#include <cstdint>

#include "runtime/train/rank_host.h"
#include "runtime/train/schedule_math.h"

namespace perdure {

// Of the step that is the `step`-th (from 1): all but loss, gradient norm, sample chain and times.
// REQUIRES: 1 <= step <= schedule.steps().
StepReport PlannedReport(const StepSchedule& schedule, int64_t step);

}  // namespace perdure
