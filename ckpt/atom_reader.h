// Atoms out of one checkpoint: where each stands, several groups read at once, every atom checked
// against its digest. Private to ckpt/ and its tests; others call ReadAtoms.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/checkpoint.h"
#include "ckpt/file_io.h"
#include "ckpt/state_source.h"

namespace perdure {

inline constexpr uint64_t kAtomBufferBytes = uint64_t{48} << 20;

// Where an atom stands.
struct AtomPlace {
  int32_t part = 0;      // Index in manifest.parts.
  int64_t position = 0;  // Among the part's atoms.
  int64_t element = 0;   // Within each of the part's datasets.
};

// One per atom of the table. REQUIRES: ValidateManifest(manifest).
std::vector<AtomPlace> LocateAtoms(const Manifest& manifest, const AtomTable& table);

// Opens a part and compares its length with the manifest's: DataLoss.
absl::StatusOr<File> OpenPart(const std::string& directory, const PartReport& part);

// "block 3 (bytes 3145728 to 4194303)".
std::string BlockName(uint64_t block, uint64_t file_bytes);
// "atom 17 (tensor model.norm.weight, slice 0, elements 0 to 63)".
std::string AtomName(const AtomTable& table, int64_t atom);

class AtomReader final : public StateSource {
 public:
  // InvalidArgument: `table` is not the manifest's. The manifest and the table outlive the reader.
  // `threads` read at once, through 8 MiB each.
  static absl::StatusOr<std::unique_ptr<AtomReader>> Open(std::string directory,
                                                          const Manifest& manifest,
                                                          const AtomTable& table,
                                                          size_t threads = 4);

  // As ReadAtoms.
  absl::Status Read(std::span<const AtomState> wanted) override;
  const AtomPlace& place(int64_t atom) const { return places_[static_cast<size_t>(atom)]; }

 private:
  AtomReader(std::string directory, const Manifest& manifest, const AtomTable& table,
             size_t threads);

  struct Group {
    size_t part = 0;
    std::span<const AtomState> states;  // In the order of their elements.
  };

  int64_t Count(const AtomState& state) const;
  std::vector<Group> MakeGroups(std::span<const AtomState> states) const;
  absl::Status ReadGroup(const Group& group, const AlignedBuffer& buffer) const;
  absl::Status ExplainMismatch(const File& file, const PartReport& report,
                               const AtomState& state) const;

  std::string directory_;
  const Manifest& manifest_;
  const AtomTable& table_;
  const size_t threads_;
  std::vector<AtomPlace> places_;
};

// Reads all atoms of [atoms.first, atoms.last) in order, a bounded number at a time, and hands each
// to `visit`.
absl::Status ForEachAtom(StateSource& source, const AtomTable& table, IndexRange atoms,
                         const std::function<void(const AtomState&, int64_t count)>& visit);

// Memory for the states of some atoms, used again and again.
class AtomBuffer {
 public:
  explicit AtomBuffer(uint64_t bytes = kAtomBufferBytes) : bytes_(bytes) {}

  // Takes as many of the first of `atoms` as the buffer's bytes hold; at least one. Ends what was
  // there.
  void Reset(const AtomTable& table, std::span<const int64_t> atoms);
  std::span<AtomState> states() { return states_; }

 private:
  const uint64_t bytes_;
  std::unique_ptr<float[]> memory_;
  size_t capacity_ = 0;
  std::vector<AtomState> states_;
};

}  // namespace perdure
