#include "runtime/data/tokenizer.h"

#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "runtime/data/sentencepiece_tokenizer.h"
#include "runtime/data/staged_file.h"
#include "runtime/data/utf8.h"

namespace perdure {
namespace {

class ByteTokenizer final : public Tokenizer {
 public:
  int64_t vocab() const override { return 257; }
  int32_t end_of_document() const override { return 256; }

  std::vector<int32_t> Encode(std::string_view text) const override {
    std::vector<int32_t> ids(text.size());
    for (size_t i = 0; i < text.size(); ++i) ids[i] = static_cast<uint8_t>(text[i]);
    return ids;
  }

  std::string Decode(const std::vector<int32_t>& ids) const override {
    std::string text;
    text.reserve(ids.size());
    for (const int32_t id : ids) {
      if (id >= 0 && id < 256)
        text.push_back(static_cast<char>(id));
      else if (id != end_of_document())
        text.append(kReplacementCharacter);
    }
    return text;
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Open(const std::string& name) {
  if (name == "byte") return std::unique_ptr<Tokenizer>(std::make_unique<ByteTokenizer>());
  absl::StatusOr<std::string> model = ReadFile(name);
  if (!model.ok())
    return ErrorStatus(
        model.status().code(),
        "tokenizer \"{}\": {}. Give \"byte\" or the path of a SentencePiece .model file", name,
        Message(model.status()));
  return OpenSentencePiece(*model, name);
}

absl::Status TrainSentencePiece(const std::vector<std::string>& texts, int64_t vocab,
                                const std::string& model_path) {
  ASSIGN_OR_RETURN(const std::string model, TrainSentencePieceModel(texts, vocab));
  ASSIGN_OR_RETURN(const std::unique_ptr<StagedFile> file, StagedFile::Create(model_path));
  RETURN_IF_ERROR(file->Append(model.data(), model.size()));
  RETURN_IF_ERROR(file->Sync());
  return file->Commit();
}

}  // namespace perdure
