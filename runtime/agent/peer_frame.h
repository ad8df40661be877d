// What travels in a frame of the wire between two agents: a message of the control plane, an
// address that one of them needs, or a piece of a snapshot (docs/formats.md, "Between agents").
// Private to runtime/agent and its tests.
#pragma once

#include <cstdint>
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

// Asks for a Directory of those nodes, at most kWhereNodesMax.
struct Where {
  std::vector<NodeId> nodes;
  friend bool operator==(const Where&, const Where&) = default;
};
inline constexpr size_t kWhereNodesMax = 256;

// Asks for bytes of the snapshot that a rank of a generation left at a step; answered by a
// SnapshotPiece or by Refused.
struct Fetch {
  uint64_t number = 0;  // Of the question; chosen by who asks, comes back with the answer.
  Generation generation = 0;
  StepIndex step = 0;
  int32_t rank = 0;
  uint64_t offset = 0;  // At most kFetchOffsetMax.
  uint32_t bytes = 0;   // 1 to kPieceBytesMax.
  friend bool operator==(const Fetch&, const Fetch&) = default;
};
inline constexpr uint64_t kFetchOffsetMax = uint64_t{1} << 62;
inline constexpr uint32_t kPieceBytesMax = uint32_t{256} << 10;

// As many bytes as were asked for.
struct SnapshotPiece {
  uint64_t number = 0;
  uint64_t file_bytes = 0;  // Of the whole file; at most kFetchOffsetMax.
  std::string bytes;
  friend bool operator==(const SnapshotPiece&, const SnapshotPiece&) = default;
};

struct Refused {
  enum class Why : uint8_t {
    kNotHeld,  // There is no such snapshot, or not so many bytes of it.
    kBusy,     // Too many questions of this agent wait; it may ask again.
  };
  uint64_t number = 0;
  Why why = Why::kNotHeld;
  friend bool operator==(const Refused&, const Refused&) = default;
};

using SnapshotFrame = std::variant<Fetch, SnapshotPiece, Refused>;
using PeerFrame =
    std::variant<ControlMessage, Introduction, Directory, Where, Fetch, SnapshotPiece, Refused>;

std::string EncodePeerFrame(const PeerFrame& frame);

// Safe on hostile bytes: DataLoss for what EncodePeerFrame would not have written.
absl::StatusOr<PeerFrame> DecodePeerFrame(std::string_view bytes);

}  // namespace perdure
