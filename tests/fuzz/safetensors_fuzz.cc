// A safetensors header, and the index of shards.
#include "ckpt/convert/safetensors_header.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace perdure;
  const std::string_view text = FuzzText(data, size);
  (void)ParseShardIndex(text);
  for (const uint64_t bytes : {uint64_t{0}, uint64_t{16}, uint64_t{96}, ~uint64_t{0}}) {
    const auto header = ParseSafetensorsHeader(text, bytes);
    if (!header.ok()) continue;
    uint64_t sum = 0;
    for (const SafetensorsTensor& tensor : header->tensors) {
      FuzzCheck(tensor.begin <= tensor.end && tensor.end <= bytes);
      sum += tensor.end - tensor.begin;
    }
    FuzzCheck(sum == bytes);
  }
  return 0;
}
