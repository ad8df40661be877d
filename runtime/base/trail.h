// What the steps of a run so far leave to those that follow, beside the state: it goes with the
// state wherever that goes. Values and pure functions.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/base/digest.h"

namespace perdure {

// What one step came to.
struct StepNumbers {
  double loss = 0;       // Mean over the step's tokens.
  double grad_norm = 0;  // Before clipping.
  friend bool operator==(const StepNumbers&, const StepNumbers&) = default;
};

struct Trail {
  Digest sample_chain;  // Hash chain over all samples consumed so far.
  // The last kRecentStepsMax steps of the phase that changed the state, the newest last: what an
  // unusual step is measured by (runtime/train/judge_step.h). Finite.
  std::vector<StepNumbers> recent;

  // Drops what is more than kRecentStepsMax.
  void Took(const StepNumbers& step);
  friend bool operator==(const Trail&, const Trail&) = default;
};
inline constexpr size_t kRecentStepsMax = 64;

// A step each: the bits of its loss, then of its gradient norm, 16 lower-case hex digits each.
std::vector<std::string> HexOf(const std::vector<StepNumbers>& recent);
// DataLoss says which it is not.
absl::StatusOr<std::vector<StepNumbers>> RecentOf(const std::vector<std::string>& hex);
// DataLoss: they are too many, or not finite.
absl::Status CheckRecent(const std::vector<StepNumbers>& recent);

}  // namespace perdure
