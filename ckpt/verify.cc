#include <algorithm>

#include "ckpt/atom_reader.h"
#include "ckpt/checkpoint.h"
#include "ckpt/file_io.h"
#include "ckpt/manifest_json.h"
#include "ckpt/store_hdf5.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr uint64_t kReadBytes = 8 * kBlockBytes;

// The digests of a part's atoms from one pass over the file: its datasets stand in the order in
// which an atom's digest takes its parts, so one open digest per atom is enough.
class AtomScanner {
 public:
  AtomScanner(const PartReport& part, const AtomTable& table)
      : part_(part), streams_(part.atoms.size()) {
    begins_.push_back(0);
    for (const int64_t atom : part.atoms)
      begins_.push_back(begins_.back() +
                        static_cast<uint64_t>(table.atoms()[static_cast<size_t>(atom)].count) *
                            sizeof(float));
  }

  // The file's next bytes, in file order.
  void Update(uint64_t offset, const char* data, uint64_t bytes) {
    for (const uint64_t dataset : part_.offsets) {
      const uint64_t begin = std::max(offset, dataset);
      const uint64_t end = std::min(offset + bytes, dataset + begins_.back());
      if (begin < end) UpdateAtoms(begin - dataset, data + (begin - offset), end - begin);
    }
  }

  Digest Finish(size_t position) const { return streams_[position].Finish(); }

 private:
  void UpdateAtoms(uint64_t at, const char* data, uint64_t bytes) {
    size_t i = static_cast<size_t>(std::upper_bound(begins_.begin(), begins_.end(), at) -
                                   begins_.begin()) -
               1;
    while (bytes > 0) {
      const uint64_t taken = std::min(bytes, begins_[i + 1] - at);
      streams_[i++].Update(data, taken);
      at += taken;
      data += taken;
      bytes -= taken;
    }
  }

  const PartReport& part_;
  std::vector<uint64_t> begins_;  // Of each atom within a dataset, in bytes; and the end.
  std::vector<DigestStream> streams_;
};

// One part's blocks, then its atoms; puts the atoms' digests in their places.
class PartVerifier {
 public:
  PartVerifier(const AtomTable& table, const Progress& progress, uint64_t total)
      : table_(table), progress_(progress), total_(total), buffer_(kReadBytes) {}

  absl::Status Verify(const std::string& directory, const PartReport& part,
                      std::vector<Digest>& atom_digests) {
    ASSIGN_OR_RETURN(const File file, OpenPart(directory, part));
    AtomScanner scanner(part, table_);
    for (uint64_t begin = 0; begin < part.bytes; begin += kReadBytes) {
      const uint64_t bytes = std::min(kReadBytes, part.bytes - begin);
      iovec piece{buffer_.data(), bytes};
      RETURN_IF_ERROR(file.ReadAt(begin, {&piece, 1}));
      RETURN_IF_ERROR(Blocks(file, part, begin, bytes, scanner));
      done_ += bytes;
      if (progress_) progress_(done_, total_);
    }
    for (size_t i = 0; i < part.atoms.size(); ++i) {
      const Digest digest = scanner.Finish(i);
      if (digest != part.atom_digests[i])
        return DataLoss("{}: {} differs from its digest although its blocks do not", file.path(),
                        AtomName(table_, part.atoms[i]));
      atom_digests[static_cast<size_t>(part.atoms[i])] = digest;
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Blocks(const File& file, const PartReport& part, uint64_t begin, uint64_t bytes,
                      AtomScanner& scanner) {
    for (uint64_t at = 0; at < bytes; at += kBlockBytes) {
      const uint64_t length = std::min(kBlockBytes, bytes - at);
      const uint64_t block = (begin + at) / kBlockBytes;
      if (DigestOf(buffer_.data() + at, length) != part.blocks[block])
        return DataLoss("{}: {} differs from its digest", file.path(),
                        BlockName(block, part.bytes));
      scanner.Update(begin + at, buffer_.data() + at, length);
    }
    return absl::OkStatus();
  }

  const AtomTable& table_;
  const Progress& progress_;
  const uint64_t total_;
  uint64_t done_ = 0;
  std::vector<char> buffer_;
};

}  // namespace

absl::Status VerifyCheckpoint(const std::string& directory, const Manifest& manifest,
                              const Progress& progress) {
  if (absl::Status status = ValidateManifest(manifest); !status.ok())
    return DataLoss("{}/{}: {}", directory, kManifestFile, Message(status));
  const AtomTable table(manifest.tensors, manifest.atom_elements);
  std::vector<Digest> atom_digests(table.atoms().size());
  uint64_t total = 0;
  for (const PartReport& part : manifest.parts) total += part.bytes;
  PartVerifier verifier(table, progress, total);
  for (const PartReport& part : manifest.parts)
    RETURN_IF_ERROR(verifier.Verify(directory, part, atom_digests));
  const Digest certificate = Certificate(table, atom_digests, manifest.step, manifest.samples);
  if (certificate != manifest.certificate)
    return DataLoss("{}: its atoms have the certificate {}; the manifest says {}", directory,
                    certificate.Hex(), manifest.certificate.Hex());
  for (const PartReport& part : manifest.parts) {
    const PartLayout layout{.table = &table,
                            .atoms = part.atoms,
                            .step = manifest.step,
                            .generation = manifest.generation,
                            .run_id = manifest.run_id};
    ASSIGN_OR_RETURN(const File file, OpenPart(directory, part));
    RETURN_IF_ERROR(CheckPartLayout(file, layout, part.offsets));
  }
  return absl::OkStatus();
}

}  // namespace perdure
