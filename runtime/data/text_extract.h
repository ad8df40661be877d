// Plain text out of a file's bytes: manual pages (troff), HTML and XML pages, plain text, each
// possibly gzipped.
//
// What a file is follows from its content. Markup is dropped, text that was wrapped is joined into
// paragraphs, verbatim blocks keep their lines. Nothing is guessed: bytes that are not UTF-8 are
// refused, not converted.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace perdure {

// Why a file gave no document. New reasons are appended: the names are in --json.
enum class SkipReason {
  kNone,
  kByName,      // A licence, change log, picture, archive, hidden file.
  kNotRegular,  // A symbolic link, socket, device.
  kUnreadable,
  kTooLarge,  // More than kDocumentBytesMax of text.
  kDamagedGzip,
  kBinary,  // NUL bytes, or control characters in numbers.
  kNotUtf8,
  kEmpty,      // Nothing is left without markup.
  kDuplicate,  // Byte for byte a document before it.
};
inline constexpr int kSkipReasons = 10;
std::string_view SkipReasonName(SkipReason reason);  // "by_name", ...

inline constexpr size_t kDocumentBytesMax = size_t{1} << 30;

// Whether a file of this name (no folders) holds no text to train on.
bool IsSkippedName(std::string_view name);

struct ExtractedText {
  std::string text;  // UTF-8; ends in one newline. Empty when skipped.
  SkipReason skip = SkipReason::kNone;
};
ExtractedText ExtractText(std::string_view bytes);

// The parts. REQUIRES: valid UTF-8 without NUL.
std::string TroffToText(std::string_view page);
std::string MarkupToText(std::string_view page);

}  // namespace perdure
