// The header of a safetensors file, as text. Private to ckpt/convert/ and its tests.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/convert/safetensors.h"

namespace perdure {

inline constexpr uint64_t kSafetensorsHeaderBytesMax = 100'000'000;  // The format's own bound.

struct SafetensorsHeader {
  std::vector<SafetensorsTensor> tensors;  // By name.
  std::map<std::string, std::string> metadata;
};

// Parses the JSON text behind the length and checks that the tensors cover `data_bytes` exactly.
// InvalidArgument says what is wrong, and of which tensor; the caller names the file.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view text,
                                                         uint64_t data_bytes);

// Length and text as they stand in front of the data, padded to a multiple of eight bytes.
// REQUIRES: tensors in the order of their offsets.
std::string PrintSafetensorsHeader(const std::vector<SafetensorsTensor>& tensors);

// Name to file of an index's weight_map. InvalidArgument as above.
absl::StatusOr<std::map<std::string, std::string>> ParseShardIndex(std::string_view text);

// The bytes of a tensor's elements. False: 64 bits cannot count them.
bool TensorBytes(const std::vector<uint64_t>& shape, SafetensorsDType dtype, uint64_t* bytes);

}  // namespace perdure
