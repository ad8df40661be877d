// view.h5 of a checkpoint: whole tensors by name for users of HDF5, as virtual datasets over the
// part files beside it. A convenience: no part of verification or restore, may be deleted.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "ckpt/checkpoint.h"

namespace perdure {

inline constexpr const char* kViewFile = "view.h5";

// A rectangle of a tensor whose elements stand one after the other in a part's datasets.
struct ViewPiece {
  int32_t part = 0;     // Index in manifest.parts.
  int64_t element = 0;  // Its first, within each of the part's datasets.
  int64_t row = 0, col = 0, rows = 0, cols = 0;
};

// Of each tensor. Neighbouring atoms of one part are joined first; what is left is at most three
// rectangles: the rest of a row, whole rows, the beginning of a row. REQUIRES: a valid manifest.
std::vector<std::vector<ViewPiece>> ViewPieces(const Manifest& manifest, const AtomTable& table);

// More than so many pieces make no view that is of use: ResourceExhausted.
inline constexpr size_t kViewPiecesMax = size_t{1} << 16;

// Writes DIR/view.h5, under another name first. Equal manifests give equal bytes.
absl::Status WriteView(const std::string& directory, const Manifest& manifest,
                       const AtomTable& table);

}  // namespace perdure
