#include "launch/config_values.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <sstream>

#include "runtime/base/status.h"

namespace perdure {
namespace {

// The number in front of `text`, which it leaves; false where there is none or it is too large.
bool TakeCount(std::string_view& text, int64_t& count) {
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, count);
  if (error != std::errc() || count < 0) return false;
  text.remove_prefix(static_cast<size_t>(stop - text.data()));
  return true;
}

// [D-]H:MM:SS.
bool ParseClock(std::string_view text, absl::Duration& value) {
  int64_t days = 0;
  if (const size_t dash = text.find('-'); dash != std::string_view::npos) {
    if (!TakeCount(text, days) || text.front() != '-') return false;
    text.remove_prefix(1);
  }
  std::array<int64_t, 3> parts{};
  for (size_t i = 0; i < parts.size(); ++i) {
    if (i > 0) {
      if (text.size() < 3 || text.front() != ':') return false;
      text.remove_prefix(1);
    }
    const size_t before = text.size();
    if (!TakeCount(text, parts[i])) return false;
    if (i > 0 && (before - text.size() != 2 || parts[i] > 59)) return false;
  }
  value = absl::Hours(24) * days + absl::Hours(parts[0]) + absl::Minutes(parts[1]) +
          absl::Seconds(parts[2]);
  return text.empty();
}

struct Unit {
  std::string_view name;
  absl::Duration size;
};

// Falling, the order in which they may follow one another.
const std::array<Unit, 6>& Units() {
  static const std::array<Unit, 6> units{{{"d", absl::Hours(24)},
                                          {"h", absl::Hours(1)},
                                          {"min", absl::Minutes(1)},
                                          {"s", absl::Seconds(1)},
                                          {"ms", absl::Milliseconds(1)},
                                          {"ns", absl::Nanoseconds(1)}}};
  return units;
}

// 1h30min: counts with falling units.
bool ParseUnits(std::string_view text, absl::Duration& value) {
  value = absl::ZeroDuration();
  if (text.empty()) return false;
  size_t least = 0;
  while (!text.empty()) {
    int64_t count = 0;
    if (!TakeCount(text, count)) return false;
    const size_t length = std::min(text.find_first_of("0123456789"), text.size());
    const std::string_view name = text.substr(0, length);
    while (least < Units().size() && Units()[least].name != name) ++least;
    if (least == Units().size()) return false;
    value += Units()[least].size * count;
    ++least;
    text.remove_prefix(length);
  }
  return true;
}

constexpr const char* kDurationWanted =
    "must be a duration: \"20:00:00\", \"1h30min\", \"20min\", \"90s\", or a whole number of "
    "seconds";

// Reads one {path, weight} entry through its fields.
std::string ReadSource(const toml::node& node, SourceConfig& source) {
  const toml::table* table = node.as_table();
  if (table == nullptr) return "must have tables as entries: { path = \"data/en\", weight = 0.5 }";
  std::vector<std::string> known;
  for (const SourceField& field : SourceFields()) {
    known.push_back(field.key);
    const toml::node* value = table->get(field.key);
    if (value == nullptr)
      return fmt::format("has an entry without {}; write {{ path = \"data/en\", weight = 0.5 }}",
                         field.key);
    if (const std::string wrong = field.read(*value, source); !wrong.empty())
      return fmt::format("has an entry with {} = {}, which {}", field.key, ShowNode(*value), wrong);
  }
  for (const auto& [key, value] : *table) {
    const std::string_view name = key.str();
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    const std::string near = NearestKey(name, known);
    return fmt::format(
        "has an entry with an unknown key {}; {}", name,
        near.empty() ? "the keys are path and weight" : fmt::format("did you mean {}?", near));
  }
  return "";
}

}  // namespace

std::string ReadValue(const toml::node& node, int64_t& value) {
  if (const auto integer = node.value_exact<int64_t>()) {
    value = *integer;
    return "";
  }
  if (const auto number = node.value_exact<double>();
      number && *number == std::floor(*number) && std::abs(*number) < 1e18)
    return fmt::format("must be an integer: {}", static_cast<int64_t>(*number));
  return "must be an integer";
}

std::string ReadValue(const toml::node& node, uint64_t& value) {
  const auto integer = node.value_exact<int64_t>();
  if (!integer || *integer < 0) return "must be an integer of 0 or more, for example 1234";
  value = static_cast<uint64_t>(*integer);
  return "";
}

std::string ReadValue(const toml::node& node, double& value) {
  if (const auto number = node.value_exact<double>())
    value = *number;
  else if (const auto integer = node.value_exact<int64_t>())
    value = static_cast<double>(*integer);
  else
    return "must be a number, for example 0.5";
  return std::isfinite(value) ? "" : "must be finite, for example 0.5";
}

std::string ReadValue(const toml::node& node, bool& value) {
  const auto boolean = node.value_exact<bool>();
  if (!boolean) return "must be true or false";
  value = *boolean;
  return "";
}

std::string ReadValue(const toml::node& node, std::string& value) {
  const auto text = node.value_exact<std::string>();
  if (!text) {
    const std::string shown = ShowNode(node);
    return node.is_value() ? fmt::format("must be a string: put it in quotes, \"{}\"", shown)
                           : "must be a string in quotes";
  }
  value = *text;
  return "";
}

std::string ReadValue(const toml::node& node, absl::Duration& value) {
  constexpr int64_t kMostSeconds = int64_t{100} * 366 * 86400;
  if (const auto seconds = node.value_exact<int64_t>()) {
    if (*seconds < 0 || *seconds > kMostSeconds) return kDurationWanted;
    value = absl::Seconds(*seconds);
    return "";
  }
  const auto text = node.value_exact<std::string>();
  if (!text) return kDurationWanted;
  if (!ParseClock(*text, value) && !ParseUnits(*text, value)) return kDurationWanted;
  return value <= absl::Seconds(kMostSeconds) ? "" : "must be at most 100 years";
}

std::string ReadValue(const toml::node& node, std::vector<SourceConfig>& value) {
  const toml::array* array = node.as_array();
  if (array == nullptr)
    return "must be a list of sources: [ { path = \"data/en\", weight = 0.5 } ]";
  value.clear();
  for (const toml::node& entry : *array) {
    SourceConfig source;
    if (std::string wrong = ReadSource(entry, source); !wrong.empty()) return wrong;
    value.push_back(std::move(source));
  }
  return "";
}

std::string ReadValue(const toml::node& node, std::vector<int64_t>& value) {
  const toml::array* array = node.as_array();
  if (array == nullptr) return "must be an array of integers, for example [5000, 10000]";
  std::vector<int64_t> numbers;
  for (const toml::node& element : *array) {
    int64_t number = 0;
    if (const std::string wrong = ReadValue(element, number); !wrong.empty())
      return fmt::format("has an element that {}", wrong);
    numbers.push_back(number);
  }
  value = std::move(numbers);
  return "";
}

std::string ReadValue(const toml::node& node, std::vector<std::string>& value) {
  const toml::array* array = node.as_array();
  if (array == nullptr) return "must be an array of strings, for example [\"--exclusive\"]";
  std::vector<std::string> texts;
  for (const toml::node& element : *array) {
    std::string text;
    if (const std::string wrong = ReadValue(element, text); !wrong.empty())
      return fmt::format("has an element that {}", wrong);
    texts.push_back(std::move(text));
  }
  value = std::move(texts);
  return "";
}

std::string PrintValue(int64_t value) { return fmt::format("{}", value); }
std::string PrintValue(uint64_t value) { return fmt::format("{}", value); }
std::string PrintValue(bool value) { return value ? "true" : "false"; }

std::string PrintValue(double value) {
  std::string text = fmt::format("{}", value);  // The shortest that reads back to the same bits.
  if (text.find_first_not_of("-0123456789") == std::string::npos) text += ".0";
  return text;
}

std::string PrintValue(const std::string& value) {
  std::string text = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\')
      text += {'\\', c};
    else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      text += fmt::format("\\u{:04X}", static_cast<unsigned>(c));
    else
      text += c;
  }
  return text + '"';
}

std::string PrintValue(absl::Duration value) {
  std::string text;
  for (const Unit& unit : Units()) {
    const int64_t count = absl::IDivDuration(value, unit.size, &value);
    if (count != 0) text += fmt::format("{}{}", count, unit.name);
  }
  return text.empty() ? "\"0s\"" : fmt::format("\"{}\"", text);
}

std::string PrintValue(const std::vector<int64_t>& value) {
  return fmt::format("[{}]", fmt::join(value, ", "));
}

std::string PrintValue(const std::vector<std::string>& value) {
  std::string text = "[";
  for (const std::string& each : value) text += (text.size() > 1 ? ", " : "") + PrintValue(each);
  return text + "]";
}

std::string PrintValue(const std::vector<SourceConfig>& value) {
  std::string text = "[";
  for (const SourceConfig& source : value) {
    text += value.size() > 1 ? "\n  { " : " { ";
    std::string separator;
    for (const SourceField& field : SourceFields()) {
      text += fmt::format("{}{} = {}", separator, field.key, field.print(source));
      separator = ", ";
    }
    text += value.size() > 1 ? " }," : " } ";
  }
  return text + (value.size() > 1 ? "\n]" : "]");
}

std::string ShowNode(const toml::node& node) {
  constexpr size_t kLongest = 60;
  std::ostringstream out;
  node.visit([&](const auto& concrete) { out << concrete; });
  std::string text = out.str();
  // Strings keep the quotes they were written with.
  if (node.is_string()) text = PrintValue(node.value_or(std::string()));
  std::replace(text.begin(), text.end(), '\n', ' ');
  if (text.size() > kLongest) text = text.substr(0, kLongest) + "...";
  return text;
}

std::string_view KeyParent(std::string_view key) {
  const size_t dot = key.rfind('.');
  return dot == std::string_view::npos ? std::string_view() : key.substr(0, dot);
}

std::string_view KeyName(std::string_view key) {
  const size_t dot = key.rfind('.');
  return dot == std::string_view::npos ? key : key.substr(dot + 1);
}

namespace {

// Levenshtein distance; a swap of neighbours counts as one.
size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t change = a[i - 1] == b[j - 1] ? 0 : 1;
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + change});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[a.size()][b.size()];
}

}  // namespace

std::string NearestKey(std::string_view wrong, const std::vector<std::string>& known) {
  constexpr size_t kLongest = 100;  // No key is longer; bounds the work on a hostile one.
  if (wrong.size() > kLongest) return "";
  std::string nearest;
  size_t least = std::numeric_limits<size_t>::max();
  for (const std::string& key : known) {
    const size_t distance = EditDistance(wrong, key);
    if (distance < least) {
      least = distance;
      nearest = key;
    }
  }
  return least <= std::max<size_t>(2, wrong.size() / 3) ? nearest : "";
}

}  // namespace perdure
