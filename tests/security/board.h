// What the agents of a job under attack tell the test, and the test them: a page of shared memory,
// so that looking disturbs nobody. It has no name (memfd), and attackers do not have it.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "runtime/wire/refusal.h"

namespace perdure {

inline constexpr int kBoardDescriptor = 3;  // Of an agent's process, when it begins.
inline constexpr uint32_t kBoardNodes = 8;

struct NodeBoard {
  // By the node, 100 times a second.
  std::atomic<uint64_t> beats{0};
  std::atomic<uint32_t> port{0};
  std::atomic<bool> leads{false};
  std::atomic<uint64_t> term{0}, generation{0};
  std::atomic<int64_t> step{0};        // Finished.
  std::atomic<int64_t> pause_most{0};  // Between two steps, in ns, since the test set it to 0.
  std::atomic<int64_t> lapses{0};      // How often ranks that stepped had no lease any more.
  std::array<std::atomic<uint64_t>, kRefusals> refused{};  // As in WireCounters.
  std::atomic<uint64_t> accepted{0}, attempts{0}, frames_received{0};
  std::atomic<uint64_t> malformed{0};  // As in PeersCounters.
  std::atomic<uint32_t> connections{0}, half_open{0}, unconfirmed{0};
  std::atomic<uint64_t> bytes_bound{0};
  std::atomic<uint64_t> resident{0}, resident_most{0};  // Bytes; the most since it was set to 0.
  std::atomic<uint32_t> descriptors{0};
  std::atomic<uint32_t> inherited{0};     // Of them would live on in a program that it executes.
  std::atomic<uint32_t> unix_sockets{0};  // Of them.
  // By the test.
  std::atomic<uint32_t> redirect_from{0}, redirect_to{0};  // Ports; the network is not our friend.
  std::atomic<uint32_t> cut{0};  // Connections to this port are cut, once; back to 0 then.

  uint64_t operator[](Refusal refusal) const { return refused[static_cast<size_t>(refusal)]; }
};

struct Board {
  std::array<NodeBoard, kBoardNodes> nodes;
};

}  // namespace perdure
