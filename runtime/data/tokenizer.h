// Text -> token ids -> text. Two kinds: "byte" (ids 0..255, 256 = end of document) and
// SentencePiece models.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace perdure {

class Tokenizer {
 public:
  // "byte", or the path of a SentencePiece .model file.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Open(const std::string& name);
  virtual ~Tokenizer() = default;

  virtual int64_t vocab() const = 0;
  virtual int32_t end_of_document() const = 0;
  virtual std::vector<int32_t> Encode(
      std::string_view text) const = 0;  // Without the end-of-document id.
  virtual std::string Decode(
      const std::vector<int32_t>& ids) const = 0;  // Unknown ids become U+FFFD.
};

// Trains a SentencePiece BPE model with byte fallback on `texts`, deterministic for equal input;
// writes MODEL_PATH.
absl::Status TrainSentencePiece(const std::vector<std::string>& texts, int64_t vocab,
                                const std::string& model_path);

}  // namespace perdure
