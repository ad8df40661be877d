// Samples that a run leaves out for ever, because a step that saw some of them was bad: it went
// back and took steps again on the samples behind them. Values and pure functions; what a bad step
// is, and how far the run goes back for it, is runtime/train's.
//
// Which samples a step sees follows from the gaps before it and from the configuration. So two
// states of one run after so many steps are the same bits where they have the same gaps behind
// them; where they have not, one of them is of a line of steps that the run has left.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace perdure {

// Steps are counted from 1: step k leads to the state after k steps.
struct Gap {
  int64_t first_step = 0;  // The first step behind it: it and what followed were taken again.
  int64_t samples = 0;     // Of its phase, left out before that step.
  int64_t bad_step = 0;    // For which.
  int64_t number = 0;      // So many times in a row the run has gone back without getting on.
  friend bool operator==(const Gap&, const Gap&) = default;
};

// Of one run, in the order in which they came about; first steps do not fall.
using Gaps = std::vector<Gap>;

inline constexpr size_t kGapsMax = 1024;  // Of a run.

// DataLoss says which of them cannot be.
absl::Status CheckGaps(std::span<const Gap> gaps);

// Those that the state after `step` steps has behind it.
Gaps GapsBehind(std::span<const Gap> gaps, int64_t step);

// Whether runs with these gaps are in the same state after `step` steps.
bool SameLine(std::span<const Gap> a, std::span<const Gap> b, int64_t step);

// Left out before steps first to last: by gaps whose first step is one of those.
int64_t SamplesLeftOut(std::span<const Gap> gaps, int64_t first, int64_t last);

// The gaps of a run that had `gaps` and goes back once more. Those behind which it goes back are
// part of the new one: their steps are not taken again.
Gaps WithGap(std::span<const Gap> gaps, const Gap& gap);

// Four numbers for each, in the order of its fields; and back. DataLoss: that is none, or as
// CheckGaps.
std::vector<int64_t> NumbersOf(std::span<const Gap> gaps);
absl::StatusOr<Gaps> GapsOf(std::span<const int64_t> numbers);

}  // namespace perdure
