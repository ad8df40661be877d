// The bytes of a message (docs/formats.md, "Between agents"): one byte for its type, then its
// fields in order; whole numbers as LEB128 (signed ones zigzag), strings and lists behind their
// count. Encoding and decoding read one list of fields, so they cannot differ.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "runtime/control/message.h"

namespace perdure {

// Appends to `bytes`.
void EncodeMessage(const ControlMessage& message, std::string& bytes);

// Safe on hostile bytes: DataLoss for what EncodeMessage would not have written. Takes memory in
// proportion to the bytes.
absl::StatusOr<ControlMessage> DecodeMessage(std::string_view bytes);

}  // namespace perdure
