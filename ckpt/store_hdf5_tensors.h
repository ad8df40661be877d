// The layout of a file of whole tensors, by libhdf5: one two-dimensional dataset for each. Private
// to ckpt/.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "ckpt/sparse_image.h"
#include "runtime/base/atoms.h"

namespace perdure {

enum class TensorDType : uint8_t { kF32, kBF16 };

struct TensorFile {
  std::span<const TensorSpec> tensors;
  TensorDType dtype = TensorDType::kF32;
  // Of the root.
  int64_t step = 0;
  std::string run_id;
  std::string certificate;
};

struct LaidOutTensors {
  std::vector<uint64_t> offsets;  // Of each tensor's first element, in bytes.
  uint64_t bytes = 0;             // Of the file.
  SparseImage image;              // All that is not an element.
};

absl::StatusOr<LaidOutTensors> LayOutTensors(const TensorFile& file);

}  // namespace perdure
