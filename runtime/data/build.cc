#include "runtime/data/build.h"

#include <sys/stat.h>
#include <unistd.h>

#include <charconv>
#include <chrono>
#include <iterator>
#include <map>
#include <optional>
#include <set>

#include "runtime/base/digest.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "runtime/data/indexed_dataset.h"
#include "runtime/data/sentencepiece_tokenizer.h"
#include "runtime/data/staged_file.h"
#include "runtime/data/tokenizer.h"
#include "runtime/data/utf8.h"

namespace perdure {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::string_view kTrainPrefix = "sentencepiece:";
// A vocabulary is learnt from this much text, and not from more than this of one document.
constexpr size_t kTrainingBytes = 10'000'000;
constexpr size_t kTrainingBytesPerDocument = 1'000'000;

double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// The documents of least digest, up to a number of bytes: a sample that depends on neither order
// nor paths.
class TrainingSample {
 public:
  void Add(const Digest& digest, std::string text) {
    if (text.size() > kTrainingBytesPerDocument) {
      text.resize(kTrainingBytesPerDocument);
      text.resize(ValidUtf8Prefix(text));
    }
    bytes_ += text.size();
    texts_.emplace(digest, std::move(text));
    while (bytes_ - std::prev(texts_.end())->second.size() >= kTrainingBytes) {
      bytes_ -= std::prev(texts_.end())->second.size();
      texts_.erase(std::prev(texts_.end()));
    }
  }
  size_t bytes() const { return bytes_; }
  std::vector<std::string> Take() {
    std::vector<std::string> texts;
    for (auto& [digest, text] : texts_) texts.push_back(std::move(text));
    texts_.clear();
    return texts;
  }

 private:
  std::map<Digest, std::string> texts_;
  size_t bytes_ = 0;
};

class Builder {
 public:
  Builder(const BuildOptions& options, const BuildWatcher& watcher)
      : options_(options), watcher_(watcher) {}

  absl::StatusOr<BuildSummary> Run() {
    RETURN_IF_ERROR(CheckOptions());
    ASSIGN_OR_RETURN(sources_, ListTextSources(options_.from));
    summary_.files = std::ssize(sources_.files);
    RETURN_IF_ERROR(OpenTokenizer());
    summary_.vocab = tokenizer_->vocab();
    RETURN_IF_ERROR(Encode());
    return summary_;
  }

 private:
  absl::Status CheckOptions() {
    if (options_.from.empty()) return InvalidArgument("no text was named: give --from PATH");
    if (options_.tokenizer.starts_with(kTrainPrefix)) {
      const std::string_view digits =
          std::string_view(options_.tokenizer).substr(kTrainPrefix.size());
      int64_t vocab = 0;
      const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), vocab);
      if (parsed.ec != std::errc() || parsed.ptr != digits.data() + digits.size() || vocab < 1)
        return InvalidArgument(
            "tokenizer \"{}\": the vocabulary is a positive number, as in sentencepiece:1024",
            options_.tokenizer);
      train_vocab_ = vocab;
    }
    outputs_ = {options_.output + ".bin", options_.output + ".idx"};
    if (train_vocab_.has_value()) outputs_.push_back(options_.output + ".model");
    for (const std::string& path : outputs_) {
      struct stat info {};
      if (::lstat(path.c_str(), &info) != 0) continue;
      if (!options_.force)
        return AlreadyExists("{} exists: choose another -o, or replace it with --force", path);
      if (S_ISDIR(info.st_mode)) return InvalidArgument("{} is a folder: choose another -o", path);
    }
    return absl::OkStatus();
  }

  absl::Status OpenTokenizer() {
    if (!train_vocab_.has_value()) {
      ASSIGN_OR_RETURN(tokenizer_, Tokenizer::Open(options_.tokenizer));
      return absl::OkStatus();
    }
    TrainingSample sample;
    const auto add = [&](const Digest& digest, std::string text) {
      sample.Add(digest, std::move(text));
      return absl::OkStatus();
    };
    RETURN_IF_ERROR(ForEachDocument("read", add));
    summary_.training_bytes = static_cast<int64_t>(sample.bytes());
    RETURN_IF_ERROR(
        Watch({.stage = "train", .files = summary_.files, .text_bytes = summary_.training_bytes}));
    const auto begin = Clock::now();
    ASSIGN_OR_RETURN(model_, TrainSentencePieceModel(sample.Take(), *train_vocab_));
    summary_.training_seconds = SecondsSince(begin);
    summary_.model = outputs_.back();
    ASSIGN_OR_RETURN(tokenizer_, OpenSentencePiece(model_, summary_.model));
    return absl::OkStatus();
  }

  absl::Status Encode() {
    const auto begin = Clock::now();
    ASSIGN_OR_RETURN(const std::unique_ptr<IndexedDatasetWriter> writer,
                     IndexedDatasetWriter::Create(options_.output, tokenizer_->vocab()));
    const auto encode = [&](const Digest&, const std::string& text) -> absl::Status {
      std::vector<int32_t> ids = tokenizer_->Encode(text);
      ids.push_back(tokenizer_->end_of_document());
      RETURN_IF_ERROR(writer->AddDocument(ids));
      ++summary_.documents;
      summary_.text_bytes += std::ssize(text);
      summary_.tokens += std::ssize(ids);
      return absl::OkStatus();
    };
    RETURN_IF_ERROR(ForEachDocument("encode", encode));
    if (summary_.documents == 0) return NothingFound();
    RETURN_IF_ERROR(Finish(*writer));
    summary_.encoding_seconds = SecondsSince(begin);
    ASSIGN_OR_RETURN(const std::unique_ptr<IndexedDataset> written,
                     IndexedDataset::Open(options_.output));
    summary_.token_bytes = written->token_bytes();
    summary_.outputs = outputs_;
    return absl::OkStatus();
  }

  absl::Status Finish(IndexedDatasetWriter& writer) {
    if (model_.empty()) return writer.Finish();
    ASSIGN_OR_RETURN(const std::unique_ptr<StagedFile> file, StagedFile::Create(summary_.model));
    RETURN_IF_ERROR(file->Append(model_.data(), model_.size()));
    RETURN_IF_ERROR(file->Sync());
    RETURN_IF_ERROR(file->Commit());
    const absl::Status status = writer.Finish();
    if (!status.ok()) ::unlink(summary_.model.c_str());
    return status;
  }

  absl::Status NothingFound() const {
    std::string reasons;
    for (size_t i = 0; i < summary_.skipped.size(); ++i)
      if (summary_.skipped[i] > 0)
        reasons += fmt::format(", {} {}", summary_.skipped[i],
                               SkipReasonName(SkipReason{static_cast<int>(i)}));
    return InvalidArgument(
        "no text in {}: {} files read{}. Give files of UTF-8 text, HTML or manual pages",
        fmt::join(options_.from, " "), summary_.files, reasons);
  }

  absl::Status Watch(const BuildProgress& progress) const {
    if (watcher_ == nullptr || watcher_(progress)) return absl::OkStatus();
    return Aborted("interrupted while {} of {} files were done; nothing was written",
                   progress.files_done, progress.files);
  }

  // Calls use(digest, text) with every distinct document, in order; sets summary_.skipped.
  template <typename Use>
  absl::Status ForEachDocument(std::string_view stage, const Use& use) {
    summary_.skipped = sources_.skipped;
    std::set<Digest> seen;
    BuildProgress progress{.stage = stage, .files = summary_.files};
    for (const std::string& path : sources_.files) {
      RETURN_IF_ERROR(Watch(progress));
      ++progress.files_done;
      ExtractedText document = ReadDocument(path);
      Digest digest;
      if (document.skip == SkipReason::kNone) {
        digest = DigestOf(document.text);
        if (!seen.insert(digest).second) document.skip = SkipReason::kDuplicate;
      }
      if (document.skip != SkipReason::kNone) {
        ++summary_.skipped[static_cast<size_t>(document.skip)];
        continue;
      }
      progress.text_bytes += std::ssize(document.text);
      RETURN_IF_ERROR(use(digest, std::move(document.text)));
      progress.tokens = summary_.tokens;
    }
    return absl::OkStatus();
  }

  static ExtractedText ReadDocument(const std::string& path) {
    struct stat info {};
    if (::stat(path.c_str(), &info) == 0 && info.st_size > static_cast<off_t>(kDocumentBytesMax))
      return {.text = "", .skip = SkipReason::kTooLarge};
    const absl::StatusOr<std::string> bytes = ReadFile(path);
    if (!bytes.ok()) return {.text = "", .skip = SkipReason::kUnreadable};
    return ExtractText(*bytes);
  }

  const BuildOptions& options_;
  const BuildWatcher& watcher_;
  std::optional<int64_t> train_vocab_;
  std::vector<std::string> outputs_;
  TextSources sources_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::string model_;  // The bytes of the trained one, until all is written.
  BuildSummary summary_;
};

}  // namespace

absl::StatusOr<BuildSummary> BuildDataset(const BuildOptions& options,
                                          const BuildWatcher& watcher) {
  return Builder(options, watcher).Run();
}

}  // namespace perdure
