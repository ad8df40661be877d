#include <unistd.h>

#include <limits>

#include "runtime/base/check.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "runtime/data/index_format.h"
#include "runtime/data/indexed_dataset.h"
#include "runtime/data/staged_file.h"

namespace perdure {
namespace {

constexpr int64_t kU16VocabEnd = 65500;  // Megatron's DType.optimal_dtype.

template <typename T>
absl::Status AppendValue(StagedFile& file, T value) {
  return file.Append(&value, sizeof value);
}

class StagedWriter final : public IndexedDatasetWriter {
 public:
  StagedWriter(std::string prefix, int64_t vocab, std::unique_ptr<StagedFile> bin)
      : prefix_(std::move(prefix)), vocab_(vocab), bin_(std::move(bin)) {}

  absl::Status AddDocument(std::span<const int32_t> tokens) override {
    PERDURE_CHECK(bin_ != nullptr);
    if (tokens.empty())
      return InvalidArgument("document {} of {} is empty: leave it out", lengths_.size(), prefix_);
    if (tokens.size() > size_t{std::numeric_limits<int32_t>::max()})
      return InvalidArgument(
          "document {} of {} has {} tokens, more than the format's 2147483647: split it",
          lengths_.size(), prefix_, tokens.size());
    for (const int32_t token : tokens)
      if (token < 0 || token >= vocab_)
        return InvalidArgument("document {} of {} holds token id {}; the vocabulary has {}",
                               lengths_.size(), prefix_, token, vocab_);
    if (narrow()) {
      narrow_.assign(tokens.begin(), tokens.end());
      RETURN_IF_ERROR(bin_->Append(narrow_.data(), narrow_.size() * sizeof(uint16_t)));
    } else {
      RETURN_IF_ERROR(bin_->Append(tokens.data(), tokens.size_bytes()));
    }
    lengths_.push_back(static_cast<int32_t>(tokens.size()));
    return absl::OkStatus();
  }

  absl::Status Finish() override {
    PERDURE_CHECK(bin_ != nullptr);
    const std::unique_ptr<StagedFile> bin = std::move(bin_);
    ASSIGN_OR_RETURN(const std::unique_ptr<StagedFile> idx, StagedFile::Create(prefix_ + ".idx"));
    RETURN_IF_ERROR(WriteIndex(*idx));
    RETURN_IF_ERROR(bin->Sync());
    RETURN_IF_ERROR(idx->Sync());
    RETURN_IF_ERROR(bin->Commit());
    const absl::Status status = idx->Commit();
    if (!status.ok()) ::unlink(bin->path().c_str());  // Of no use without its index.
    return status;
  }

 private:
  bool narrow() const { return vocab_ < kU16VocabEnd; }

  absl::Status WriteIndex(StagedFile& idx) const {
    const auto documents = static_cast<int64_t>(lengths_.size());
    const IndexDtype dtype = narrow() ? IndexDtype::kU16 : IndexDtype::kI32;
    RETURN_IF_ERROR(idx.Append(kIndexMagic.data(), kIndexMagic.size()));
    RETURN_IF_ERROR(AppendValue(idx, kIndexVersion));
    RETURN_IF_ERROR(AppendValue(idx, dtype));
    RETURN_IF_ERROR(AppendValue(idx, documents));
    RETURN_IF_ERROR(AppendValue(idx, documents + 1));
    RETURN_IF_ERROR(idx.Append(lengths_.data(), lengths_.size() * sizeof(int32_t)));
    int64_t offset = 0;
    for (const int32_t length : lengths_) {
      RETURN_IF_ERROR(AppendValue(idx, offset));
      offset += int64_t{length} * TokenBytes(static_cast<uint8_t>(dtype));
    }
    for (int64_t document = 0; document <= documents; ++document)
      RETURN_IF_ERROR(AppendValue(idx, document));
    return absl::OkStatus();
  }

  std::string prefix_;
  int64_t vocab_;
  std::unique_ptr<StagedFile> bin_;  // Null after Finish().
  std::vector<int32_t> lengths_;     // Of each document, in tokens.
  std::vector<uint16_t> narrow_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<IndexedDatasetWriter>> IndexedDatasetWriter::Create(
    const std::string& prefix, int64_t vocab) {
  if (prefix.empty() || prefix.ends_with('/'))
    return InvalidArgument("output prefix '{}' has no file name: give one such as data/fr", prefix);
  if (vocab < 1 || vocab > std::numeric_limits<int32_t>::max())
    return InvalidArgument("vocabulary of {} ids for {}: 1 to 2147483647 are possible", vocab,
                           prefix);
  RETURN_IF_ERROR(MakeDirectories(ParentFolder(prefix)));
  ASSIGN_OR_RETURN(std::unique_ptr<StagedFile> bin, StagedFile::Create(prefix + ".bin"));
  return std::unique_ptr<IndexedDatasetWriter>(
      std::make_unique<StagedWriter>(prefix, vocab, std::move(bin)));
}

}  // namespace perdure
