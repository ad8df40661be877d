// Two ends of a handshake, for tests and fuzzing: what each believes can be made to differ.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/base/check.h"
#include "runtime/wire/secure_channel.h"

namespace perdure {

inline std::span<const uint8_t> BytesOf(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}
inline std::string TextOf(std::span<const uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// The bytes first, first + 1, ...
inline std::vector<uint8_t> Counting(uint8_t first, size_t count) {
  std::vector<uint8_t> bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<uint8_t>(first + i);
  return bytes;
}
inline SecretKey CountingSecret(uint8_t first) {
  return SecretKey(std::span<const uint8_t, 32>(Counting(first, 32).data(), 32));
}

inline constexpr std::string_view kTestRun = "0123456789abcdef0123456789abcdef";

struct KeyParts {
  uint8_t file_key = 0;  // First of 32 counting bytes.
  uint8_t leg = 0;       // Likewise; 0: none.
  std::string_view run_id = kTestRun;
  uint64_t job = 4711;
  uint64_t restart = 2;
};
inline JobKey TestKey(const KeyParts& parts = {}) {
  const std::vector<uint8_t> file_key = Counting(parts.file_key, kSecretBytes);
  std::vector<uint8_t> leg;
  if (parts.leg != 0) leg = Counting(parts.leg, kSecretBytes);
  return JobKey::Derive({.file_key = file_key,
                         .second_leg = leg,
                         .run_id = std::string(parts.run_id),
                         .job = parts.job,
                         .restart = parts.restart});
}

inline HandshakeTerms TestTerms() {
  HandshakeTerms terms{.run_id = std::string(kTestRun), .job = 4711, .responder = 7, .address = {}};
  terms.address.ip = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 5};
  terms.address.port = 40123;
  return terms;
}

inline constexpr AgentIdentity kTestInitiator{.node = 3, .incarnation = 0x1122334455667788};
inline constexpr AgentIdentity kTestResponder{.node = 7, .incarnation = 99};

// ---- A handshake by hand, as a holder of the key could do it who does not keep to the rules: any
// ephemeral key, anything inside.

inline NoiseState BeginByHand(const JobKey& key) {
  NoiseState noise("Noise_NNpsk0_25519_ChaChaPoly_BLAKE2b");
  std::string prologue = "PRDWIRE\1";
  prologue += static_cast<char>(kTestRun.size());
  prologue += kTestRun;
  const HandshakeTerms terms = TestTerms();
  const auto put = [&](uint64_t number, int bytes) {
    for (int i = 0; i < bytes; ++i) prologue += static_cast<char>(number >> (8 * i));
  };
  put(terms.job, 8);
  put(terms.responder, 4);
  prologue += TextOf(terms.address.ip);
  put(terms.address.port, 2);
  noise.MixHash(BytesOf(prologue));
  noise.MixKeyAndHash(key.bytes());
  return noise;
}

inline HelloBytes HelloOf(const JobKey& key, const PublicKey& ephemeral,
                          std::span<const uint8_t, 40> plain) {
  NoiseState noise = BeginByHand(key);
  noise.MixHash(ephemeral);
  noise.MixKey(ephemeral);
  HelloBytes hello{};
  const auto preamble = BytesOf("PRDWIRE\1");
  std::copy(preamble.begin(), preamble.end(), hello.begin());
  std::copy(ephemeral.begin(), ephemeral.end(), hello.begin() + 8);
  noise.EncryptAndHash(plain, std::span<uint8_t>(hello).subspan(40));
  return hello;
}

inline AnswerBytes AnswerOf(const JobKey& key, const HelloBytes& hello,
                            std::span<const uint8_t, 24> plain) {
  NoiseState noise = BeginByHand(key);
  PublicKey theirs{};
  std::copy_n(hello.begin() + 8, theirs.size(), theirs.begin());
  noise.MixHash(theirs);
  noise.MixKey(theirs);
  std::array<uint8_t, 40> inside{};
  PERDURE_CHECK(noise.DecryptAndHash(std::span(hello).subspan(40), inside));
  const SecretKey secret = CountingSecret(201);
  const PublicKey ours = PublicKeyOf(secret);
  noise.MixHash(ours);
  noise.MixKey(ours);
  SecretKey shared;
  PERDURE_CHECK(SharedSecret(secret, theirs, &shared));
  noise.MixKey(shared.span());
  AnswerBytes answer{};
  std::copy(ours.begin(), ours.end(), answer.begin());
  noise.EncryptAndHash(plain, std::span<uint8_t>(answer).subspan(32));
  return answer;
}

// ---- Channels

struct ChannelPair {
  SecureChannel initiator, responder;
};

// A handshake that goes well, without the confirmation.
inline ChannelPair MakeChannelPair() {
  const JobKey key = TestKey();
  InitiatorHandshake initiator(key, TestTerms(), kTestInitiator, 0, CountingSecret(1));
  ResponderHandshake responder(key, TestTerms(), kTestResponder);
  PERDURE_CHECK(responder.TakeHello(initiator.hello()) == Refusal::kNone);
  AnswerBytes answer{};
  Handshaken theirs = responder.Answer(CountingSecret(201), &answer);
  Handshaken ours = initiator.TakeAnswer(answer);
  PERDURE_CHECK(theirs.refusal == Refusal::kNone && ours.refusal == Refusal::kNone);
  return {std::move(*ours.channel), std::move(*theirs.channel)};
}

inline std::vector<uint8_t> SealText(SecureChannel& channel, std::string_view text) {
  std::vector<uint8_t> frame(text.size() + kFrameOverheadBytes);
  PERDURE_CHECK(channel.Seal(BytesOf(text), frame) == Refusal::kNone);
  return frame;
}

}  // namespace perdure
