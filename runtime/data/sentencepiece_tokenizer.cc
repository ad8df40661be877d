#include "runtime/data/sentencepiece_tokenizer.h"

#include <algorithm>
#include <array>
#include <limits>
#include <string_view>

#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/data/sentencepiece_model.h"
#include "runtime/data/utf8.h"

namespace perdure {
namespace {

using Kind = SentencePieceModel::Kind;

constexpr std::string_view kSpaceMark =
    "\xE2\x96\x81";  // U+2581, which SentencePiece decodes as a space.
constexpr size_t kLineBytesMax = 65536;

class SentencePieceTokenizer final : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(std::unique_ptr<SentencePieceModel> model)
      : model_(std::move(model)) {
    byte_ids_.fill(-1);
    const auto& pieces = model_->pieces();
    int newline_pieces = 0;
    for (size_t id = 0; id < pieces.size(); ++id) {
      const auto& piece = pieces[id];
      if (piece.kind == Kind::kByte)
        byte_ids_[static_cast<uint8_t>(piece.text[0])] = static_cast<int32_t>(id);
      if (piece.kind != Kind::kText || piece.text.find('\n') == std::string::npos) continue;
      ++newline_pieces;
      if (piece.text == "\n") newline_id_ = static_cast<int32_t>(id);
    }
    if (newline_pieces != 1) newline_id_ = -1;
    const std::vector<int32_t> letter = EncodeByModel("a");
    adds_prefix_ = !letter.empty() && pieces[letter[0]].text.starts_with(' ');
    constexpr std::string_view kProbe =
        " a  b\tc\x01\xC3\xA9\xF0\x9F\x99\x82\xEF\xAC\x81 ";  // Ends in a ligature.
    exact_ = std::find(byte_ids_.begin(), byte_ids_.end(), -1) == byte_ids_.end() &&
             !adds_prefix_ && Decode(EncodeByModel(kProbe)) == kProbe;
  }

  int64_t vocab() const override { return std::ssize(model_->pieces()); }
  int32_t end_of_document() const override { return model_->end_id(); }

  std::vector<int32_t> Encode(std::string_view text) const override {
    return exact_ ? EncodeExactly(text) : EncodeByModel(text);
  }

  std::string Decode(const std::vector<int32_t>& ids) const override {
    std::string text;
    bool first = true;
    for (const int32_t id : ids) {
      if (id < 0 || id >= vocab() || model_->pieces()[id].kind == Kind::kUnknown) {
        text.append(kReplacementCharacter);
      } else {
        const auto& piece = model_->pieces()[id];
        if (piece.kind == Kind::kControl) continue;
        const bool prefixed = first && adds_prefix_ && piece.text.starts_with(' ');
        text.append(piece.text, prefixed ? 1 : 0);
      }
      first = false;
    }
    return text;
  }

 private:
  std::vector<int32_t> EncodeByModel(std::string_view text) const {
    std::vector<int32_t> ids;
    PERDURE_CHECK(model_->Encode(text, &ids));
    return ids;
  }

  std::vector<int32_t> EncodeExactly(std::string_view text) const {
    std::vector<int32_t> ids;
    size_t begin = 0, at = 0;  // [begin, at) waits to be encoded.
    const auto flush = [&](size_t next) {
      if (at > begin) PERDURE_CHECK(model_->Encode(text.substr(begin, at - begin), &ids));
      begin = at = next;
    };
    while (at < text.size()) {
      const std::string_view rest = text.substr(at);
      const size_t length = Utf8Length(rest);
      if (rest[0] == '\n' && newline_id_ >= 0) {
        // No piece crosses a line, so lines may be encoded one by one: it is faster.
        flush(at + 1);
        ids.push_back(newline_id_);
      } else if (length == 0 || rest[0] == '\0' || rest.starts_with(kSpaceMark)) {
        const size_t count = std::max<size_t>(length, 1);
        flush(at + count);
        for (const char byte : rest.substr(0, count))
          ids.push_back(byte_ids_[static_cast<uint8_t>(byte)]);
      } else {
        at += length;
      }
    }
    flush(at);
    return ids;
  }

  std::unique_ptr<SentencePieceModel> model_;
  std::array<int32_t, 256> byte_ids_{};
  int32_t newline_id_ = -1;   // When newline is a piece by itself and part of no other.
  bool adds_prefix_ = false;  // A space before the text.
  bool exact_ = false;        // Gives back all text as it was.
};

// Non-empty lines, cut at characters where they are too long.
std::vector<std::string_view> Lines(const std::vector<std::string>& texts) {
  std::vector<std::string_view> lines;
  for (std::string_view text : texts) {
    while (!text.empty()) {
      size_t end = std::min(text.find('\n'), text.size());
      if (end > kLineBytesMax) {
        end = kLineBytesMax;
        while ((static_cast<uint8_t>(text[end]) & 0xC0) == 0x80 && end > 1) --end;
      }
      if (end > 0) lines.push_back(text.substr(0, end));
      text.remove_prefix(end);
      if (text.starts_with('\n')) text.remove_prefix(1);
    }
  }
  return lines;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> OpenSentencePiece(const std::string& model,
                                                             const std::string& name) {
  std::string error;
  std::unique_ptr<SentencePieceModel> loaded = SentencePieceModel::Parse(model, &error);
  if (loaded == nullptr)
    return InvalidArgument("{} is not a SentencePiece model: {}. Give a .model file, or \"byte\"",
                           name, error);
  if (loaded->end_id() < 0)
    return InvalidArgument("{} has no </s>, which ends a document here: train it with an eos id",
                           name);
  return std::unique_ptr<Tokenizer>(std::make_unique<SentencePieceTokenizer>(std::move(loaded)));
}

absl::StatusOr<std::string> TrainSentencePieceModel(const std::vector<std::string>& texts,
                                                    int64_t vocab) {
  const std::vector<std::string_view> lines = Lines(texts);
  if (lines.empty())
    return InvalidArgument("there is no text to train a vocabulary of {} on", vocab);
  if (vocab > std::numeric_limits<int32_t>::max())
    return InvalidArgument("a vocabulary of {} is too large: give at most {}", vocab,
                           std::numeric_limits<int32_t>::max());
  // Below the fixed pieces the library does not get as far as to count characters.
  TrainResult result = TrainBpe(lines, std::max(vocab, kTrainedFixedPieces));
  if (result.vocab_least == 0 && vocab < kTrainedFixedPieces)
    result.vocab_least = kTrainedFixedPieces;
  if (result.vocab_least > 0)
    return InvalidArgument(
        "a vocabulary of {} is too small: 256 bytes, 5 fixed ids and the characters of this text "
        "need {}",
        vocab, result.vocab_least);
  if (result.vocab_most > 0)
    return InvalidArgument(
        "a vocabulary of {} is too large for this text: give at most {}, or more text", vocab,
        result.vocab_most);
  if (result.model.empty())
    return Internal("SentencePiece could not train a vocabulary of {}: {}", vocab, result.error);
  return std::move(result.model);
}

}  // namespace perdure
