// A file of virtual datasets, by libhdf5, in memory. Private to ckpt/.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "ckpt/checkpoint.h"
#include "ckpt/view.h"

namespace perdure {

// The bytes of view.h5. `pieces` by tensor, `lengths` of each part's datasets.
absl::StatusOr<std::string> LayOutView(const Manifest& manifest,
                                       std::span<const std::vector<ViewPiece>> pieces,
                                       std::span<const int64_t> lengths);

}  // namespace perdure
