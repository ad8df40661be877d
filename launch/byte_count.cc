#include "launch/byte_count.h"

#include <array>
#include <charconv>
#include <string_view>

#include "runtime/base/status.h"

namespace perdure {

absl::StatusOr<int64_t> ParseBytes(const std::string& flag, const std::string& text) {
  struct Unit {
    std::string_view name;
    int64_t bytes;
  };
  static constexpr Unit kUnits[] = {
      {"", 1},
      {"B", 1},
      {"KiB", int64_t{1} << 10},
      {"MiB", int64_t{1} << 20},
      {"GiB", int64_t{1} << 30},
      {"TiB", int64_t{1} << 40},
      {"KB", 1'000},
      {"MB", 1'000'000},
      {"GB", 1'000'000'000},
      {"TB", 1'000'000'000'000},
  };
  int64_t count = 0;
  int64_t bytes = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, count);
  std::string_view name(stop, static_cast<size_t>(end - stop));
  while (!name.empty() && name.front() == ' ') name.remove_prefix(1);
  for (const Unit& unit : kUnits) {
    if (error != std::errc() || count < 1 || name != unit.name) continue;
    if (!__builtin_mul_overflow(count, unit.bytes, &bytes)) return bytes;
  }
  return InvalidArgument("{} {}: write a size, for example 80GiB, 512MiB or 80GB", flag, text);
}

std::string HumanBytes(uint64_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

}  // namespace perdure
