#include "ckpt/run_writer.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <numeric>

#include "ckpt/manifest_json.h"
#include "runtime/base/check.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

uint64_t Overlap(uint64_t begin_a, uint64_t end_a, uint64_t begin_b, uint64_t end_b) {
  const uint64_t begin = std::max(begin_a, begin_b), end = std::min(end_a, end_b);
  return end > begin ? end - begin : 0;
}

}  // namespace

RunWriter::RunWriter(std::string directory, const AtomTable& table, const PartPlan& plan,
                     size_t run)
    : directory_(std::move(directory)),
      table_(table),
      plan_(plan),
      run_(run),
      places_(PlaceElements(table, plan.atoms, plan.runs)) {}

RunWriter::~RunWriter() = default;

absl::StatusOr<std::unique_ptr<RunWriter>> RunWriter::Create(const std::string& directory,
                                                             const AtomTable& table,
                                                             const PartPlan& plan, size_t run,
                                                             const PartStamp& stamp,
                                                             const WriteOptions& options) {
  if (!IsPartFileName(plan.file))
    return InvalidArgument("{}/{} is not the name of a part file (part-00000.h5)", directory,
                           plan.file);
  std::unique_ptr<RunWriter> writer(new RunWriter(directory, table, plan, run));
  RETURN_IF_ERROR(writer->Open(stamp, options));
  return writer;
}

absl::Status RunWriter::Open(const PartStamp& stamp, const WriteOptions& options) {
  ASSIGN_OR_RETURN(part_, LayOutPart({.table = &table_,
                                      .atoms = plan_.atoms,
                                      .runs = plan_.runs,
                                      .step = stamp.step,
                                      .generation = stamp.generation,
                                      .run_id = stamp.run_id}));
  report_ = {.file = plan_.file,
             .run = static_cast<int64_t>(run_),
             .runs = plan_.runs,
             .bytes = part_.bytes,
             .offsets = part_.offsets};
  first_ = static_cast<size_t>(std::accumulate(
      plan_.runs.begin(), plan_.runs.begin() + static_cast<int64_t>(run_), int64_t{0}));
  const std::string path = (std::filesystem::path(directory_) / plan_.file).string();
  // Opened before the first write, this descriptor hears of every write-back error until its fsync.
  ASSIGN_OR_RETURN(file_, plan_.runs.size() > 1 ? CreateOrJoinFile(path) : CreateNewFile(path));
  // Its length, also where it ends in a hole; and, where the file system can, its space.
  absl::Status status = file_.Truncate(part_.bytes);
  if (status.ok()) status = file_.Reserve(part_.bytes);
  if (!status.ok()) return Fail(status);
  blocks_ = std::make_unique<BlockWriter>(file_, part_.bytes, options);
  return absl::OkStatus();
}

// The name stays used; the space is what others are waiting for.
absl::Status RunWriter::Fail(absl::Status status) {
  blocks_.reset();  // Nothing is under way any more.
  if (absl::IsResourceExhausted(status)) file_.Truncate(0).IgnoreError();
  return status;
}

// Bytes of a block that are state of a run.
uint64_t RunWriter::StateBytes(uint64_t block, size_t run) const {
  if (run >= places_.runs.size()) return 0;
  const IndexRange& elements = places_.runs[run];
  const uint64_t begin = block * kBlockBytes, end = std::min(begin + kBlockBytes, part_.bytes);
  uint64_t bytes = 0;
  for (const uint64_t offset : part_.offsets)
    bytes += Overlap(begin, end, offset + static_cast<uint64_t>(elements.first) * sizeof(float),
                     offset + static_cast<uint64_t>(elements.last) * sizeof(float));
  return bytes;
}

// What HDF5 wrote into a block, and zeros around it.
void RunWriter::CopyImage(uint64_t block, char* buffer) const {
  const uint64_t begin = block * kBlockBytes;
  part_.image.Read(begin, buffer, std::min(kBlockBytes, part_.bytes - begin));
}

absl::Status RunWriter::Copy(uint64_t offset, const char* data, uint64_t bytes) {
  while (bytes > 0) {
    const uint64_t block = offset / kBlockBytes, within = offset % kBlockBytes;
    const uint64_t taken = std::min(bytes, kBlockBytes - within);
    auto live = live_.find(block);
    if (live == live_.end()) {
      const uint64_t state = StateBytes(block, run_);
      char* buffer = blocks_->Take();
      if (buffer == nullptr) return blocks_->Finish().status();
      if (state < kBlockBytes) CopyImage(block, buffer);
      live = live_.emplace(block, Live{buffer, state}).first;
    }
    std::memcpy(live->second.buffer + within, data, taken);
    live->second.missing -= taken;
    if (live->second.missing == 0) {
      blocks_->Put(block, live->second.buffer);
      live_.erase(live);
    }
    offset += taken;
    data += taken;
    bytes -= taken;
  }
  return absl::OkStatus();
}

absl::Status RunWriter::Append(const AtomState& state) {
  PERDURE_CHECK(static_cast<int64_t>(next_) < plan_.runs[run_]);
  const size_t at = first_ + next_++;
  PERDURE_CHECK(plan_.atoms[at] == state.atom);
  const int64_t count = table_.atoms()[static_cast<size_t>(state.atom)].count;
  report_.atoms.push_back(state.atom);
  report_.atom_digests.push_back(AtomDigest(state, count));
  for (size_t part = 0; part < state.parts.size(); ++part) {
    const uint64_t offset =
        part_.offsets[part] + static_cast<uint64_t>(places_.begins[at]) * sizeof(float);
    const absl::Status status = Copy(offset, reinterpret_cast<const char*>(state.parts[part]),
                                     static_cast<uint64_t>(count) * sizeof(float));
    if (!status.ok()) return Fail(status);
  }
  return absl::OkStatus();
}

// The first run's: blocks without state.
absl::Status RunWriter::WriteRest() {
  const uint64_t blocks = (part_.bytes + kBlockBytes - 1) / kBlockBytes;
  for (uint64_t block = 0; block < blocks; ++block) {
    uint64_t state = 0;
    for (size_t run = 0; run < plan_.runs.size(); ++run) state += StateBytes(block, run);
    if (state > 0) continue;
    if (!part_.image.Touches(block * kBlockBytes, kBlockBytes)) {
      blocks_->PutHole(block);
      continue;
    }
    char* buffer = blocks_->Take();
    if (buffer == nullptr) return blocks_->Finish().status();
    CopyImage(block, buffer);
    blocks_->Put(block, buffer);
  }
  return absl::OkStatus();
}

absl::StatusOr<RunReport> RunWriter::Finish() {
  PERDURE_CHECK(plan_.runs.empty() || static_cast<int64_t>(next_) == plan_.runs[run_]);
  absl::Status status = run_ == 0 ? WriteRest() : absl::OkStatus();
  if (status.ok()) {
    auto digests = blocks_->Finish();
    status = digests.status();
    if (digests.ok())
      for (const auto& [block, digest] : *digests) {
        report_.blocks.push_back(block);
        report_.block_digests.push_back(digest);
      }
  }
  if (status.ok()) status = file_.Sync();
  if (!status.ok()) return Fail(status);
  RETURN_IF_ERROR(file_.Close());
  RETURN_IF_ERROR(SyncDirectory(directory_));
  return std::move(report_);
}

}  // namespace perdure
