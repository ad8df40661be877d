// What travels in a frame of the wire between two agents: a message of the control plane, or an
// address that one of them needs (docs/formats.md, "Between agents"). Private to runtime/agent and
// its tests.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/control/message.h"
#include "runtime/wire/wire_address.h"

namespace perdure {

// Who has connected tells first where it listens itself.
struct Introduction {
  WireAddress address;
  friend bool operator==(const Introduction&, const Introduction&) = default;
};

// Where other nodes listen that the receiver will have to speak to.
struct Directory {
  struct Entry {
    NodeId node = 0;
    WireAddress address;
    friend bool operator==(const Entry&, const Entry&) = default;
  };
  std::vector<Entry> entries;
  friend bool operator==(const Directory&, const Directory&) = default;
};

using PeerFrame = std::variant<ControlMessage, Introduction, Directory>;

std::string EncodePeerFrame(const PeerFrame& frame);

// Safe on hostile bytes: DataLoss for what EncodePeerFrame would not have written.
absl::StatusOr<PeerFrame> DecodePeerFrame(std::string_view bytes);

}  // namespace perdure
