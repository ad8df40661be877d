#include "runtime/data/text_extract.h"

#include <algorithm>
#include <array>
#include <cctype>

#include "runtime/base/check.h"
#include "runtime/data/gunzip.h"
#include "runtime/data/utf8.h"

namespace perdure {
namespace {

constexpr std::string_view kSkippedEndings[] = {
    ".png", ".jpg",  ".jpeg", ".gif", ".svg", ".svgz", ".ico",  ".webp",  ".bmp", ".tif", ".tiff",
    ".pdf", ".ps",   ".eps",  ".dvi", ".ttf", ".otf",  ".woff", ".woff2", ".css", ".mp3", ".mp4",
    ".ogg", ".webm", ".wav",  ".zip", ".xz",  ".bz2",  ".zst",  ".7z",    ".tar", ".tgz", ".deb",
    ".rpm", ".jar",  ".so",   ".a",   ".o",   ".pyc",  ".mo",   ".db",    ".idx", ".bin", ".model",
};

std::string Lower(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return lower;
}

bool IsBinary(std::string_view text) {
  size_t control = 0;
  for (const char c : text) {
    if (c == '\0') return true;
    const bool ordinary = static_cast<unsigned char>(c) >= 0x20 || (c >= '\t' && c <= '\r') ||
                          c == '\b' || c == '\x1b';
    control += !ordinary;
  }
  return control * 100 > text.size();
}

bool IsMarkup(std::string_view text) {
  const std::string start = Lower(text.substr(0, std::min<size_t>(text.size(), 1024)));
  const size_t first = start.find_first_not_of(" \t\r\n");
  if (first == std::string::npos || start[first] != '<') return false;
  return start.compare(first, 5, "<?xml") == 0 || start.find("<html") != std::string::npos ||
         start.find("<!doctype html") != std::string::npos;
}

// A request comes first, and a title, a heading or an inclusion soon.
bool IsTroff(std::string_view text) {
  const size_t first = text.find_first_not_of("\r\n");
  if (first == std::string_view::npos || (text[first] != '.' && text[first] != '\'')) return false;
  const std::string_view start = text.substr(first, 65536);
  for (const std::string_view request : {".TH", ".Dd", ".SH", ".Sh", ".so"}) {
    for (size_t at = start.find(request); at != std::string_view::npos;
         at = start.find(request, at + 1)) {
      const size_t end = at + request.size();
      if ((at == 0 || start[at - 1] == '\n') && end < start.size() &&
          std::isspace(static_cast<unsigned char>(start[end])))
        return true;
    }
  }
  return false;
}

std::string PlainToText(std::string_view text) {
  std::string plain;
  plain.reserve(text.size() + 1);
  for (size_t i = 0; i < text.size(); ++i) {
    const bool ends_line = text[i] == '\r' && i + 1 < text.size() && text[i + 1] == '\n';
    if (!ends_line && text[i] != '\f') plain.push_back(text[i]);
  }
  const size_t last = plain.find_last_not_of(" \t\r\n");
  plain.resize(last == std::string::npos ? 0 : last + 1);
  if (!plain.empty()) plain.push_back('\n');
  return plain;
}

}  // namespace

std::string_view SkipReasonName(SkipReason reason) {
  constexpr std::array<std::string_view, kSkipReasons> kNames{
      "none",         "by_name", "not_regular", "unreadable", "too_large",
      "damaged_gzip", "binary",  "not_utf8",    "empty",      "duplicate"};
  return kNames.at(static_cast<size_t>(reason));
}

bool IsSkippedName(std::string_view name) {
  const std::string lower = Lower(name);
  if (lower.starts_with('.') || lower.starts_with("changelog") || lower.starts_with("copyright"))
    return true;
  return std::any_of(std::begin(kSkippedEndings), std::end(kSkippedEndings),
                     [&](std::string_view ending) { return lower.ends_with(ending); });
}

ExtractedText ExtractText(std::string_view bytes) {
  std::string unpacked;
  if (IsGzip(bytes)) {
    absl::StatusOr<std::string> text = Gunzip(bytes, kDocumentBytesMax);
    if (!text.ok())
      return {.text = "",
              .skip = absl::IsResourceExhausted(text.status()) ? SkipReason::kTooLarge
                                                               : SkipReason::kDamagedGzip};
    unpacked = *std::move(text);
    bytes = unpacked;
  }
  if (bytes.size() > kDocumentBytesMax) return {.text = "", .skip = SkipReason::kTooLarge};
  if (IsBinary(bytes)) return {.text = "", .skip = SkipReason::kBinary};
  if (ValidUtf8Prefix(bytes) != bytes.size()) return {.text = "", .skip = SkipReason::kNotUtf8};
  if (bytes.starts_with("\xEF\xBB\xBF")) bytes.remove_prefix(3);
  ExtractedText result;
  if (IsMarkup(bytes))
    result.text = MarkupToText(bytes);
  else if (IsTroff(bytes))
    result.text = TroffToText(bytes);
  else
    result.text = PlainToText(bytes);
  if (result.text.empty()) result.skip = SkipReason::kEmpty;
  return result;
}

}  // namespace perdure
