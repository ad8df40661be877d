// What a rank tells the others so that they can reach it: Transport::LocalAddress() of the network
// transports.
//
// On the wire: a magic, then the fields of RankAddress in order; integers little-endian, strings
// with a 32-bit length.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace perdure {

inline constexpr size_t kAddressBytesMax = size_t{64} << 10;

// A secret of one rank for one generation: who shows it got the address table from the control
// channel.
using WatchToken = std::array<uint8_t, 16>;

struct WatchAddress {
  std::string host;  // Equal where 127.0.0.1 is the same place: boot id and network namespace.
  std::vector<std::string> ips;  // Of the machine, loopback left out.
  uint16_t port = 0;
  WatchToken token{};

  friend bool operator==(const WatchAddress&, const WatchAddress&) = default;
};

struct RankAddress {
  std::string kind;     // "ucx", "libfabric": both sides must agree.
  std::string network;  // TransportOptions::network: likewise.
  int rank = 0;
  WatchAddress watch;
  std::string fabric;  // The library's own.

  friend bool operator==(const RankAddress&, const RankAddress&) = default;
};

std::string PackAddress(const RankAddress& address);
// InvalidArgument if `packed` is not the whole of one packed address.
absl::StatusOr<RankAddress> UnpackAddress(std::string_view packed);

}  // namespace perdure
