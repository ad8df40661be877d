#include "ckpt/extract.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>
#include <mutex>
#include <vector>

#include "ckpt/atom_reader.h"
#include "ckpt/file_io.h"
#include "ckpt/float_bits.h"
#include "ckpt/manifest_json.h"
#include "runtime/base/parallel.h"
#include "ckpt/partial.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

// What an AtomReader of one thread reads through.
constexpr uint64_t kReaderBytes = 8 * kBlockBytes;

uint64_t Width(TensorDType dtype) { return dtype == TensorDType::kF32 ? 4 : 2; }

// What libhdf5 wrote, page by page; all else stays a hole.
absl::Status WriteImage(File& file, const LaidOutTensors& laid) {
  for (uint64_t block = 0; block < laid.bytes; block += kBlockBytes) {
    if (!laid.image.Touches(block, kBlockBytes)) continue;
    for (uint64_t at = block; at < std::min(block + kBlockBytes, laid.bytes);
         at += SparseImage::kPageBytes) {
      const char* page = laid.image.Page(at);
      if (page == nullptr) continue;
      iovec piece{const_cast<char*>(page), std::min(SparseImage::kPageBytes, laid.bytes - at)};
      RETURN_IF_ERROR(file.WriteAt(at, {&piece, 1}));
    }
  }
  return absl::OkStatus();
}

class Extractor {
 public:
  Extractor(std::string source, const Manifest& manifest, const AtomTable& table, TensorDType dtype,
            const LaidOutTensors& laid, File& file, const StreamOptions& options)
      : source_(std::move(source)),
        manifest_(manifest),
        table_(table),
        dtype_(dtype),
        laid_(laid),
        file_(file),
        options_(options),
        threads_(static_cast<size_t>(std::clamp<uint64_t>(
            options.memory_bytes / kStreamMemoryLeast, 1, static_cast<uint64_t>(options.threads)))),
        // What is left goes to the band, its rounded copy and the atoms.
        share_((options.memory_bytes / threads_ - kReaderBytes) / 3) {}

  size_t threads() const { return threads_; }

  absl::Status Write(int64_t tensor) {
    const TensorSpec& spec = table_.tensors()[static_cast<size_t>(tensor)];
    ASSIGN_OR_RETURN(const auto reader,
                     AtomReader::Open(source_, manifest_, table_, /*threads=*/1));
    // A band of rows is whole, so that it is written in one piece.
    const int64_t band =
        std::clamp<int64_t>(static_cast<int64_t>(share_ / sizeof(float)) / spec.cols, 1, spec.rows);
    std::vector<float> rows(static_cast<size_t>(std::min(band, spec.rows) * spec.cols));
    for (int64_t first = 0; first < spec.rows; first += band) {
      const IndexRange range{first, std::min(first + band, spec.rows)};
      RETURN_IF_ERROR(ReadBand(*reader, tensor, range, rows.data()));
      RETURN_IF_ERROR(WriteBand(tensor, range, rows.data()));
      Count(range.size() * spec.cols);
    }
    return absl::OkStatus();
  }

 private:
  absl::Status ReadBand(StateSource& reader, int64_t tensor, const IndexRange& rows, float* out) {
    std::vector<int64_t> atoms;
    const IndexRange all = table_.TensorAtoms(tensor);
    for (int64_t a = all.first; a < all.last; ++a) {
      const Atom& atom = table_.atoms()[static_cast<size_t>(a)];
      if (table_.Locate(atom, 0).row < rows.last &&
          table_.Locate(atom, atom.count - 1).row >= rows.first)
        atoms.push_back(a);
    }
    AtomBuffer buffer(share_);
    for (size_t next = 0; next < atoms.size(); next += buffer.states().size()) {
      buffer.Reset(table_, std::span(atoms).subspan(next));
      RETURN_IF_ERROR(reader.Read(buffer.states()));
      for (const AtomState& state : buffer.states()) CopyInto(state, tensor, rows, out);
    }
    return absl::OkStatus();
  }

  // Row by row of the atom's slice; what lies outside of the band is left out.
  void CopyInto(const AtomState& state, int64_t tensor, const IndexRange& rows, float* out) const {
    const TensorSpec& spec = table_.tensors()[static_cast<size_t>(tensor)];
    const Atom& atom = table_.atoms()[static_cast<size_t>(state.atom)];
    const int64_t slice_cols = spec.SliceCols(atom.slice);
    for (int64_t i = 0; i < atom.count;) {
      const int64_t taken = std::min(slice_cols - (atom.begin + i) % slice_cols, atom.count - i);
      const AtomTable::Place place = table_.Locate(atom, i);
      if (place.row >= rows.first && place.row < rows.last)
        std::memcpy(out + (place.row - rows.first) * spec.cols + place.col, state.parts[0] + i,
                    static_cast<size_t>(taken) * sizeof(float));
      i += taken;
    }
  }

  absl::Status WriteBand(int64_t tensor, const IndexRange& rows, float* values) {
    const int64_t cols = table_.tensors()[static_cast<size_t>(tensor)].cols;
    const auto count = static_cast<size_t>(rows.size() * cols);
    std::vector<uint16_t> rounded;
    void* data = values;
    if (dtype_ == TensorDType::kBF16) {
      rounded.resize(count);
      std::transform(values, values + count, rounded.begin(), BF16OfFloat);
      data = rounded.data();
    }
    iovec piece{data, count * Width(dtype_)};
    return file_.WriteAt(laid_.offsets[static_cast<size_t>(tensor)] +
                             static_cast<uint64_t>(rows.first * cols) * Width(dtype_),
                         {&piece, 1});
  }

  void Count(int64_t elements) {
    const std::lock_guard lock(mutex_);
    done_ += static_cast<uint64_t>(elements);
    if (options_.progress) options_.progress(done_, static_cast<uint64_t>(table_.parameters()));
  }

  const std::string source_;
  const Manifest& manifest_;
  const AtomTable& table_;
  const TensorDType dtype_;
  const LaidOutTensors& laid_;
  File& file_;
  const StreamOptions& options_;
  const size_t threads_;
  const uint64_t share_;
  std::mutex mutex_;
  uint64_t done_ = 0;
};

absl::Status WriteTensors(const std::string& source, const Manifest& manifest,
                          const AtomTable& table, const std::string& path, TensorDType dtype,
                          const StreamOptions& options) {
  ASSIGN_OR_RETURN(const LaidOutTensors laid,
                   LayOutTensors({.tensors = table.tensors(),
                                  .dtype = dtype,
                                  .step = manifest.step,
                                  .run_id = manifest.run_id,
                                  .certificate = manifest.certificate.Hex()}));
  ASSIGN_OR_RETURN(File file, CreateNewFile(path));
  RETURN_IF_ERROR(file.Truncate(laid.bytes));
  RETURN_IF_ERROR(file.Reserve(laid.bytes));
  RETURN_IF_ERROR(WriteImage(file, laid));
  Extractor extractor(source, manifest, table, dtype, laid, file, options);
  RETURN_IF_ERROR(ForEachInParallel(
      table.tensors().size(), [&](size_t t) { return extractor.Write(static_cast<int64_t>(t)); },
      extractor.threads()));
  RETURN_IF_ERROR(file.Sync());
  return file.Close();
}

}  // namespace

absl::Status ExtractParameters(const std::string& source, const Manifest& manifest,
                               const std::string& target, TensorDType dtype,
                               const StreamOptions& options) {
  if (options.memory_bytes < kStreamMemoryLeast)
    return InvalidArgument("{} bytes of memory: at least {} are needed", options.memory_bytes,
                           kStreamMemoryLeast);
  RETURN_IF_ERROR(ValidateManifest(manifest));
  const AtomTable table(manifest.tensors, manifest.atom_elements);
  const std::string words =
      fmt::format("parameters of step {} in {}, certificate {}", manifest.step,
                  dtype == TensorDType::kF32 ? "fp32" : "bf16", manifest.certificate.Hex());
  ASSIGN_OR_RETURN(PartialDirectory partial,
                   PartialDirectory::Open(target, DigestOf(words), words));
  if (!partial.published()) {
    const std::string path = (fs::path(partial.path()) / kParametersFile).string();
    std::error_code ignored;  // Its creation tells of trouble.
    fs::remove(path, ignored);
    RETURN_IF_ERROR(WriteTensors(source, manifest, table, path, dtype, options));
  }
  return partial.Publish();
}

}  // namespace perdure
