// A bit that is flipped on purpose, to see that it is noticed: drills and tests.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace perdure {

enum class FlipPlace : uint8_t {
  kGradient,   // Of a leaf, after it was computed.
  kReceived,   // Of another replica's leaf, after it arrived; where there is none, as kSum.
  kSum,        // Over leaves, before it is used.
  kParameter,  // Of the state that the rank keeps: its fp32 value,
  kExpAvg,     // and moments.
  kExpAvgSq,
  kCopy,  // Of parameters as compute reads them; where they are others', of one of those.
};
inline constexpr int kFlipPlaces = 7;

// "gradient", "exp_avg_sq": stable, for frames and commands.
std::string_view NameOf(FlipPlace place);
std::optional<FlipPlace> FlipPlaceOf(std::string_view name);

struct Flip {
  FlipPlace place = FlipPlace::kGradient;
  int64_t element = 0;  // Modulo how many there are; at least 0.
  int bit = 0;          // 0 is the lowest; modulo how many an element has.
  friend bool operator==(const Flip&, const Flip&) = default;
};

}  // namespace perdure
