#include "ckpt/view.h"

#include <algorithm>
#include <filesystem>

#include "ckpt/atom_reader.h"
#include "ckpt/part_plan.h"
#include "ckpt/store_hdf5_view.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// Atoms of one slice that follow each other in the slice and in one part.
struct Stretch {
  int64_t slice = 0, begin = 0, end = 0;  // Elements of the slice.
  int32_t part = 0;
  int64_t element = 0;
};

std::vector<Stretch> Stretches(const AtomTable& table, int64_t tensor,
                               const std::vector<AtomPlace>& places) {
  std::vector<Stretch> stretches;
  const IndexRange atoms = table.TensorAtoms(tensor);
  for (int64_t a = atoms.first; a < atoms.last; ++a) {
    const Atom& atom = table.atoms()[static_cast<size_t>(a)];
    const AtomPlace& place = places[static_cast<size_t>(a)];
    if (!stretches.empty()) {
      Stretch& last = stretches.back();
      if (last.slice == atom.slice && last.part == place.part && last.end == atom.begin &&
          last.element + last.end - last.begin == place.element) {
        last.end += atom.count;
        continue;
      }
    }
    stretches.push_back(
        {atom.slice, atom.begin, atom.begin + atom.count, place.part, place.element});
  }
  return stretches;
}

void AddRectangles(const TensorSpec& tensor, const Stretch& stretch,
                   std::vector<ViewPiece>& pieces) {
  const int64_t cols = tensor.SliceCols(stretch.slice);
  const int64_t corner = tensor.SliceBegin(stretch.slice);
  const int64_t row = tensor.axis == SliceAxis::kRows ? corner : 0;
  const int64_t col = tensor.axis == SliceAxis::kCols ? corner : 0;
  for (int64_t at = stretch.begin; at < stretch.end;) {
    const int64_t left = stretch.end - at, within = at % cols;
    ViewPiece piece{.part = stretch.part,
                    .element = stretch.element + at - stretch.begin,
                    .row = row + at / cols,
                    .col = col + within,
                    .rows = 1,
                    .cols = std::min(cols - within, left)};
    if (within == 0 && left >= cols) piece.rows = left / cols;
    pieces.push_back(piece);
    at += piece.rows * piece.cols;
  }
}

}  // namespace

std::vector<std::vector<ViewPiece>> ViewPieces(const Manifest& manifest, const AtomTable& table) {
  const std::vector<AtomPlace> places = LocateAtoms(manifest, table);
  std::vector<std::vector<ViewPiece>> pieces(table.tensors().size());
  for (size_t t = 0; t < pieces.size(); ++t)
    for (const Stretch& stretch : Stretches(table, static_cast<int64_t>(t), places))
      AddRectangles(table.tensors()[t], stretch, pieces[t]);
  return pieces;
}

absl::Status WriteView(const std::string& directory, const Manifest& manifest,
                       const AtomTable& table) {
  const std::vector<std::vector<ViewPiece>> pieces = ViewPieces(manifest, table);
  size_t count = 0;
  for (const std::vector<ViewPiece>& of : pieces) count += of.size();
  if (count > kViewPiecesMax)
    return ResourceExhausted("{}/{} would have {} pieces, more than {}: reshard to fewer files",
                             directory, kViewFile, count, kViewPiecesMax);
  std::vector<int64_t> lengths;
  for (const PartReport& part : manifest.parts)
    lengths.push_back(PlaceElements(table, part.atoms, part.runs).length);
  ASSIGN_OR_RETURN(const std::string bytes, LayOutView(manifest, pieces, lengths));
  return ReplaceFile((std::filesystem::path(directory) / kViewFile).string(), bytes);
}

}  // namespace perdure
