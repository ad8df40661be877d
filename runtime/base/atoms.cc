#include "runtime/base/atoms.h"

#include <algorithm>

#include "runtime/base/check.h"

namespace perdure {
namespace {

int64_t SlicedExtent(const TensorSpec& tensor) {
  return tensor.axis == SliceAxis::kRows ? tensor.rows : tensor.cols;
}

int64_t SliceExtent(const TensorSpec& tensor, int64_t slice) {
  return tensor.SliceBegin(slice + 1) - tensor.SliceBegin(slice);
}

}  // namespace

int64_t TensorSpec::SliceBegin(int64_t slice) const {
  if (axis == SliceAxis::kNone) return 0;
  const int64_t extent = SlicedExtent(*this);
  const int64_t each = (extent + slices - 1) / slices;
  return std::min(slice * each, extent);
}

int64_t TensorSpec::SliceRows(int64_t slice) const {
  return axis == SliceAxis::kRows ? SliceExtent(*this, slice) : rows;
}

int64_t TensorSpec::SliceCols(int64_t slice) const {
  return axis == SliceAxis::kCols ? SliceExtent(*this, slice) : cols;
}

AtomTable::AtomTable(std::vector<TensorSpec> tensors, int64_t atom_elements)
    : tensors_(std::move(tensors)), atom_elements_(atom_elements) {
  PERDURE_CHECK(atom_elements > 0);
  for (size_t t = 0; t < tensors_.size(); ++t) {
    const TensorSpec& tensor = tensors_[t];
    PERDURE_CHECK(tensor.slices == 1 || tensor.axis != SliceAxis::kNone);
    std::vector<int64_t> first;
    for (int64_t s = 0; s < tensor.slices; ++s) {
      first.push_back(static_cast<int64_t>(atoms_.size()));
      const int64_t size = tensor.SliceSize(s);
      for (int64_t begin = 0; begin < size; begin += atom_elements)
        atoms_.push_back({static_cast<int32_t>(t), static_cast<int32_t>(s), begin,
                          std::min(atom_elements, size - begin)});
    }
    first.push_back(static_cast<int64_t>(atoms_.size()));
    slice_first_.push_back(std::move(first));
    parameters_ += tensor.size();
  }
}

IndexRange AtomTable::TensorAtoms(int64_t tensor) const {
  const auto& first = slice_first_[static_cast<size_t>(tensor)];
  return {first.front(), first.back()};
}

IndexRange AtomTable::SliceAtoms(int64_t tensor, int64_t slice) const {
  const auto& first = slice_first_[static_cast<size_t>(tensor)];
  return {first[static_cast<size_t>(slice)], first[static_cast<size_t>(slice) + 1]};
}

int64_t AtomTable::FindTensor(std::string_view name) const {
  for (size_t t = 0; t < tensors_.size(); ++t)
    if (tensors_[t].name == name) return static_cast<int64_t>(t);
  return -1;
}

AtomTable::Place AtomTable::Locate(const Atom& atom, int64_t element) const {
  const TensorSpec& tensor = tensors_[static_cast<size_t>(atom.tensor)];
  PERDURE_CHECK(element >= 0 && element < atom.count);
  const int64_t at = atom.begin + element;
  const int64_t cols = tensor.SliceCols(atom.slice);
  Place place{at / cols, at % cols};
  if (tensor.axis == SliceAxis::kRows) place.row += tensor.SliceBegin(atom.slice);
  if (tensor.axis == SliceAxis::kCols) place.col += tensor.SliceBegin(atom.slice);
  return place;
}

}  // namespace perdure
