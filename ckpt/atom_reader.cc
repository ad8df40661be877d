#include "ckpt/atom_reader.h"

#include <algorithm>
#include <filesystem>
#include <mutex>
#include <numeric>
#include <utility>

#include "ckpt/manifest_json.h"
#include "ckpt/part_plan.h"
#include "runtime/base/check.h"
#include "runtime/base/parallel.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// Read together, then digested while still in the processor's cache.
constexpr int64_t kGroupBytes = 24 << 20;
constexpr int64_t kAtomBytesPerElement = kStatePartCount * static_cast<int64_t>(sizeof(float));

// What groups are read through. Faulting in a new one for each would cost as much as a third of the
// reading.
class Buffers {
 public:
  AlignedBuffer Take() {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) return DirectReader::NewBuffer();
    AlignedBuffer buffer = std::move(free_.back());
    free_.pop_back();
    return buffer;
  }
  void Put(AlignedBuffer buffer) {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(buffer));
  }

 private:
  std::mutex mutex_;
  std::vector<AlignedBuffer> free_;
};

absl::Status CheckTable(const Manifest& manifest, const AtomTable& table) {
  if (manifest.tensors.size() != table.tensors().size())
    return InvalidArgument("the checkpoint has {} tensors, the model has {}: another [model]?",
                           manifest.tensors.size(), table.tensors().size());
  for (size_t t = 0; t < manifest.tensors.size(); ++t) {
    const TensorSpec &theirs = manifest.tensors[t], &ours = table.tensors()[t];
    if (theirs.name != ours.name || theirs.rows != ours.rows || theirs.cols != ours.cols ||
        theirs.axis != ours.axis || theirs.slices != ours.slices)
      return InvalidArgument(
          "tensor {}: the checkpoint has {} ({} x {}, {} slices), the model has {} ({} x {}, {} "
          "slices): another [model] or numerics.tensor_shards?",
          t, theirs.name, theirs.rows, theirs.cols, theirs.slices, ours.name, ours.rows, ours.cols,
          ours.slices);
  }
  if (manifest.atom_elements != table.atom_elements())
    return InvalidArgument("the checkpoint was cut into atoms of {} elements, the model into {}",
                           manifest.atom_elements, table.atom_elements());
  return absl::OkStatus();
}

}  // namespace

std::vector<AtomPlace> LocateAtoms(const Manifest& manifest, const AtomTable& table) {
  std::vector<AtomPlace> places(table.atoms().size());
  for (size_t p = 0; p < manifest.parts.size(); ++p) {
    const PartReport& part = manifest.parts[p];
    const ElementPlaces elements = PlaceElements(table, part.atoms, part.runs);
    for (size_t i = 0; i < part.atoms.size(); ++i)
      places[static_cast<size_t>(part.atoms[i])] = {static_cast<int32_t>(p),
                                                    static_cast<int64_t>(i), elements.begins[i]};
  }
  return places;
}

absl::StatusOr<File> OpenPart(const std::string& directory, const PartReport& part) {
  ASSIGN_OR_RETURN(File file,
                   OpenPartFile((std::filesystem::path(directory) / part.file).string()));
  ASSIGN_OR_RETURN(const uint64_t bytes, file.Size());
  if (bytes != part.bytes)
    return DataLoss("{} has {} bytes; the manifest says {}: {}", file.path(), bytes, part.bytes,
                    bytes < part.bytes ? "truncated" : "something was added");
  return file;
}

std::string BlockName(uint64_t block, uint64_t file_bytes) {
  const uint64_t begin = block * kBlockBytes;
  return fmt::format("block {} (bytes {} to {})", block, begin,
                     std::min(begin + kBlockBytes, file_bytes) - 1);
}

std::string AtomName(const AtomTable& table, int64_t atom) {
  const Atom& piece = table.atoms()[static_cast<size_t>(atom)];
  return fmt::format("atom {} (tensor {}, slice {}, elements {} to {})", atom,
                     table.tensors()[static_cast<size_t>(piece.tensor)].name, piece.slice,
                     piece.begin, piece.begin + piece.count - 1);
}

AtomReader::AtomReader(std::string directory, const Manifest& manifest, const AtomTable& table,
                       size_t threads)
    : directory_(std::move(directory)),
      manifest_(manifest),
      table_(table),
      threads_(threads),
      places_(LocateAtoms(manifest, table)) {}

absl::StatusOr<std::unique_ptr<AtomReader>> AtomReader::Open(std::string directory,
                                                             const Manifest& manifest,
                                                             const AtomTable& table,
                                                             size_t threads) {
  RETURN_IF_ERROR(CheckTable(manifest, table));
  RETURN_IF_ERROR(ValidateManifest(manifest));
  return std::unique_ptr<AtomReader>(
      new AtomReader(std::move(directory), manifest, table, threads));
}

int64_t AtomReader::Count(const AtomState& state) const {
  return table_.atoms()[static_cast<size_t>(state.atom)].count;
}

absl::Status AtomReader::Read(std::span<const AtomState> wanted) {
  std::vector<AtomState> states(wanted.begin(), wanted.end());
  for (const AtomState& state : states)
    PERDURE_CHECK(state.atom >= 0 && state.atom < static_cast<int64_t>(places_.size()));
  std::stable_sort(states.begin(), states.end(), [this](const AtomState& a, const AtomState& b) {
    return std::pair(place(a.atom).part, place(a.atom).element) <
           std::pair(place(b.atom).part, place(b.atom).element);
  });
  const std::vector<Group> groups = MakeGroups(states);
  Buffers buffers;
  return ForEachInParallel(
      groups.size(),
      [&](size_t g) {
        AlignedBuffer buffer = buffers.Take();
        const absl::Status status = WithRetries([&] { return ReadGroup(groups[g], buffer); });
        buffers.Put(std::move(buffer));
        return status;
      },
      threads_);
}

// Of one part each, and bounded.
std::vector<AtomReader::Group> AtomReader::MakeGroups(std::span<const AtomState> states) const {
  std::vector<Group> groups;
  int64_t bytes = 0;
  for (size_t i = 0; i < states.size(); ++i) {
    const auto part = static_cast<size_t>(place(states[i].atom).part);
    if (groups.empty() || groups.back().part != part || bytes >= kGroupBytes) {
      groups.push_back({part, states.subspan(i, 0)});
      bytes = 0;
    }
    Group& group = groups.back();
    group.states = {group.states.data(), group.states.size() + 1};
    bytes += Count(states[i]) * kAtomBytesPerElement;
  }
  return groups;
}

absl::Status AtomReader::ReadGroup(const Group& group, const AlignedBuffer& buffer) const {
  const PartReport& report = manifest_.parts[group.part];
  ASSIGN_OR_RETURN(const File file, OpenPart(directory_, report));
  DirectReader reader(file, buffer);
  const std::span<const AtomState> states = group.states;
  std::vector<iovec> pieces;
  for (size_t dataset = 0; dataset < report.offsets.size(); ++dataset) {
    size_t i = 0;
    while (i < states.size()) {
      pieces.clear();
      const int64_t first = place(states[i].atom).element;
      int64_t next = first;
      for (; i < states.size() && place(states[i].atom).element == next; ++i) {
        const int64_t count = Count(states[i]);
        pieces.push_back({states[i].parts[dataset], static_cast<size_t>(count) * sizeof(float)});
        next += count;
      }
      const uint64_t offset =
          report.offsets[dataset] + static_cast<uint64_t>(first) * sizeof(float);
      RETURN_IF_ERROR(reader.ReadAt(offset, pieces));
    }
  }
  for (const AtomState& state : states) {
    const size_t position = static_cast<size_t>(place(state.atom).position);
    if (AtomDigest(state, Count(state)) != report.atom_digests[position])
      return ExplainMismatch(file, report, state);
  }
  return absl::OkStatus();
}

absl::Status AtomReader::ExplainMismatch(const File& file, const PartReport& report,
                                         const AtomState& state) const {
  std::vector<char> buffer(kBlockBytes);
  const uint64_t first = static_cast<uint64_t>(place(state.atom).element) * sizeof(float);
  const uint64_t bytes = static_cast<uint64_t>(Count(state)) * sizeof(float);
  for (const uint64_t offset : report.offsets) {
    const uint64_t last_block = (offset + first + bytes - 1) / kBlockBytes;
    for (uint64_t block = (offset + first) / kBlockBytes; block <= last_block; ++block) {
      const uint64_t begin = block * kBlockBytes;
      iovec piece{buffer.data(), std::min(kBlockBytes, report.bytes - begin)};
      const size_t length = piece.iov_len;
      RETURN_IF_ERROR(file.ReadAt(begin, {&piece, 1}));
      if (DigestOf(buffer.data(), length) != report.blocks[block])
        return DataLoss("{}: {} differs from its digest; {} is lost: use an older checkpoint",
                        file.path(), BlockName(block, report.bytes), AtomName(table_, state.atom));
    }
  }
  return DataLoss(
      "{}: {} differs from its digest although its blocks do not: the writer's memory or its "
      "manifest is wrong; use an older checkpoint",
      file.path(), AtomName(table_, state.atom));
}

absl::Status ReadAtoms(const std::string& directory, const Manifest& manifest,
                       const AtomTable& table, std::span<AtomState> wanted) {
  ASSIGN_OR_RETURN(const auto reader, AtomReader::Open(directory, manifest, table));
  return reader->Read(wanted);
}

void AtomBuffer::Reset(const AtomTable& table, std::span<const int64_t> atoms) {
  const auto count = [&](int64_t atom) {
    return static_cast<size_t>(table.atoms()[static_cast<size_t>(atom)].count);
  };
  size_t taken = 0, floats = 0;
  for (; taken < atoms.size(); ++taken) {
    const size_t more = count(atoms[taken]) * static_cast<size_t>(kStatePartCount);
    if (taken > 0 && (floats + more) * sizeof(float) > bytes_) break;
    floats += more;
  }
  if (floats > capacity_) {
    // Not zeroed: every element is about to be read.
    memory_ = std::make_unique_for_overwrite<float[]>(floats);
    capacity_ = floats;
  }
  states_.clear();
  float* at = memory_.get();
  for (const int64_t atom : atoms.first(taken)) {
    AtomState state{.atom = atom};
    for (float*& part : state.parts) {
      part = at;
      at += count(atom);
    }
    states_.push_back(state);
  }
}

absl::Status ForEachAtom(StateSource& source, const AtomTable& table, IndexRange range,
                         const std::function<void(const AtomState&, int64_t count)>& visit) {
  AtomBuffer buffer;
  std::vector<int64_t> atoms(static_cast<size_t>(range.size()));
  std::iota(atoms.begin(), atoms.end(), range.first);
  for (size_t next = 0; next < atoms.size(); next += buffer.states().size()) {
    buffer.Reset(table, std::span(atoms).subspan(next));
    RETURN_IF_ERROR(source.Read(buffer.states()));
    for (const AtomState& state : buffer.states())
      visit(state, table.atoms()[static_cast<size_t>(state.atom)].count);
  }
  return absl::OkStatus();
}

}  // namespace perdure
