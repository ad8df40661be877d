// How two agents of one job prove to each other that they are, and then speak in frames that nobody
// else can read, change, repeat, reorder or make up. Pure: bytes in, bytes out; random bytes are
// arguments, and time has no part in it. One connection owns it.
//
// The handshake is Noise_NNpsk0_25519_ChaChaPoly_BLAKE2b, as it stands in the Noise specification
// (noise.h has its hash, HKDF and AEAD). With psk = K_job and e_i, e_r the ephemeral secrets:
//
//   h = ck = name, padded with zeros to 64 bytes
//   h = HASH(h | prologue)                  both mean the same run, job, responder and address
//   ck, t, k = HKDF(ck, K_job);  h = HASH(h | t)  without K_job nothing below comes out right
//   -> E_i = X25519(e_i, 9);     h = HASH(h | E_i);  ck, k = HKDF(ck, E_i)
//      AEAD(k, 0, h, who I am);  h = HASH(h | sealed)  proves K_job; a fresh key for each hello
//   <- E_r = X25519(e_r, 9);     h = HASH(h | E_r);  ck, k = HKDF(ck, E_r)
//      ck, k = HKDF(ck, X25519(e_i, E_r))  who learns K_job later still cannot read on
//      AEAD(k, 0, h, who I am);  h = HASH(h | sealed)  proves K_job, to this very hello
//   k_i, k_r = HKDF(ck, "")                a key per direction: a frame cannot be reflected
//   -> the empty frame, counter 0          proves that the hello was not an old one, said again
//
// So after one round trip the initiator knows its peer; the responder knows when the confirmation
// has come, which travels with the initiator's first words. There are no long-lived keys but K_job:
// all its holders are our own uid and trust each other, so a static key per agent would prove
// nothing more (that is why NN).
//
// A frame is its length (4 bytes, in the clear, authenticated) and the sealed bytes, under the
// direction's key and a counter that starts at 0 and never repeats. No rekeying: a channel ends
// after kFramesMax frames, 2^48, while the AEAD's bounds (forgery below 2^-87 a try for 1 MiB, and
// the first failure ends the channel; no nonce repeats below 2^64) leave room for much more.
//
// Byte by byte: docs/formats.md, section "Wire".
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "runtime/wire/job_key.h"
#include "runtime/wire/noise.h"
#include "runtime/wire/refusal.h"
#include "runtime/wire/wire_address.h"

namespace perdure {

inline constexpr size_t kHelloBytes = 96;
inline constexpr size_t kAnswerBytes = 72;
inline constexpr size_t kFrameHeadBytes = 4;
inline constexpr size_t kFrameOverheadBytes = kFrameHeadBytes + kAeadTagBytes;
inline constexpr size_t kConfirmationBytes = kFrameOverheadBytes;
inline constexpr size_t kFrameBytesMost = size_t{1} << 20;  // Of what is sealed, per frame.
inline constexpr uint64_t kFramesMax = uint64_t{1} << 48;

using HelloBytes = std::array<uint8_t, kHelloBytes>;
using AnswerBytes = std::array<uint8_t, kAnswerBytes>;

// What both sides must mean, bit for bit, before either believes the other.
struct HandshakeTerms {
  std::string run_id;  // At most 255 bytes.
  uint64_t job = 0;
  uint32_t responder = 0;  // Its node.
  WireAddress address;     // Where the responder listens, as the initiator believes.
};

// Who speaks from outside the job: an agent of another job of the run, which asks this one's
// coordinator whether it lives.
inline constexpr uint32_t kGuestNode = 0xffffffff;

// One life of an agent.
struct AgentIdentity {
  uint32_t node = 0;
  uint64_t incarnation = 0;  // 0: unknown; no agent has it.
  friend bool operator==(const AgentIdentity&, const AgentIdentity&) = default;
};

// Seals and opens frames, each direction by itself.
class SecureChannel {
 public:
  SecureChannel(SecretKey send, SecretKey receive)
      : send_(std::move(send)), receive_(std::move(receive)) {}
  SecureChannel(SecureChannel&&) noexcept = default;
  SecureChannel& operator=(SecureChannel&&) noexcept = default;

  // Fewer than kFramesMax frames each way.
  void LimitFrames(uint64_t frames_max) { frames_max_ = std::min(frames_max, kFramesMax); }

  // The initiator's first frame, once.
  std::array<uint8_t, kConfirmationBytes> SealConfirmation();
  // The responder's counterpart. Anything but kNone: close.
  Refusal OpenConfirmation(std::span<const uint8_t, kConfirmationBytes> frame);

  // Writes the frame to `frame`, which is kFrameOverheadBytes longer than `plain`. kFrameEmpty,
  // kFrameTooLong, kCounterSpent: nothing was written or counted.
  Refusal Seal(std::span<const uint8_t> plain, std::span<uint8_t> frame);
  // The length of the whole frame that begins so; kNone.
  struct Length {
    Refusal refusal = Refusal::kNone;
    size_t frame_bytes = 0;
  };
  static Length FrameLength(std::span<const uint8_t, kFrameHeadBytes> head);
  // Opens a whole frame where it stands; `plain` is the part of it that was sealed. After anything
  // but kNone the channel is of no use: close.
  struct Opened {
    Refusal refusal = Refusal::kNone;
    std::span<const uint8_t> plain;
  };
  Opened Open(std::span<uint8_t> frame);

  uint64_t sent() const { return sent_; }
  bool spent() const { return sent_ >= frames_max_; }  // Seal would say kCounterSpent.
  uint64_t received() const { return received_; }

 private:
  SecretKey send_, receive_;
  uint64_t sent_ = 0, received_ = 0, frames_max_ = kFramesMax;
};

// What a handshake leads to. The channel is there exactly when nothing was refused.
struct Handshaken {
  Refusal refusal = Refusal::kNone;
  AgentIdentity peer;
  std::optional<SecureChannel> channel;
};

class InitiatorHandshake {
 public:
  // `wanted_incarnation` 0: whichever life the responder has. `ephemeral`: random, used once.
  InitiatorHandshake(const JobKey& key, const HandshakeTerms& terms, const AgentIdentity& self,
                     uint64_t wanted_incarnation, SecretKey ephemeral);
  const HelloBytes& hello() const { return hello_; }
  // Once. After kNone send channel->SealConfirmation().
  Handshaken TakeAnswer(std::span<const uint8_t, kAnswerBytes> answer);

 private:
  NoiseState noise_;
  SecretKey ephemeral_;
  HelloBytes hello_{};
  uint32_t responder_;
  uint64_t wanted_;
};

class ResponderHandshake {
 public:
  // `terms` are what this agent is: its own run, job, node and address. Node numbers from `nodes`
  // on are unknown, but for kGuestNode; 0: any is taken.
  ResponderHandshake(const JobKey& key, const HandshakeTerms& terms, const AgentIdentity& self,
                     uint32_t nodes = 0);
  // What needs no key: whether these can be the first bytes of a hello, however few.
  static Refusal Look(std::span<const uint8_t> beginning);
  // Once. No public-key operation: whoever has not K_job costs 5 us, not 100.
  Refusal TakeHello(std::span<const uint8_t, kHelloBytes> hello);
  // Whom TakeHello let in; an authentic hello may still be an old one until its confirmation came.
  const AgentIdentity& peer() const { return peer_; }
  // Once, after TakeHello gave kNone. `answer` is written when nothing was refused.
  Handshaken Answer(SecretKey ephemeral, AnswerBytes* answer);

 private:
  NoiseState noise_;
  AgentIdentity self_, peer_;
  uint32_t nodes_;
  PublicKey theirs_{};
};

}  // namespace perdure
