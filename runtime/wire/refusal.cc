#include "runtime/wire/refusal.h"

namespace perdure {

std::string_view RefusalName(Refusal refusal) {
  switch (refusal) {
    case Refusal::kNone:
      return "none";
    case Refusal::kNotOurProtocol:
      return "not_our_protocol";
    case Refusal::kOtherVersion:
      return "other_version";
    case Refusal::kHelloNotAuthentic:
      return "hello_not_authentic";
    case Refusal::kReplayedHello:
      return "replayed_hello";
    case Refusal::kOwnHello:
      return "own_hello";
    case Refusal::kUnknownNode:
      return "unknown_node";
    case Refusal::kOtherIncarnation:
      return "other_incarnation";
    case Refusal::kReservedBits:
      return "reserved_bits";
    case Refusal::kLowOrderPoint:
      return "low_order_point";
    case Refusal::kAnswerNotAuthentic:
      return "answer_not_authentic";
    case Refusal::kOtherNode:
      return "other_node";
    case Refusal::kFrameTooLong:
      return "frame_too_long";
    case Refusal::kFrameEmpty:
      return "frame_empty";
    case Refusal::kFrameNotAuthentic:
      return "frame_not_authentic";
    case Refusal::kCounterSpent:
      return "counter_spent";
    case Refusal::kTooSlow:
      return "too_slow";
    case Refusal::kGone:
      return "gone";
    case Refusal::kPushedOut:
      return "pushed_out";
    case Refusal::kNoTokens:
      return "no_tokens";
    case Refusal::kNoRoom:
      return "no_room";
  }
  return "unknown";
}

}  // namespace perdure
