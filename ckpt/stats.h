// What the numbers of a checkpoint look like, per tensor: for people who look for a NaN or a dead
// layer.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "ckpt/checkpoint.h"

namespace perdure {

// Over the finite elements; the others are counted. All zero when none is finite.
struct ValueStats {
  double min = 0, max = 0, mean = 0, rms = 0;
  int64_t not_finite = 0;
};

// Of one tensor of the checkpoint, by state part. Atoms are checked against their digests as they
// are read.
absl::StatusOr<std::array<ValueStats, kStatePartCount>> TensorStats(const std::string& directory,
                                                                    const Manifest& manifest,
                                                                    const AtomTable& table,
                                                                    int64_t tensor);

}  // namespace perdure
