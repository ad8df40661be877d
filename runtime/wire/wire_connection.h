// One connection of the wire. Private to runtime/wire; the Wire owns it. An idle one has no
// buffers.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "runtime/wire/event_loop.h"
#include "runtime/wire/secure_channel.h"
#include "runtime/wire/wire.h"

namespace perdure {

// What an outgoing connection needs until it is open.
struct WireAttempt {
  WireAddress to;
  uint32_t node = 0;
  uint64_t incarnation = 0;
  absl::Time deadline;
  uint32_t tries = 0;
  EventLoop::TimerId timer;  // Of the present try, or of the pause before the next.
  std::optional<InitiatorHandshake> handshake;
  AnswerBytes answer{};
  size_t got = 0;
};

struct WireConfirmation {
  std::array<uint8_t, kConfirmationBytes> bytes{};
  size_t got = 0;
};

// A piece of the queue: whole frames, one behind the other.
struct WireChunk {
  std::unique_ptr<uint8_t[]> bytes;
  uint32_t capacity = 0, used = 0;
};

enum class WireState : uint8_t {
  kPausing,     // Outgoing, between two tries.
  kConnecting,  // Outgoing, TCP.
  kAsking,      // Outgoing, the hello is sent.
  kConfirming,  // Incoming, answered.
  kOpen,
};

struct WireConnection {
  ConnectionId id = 0;
  WireState state = WireState::kPausing;
  bool incoming = false;
  bool dirty = false;        // In the list of those to flush.
  bool wants_write = false;  // The socket is full.
  bool waiting = false;      // Not read from: in the list of those that wait for memory.
  UniqueFd fd;
  WirePeer peer;
  std::optional<SecureChannel> channel;
  std::unique_ptr<WireAttempt> attempt;
  std::unique_ptr<WireConfirmation> confirmation;

  // A frame that has come in part.
  std::unique_ptr<uint8_t[]> in;
  uint32_t in_filled = 0, in_capacity = 0;
  absl::Time in_last;  // When bytes of it came last, or when it had not to wait any longer.

  // Frames that are to be sent.
  std::list<WireChunk> out;
  uint32_t out_sent = 0;       // Of the first chunk.
  uint32_t out_frame_end = 0;  // Where in the first chunk the last frame ends that is sent whole.
  uint32_t out_frames = 0;
  size_t out_bytes = 0;  // Allocated.
};

}  // namespace perdure
