// The SentencePiece library behind a wall. Its header puts std::string_view into namespace absl,
// which abseil has too, so the file that includes it includes no abseil; nor does this header.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace perdure {

// A loaded model. Immutable; any thread may call.
class SentencePieceModel {
 public:
  enum class Kind { kText, kByte, kControl, kUnknown };
  struct Piece {
    Kind kind = Kind::kText;
    std::string
        text;  // What it decodes to; the one byte of kByte; empty for kControl and kUnknown.
  };

  // Null when `bytes` are no model; then *error says why.
  static std::unique_ptr<SentencePieceModel> Parse(const std::string& bytes, std::string* error);
  virtual ~SentencePieceModel() = default;

  virtual const std::vector<Piece>& pieces() const = 0;
  virtual int32_t end_id() const = 0;  // Of </s>, or -1.
  // Appends. False when the library fails.
  virtual bool Encode(std::string_view text, std::vector<int32_t>* ids) const = 0;
};

// The ids that every model trained here begins with: <unk>, <s>, </s>, newline, tab, 256 bytes.
inline constexpr int64_t kTrainedFixedPieces = 3 + 2 + 256;

struct TrainResult {
  std::string model;        // Empty when it failed:
  std::string error;        // what the library says,
  int64_t vocab_least = 0;  // the vocabulary that would do, where that is what was wrong,
  int64_t vocab_most = 0;   // or the largest one that this text can fill.
};
// BPE with byte fallback, nothing normalised, on one thread: equal lines give equal bytes. `lines`
// hold no newline.
TrainResult TrainBpe(const std::vector<std::string_view>& lines, int64_t vocab);

}  // namespace perdure
