// Models of SentencePiece, which its library parses.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/data/sentencepiece_model.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace perdure;
  std::string error;
  const auto model =
      SentencePieceModel::Parse(std::string(reinterpret_cast<const char*>(data), size), &error);
  if (model == nullptr) return 0;
  std::vector<int32_t> ids;
  (void)model->Encode("The end.\n\xE2\x82\xAC", &ids);
  return 0;
}
