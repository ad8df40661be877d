// A checkpoint on disk: atoms in HDF5 files and one manifest. The format is docs/formats.md.
//
//   RUN/ckpt/s000000120.g3.9f3c21aa/manifest.json      names, lengths, digests of everything; its
//   own digest is in the RUN/ckpt/s000000120.g3.9f3c21aa/part-00000.h5 ...  COMMIT record of the
//   run log: without that record it is nothing.
//
// Directories are named by step, generation and a nonce and are never reused; a file is written
// once, by one process. This library knows no layout, no run log and no process: it writes the
// atoms it is given and reads those it is asked for. Thread: any, one call at a time (HDF5 has one
// global lock).
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/base/atoms.h"
#include "runtime/base/digest.h"
#include "runtime/base/gaps.h"
#include "runtime/base/trail.h"

namespace perdure {

// What an atom carries, in this order; each is fp32 and stands in its own dataset.
inline constexpr std::array<std::string_view, 3> kStateParts = {"param", "exp_avg", "exp_avg_sq"};
inline constexpr int kStatePartCount = 3;

// One atom's state in memory; parts[i] points to its `count` floats of kStateParts[i].
struct AtomState {
  int64_t atom = 0;  // Index in the AtomTable.
  std::array<float*, kStatePartCount> parts{};
};

// Digest of an atom: over its parts in order. This is what the certificate is made of.
Digest AtomDigest(const AtomState& state, int64_t count);

// The layout-free number of a training state: over (step, samples, and per tensor in order: name,
// shape, digest), where a tensor's digest is over its atoms' digests in order, and the gaps behind
// it where there are any. REQUIRES: one digest per atom of the table.
Digest Certificate(const AtomTable& table, std::span<const Digest> atom_digests, int64_t step,
                   int64_t samples, std::span<const Gap> gaps = {});
std::vector<Digest> TensorDigests(const AtomTable& table, std::span<const Digest> atom_digests);

// One file of a checkpoint.
struct PartReport {
  std::string file;  // "part-00000.h5", relative to the checkpoint's directory.
  uint64_t bytes = 0;
  std::vector<Digest> blocks;        // Of each MiB of the file, the last one shorter.
  std::vector<int64_t> runs;         // How many of the atoms each writer wrote: see part_plan.h.
  std::vector<int64_t> atoms;        // In the order of the datasets' elements.
  std::vector<Digest> atom_digests;  // Likewise.
  std::array<uint64_t, kStatePartCount> offsets{};  // Of each part's dataset in the file, in bytes.
};
std::string SerializePart(const PartReport& part);  // A part as the manifest has it.
absl::StatusOr<PartReport> ParsePart(std::string_view serialized);

// Everything a checkpoint says about itself.
struct Manifest {
  int64_t step = 0;
  int64_t samples = 0;  // Trained on; those of gaps do not count.
  int64_t tokens = 0;
  int64_t phase = 0;
  std::string phase_name;
  uint64_t generation = 0;
  std::string run_id;
  std::string config;  // The frozen run.toml.
  Trail trail;
  Gaps gaps;            // Behind it.
  std::string layout;   // In words, of the writers: "tensor 2 x pipeline 2 x data 2, zero 1".
  std::string created;  // RFC 3339, UTC.
  int64_t atom_elements = 0;
  std::vector<TensorSpec> tensors;
  std::vector<PartReport> parts;
  Digest certificate;
};

// "s000000120.g3.9f3c21aa".
std::string CheckpointName(int64_t step, uint64_t generation, uint32_t nonce);

// Creates DIR/<file> (O_EXCL): layout through HDF5, payload by pwrite at the datasets' offsets,
// fsync, close. `states` in the order that the datasets shall have. ResourceExhausted: no space.
// AlreadyExists: a name was reused.
absl::StatusOr<PartReport> WritePart(const std::string& directory, const std::string& file,
                                     const AtomTable& table, std::span<const AtomState> states,
                                     int64_t step, uint64_t generation, const std::string& run_id);

// Checks that every atom is there once, fills in the certificate, writes manifest.json durably.
// Returns its digest, for the COMMIT record.
absl::StatusOr<Digest> WriteManifest(const std::string& directory, const AtomTable& table,
                                     Manifest& manifest);

// Reads and checks the manifest. DataLoss when it is torn, inconsistent, or `expected` differs from
// its digest; the message names the file and what is wrong.
absl::StatusOr<Manifest> ReadManifest(const std::string& directory, const Digest* expected);

// Fills the floats of `wanted` from the checkpoint; each is checked against its digest. Ranges are
// coalesced and read once. DataLoss names file, block and atom. Nothing of libhdf5 is involved:
// offsets come from the manifest.
absl::Status ReadAtoms(const std::string& directory, const Manifest& manifest,
                       const AtomTable& table, std::span<AtomState> wanted);

// Told now and then how much of a long read is done, of how much.
using Progress = std::function<void(uint64_t done, uint64_t total)>;

// Reads every byte of every file and compares lengths, block digests, atom digests and the
// certificate; then opens each file through HDF5 and checks that its datasets are where the
// manifest says. DataLoss names what is wrong first.
absl::Status VerifyCheckpoint(const std::string& directory, const Manifest& manifest,
                              const Progress& progress = nullptr);

// Where two states differ first, in atom order.
struct Difference {
  bool identical = true;
  std::string what;  // "tensor model.norm.weight, atom 17, element 3 (row 0, column 3), exp_avg:
                     // 0.5 against 0.25".
};
absl::StatusOr<Difference> DiffCheckpoints(const std::string& directory_a,
                                           const std::string& directory_b,
                                           const Progress& progress = nullptr);

}  // namespace perdure
