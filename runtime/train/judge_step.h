// What becomes of a step whose numbers are unusual. Pure functions of numbers that are equal on
// every rank, in every layout and whenever the step is taken, so all come to one answer.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "runtime/train/run_config.h"
#include "runtime/train/snapshot_file.h"

namespace perdure {

enum class StepDecision { kTake, kSkip, kStop };

// From the step's own numbers alone: it must not depend on where a generation began.
StepDecision JudgeStep(const IntegrityConfig& config, const StepNumbers& step);

// Whether a step should be computed twice before it is believed: it is bad, or its gradient norm is
// more than `spike` times the median of `before`, or its loss is above all of `before` by more than
// `spike` times what those span. `before`: steps that were taken, of this generation; below
// kOddStepsMin they say nothing.
bool LooksOdd(const IntegrityConfig& config, std::span<const StepNumbers> before,
              const StepNumbers& step);
inline constexpr size_t kOddStepsMin = 8;

// Why a step is bad, for people. REQUIRES: it is.
std::string WhyBad(const IntegrityConfig& config, const StepNumbers& step);

}  // namespace perdure
