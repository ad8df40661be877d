// Small readers of text that a command has printed: numbers, separated words, KEY=VALUE. They keep
// views into the text.
#pragma once

#include <charconv>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace perdure {

// The first few hundred characters, without anything that a terminal would obey.
std::string Printable(std::string_view text);

// Internal: `what` was expected where `text` stands.
absl::Status Unreadable(std::string_view what, std::string_view text);
// Internal: the answer of `command` ends in the middle.
absl::Status CutShort(std::string_view command, std::string_view text);

// Digits only, in the range of T.
template <typename T>
absl::StatusOr<T> ParseNumber(std::string_view text) {
  T number = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || stop != end || number < 0) return Unreadable("a number", text);
  return number;
}

// As ParseNumber, with Slurm's units of 1,024: "2K".
absl::StatusOr<int64_t> ParseCount(std::string_view text);

// The pieces between separators, empty ones too: one more than there are separators.
std::vector<std::string_view> Split(std::string_view text, std::string_view separator);

// The lines of a text, empty ones left out. Internal if the last one has no end.
absl::StatusOr<std::vector<std::string_view>> Lines(std::string_view command,
                                                    std::string_view text);

// Records of `fields` fields, each field followed by the separator, each record by a new line.
absl::StatusOr<std::vector<std::vector<std::string_view>>> SeparatedRecords(
    std::string_view text, std::string_view separator, size_t fields);

// "A=1 B=x=y C=": words of a line; of a repeated key the first counts.
class KeyValues {
 public:
  explicit KeyValues(std::string_view line);
  std::optional<std::string_view> Find(std::string_view key) const;
  absl::StatusOr<std::string_view> Needed(std::string_view key) const;

 private:
  std::map<std::string_view, std::string_view> values_;
};

}  // namespace perdure
