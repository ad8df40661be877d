// Where an agent listens: a numeric address and a port, as a value.
#pragma once

#include <array>
#include <compare>
#include <cstdint>

namespace perdure {

struct WireAddress {
  std::array<uint8_t, 16> ip{};  // Network order; IPv4 as ::ffff:a.b.c.d, so each has one form.
  uint16_t port = 0;
  friend auto operator<=>(const WireAddress&, const WireAddress&) = default;
};

}  // namespace perdure
