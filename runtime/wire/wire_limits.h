// The bounds of the wire that are no options. Private to runtime/wire.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/time/time.h"

namespace perdure {

// Per connection and round of the loop, so that none starves the others.
inline constexpr size_t kReadBytesTurn = size_t{2} << 20;  // Before the next one's turn.
inline constexpr size_t kSendBytesTurn = size_t{2} << 20;
inline constexpr int kAcceptsTurn = 32;  // 3 ms, when all of them prove right.
// A frame up to this size is received without asking for memory.
inline constexpr size_t kUnreservedBytes = 4096;
// A queue's pieces, once a connection has more than one frame to send.
inline constexpr size_t kChunkBytes = 4096;
inline constexpr size_t kChunksPerSend = 64;
// How often deadlines of unproved connections and of frames that have begun are looked at.
inline constexpr absl::Duration kSweepEvery = absl::Milliseconds(250);
// That strangers leave free, whatever the process may have: for its own files, without which a job
// ends, and for agents that prove themselves.
inline constexpr int kSpareDescriptors = 16;
// When there are no descriptors left, connections wait in the kernel for so long.
inline constexpr absl::Duration kAcceptPause = absl::Milliseconds(100);

}  // namespace perdure
