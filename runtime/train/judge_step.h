// What becomes of a step whose numbers are unusual. Pure functions of numbers that are equal on
// every rank, in every layout and whenever the step is taken, so all come to one answer.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/base/gaps.h"
#include "runtime/train/run_config.h"
#include "runtime/train/schedule_math.h"
#include "runtime/train/snapshot_file.h"

namespace perdure {

enum class StepDecision { kTake, kSkip, kGoBack, kStop };

// A step is bad if its numbers are not finite, its gradient norm is above grad_norm_max, or it
// stands out by more than spike_max from `before`: its norm is more than so many medians of theirs,
// or its loss above all of theirs by more than so many times what they span. `before`: recent steps
// (Trail), which go with the state, so that this does not depend on where a generation began; fewer
// than kRecentStepsMin say nothing.
StepDecision JudgeStep(const IntegrityConfig& config, std::span<const StepNumbers> before,
                       const StepNumbers& step);
inline constexpr size_t kRecentStepsMin = 8;

// Whether a step should be computed twice before it is believed: it is bad, or stands out by more
// than `spike`.
bool LooksOdd(const IntegrityConfig& config, std::span<const StepNumbers> before,
              const StepNumbers& step);

// Why a step is bad, for people. REQUIRES: it is.
std::string WhyBad(const IntegrityConfig& config, std::span<const StepNumbers> before,
                   const StepNumbers& step);

// The gap that a run of `schedule` has from then on, behind those that it has already, when it goes
// back for the step `bad`: by rollback_steps steps, but not into another phase, whose samples are
// others, nor behind step `begins`, where it began. All samples from those of the first step that
// is taken again to those of the bad one are left out. DataLoss: it has gone back so often without
// getting on by more than rollback_steps, or has so many gaps, that a person must look.
absl::StatusOr<Gap> GapFor(const IntegrityConfig& config, const StepSchedule& schedule,
                           const StepInfo& bad, int64_t begins);

}  // namespace perdure
