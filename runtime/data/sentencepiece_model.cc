#include "runtime/data/sentencepiece_model.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <charconv>
#include <exception>
#include <unordered_map>

namespace perdure {
namespace {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581, SentencePiece's space.
constexpr char kLongestLine[] = "1048576";  // Longer ones would be skipped; ours are shorter.

std::string WithSpaces(std::string_view piece) {
  std::string text;
  while (!piece.empty()) {
    const size_t mark = std::min(piece.find(kSpaceMark), piece.size());
    text.append(piece.substr(0, mark));
    piece.remove_prefix(mark);
    if (piece.empty()) break;
    text.push_back(' ');
    piece.remove_prefix(kSpaceMark.size());
  }
  return text;
}

class LoadedModel final : public SentencePieceModel {
 public:
  static std::unique_ptr<SentencePieceModel> Load(const std::string& bytes, std::string* error) {
    auto model = std::make_unique<LoadedModel>();
    const auto status = model->processor_.LoadFromSerializedProto(bytes);
    if (!status.ok()) {
      *error = status.ToString();
      return nullptr;
    }
    const auto& processor = model->processor_;
    for (int id = 0; id < processor.GetPieceSize(); ++id) {
      const std::string& name = processor.IdToPiece(id);
      Piece piece;
      if (processor.IsUnknown(id)) {
        piece.kind = Kind::kUnknown;
      } else if (processor.IsControl(id)) {
        piece.kind = Kind::kControl;
      } else if (processor.IsByte(id)) {  // "<0x41>".
        piece.kind = Kind::kByte;
        unsigned value = 0;
        const auto parsed = std::from_chars(name.data() + std::min<size_t>(3, name.size()),
                                            name.data() + name.size(), value, 16);
        if (parsed.ec != std::errc() || value > 255) {
          *error = "byte piece '" + name + "' names no byte";
          return nullptr;
        }
        piece.text = std::string(1, static_cast<char>(value));
      } else {
        piece.text = WithSpaces(name);
      }
      model->pieces_.push_back(std::move(piece));
    }
    if (model->pieces_.empty()) {
      *error = "the model has no pieces";
      return nullptr;
    }
    return model;
  }

  const std::vector<Piece>& pieces() const override { return pieces_; }
  int32_t end_id() const override { return processor_.eos_id(); }

  bool Encode(std::string_view text, std::vector<int32_t>* ids) const override {
    try {
      std::vector<int> found;
      if (!processor_.Encode(text, &found).ok()) return false;
      ids->insert(ids->end(), found.begin(), found.end());
      return true;
    } catch (const std::exception&) {
      return false;
    }
  }

 private:
  sentencepiece::SentencePieceProcessor processor_;
  std::vector<Piece> pieces_;
};

class LineIterator final : public sentencepiece::SentenceIterator {
 public:
  explicit LineIterator(const std::vector<std::string_view>& lines) : lines_(lines) { Fetch(); }
  bool done() const override { return next_ > lines_.size(); }
  void Next() override { Fetch(); }
  const std::string& value() const override { return line_; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  void Fetch() {
    if (next_ < lines_.size()) line_ = lines_[next_];
    ++next_;
  }

  const std::vector<std::string_view>& lines_;
  size_t next_ = 0;  // Of the line behind the current one.
  std::string line_;
};

// The number that follows `words` in `text`, or 0.
int64_t NumberBehind(std::string_view text, std::string_view words) {
  const size_t at = text.find(words);
  if (at == std::string_view::npos) return 0;
  int64_t number = 0;
  std::from_chars(text.data() + at + words.size(), text.data() + text.size(), number);
  return number;
}

}  // namespace

std::unique_ptr<SentencePieceModel> SentencePieceModel::Parse(const std::string& bytes,
                                                              std::string* error) {
  try {
    return LoadedModel::Load(bytes, error);
  } catch (const std::exception& exception) {
    *error = exception.what();
    return nullptr;
  }
}

TrainResult TrainBpe(const std::vector<std::string_view>& lines, int64_t vocab) {
  const std::unordered_map<std::string, std::string> options{
      {"model_type", "bpe"},
      {"vocab_size", std::to_string(vocab)},
      {"byte_fallback", "true"},
      {"character_coverage", "0.9995"},
      {"normalization_rule_name", "identity"},
      {"add_dummy_prefix", "false"},
      {"remove_extra_whitespaces", "false"},
      {"allow_whitespace_only_pieces", "true"},
      {"user_defined_symbols", "\n,\t"},
      {"unk_id", "0"},
      {"bos_id", "1"},
      {"eos_id", "2"},
      {"pad_id", "-1"},
      {"max_sentence_length", kLongestLine},
      {"num_threads", "1"},
      {"minloglevel", "2"},
  };
  TrainResult result;
  try {
    LineIterator iterator(lines);
    const auto status =
        sentencepiece::SentencePieceTrainer::Train(options, &iterator, &result.model);
    if (status.ok()) return result;
    result.error = status.ToString();
  } catch (const std::exception& exception) {
    result.error = exception.what();
  }
  result.model.clear();
  if (result.error.find("smaller than required_chars") != std::string::npos)
    result.vocab_least = NumberBehind(result.error, " vs ");
  result.vocab_most = NumberBehind(result.error, "value <= ");
  return result;
}

}  // namespace perdure
