// Atoms: the smallest pieces of training state that move (docs/architecture.md, "Atoms and
// leaves").
//
// A logical tensor is a matrix [rows, cols] under its Hugging Face name. It is cut into `slices`
// along its sliced axis; a slice is stored row-major by itself; an atom is a run of at most
// atom_elements elements of one slice. Atom order is (tensor, slice, begin) and depends on the
// model and [numerics] only, never on a layout.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace perdure {

enum class SliceAxis : uint8_t {
  kNone,
  kRows,
  kCols
};  // kRows: column-parallel, vocabulary; kCols: row-parallel.

struct TensorSpec {
  std::string name;  // "model.layers.3.self_attn.q_proj.weight".
  int64_t rows = 0;  // 1 for vectors.
  int64_t cols = 0;
  SliceAxis axis = SliceAxis::kNone;
  int64_t slices = 1;  // tensor_shards, or 1 where the tensor is not sliced.
  int64_t layer =
      0;  // Block index; -1 before the blocks (embedding), `layers` behind them (final norm, head).
  bool decays = true;   // Weight decay applies.
  double init_std = 0;  // 0: initialised to ones (norms).

  int64_t size() const { return rows * cols; }
  // Slice s covers rows (columns) [SliceBegin(s), SliceBegin(s + 1)) of the sliced axis: ceil(n /
  // slices) each, but for the last ones where that does not divide n.
  int64_t SliceBegin(int64_t slice) const;
  int64_t SliceRows(int64_t slice) const;
  int64_t SliceCols(int64_t slice) const;
  int64_t SliceSize(int64_t slice) const { return SliceRows(slice) * SliceCols(slice); }

  friend bool operator==(const TensorSpec&, const TensorSpec&) = default;
};

struct Atom {
  int32_t tensor = 0;
  int32_t slice = 0;
  int64_t begin = 0;  // First element within the slice.
  int64_t count = 0;

  friend bool operator==(const Atom&, const Atom&) = default;
};

// Half-open range of indices.
struct IndexRange {
  int64_t first = 0;
  int64_t last = 0;
  int64_t size() const { return last - first; }
};

// All tensors and atoms of a model. Immutable.
class AtomTable {
 public:
  AtomTable(std::vector<TensorSpec> tensors, int64_t atom_elements);

  const std::vector<TensorSpec>& tensors() const { return tensors_; }
  const std::vector<Atom>& atoms() const { return atoms_; }
  int64_t atom_elements() const { return atom_elements_; }
  int64_t parameters() const { return parameters_; }

  IndexRange TensorAtoms(int64_t tensor) const;
  IndexRange SliceAtoms(int64_t tensor, int64_t slice) const;
  // Index of the tensor of that name, or -1.
  int64_t FindTensor(std::string_view name) const;

  // Row and column in the logical tensor of an atom's element. REQUIRES: 0 <= element < atom.count.
  struct Place {
    int64_t row = 0;
    int64_t col = 0;
  };
  Place Locate(const Atom& atom, int64_t element) const;

 private:
  std::vector<TensorSpec> tensors_;
  std::vector<Atom> atoms_;
  std::vector<std::vector<int64_t>>
      slice_first_;  // [tensor][slice] -> first atom; one entry more than slices.
  int64_t atom_elements_ = 0;
  int64_t parameters_ = 0;
};

}  // namespace perdure
