// SentencePiece models of other makers' kinds, for the tests. No abseil here: see
// runtime/data/sentencepiece_model.h.
#pragma once

#include <string>
#include <vector>

namespace perdure {

// As Llama's: a space before the text, NFKC, byte fallback.
std::string TrainNormalizingModel(const std::vector<std::string>& lines);
// A model without </s>.
std::string TrainModelWithoutEnd(const std::vector<std::string>& lines);

}  // namespace perdure
