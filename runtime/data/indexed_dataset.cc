#include "runtime/data/indexed_dataset.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <mutex>

#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/data/index_format.h"

namespace perdure {
namespace {

// A whole file, mapped read-only.
class MappedFile {
 public:
  static absl::StatusOr<MappedFile> Open(const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return ErrnoStatus(errno, "open " + path);
    struct stat info {};
    absl::Status status;
    void* data = nullptr;
    if (::fstat(fd, &info) != 0) {
      status = ErrnoStatus(errno, "stat " + path);
    } else if (!S_ISREG(info.st_mode)) {
      status = InvalidArgument("{} is not a regular file", path);
    } else if (info.st_size > 0) {
      data = ::mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_SHARED, fd, 0);
      if (data == MAP_FAILED) status = ErrnoStatus(errno, "mmap " + path);
    }
    ::close(fd);
    if (!status.ok()) return status;
    return MappedFile(static_cast<const char*>(data), static_cast<size_t>(info.st_size));
  }
  MappedFile(MappedFile&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  MappedFile& operator=(MappedFile&&) = delete;
  ~MappedFile() {
    if (data_ != nullptr) ::munmap(const_cast<char*>(data_), bytes_);
  }

  const char* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  MappedFile(const char* data, size_t bytes) : data_(data), bytes_(bytes) {}
  const char* data_;
  size_t bytes_;
};

// What the header says, after it was checked against the length of the file.
struct Index {
  IndexDtype dtype{};
  int token_bytes = 0;
  int64_t sequences = 0;
  int64_t documents = 0;

  size_t LengthAt(int64_t sequence) const {
    return kIndexHeaderBytes + 4 * static_cast<size_t>(sequence);
  }
  size_t OffsetAt(int64_t sequence) const {
    return LengthAt(sequences) + 8 * static_cast<size_t>(sequence);
  }
  size_t DocumentAt(int64_t document) const {
    return OffsetAt(sequences) + 8 * static_cast<size_t>(document);
  }
};

absl::StatusOr<Index> ReadHeader(const std::string& path, const MappedFile& file) {
  const std::string_view bytes(file.data(), file.bytes());
  if (bytes.starts_with(kLegacyIndexMagic))
    return InvalidArgument(
        "{} is in Megatron's legacy format (TNTIDX): convert it, or build the data again with "
        "`perdure data build`",
        path);
  if (!bytes.starts_with(kIndexMagic))
    return InvalidArgument(
        "{} does not begin with MMIDIDX: it is not the index of a Megatron dataset. Build one with "
        "`perdure data build`",
        path);
  if (bytes.size() < kIndexHeaderBytes)
    return DataLoss("{} ends within its header, after {} of {} bytes: copy or build it again", path,
                    bytes.size(), kIndexHeaderBytes);
  const auto version = LoadAt<uint64_t>(file.data(), 9);
  if (version != kIndexVersion)
    return InvalidArgument("{} has version {}; only version {} is known: build the data again",
                           path, version, kIndexVersion);
  Index index;
  const auto dtype = LoadAt<uint8_t>(file.data(), 17);
  index.dtype = IndexDtype{dtype};
  index.token_bytes = TokenBytes(dtype);
  if (index.token_bytes == 0)
    return InvalidArgument(
        "{} has dtype code {}, which holds no token ids (1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 8 u16): "
        "build the data again",
        path, dtype);
  const auto sequences = LoadAt<uint64_t>(file.data(), 18);
  const auto entries = LoadAt<uint64_t>(file.data(), 26);
  // Bounded by the file first, so that the sum below cannot overflow.
  const size_t rest = bytes.size() - kIndexHeaderBytes;
  if (sequences > rest / 12 || entries > rest / 8)
    return DataLoss(
        "{} promises {} sequences and {} document entries, more than its {} bytes hold: copy or "
        "build it again",
        path, sequences, entries, bytes.size());
  if (entries == 0)
    return DataLoss("{} has an empty document index; its first entry must be 0: build it again",
                    path);
  index.sequences = static_cast<int64_t>(sequences);
  index.documents = static_cast<int64_t>(entries) - 1;
  const size_t expected = index.DocumentAt(index.documents + 1);
  if (bytes.size() == expected + sequences && sequences > 0)
    return InvalidArgument(
        "{} has modes behind its documents: it is multimodal; only text is read here", path);
  if (bytes.size() != expected)
    return DataLoss(
        "{} has {} bytes; {} sequences and {} documents need {}: copy or build it again", path,
        bytes.size(), sequences, index.documents, expected);
  return index;
}

// Sequences follow one another from byte 0 of .bin to its end. Returns the number of tokens.
absl::StatusOr<int64_t> CheckSequences(const std::string& path, const MappedFile& file,
                                       const Index& index, const std::string& bin_path,
                                       int64_t bin_bytes) {
  int64_t end = 0;
  for (int64_t sequence = 0; sequence < index.sequences; ++sequence) {
    const auto length = LoadAt<int32_t>(file.data(), index.LengthAt(sequence));
    const auto offset = LoadAt<int64_t>(file.data(), index.OffsetAt(sequence));
    if (length < 0)
      return DataLoss("{}: sequence {} has length {}: build it again", path, sequence, length);
    if (offset != end)
      return DataLoss(
          "{}: sequence {} begins at byte {}, the one before it ends at byte {}: build it again",
          path, sequence, offset, end);
    const int64_t bytes = int64_t{length} * index.token_bytes;
    if (bytes > bin_bytes - end)
      return DataLoss(
          "{} has {} bytes, but sequence {} of {} reaches from byte {} to byte {}: copy or build "
          "it again",
          bin_path, bin_bytes, sequence, path, offset, offset + bytes);
    end += bytes;
  }
  if (end != bin_bytes)
    return DataLoss(
        "{} has {} bytes, but the last sequence of {} ends at byte {}: copy or build both again",
        bin_path, bin_bytes, path, end);
  return end / index.token_bytes;
}

absl::Status CheckDocuments(const std::string& path, const MappedFile& file, const Index& index) {
  int64_t before = 0;
  for (int64_t document = 0; document <= index.documents; ++document) {
    const auto first = LoadAt<int64_t>(file.data(), index.DocumentAt(document));
    const bool good = document == 0 ? first == 0 : first >= before && first <= index.sequences;
    if (!good)
      return DataLoss(
          "{}: entry {} of the document index is {}, after {} and with {} sequences: build it "
          "again",
          path, document, first, before, index.sequences);
    before = first;
  }
  if (before != index.sequences)
    return DataLoss("{}: the documents end at sequence {} of {}: build it again", path, before,
                    index.sequences);
  return absl::OkStatus();
}

class MappedDataset final : public IndexedDataset {
 public:
  MappedDataset(std::string prefix, MappedFile idx, MappedFile bin, const Index& index,
                int64_t tokens)
      : prefix_(std::move(prefix)),
        idx_(std::move(idx)),
        bin_(std::move(bin)),
        index_(index),
        tokens_(tokens) {}

  const std::string& prefix() const override { return prefix_; }
  int64_t sequences() const override { return index_.sequences; }
  int64_t documents() const override { return index_.documents; }
  int64_t tokens() const override { return tokens_; }
  int token_bytes() const override { return index_.token_bytes; }

  std::pair<int64_t, int64_t> Document(int64_t index) const override {
    PERDURE_CHECK(index >= 0 && index < documents());
    return {LoadAt<int64_t>(idx_.data(), index_.DocumentAt(index)),
            LoadAt<int64_t>(idx_.data(), index_.DocumentAt(index + 1))};
  }
  int64_t SequenceBegin(int64_t sequence) const override {
    PERDURE_CHECK(sequence >= 0 && sequence <= sequences());
    if (sequence == sequences()) return tokens_;
    return LoadAt<int64_t>(idx_.data(), index_.OffsetAt(sequence)) / index_.token_bytes;
  }
  int64_t SequenceTokens(int64_t sequence) const override {
    PERDURE_CHECK(sequence >= 0 && sequence < sequences());
    return LoadAt<int32_t>(idx_.data(), index_.LengthAt(sequence));
  }

  void Read(int64_t begin, std::span<int32_t> out) const override {
    PERDURE_CHECK(begin >= 0 && begin <= tokens_ &&
                  static_cast<int64_t>(out.size()) <= tokens_ - begin);
    switch (index_.dtype) {
      case IndexDtype::kU8:
        return Widen<uint8_t>(begin, out);
      case IndexDtype::kI8:
        return Widen<int8_t>(begin, out);
      case IndexDtype::kI16:
        return Widen<int16_t>(begin, out);
      case IndexDtype::kI32:
        return Widen<int32_t>(begin, out);
      case IndexDtype::kI64:
        return Widen<int64_t>(begin, out);
      case IndexDtype::kU16:
        return Widen<uint16_t>(begin, out);
      case IndexDtype::kF64:
      case IndexDtype::kF32:
        break;
    }
    PERDURE_CHECK(!"a dtype that Open refuses");
  }

  int64_t MaxToken() const override {
    std::call_once(max_once_, [this] {
      int32_t chunk[4096];
      for (int64_t begin = 0; begin < tokens_; begin += std::ssize(chunk)) {
        const std::span part(chunk, std::min<int64_t>(std::ssize(chunk), tokens_ - begin));
        Read(begin, part);
        max_ = std::max<int64_t>(max_, *std::max_element(part.begin(), part.end()));
      }
    });
    return max_;
  }

 private:
  template <typename T>
  void Widen(int64_t begin, std::span<int32_t> out) const {
    const char* from = bin_.data() + static_cast<size_t>(begin) * sizeof(T);
    for (size_t i = 0; i < out.size(); ++i) {
      const T token = LoadAt<T>(from, i * sizeof(T));
      if constexpr (sizeof(T) > sizeof(int32_t))
        out[i] = static_cast<int32_t>(std::clamp<int64_t>(
            token, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()));
      else
        out[i] = token;
    }
  }

  std::string prefix_;
  MappedFile idx_, bin_;
  Index index_;
  int64_t tokens_;
  mutable std::once_flag max_once_;
  mutable int64_t max_ = -1;
};

}  // namespace

absl::StatusOr<std::unique_ptr<IndexedDataset>> IndexedDataset::Open(const std::string& prefix) {
  const std::string idx_path = prefix + ".idx", bin_path = prefix + ".bin";
  for (const std::string& path : {idx_path, bin_path}) {
    if (::access(path.c_str(), F_OK) == 0 || errno != ENOENT) continue;
    const bool whole_name = prefix.ends_with(".idx") || prefix.ends_with(".bin");
    return NotFound("{} does not exist: {}", path,
                    whole_name ? "give the prefix, without .bin or .idx"
                               : "check the prefix, or build the data with `perdure data build`");
  }
  ASSIGN_OR_RETURN(MappedFile idx, MappedFile::Open(idx_path));
  ASSIGN_OR_RETURN(const Index index, ReadHeader(idx_path, idx));
  ASSIGN_OR_RETURN(MappedFile bin, MappedFile::Open(bin_path));
  ASSIGN_OR_RETURN(const int64_t tokens, CheckSequences(idx_path, idx, index, bin_path,
                                                        static_cast<int64_t>(bin.bytes())));
  RETURN_IF_ERROR(CheckDocuments(idx_path, idx, index));
  return std::unique_ptr<IndexedDataset>(
      std::make_unique<MappedDataset>(prefix, std::move(idx), std::move(bin), index, tokens));
}

}  // namespace perdure
