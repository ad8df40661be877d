// SentencePiece models as Tokenizers, from and to bytes in memory. Private to runtime/data.
//
// A model that keeps all text as it is (byte fallback, nothing normalised, no added prefix: those
// trained here) gives back every string exactly, bytes that are no UTF-8 and U+2581 included, which
// SentencePiece alone would change. Any other model encodes as SentencePiece does, with the losses
// that it was trained for.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/data/tokenizer.h"

namespace perdure {

// InvalidArgument names `name` when the bytes are no model or the model has no </s>.
absl::StatusOr<std::unique_ptr<Tokenizer>> OpenSentencePiece(const std::string& model,
                                                             const std::string& name);

// The bytes of a model trained on `texts`. InvalidArgument names the least or greatest vocabulary
// that would do.
absl::StatusOr<std::string> TrainSentencePieceModel(const std::vector<std::string>& texts,
                                                    int64_t vocab);

}  // namespace perdure
