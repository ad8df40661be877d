// UTF-8, strictly: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace perdure {

// U+FFFD: what stands for bytes or ids that mean nothing.
inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

// Bytes of the character that `text` begins with: 1..4, or 0 when it begins with no valid one.
// REQUIRES: not empty.
size_t Utf8Length(std::string_view text);

// The longest prefix that is valid UTF-8, in bytes.
size_t ValidUtf8Prefix(std::string_view text);

// Appends a code point; U+FFFD for one that is none (surrogates, above U+10FFFF).
void AppendUtf8(uint32_t code_point, std::string* out);

// `text` with U+FFFD for each byte that belongs to no valid character.
std::string RepairUtf8(std::string_view text);

}  // namespace perdure
