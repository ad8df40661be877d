// How a drill asks a node's agent to flip a bit of one of its ranks: a file in RUN/control, which
// only who may read the run's key can write, and a signal to look at it.
#pragma once

#include <signal.h>

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/train/flip.h"

namespace perdure {

inline constexpr int kDrillFlipSignal = SIGUSR2;

struct DrillFlip {
  int64_t local_rank = 0;
  Flip flip;
  friend bool operator==(const DrillFlip&, const DrillFlip&) = default;
};

absl::Status LeaveDrillFlip(const std::string& run_directory, int64_t node, const DrillFlip& flip);
// Whoever takes it removes it. NotFound: there is none. DataLoss names file and field.
// PermissionDenied: somebody else wrote it.
absl::StatusOr<DrillFlip> TakeDrillFlip(const std::string& run_directory, int64_t node);

}  // namespace perdure
