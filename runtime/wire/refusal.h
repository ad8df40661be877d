// Why the wire turned somebody away. Counted by kind, for metrics; never told to the peer, who sees
// a connection that ends without a word whatever it was.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace perdure {

enum class Refusal : uint8_t {
  kNone,
  // The hello.
  kNotOurProtocol,     // Something else speaks here: a scanner, a web browser.
  kOtherVersion,       // Perdure, but another version of the handshake.
  kHelloNotAuthentic,  // Other key, run, job, node or address; or bytes were changed.
  kReplayedHello,      // Authentic, and seen before.
  kOwnHello,           // The agent has connected to itself.
  kUnknownNode,        // A node number that the job does not have.
  kOtherIncarnation,   // Meant for another life of this agent; in an answer, of another life.
  kReservedBits,       // Bits that this version does not know; they must be zero.
  kLowOrderPoint,      // An ephemeral key that makes the shared secret a constant.
  // The answer.
  kAnswerNotAuthentic,
  kOtherNode,  // An authentic answer, of a node that was not asked.
  // Frames, the confirmation among them.
  kFrameTooLong,
  kFrameEmpty,
  kFrameNotAuthentic,  // Changed, repeated, left out, out of order, of the other direction.
  kCounterSpent,       // As many frames as a key may see.
  // The connection: before it is open, but for kTooSlow.
  kTooSlow,    // Not done within the time: the hello, the answer, the confirmation, a frame.
  kGone,       // The peer closed or reset it.
  kPushedOut,  // The oldest of the source that held most, while all places were taken.
  kNoTokens,   // Its source has used up its right to a place.
  kNoRoom,     // As many connections, or descriptors, as there may be; strangers leave some free.
};
inline constexpr size_t kRefusals = static_cast<size_t>(Refusal::kNoRoom) + 1;

// "hello_not_authentic": the label of a metric.
std::string_view RefusalName(Refusal refusal);

}  // namespace perdure
