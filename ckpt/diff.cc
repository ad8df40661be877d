#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>

#include "ckpt/atom_reader.h"
#include "ckpt/checkpoint.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

struct Side {
  std::string directory;
  Manifest manifest;
  AtomTable table;
};

absl::StatusOr<Side> OpenSide(const std::string& directory) {
  ASSIGN_OR_RETURN(Manifest manifest, ReadManifest(directory, nullptr));
  AtomTable table(manifest.tensors, manifest.atom_elements);
  return Side{directory, std::move(manifest), std::move(table)};
}

Difference Differs(std::string what) { return {.identical = false, .what = std::move(what)}; }

std::string Shape(const TensorSpec& tensor) {
  constexpr std::array<std::string_view, 3> kAlong = {"", " of rows", " of columns"};
  return fmt::format("{} x {}, {} slices{}", tensor.rows, tensor.cols, tensor.slices,
                     kAlong[static_cast<size_t>(tensor.axis)]);
}

// What can be said without reading state: names, shapes, cuts.
std::optional<Difference> CompareTensors(const Side& a, const Side& b) {
  for (const TensorSpec& ours : a.table.tensors()) {
    const int64_t index = b.table.FindTensor(ours.name);
    if (index < 0) return Differs(fmt::format("tensor {} is in {} only", ours.name, a.directory));
    const TensorSpec& theirs = b.table.tensors()[static_cast<size_t>(index)];
    if (Shape(ours) != Shape(theirs))
      return Differs(
          fmt::format("tensor {}: {} against {}", ours.name, Shape(ours), Shape(theirs)));
  }
  for (const TensorSpec& theirs : b.table.tensors())
    if (a.table.FindTensor(theirs.name) < 0)
      return Differs(fmt::format("tensor {} is in {} only", theirs.name, b.directory));
  if (a.table.atom_elements() != b.table.atom_elements())
    return Differs(fmt::format("atoms of {} elements against {}: the runs cut their state apart",
                               a.table.atom_elements(), b.table.atom_elements()));
  return std::nullopt;
}

// Shortest decimal; the bits, too, where decimals do not tell two values apart.
std::string FloatName(float value) {
  if (!std::isnan(value)) return fmt::format("{}", value);
  return fmt::format("nan (0x{:08x})", std::bit_cast<uint32_t>(value));
}

bool SameBits(const AtomState& a, const AtomState& b, int64_t count) {
  for (size_t part = 0; part < kStateParts.size(); ++part)
    if (std::memcmp(a.parts[part], b.parts[part], static_cast<size_t>(count) * sizeof(float)) != 0)
      return false;
  return true;
}

Difference FirstDifference(const AtomTable& table, const AtomState& a, const AtomState& b) {
  const Atom& atom = table.atoms()[static_cast<size_t>(a.atom)];
  if (SameBits(a, b, atom.count)) return {};
  for (int64_t element = 0; element < atom.count; ++element)
    for (size_t part = 0; part < kStateParts.size(); ++part) {
      const float ours = a.parts[part][element], theirs = b.parts[part][element];
      if (std::bit_cast<uint32_t>(ours) == std::bit_cast<uint32_t>(theirs)) continue;
      const AtomTable::Place place = table.Locate(atom, element);
      return Differs(
          fmt::format("tensor {}, atom {}, element {} (row {}, column {}), {}: {} against {}",
                      table.tensors()[static_cast<size_t>(atom.tensor)].name, a.atom, element,
                      place.row, place.col, kStateParts[part], FloatName(ours), FloatName(theirs)));
    }
  return {};
}

// `a`'s atoms under their numbers in `b`, whose tensors may stand in another order.
void Renumber(const Side& a, const Side& b, std::span<AtomState> states) {
  for (AtomState& state : states) {
    const Atom& atom = a.table.atoms()[static_cast<size_t>(state.atom)];
    const int64_t tensor =
        b.table.FindTensor(a.table.tensors()[static_cast<size_t>(atom.tensor)].name);
    state.atom += b.table.TensorAtoms(tensor).first - a.table.TensorAtoms(atom.tensor).first;
  }
}

}  // namespace

// Reads both states whole: equal digests in two manifests say nothing about what the files hold
// now.
absl::StatusOr<Difference> DiffCheckpoints(const std::string& directory_a,
                                           const std::string& directory_b,
                                           const Progress& progress) {
  ASSIGN_OR_RETURN(const Side a, OpenSide(directory_a));
  ASSIGN_OR_RETURN(const Side b, OpenSide(directory_b));
  if (std::optional<Difference> difference = CompareTensors(a, b)) return *difference;
  ASSIGN_OR_RETURN(const auto reader_a, AtomReader::Open(a.directory, a.manifest, a.table));
  ASSIGN_OR_RETURN(const auto reader_b, AtomReader::Open(b.directory, b.manifest, b.table));
  std::vector<int64_t> atoms(a.table.atoms().size());
  std::iota(atoms.begin(), atoms.end(), int64_t{0});
  AtomBuffer ours, theirs;
  for (size_t next = 0; next < atoms.size();) {
    ours.Reset(a.table, std::span(atoms).subspan(next));
    theirs.Reset(a.table, std::span(atoms).subspan(next));
    Renumber(a, b, theirs.states());
    RETURN_IF_ERROR(reader_a->Read(ours.states()));
    RETURN_IF_ERROR(reader_b->Read(theirs.states()));
    for (size_t i = 0; i < ours.states().size(); ++i) {
      Difference difference = FirstDifference(a.table, ours.states()[i], theirs.states()[i]);
      if (!difference.identical) return difference;
    }
    next += ours.states().size();
    if (progress) progress(next, atoms.size());
  }
  return Difference{};
}

}  // namespace perdure
