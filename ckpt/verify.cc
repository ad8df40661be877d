#include "ckpt/verify.h"

#include <algorithm>
#include <mutex>

#include "ckpt/atom_reader.h"
#include "ckpt/checkpoint.h"
#include "ckpt/file_io.h"
#include "ckpt/manifest_json.h"
#include "ckpt/part_plan.h"
#include "ckpt/store_hdf5.h"
#include "runtime/base/parallel.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// The digests of a part's atoms from one pass over the file: its datasets stand in the order in
// which an atom's digest takes its parts, so one open digest per atom is enough.
class AtomScanner {
 public:
  AtomScanner(const PartReport& part, const AtomTable& table)
      : part_(part), streams_(part.atoms.size()) {
    const ElementPlaces places = PlaceElements(table, part.atoms, part.runs);
    bytes_ = static_cast<uint64_t>(places.length) * sizeof(float);
    for (size_t i = 0; i < part.atoms.size(); ++i) {
      const uint64_t begin = static_cast<uint64_t>(places.begins[i]) * sizeof(float);
      const int64_t count = table.atoms()[static_cast<size_t>(part.atoms[i])].count;
      extents_.push_back({begin, begin + static_cast<uint64_t>(count) * sizeof(float)});
    }
  }

  // The file's next bytes, in file order.
  void Update(uint64_t offset, const char* data, uint64_t bytes) {
    for (const uint64_t dataset : part_.offsets) {
      const uint64_t begin = std::max(offset, dataset);
      const uint64_t end = std::min(offset + bytes, dataset + bytes_);
      if (begin < end) UpdateAtoms(begin - dataset, data + (begin - offset), end - begin);
    }
  }

  Digest Finish(size_t position) const { return streams_[position].Finish(); }

 private:
  struct Extent {
    uint64_t begin = 0, end = 0;
  };

  // Between runs lie bytes of no atom.
  void UpdateAtoms(uint64_t at, const char* data, uint64_t bytes) {
    const uint64_t end = at + bytes;
    auto extent = std::partition_point(extents_.begin(), extents_.end(),
                                       [&](const Extent& e) { return e.end <= at; });
    for (; extent != extents_.end() && extent->begin < end; ++extent) {
      const uint64_t from = std::max(at, extent->begin), to = std::min(end, extent->end);
      streams_[static_cast<size_t>(extent - extents_.begin())].Update(data + (from - at),
                                                                      to - from);
    }
  }

  const PartReport& part_;
  uint64_t bytes_ = 0;           // Of a dataset.
  std::vector<Extent> extents_;  // Of each atom within a dataset, in bytes.
  std::vector<DigestStream> streams_;
};

absl::Status CheckBlocks(const File& file, const PartReport& part, uint64_t begin,
                         std::span<const char> bytes, AtomScanner& scanner) {
  for (uint64_t at = 0; at < bytes.size(); at += kBlockBytes) {
    const uint64_t length = std::min<uint64_t>(kBlockBytes, bytes.size() - at);
    const uint64_t block = (begin + at) / kBlockBytes;
    if (DigestOf(bytes.data() + at, length) != part.blocks[block])
      return DataLoss("{}: {} differs from its digest", file.path(), BlockName(block, part.bytes));
    scanner.Update(begin + at, bytes.data() + at, length);
  }
  return absl::OkStatus();
}

absl::Status VerifyOnce(const std::string& directory, const PartReport& part,
                        const AtomTable& table, const PartStamp& stamp, const Progress& progress) {
  ASSIGN_OR_RETURN(const File file, OpenPart(directory, part));
  const AlignedBuffer through = DirectReader::NewBuffer();
  DirectReader reader(file, through);
  AtomScanner scanner(part, table);
  const AlignedBuffer buffer(std::min(kReadBytes, part.bytes));
  for (uint64_t begin = 0; begin < part.bytes; begin += kReadBytes) {
    const uint64_t bytes = std::min(kReadBytes, part.bytes - begin);
    iovec piece{buffer.data(), bytes};
    RETURN_IF_ERROR(reader.ReadAt(begin, {&piece, 1}));
    RETURN_IF_ERROR(CheckBlocks(file, part, begin, {buffer.data(), bytes}, scanner));
    if (progress) progress(bytes, part.bytes);
  }
  for (size_t i = 0; i < part.atoms.size(); ++i)
    if (scanner.Finish(i) != part.atom_digests[i])
      return DataLoss("{}: {} differs from its digest although its blocks do not", file.path(),
                      AtomName(table, part.atoms[i]));
  return CheckPartLayout(file,
                         {.table = &table,
                          .atoms = part.atoms,
                          .runs = part.runs,
                          .step = stamp.step,
                          .generation = stamp.generation,
                          .run_id = stamp.run_id},
                         part.offsets);
}

}  // namespace

absl::Status VerifyPart(const std::string& directory, const PartReport& part,
                        const AtomTable& table, const PartStamp& stamp, const Progress& progress) {
  RETURN_IF_ERROR(ValidatePart(part, "part"));
  RETURN_IF_ERROR(ValidateExtents(part, table, "part"));
  return WithRetries([&] { return VerifyOnce(directory, part, table, stamp, progress); });
}

absl::Status VerifyCheckpoint(const std::string& directory, const Manifest& manifest,
                              const Progress& progress) {
  if (absl::Status status = ValidateManifest(manifest); !status.ok())
    return DataLoss("{}/{}: {}", directory, kManifestFile, Message(status));
  const AtomTable table(manifest.tensors, manifest.atom_elements);
  uint64_t total = 0, done = 0;
  std::vector<Digest> atom_digests(table.atoms().size());
  for (const PartReport& part : manifest.parts) {
    total += part.bytes;
    for (size_t i = 0; i < part.atoms.size(); ++i)
      atom_digests[static_cast<size_t>(part.atoms[i])] = part.atom_digests[i];
  }
  std::mutex mutex;
  const auto count = [&](uint64_t bytes, uint64_t) {
    const std::lock_guard lock(mutex);
    done += bytes;
    if (progress) progress(done, total);
  };
  const PartStamp stamp{manifest.step, manifest.generation, manifest.run_id};
  RETURN_IF_ERROR(ForEachInParallel(manifest.parts.size(), [&](size_t p) {
    return VerifyPart(directory, manifest.parts[p], table, stamp, count);
  }));
  const Digest certificate =
      Certificate(table, atom_digests, manifest.step, manifest.samples, manifest.gaps);
  if (certificate != manifest.certificate)
    return DataLoss("{}: its atoms have the certificate {}; the manifest says {}", directory,
                    certificate.Hex(), manifest.certificate.Hex());
  return absl::OkStatus();
}

}  // namespace perdure
