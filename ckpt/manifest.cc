#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>

#include "ckpt/checkpoint.h"
#include "ckpt/file_io.h"
#include "ckpt/manifest_json.h"
#include "ckpt/part_plan.h"
#include "runtime/base/files.h"
#include "runtime/base/parallel.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// Bounds on what is believed before anything is allocated for it.
constexpr uint64_t kManifestBytesMax = uint64_t{1} << 30;
constexpr int64_t kElementsMax = int64_t{1} << 48;  // Of a tensor and of all together.
constexpr int64_t kSlicesTotalMax = int64_t{1} << 22;
constexpr uint64_t kFileBytesMax = uint64_t{1} << 62;
constexpr size_t kFileNameMax = 255;

int64_t DivCeil(int64_t value, int64_t by) { return value / by + (value % by != 0); }

// Number of atoms of a tensor by arithmetic alone, as AtomTable would cut them.
int64_t CountAtoms(const TensorSpec& tensor, int64_t atom_elements) {
  if (tensor.axis == SliceAxis::kNone) return DivCeil(tensor.size(), atom_elements);
  const int64_t extent = tensor.axis == SliceAxis::kRows ? tensor.rows : tensor.cols;
  const int64_t other = tensor.size() / extent;
  const int64_t each = DivCeil(extent, tensor.slices);
  return extent / each * DivCeil(each * other, atom_elements) +
         DivCeil(extent % each * other, atom_elements);
}

absl::Status ValidateTensor(const TensorSpec& tensor, const std::string& where) {
  if (tensor.name.empty()) return DataLoss("field {}.name is empty", where);
  if (tensor.rows < 1 || tensor.cols < 1 || tensor.rows > kElementsMax / tensor.cols)
    return DataLoss("field {}.rows x cols is {} x {}: not a possible shape", where, tensor.rows,
                    tensor.cols);
  if (tensor.slices < 1 || tensor.slices > kSlicesTotalMax ||
      (tensor.slices > 1 && tensor.axis == SliceAxis::kNone))
    return DataLoss("field {}.slices is {}, along axis {}: not possible", where, tensor.slices,
                    static_cast<int>(tensor.axis));
  if (tensor.layer < -1 || !std::isfinite(tensor.init_std))
    return DataLoss("field {}.layer is {}, init_std is {}: not possible", where, tensor.layer,
                    tensor.init_std);
  return absl::OkStatus();
}

// Sets `atoms` to the number of atoms that an AtomTable of these tensors has.
absl::Status ValidateTensors(const Manifest& manifest, int64_t* atoms) {
  if (manifest.atom_elements < 1)
    return DataLoss("field atom_elements is {}; 1 or more expected", manifest.atom_elements);
  std::set<std::string_view> names;
  int64_t slices = 0, elements = 0;
  *atoms = 0;
  for (size_t t = 0; t < manifest.tensors.size(); ++t) {
    const TensorSpec& tensor = manifest.tensors[t];
    const std::string where = fmt::format("tensors[{}]", t);
    RETURN_IF_ERROR(ValidateTensor(tensor, where));
    if (!names.insert(tensor.name).second)
      return DataLoss("field {}.name {} stands there twice", where, tensor.name);
    slices += tensor.slices;
    if (slices > kSlicesTotalMax)
      return DataLoss("field {}.slices: more than {} slices in all", where, kSlicesTotalMax);
    elements += tensor.size();
    if (elements > kElementsMax)
      return DataLoss("field {}: more than {} elements in all", where, kElementsMax);
    *atoms += CountAtoms(tensor, manifest.atom_elements);
  }
  return absl::OkStatus();
}

// Every atom stands in exactly one part.
absl::Status ValidateAtoms(const Manifest& manifest, int64_t count) {
  int64_t listed = 0;
  for (const PartReport& part : manifest.parts) listed += static_cast<int64_t>(part.atoms.size());
  // Bounds the allocation below by the text's own length.
  if (count > listed)
    return DataLoss("field parts: the tensors have {} atoms, {} are listed: a shard is missing",
                    count, listed);
  std::vector<int32_t> holder(static_cast<size_t>(count), -1);
  for (size_t p = 0; p < manifest.parts.size(); ++p)
    for (const int64_t atom : manifest.parts[p].atoms) {
      if (atom < 0 || atom >= count)
        return DataLoss("field parts[{}].atoms: no atom {} of {}", p, atom, count);
      int32_t& held = holder[static_cast<size_t>(atom)];
      if (held >= 0)
        return DataLoss("field parts[{}].atoms: atom {} stands in {} already", p, atom,
                        manifest.parts[static_cast<size_t>(held)].file);
      held = static_cast<int32_t>(p);
    }
  const auto missing = std::find(holder.begin(), holder.end(), -1);
  if (missing != holder.end())
    return DataLoss("field parts: atom {} is in no part", missing - holder.begin());
  return absl::OkStatus();
}

absl::Status CompleteManifest(const AtomTable& table, Manifest& manifest) {
  if (manifest.tensors.empty()) {
    manifest.tensors = table.tensors();
    manifest.atom_elements = table.atom_elements();
  }
  if (manifest.tensors != table.tensors() || manifest.atom_elements != table.atom_elements())
    return InvalidArgument("manifest of step {}: its tensors are not those of the atom table",
                           manifest.step);
  if (absl::Status status = ValidateManifest(manifest); !status.ok())
    return InvalidArgument("manifest of step {}: {}", manifest.step, Message(status));
  std::vector<Digest> digests(table.atoms().size());
  for (const PartReport& part : manifest.parts)
    for (size_t i = 0; i < part.atoms.size(); ++i)
      digests[static_cast<size_t>(part.atoms[i])] = part.atom_digests[i];
  manifest.certificate =
      Certificate(table, digests, manifest.step, manifest.samples, manifest.gaps);
  return absl::OkStatus();
}

absl::Status ReadText(const std::string& path, std::string& text) {
  std::error_code error;
  const uint64_t bytes = std::filesystem::file_size(path, error);
  if (!error && bytes > kManifestBytesMax)
    return DataLoss("{} has {} bytes; a manifest has at most {}", path, bytes, kManifestBytesMax);
  ASSIGN_OR_RETURN(text, ReadFile(path));
  return absl::OkStatus();
}

}  // namespace

bool IsPartFileName(std::string_view name) {
  const auto fine = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  };
  return name.size() > 3 && name.size() <= kFileNameMax && name.ends_with(".h5") &&
         name.front() != '.' && name.find("..") == name.npos &&
         std::all_of(name.begin(), name.end(), fine);
}

absl::Status ValidatePart(const PartReport& part, const std::string& where) {
  if (!IsPartFileName(part.file))
    return DataLoss("field {}.file is not the name of a part file (part-00000.h5)", where);
  if (part.bytes > kFileBytesMax) return DataLoss("field {}.bytes is {}", where, part.bytes);
  if (part.atoms.size() != part.atom_digests.size())
    return DataLoss("field {}.atom_digests has {} entries for {} atoms", where,
                    part.atom_digests.size(), part.atoms.size());
  int64_t in_runs = 0;
  for (const int64_t count : part.runs) {
    if (count < 1 || count > static_cast<int64_t>(part.atoms.size()) - in_runs)
      return DataLoss("field {}.runs has a run of {} atoms where {} are left", where, count,
                      static_cast<int64_t>(part.atoms.size()) - in_runs);
    in_runs += count;
  }
  if (in_runs != static_cast<int64_t>(part.atoms.size()))
    return DataLoss("field {}.runs covers {} of {} atoms", where, in_runs, part.atoms.size());
  const uint64_t blocks = part.bytes / kBlockBytes + (part.bytes % kBlockBytes != 0);
  if (part.blocks.size() != blocks)
    return DataLoss("field {}.blocks has {} entries; {} bytes have {} blocks", where,
                    part.blocks.size(), part.bytes, blocks);
  return absl::OkStatus();
}

// The three datasets lie inside the file, in order, without overlap.
absl::Status ValidateExtents(const PartReport& part, const AtomTable& table,
                             const std::string& where) {
  for (const int64_t atom : part.atoms)
    if (atom < 0 || atom >= static_cast<int64_t>(table.atoms().size()))
      return DataLoss("field {}.atoms: no atom {} of {}", where, atom, table.atoms().size());
  const uint64_t bytes =
      static_cast<uint64_t>(PlaceElements(table, part.atoms, part.runs).length) * sizeof(float);
  if (bytes == 0) return absl::OkStatus();
  uint64_t end = 1;  // HDF5's own header comes first.
  for (size_t i = 0; i < part.offsets.size(); ++i) {
    if (part.offsets[i] < end || part.offsets[i] > part.bytes ||
        bytes > part.bytes - part.offsets[i])
      return DataLoss("field {}.offsets[{}] is {}: {} bytes do not fit there in a file of {}",
                      where, i, part.offsets[i], bytes, part.bytes);
    end = part.offsets[i] + bytes;
  }
  return absl::OkStatus();
}

absl::Status ValidateManifest(const Manifest& manifest) {
  for (const int64_t value : {manifest.step, manifest.samples, manifest.tokens, manifest.phase})
    if (value < 0) return DataLoss("field step, samples, tokens or phase is {}", value);
  if (const absl::Status status = CheckGaps(manifest.gaps); !status.ok())
    return DataLoss("field gaps: {}", Message(status));
  if (GapsBehind(manifest.gaps, manifest.step) != manifest.gaps)
    return DataLoss("field gaps has one that is not behind step {}", manifest.step);
  if (const absl::Status status = CheckRecent(manifest.trail.recent); !status.ok())
    return DataLoss("field recent_steps: {}", Message(status));
  int64_t atoms = 0;
  RETURN_IF_ERROR(ValidateTensors(manifest, &atoms));
  std::set<std::string_view> files;
  for (size_t p = 0; p < manifest.parts.size(); ++p) {
    const std::string where = fmt::format("parts[{}]", p);
    RETURN_IF_ERROR(ValidatePart(manifest.parts[p], where));
    if (!files.insert(manifest.parts[p].file).second)
      return DataLoss("field {}.file {} stands there twice", where, manifest.parts[p].file);
  }
  RETURN_IF_ERROR(ValidateAtoms(manifest, atoms));
  const AtomTable table(manifest.tensors, manifest.atom_elements);
  for (size_t p = 0; p < manifest.parts.size(); ++p)
    RETURN_IF_ERROR(ValidateExtents(manifest.parts[p], table, fmt::format("parts[{}]", p)));
  return absl::OkStatus();
}

absl::StatusOr<Digest> WriteManifest(const std::string& directory, const AtomTable& table,
                                     Manifest& manifest) {
  RETURN_IF_ERROR(CompleteManifest(table, manifest));
  ASSIGN_OR_RETURN(std::string text, SerializeManifest(manifest));
  const std::filesystem::path folder(directory);
  ASSIGN_OR_RETURN(File file, CreateNewFile((folder / kManifestFile).string()));
  iovec piece{text.data(), text.size()};
  RETURN_IF_ERROR(file.WriteAt(0, {&piece, 1}));
  RETURN_IF_ERROR(file.Sync());
  RETURN_IF_ERROR(file.Close());
  RETURN_IF_ERROR(SyncDirectory(directory));
  // The directory's own name must survive, too.
  const std::string parent = std::filesystem::absolute(folder / "..").string();
  RETURN_IF_ERROR(SyncDirectory(parent));
  return DigestOf(text);
}

absl::StatusOr<Manifest> ReadManifest(const std::string& directory, const Digest* expected) {
  const std::string path = (std::filesystem::path(directory) / kManifestFile).string();
  std::string text;
  RETURN_IF_ERROR(WithRetries([&] { return ReadText(path, text); }));
  if (expected != nullptr && DigestOf(text) != *expected)
    return DataLoss("{} has digest {}; its COMMIT record says {}", path, DigestOf(text).Hex(),
                    expected->Hex());
  absl::StatusOr<Manifest> manifest = ParseManifest(text);
  if (!manifest.ok()) return DataLoss("{}: {}", path, Message(manifest.status()));
  return manifest;
}

}  // namespace perdure
