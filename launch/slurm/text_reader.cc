#include "launch/slurm/text_reader.h"

#include <algorithm>
#include <limits>

#include "runtime/base/status.h"

namespace perdure {

std::string Printable(std::string_view text) {
  constexpr size_t kMost = 400;
  while (text.ends_with('\n')) text.remove_suffix(1);
  std::string part;
  for (const char c : text.substr(0, kMost)) {
    if (c == '\n')
      part += "; ";
    else
      part += static_cast<unsigned char>(c) < ' ' || c == '\x7f' ? '?' : c;
  }
  return text.size() > kMost ? part + "…" : part;
}

absl::Status Unreadable(std::string_view what, std::string_view text) {
  return Internal("{} was expected in place of '{}'", what, Printable(text));
}

absl::Status CutShort(std::string_view command, std::string_view text) {
  constexpr size_t kEnd = 80;
  return Internal("the answer of {} is cut short: it ends in '{}'", command,
                  Printable(text.substr(text.size() > kEnd ? text.size() - kEnd : 0)));
}

absl::StatusOr<int64_t> ParseCount(std::string_view text) {
  int64_t unit = 1;
  if (!text.empty()) {
    constexpr std::string_view kUnits = "KMG";
    const size_t power = kUnits.find(text.back());
    if (power != kUnits.npos) {
      unit = int64_t{1} << (10 * (power + 1));
      text.remove_suffix(1);
    }
  }
  ASSIGN_OR_RETURN(const int64_t number, ParseNumber<int64_t>(text));
  if (number > std::numeric_limits<int64_t>::max() / unit) return Unreadable("a count", text);
  return number * unit;
}

std::vector<std::string_view> Split(std::string_view text, std::string_view separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    const size_t at = text.find(separator);
    parts.push_back(text.substr(0, at));
    if (at == text.npos) return parts;
    text.remove_prefix(at + separator.size());
  }
}

absl::StatusOr<std::vector<std::string_view>> Lines(std::string_view command,
                                                    std::string_view text) {
  std::vector<std::string_view> lines;
  if (text.empty()) return lines;
  if (!text.ends_with('\n')) return CutShort(command, text);
  for (const std::string_view line : Split(text, "\n"))
    if (!line.empty()) lines.push_back(line);
  return lines;
}

absl::StatusOr<std::vector<std::vector<std::string_view>>> SeparatedRecords(
    std::string_view text, std::string_view separator, size_t fields) {
  std::vector<std::vector<std::string_view>> records;
  while (!text.empty()) {
    std::vector<std::string_view> record;
    while (record.size() < fields) {
      const size_t at = text.find(separator);
      if (at == text.npos) return CutShort("the command", text);
      record.push_back(text.substr(0, at));
      text.remove_prefix(at + separator.size());
    }
    if (!text.starts_with('\n')) return CutShort("the command", text);
    text.remove_prefix(1);
    records.push_back(std::move(record));
  }
  return records;
}

KeyValues::KeyValues(std::string_view line) {
  for (const std::string_view word : Split(line, " ")) {
    const size_t equal = word.find('=');
    if (equal != word.npos) values_.emplace(word.substr(0, equal), word.substr(equal + 1));
  }
}

std::optional<std::string_view> KeyValues::Find(std::string_view key) const {
  const auto at = values_.find(key);
  if (at == values_.end()) return std::nullopt;
  return at->second;
}

absl::StatusOr<std::string_view> KeyValues::Needed(std::string_view key) const {
  const std::optional<std::string_view> value = Find(key);
  if (!value) return Internal("there is no {}=", key);
  return *value;
}

}  // namespace perdure
