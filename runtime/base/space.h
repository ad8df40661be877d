// Whether what is about to be written fits: into the file system, and into the quotas that the
// kernel knows of.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace perdure {

struct SpaceNeed {
  uint64_t bytes = 0;
  uint64_t files = 0;  // To be created, directories among them.
};

// What is left of something; none: it has no such limit.
struct SpaceLimit {
  std::string of;  // "the file system", "the quota of user 1000".
  std::optional<uint64_t> bytes, files;
};

// The decision alone. ResourceExhausted names `directory`, what `what` ("a checkpoint") needs, the
// first limit that it exceeds, and `advice`, what a person can do.
absl::Status CheckSpace(const std::string& directory, const std::string& what,
                        const SpaceNeed& need, std::span<const SpaceLimit> limits,
                        const std::string& advice);

// The facts, as far as anybody tells them. May take long.
std::vector<SpaceLimit> ReadSpace(const std::string& directory);

}  // namespace perdure
