// The layout of part files, by libhdf5. Private to ckpt/; only files store_hdf5* name
// hdf5.h.
//
// libhdf5 creates the objects and tells where each dataset's elements stand; the elements are
// written and read by others. Any thread: the calls are serialized here, because not every build of
// libhdf5 does so. Its errors become a Status.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/checkpoint.h"
#include "ckpt/file_io.h"
#include "ckpt/sparse_image.h"

namespace perdure {

// A dataset of so many bytes or more begins at a whole block.
inline constexpr uint64_t kAlignedDatasetBytes = 64 << 10;

// What a part file says about itself.
struct PartLayout {
  const AtomTable* table = nullptr;
  std::span<const int64_t> atoms;  // In the order of the datasets' elements.
  std::span<const int64_t> runs;   // As PartPlan::runs.
  int64_t step = 0;
  uint64_t generation = 0;
  std::string run_id;
};

// A part file but for its elements.
struct LaidOutPart {
  std::array<uint64_t, kStatePartCount>
      offsets{};       // Of the datasets, ascending; zeros without atoms.
  uint64_t bytes = 0;  // Length of the file.
  SparseImage image;   // All that is not an element.
};

absl::StatusOr<LaidOutPart> LayOutPart(const PartLayout& layout);

// DataLoss when the file's datasets or attributes are not those of `layout` at `offsets`. REQUIRES:
// the file's digests are right; libhdf5 is not safe on hostile bytes.
absl::Status CheckPartLayout(const File& file, const PartLayout& layout,
                             const std::array<uint64_t, kStatePartCount>& offsets);

}  // namespace perdure
