// Whether two runs gave the same numbers, as far as both have come: every loss, and the certificate
// of every checkpoint of the same step. Reads only; either may be running.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace perdure {

struct RunComparison {
  int64_t losses = 0, certificates = 0;  // That both have.
  int64_t different = 0;                 // Of them.
  std::vector<std::string> words;        // Of the first few that are different.
};

// FailedPrecondition: they have nothing in common. Others: one of them is no run that can be read.
absl::StatusOr<RunComparison> CompareRuns(const std::string& run, const std::string& other);

}  // namespace perdure
