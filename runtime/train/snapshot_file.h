// A snapshot: the state of the atoms that one rank of one generation answers for after one step, in
// a file of shared memory. Format: docs/formats.md, "Snapshot files".
//
// Written by one process, which may be killed at any instant; read by others of its node, also
// while it is written. Nothing here is durable: it lives as long as its file system, a tmpfs.
// INVARIANT: a file that says `complete` has every byte of its snapshot. `writing` is stored before
// any other byte changes and `complete` after all have; what a killed process had stored, in the
// order of its program, is what others see. Where several threads write, whoever calls Complete()
// has waited for the others.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/checkpoint.h"
#include "ckpt/file_io.h"
#include "runtime/base/atoms.h"
#include "runtime/base/digest.h"
#include "runtime/base/trail.h"

namespace perdure {

// What rank 0 alone knows of the steps so far, and would take with it.
struct StepHistory {
  Trail trail;
  // Of the last steps, the newest last: so many that those of a node that was silent for as long as
  // its lease lasts are among them.
  std::vector<StepNumbers> steps;
  // Drops what is more than kSnapshotStepsMax.
  void Add(const StepNumbers& step);
  friend bool operator==(const StepHistory&, const StepHistory&) = default;
};
inline constexpr size_t kSnapshotStepsMax = 128;

// What a snapshot is of.
struct SnapshotStamp {
  std::string run_id;  // At most kSnapshotRunIdBytes.
  uint64_t generation = 0;
  int64_t step = 0;  // Steps finished.
  int32_t rank = 0;
  StepHistory history;  // Of rank 0's snapshot; others have none.
  friend bool operator==(const SnapshotStamp&, const SnapshotStamp&) = default;
};
inline constexpr size_t kSnapshotRunIdBytes = 64;

// Half-open: [offset, offset + bytes).
struct ByteRange {
  int64_t offset = 0;
  int64_t bytes = 0;
  friend bool operator==(const ByteRange&, const ByteRange&) = default;
};

// "g3-r12-a"; buffers are 0 (a) and 1 (b).
struct SnapshotName {
  uint64_t generation = 0;
  int32_t rank = 0;
  int buffer = 0;
  friend bool operator==(const SnapshotName&, const SnapshotName&) = default;
};
std::string SnapshotFileName(uint64_t generation, int32_t rank, int buffer);
// None: no such name.
std::optional<SnapshotName> ParseSnapshotFileName(std::string_view name);

// The header alone: cheap. NotFound: there is no file. FailedPrecondition: it is empty or being
// written, or was when its writer died. DataLoss names file and field.
absl::StatusOr<SnapshotStamp> ReadSnapshotStamp(const std::string& path);

// Bytes of a snapshot file of these atoms.
int64_t SnapshotFileBytes(const AtomTable& table, std::span<const int64_t> atoms);

// The ranges of a snapshot of `owned` that whoever wants the atoms `wanted` of it must have:
// header, index and digests first, then the atoms' parts, ascending, neighbours joined. REQUIRES:
// `wanted` are among `owned`.
std::vector<ByteRange> SnapshotRanges(const AtomTable& table, std::span<const int64_t> owned,
                                      std::span<const int64_t> wanted);

// The writer's side: the file, mapped. One thread at a time, but for the state, which whoever fills
// it may fill by several.
class SnapshotFile {
 public:
  // A new file of mode 0600 in place of what had that name, all of its memory taken, state `empty`.
  // ResourceExhausted: the file system has no room; the file is gone again. The table outlives it.
  static absl::StatusOr<std::unique_ptr<SnapshotFile>> Create(const std::string& path,
                                                              const AtomTable* table,
                                                              std::span<const int64_t> atoms);
  ~SnapshotFile();  // The file stays.
  SnapshotFile(const SnapshotFile&) = delete;
  SnapshotFile& operator=(const SnapshotFile&) = delete;

  const std::string& path() const { return path_; }
  int64_t bytes() const { return bytes_; }

  // From here on what the file held is void. The state may now be written. REQUIRES: a run id that
  // fits.
  void Begin(const SnapshotStamp& stamp);
  // What the file held is void, and nothing comes in its place.
  void Void();
  // The atoms, with pointers into the mapping.
  std::span<const AtomState> atoms() const { return atoms_; }
  // A part of all atoms, one behind the other; and all parts, to the end of the file's last page.
  std::span<std::byte> Part(int part);
  std::span<std::byte> Pages();
  // One per atom, in order: filled by the writer before Complete().
  std::span<Digest> digests();
  // All that stands before the parts, as another process needs it to complete its copy: with the
  // state `complete`. REQUIRES: the digests are filled.
  std::string Head() const;
  // Takes the digests from such a head. DataLoss names file and field: it is not one of this stamp
  // and these atoms.
  absl::Status TakeHead(std::string_view head);
  int64_t head_bytes() const { return head_bytes_; }
  // REQUIRES: Begin; the state and the digests are filled.
  void Complete();

 private:
  SnapshotFile(std::string path, const AtomTable* table, std::span<const int64_t> atoms);
  absl::Status Open();
  std::atomic_ref<uint32_t> state() const;

  const std::string path_;
  const AtomTable* table_;
  std::vector<AtomState> atoms_;
  int64_t elements_ = 0;  // Of each part.
  int64_t head_bytes_ = 0;
  int64_t bytes_ = 0;
  std::byte* memory_ = nullptr;
};

// The reader's side: a complete snapshot. Nothing is mapped, so a file that shrinks is an error and
// no signal. Any thread.
class SnapshotReader {
 public:
  // Errors as of ReadSnapshotStamp; the whole head is checked, and the file's length.
  // InvalidArgument: the atoms are none of the table's. The table outlives the reader.
  static absl::StatusOr<std::unique_ptr<SnapshotReader>> Open(const std::string& path,
                                                              const AtomTable* table);

  const std::string& path() const { return path_; }
  const SnapshotStamp& stamp() const { return stamp_; }
  std::span<const int64_t> atoms() const { return atoms_; }
  std::span<const Digest> digests() const { return digests_; }

  // Fills the floats of `wanted`, by so many threads; each atom is compared with its digest.
  // DataLoss names file, rank and atom: it is not there, or not what its digest says.
  absl::Status Read(std::span<const AtomState> wanted, int threads) const;

 private:
  explicit SnapshotReader(std::string path) : path_(std::move(path)) {}
  absl::Status ReadAtom(const AtomState& wanted, size_t position) const;

  const std::string path_;
  const AtomTable* table_ = nullptr;
  File file_;
  SnapshotStamp stamp_;
  std::vector<int64_t> atoms_;
  std::vector<Digest> digests_;
  std::vector<int64_t> begins_;                      // Of each atom in a part, in elements.
  std::vector<std::pair<int64_t, size_t>> by_atom_;  // Sorted: atom, position.
  int64_t elements_ = 0, data_offset_ = 0;
};

}  // namespace perdure
