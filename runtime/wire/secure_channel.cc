#include "runtime/wire/secure_channel.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "runtime/base/check.h"

namespace perdure {
namespace {

constexpr std::string_view kProtocolName = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2b";
// The first eight bytes of a hello: so that a scanner is told from an attacker without any
// computing, and that another version can be named. They are part of the prologue too.
constexpr std::array<uint8_t, 7> kMagic = {'P', 'R', 'D', 'W', 'I', 'R', 'E'};
constexpr uint8_t kVersion = 1;
constexpr size_t kPreambleBytes = kMagic.size() + 1;

// Offsets in a hello, an answer, and what they seal.
constexpr size_t kHelloKey = kPreambleBytes, kHelloSealed = kHelloKey + 32;
constexpr size_t kHelloPlainBytes = kHelloBytes - kHelloSealed - kAeadTagBytes;
constexpr size_t kAnswerSealed = 32;
constexpr size_t kAnswerPlainBytes = kAnswerBytes - kAnswerSealed - kAeadTagBytes;
static_assert(kHelloPlainBytes == 40 && kAnswerPlainBytes == 24);

void PutNumber(uint64_t number, std::span<uint8_t> bytes) {
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(number >> (8 * i));
}

uint64_t GetNumber(std::span<const uint8_t> bytes) {
  uint64_t number = 0;
  for (size_t i = 0; i < bytes.size(); ++i) number |= uint64_t{bytes[i]} << (8 * i);
  return number;
}

bool AllZero(std::span<const uint8_t> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte == 0; });
}

// Magic, version, run, job, responder, address: on the stack, because a hello from anybody gets
// here.
void MixPrologue(NoiseState& noise, const HandshakeTerms& terms) {
  constexpr size_t kAfterRun = 8 + 4 + 16 + 2;
  std::array<uint8_t, kPreambleBytes + 1 + 255 + kAfterRun> prologue{};
  PERDURE_CHECK(terms.run_id.size() <= 255);
  const size_t run_bytes = terms.run_id.size();
  std::copy(kMagic.begin(), kMagic.end(), prologue.begin());
  prologue[kMagic.size()] = kVersion;
  prologue[kPreambleBytes] = static_cast<uint8_t>(run_bytes);
  std::copy(terms.run_id.begin(), terms.run_id.end(), prologue.begin() + kPreambleBytes + 1);
  const auto rest = std::span<uint8_t>(prologue).subspan(kPreambleBytes + 1 + run_bytes, kAfterRun);
  PutNumber(terms.job, rest.subspan(0, 8));
  PutNumber(terms.responder, rest.subspan(8, 4));
  std::copy(terms.address.ip.begin(), terms.address.ip.end(), rest.begin() + 12);
  PutNumber(terms.address.port, rest.subspan(28, 2));
  noise.MixHash(std::span(prologue).first(kPreambleBytes + 1 + run_bytes + kAfterRun));
}

NoiseState Begin(const JobKey& key, const HandshakeTerms& terms) {
  NoiseState noise(kProtocolName);
  MixPrologue(noise, terms);
  noise.MixKeyAndHash(key.bytes());
  return noise;
}

// Noise's token e, in handshakes with a pre-shared key.
void MixEphemeral(NoiseState& noise, std::span<const uint8_t> key) {
  noise.MixHash(key);
  noise.MixKey(key);
}

}  // namespace

// ---- Frames -------------------------------------------------------------------------------------

std::array<uint8_t, kConfirmationBytes> SecureChannel::SealConfirmation() {
  PERDURE_CHECK(sent_ == 0);
  std::array<uint8_t, kConfirmationBytes> frame{};
  const std::span<uint8_t> bytes(frame);
  AeadSeal(send_, sent_++, bytes.first(kFrameHeadBytes), {}, bytes.subspan(kFrameHeadBytes));
  return frame;
}

Refusal SecureChannel::OpenConfirmation(std::span<const uint8_t, kConfirmationBytes> frame) {
  PERDURE_CHECK(received_ == 0);
  if (!AllZero(frame.first<kFrameHeadBytes>())) return Refusal::kFrameNotAuthentic;
  const bool authentic = AeadOpen(receive_, received_++, frame.first<kFrameHeadBytes>(),
                                  frame.subspan<kFrameHeadBytes>(), {});
  return authentic ? Refusal::kNone : Refusal::kFrameNotAuthentic;
}

Refusal SecureChannel::Seal(std::span<const uint8_t> plain, std::span<uint8_t> frame) {
  if (plain.empty()) return Refusal::kFrameEmpty;
  if (plain.size() > kFrameBytesMost) return Refusal::kFrameTooLong;
  if (sent_ >= frames_max_) return Refusal::kCounterSpent;
  PERDURE_CHECK(frame.size() == plain.size() + kFrameOverheadBytes);
  PutNumber(plain.size(), frame.first(kFrameHeadBytes));
  AeadSeal(send_, sent_++, frame.first(kFrameHeadBytes), plain, frame.subspan(kFrameHeadBytes));
  return Refusal::kNone;
}

SecureChannel::Length SecureChannel::FrameLength(std::span<const uint8_t, kFrameHeadBytes> head) {
  const uint64_t plain = GetNumber(head);
  if (plain == 0) return {.refusal = Refusal::kFrameEmpty};
  if (plain > kFrameBytesMost) return {.refusal = Refusal::kFrameTooLong};
  return {.frame_bytes = plain + kFrameOverheadBytes};
}

SecureChannel::Opened SecureChannel::Open(std::span<uint8_t> frame) {
  PERDURE_CHECK(frame.size() > kFrameOverheadBytes);
  const Length length = FrameLength(frame.first<kFrameHeadBytes>());
  if (length.refusal != Refusal::kNone) return {.refusal = length.refusal, .plain = {}};
  if (length.frame_bytes != frame.size())
    return {.refusal = Refusal::kFrameNotAuthentic, .plain = {}};
  if (received_ >= frames_max_) return {.refusal = Refusal::kCounterSpent, .plain = {}};
  const std::span<uint8_t> sealed = frame.subspan(kFrameHeadBytes);
  const std::span<uint8_t> plain = sealed.first(sealed.size() - kAeadTagBytes);
  if (!AeadOpen(receive_, received_++, frame.first<kFrameHeadBytes>(), sealed, plain))
    return {.refusal = Refusal::kFrameNotAuthentic, .plain = {}};
  return {.refusal = Refusal::kNone, .plain = plain};
}

// ---- Initiator ----------------------------------------------------------------------------------

InitiatorHandshake::InitiatorHandshake(const JobKey& key, const HandshakeTerms& terms,
                                       const AgentIdentity& self, uint64_t wanted_incarnation,
                                       SecretKey ephemeral)
    : noise_(Begin(key, terms)),
      ephemeral_(std::move(ephemeral)),
      responder_(terms.responder),
      wanted_(wanted_incarnation) {
  const std::span<uint8_t> hello(hello_);
  std::copy(kMagic.begin(), kMagic.end(), hello_.begin());
  hello_[kMagic.size()] = kVersion;
  const PublicKey ours = PublicKeyOf(ephemeral_);
  std::copy(ours.begin(), ours.end(), hello_.begin() + kHelloKey);
  MixEphemeral(noise_, ours);
  std::array<uint8_t, kHelloPlainBytes> plain{};  // What is not set is reserved.
  const std::span<uint8_t> fields(plain);
  PutNumber(self.node, fields.subspan(0, 4));
  PutNumber(self.incarnation, fields.subspan(8, 8));
  PutNumber(wanted_, fields.subspan(16, 8));
  noise_.EncryptAndHash(plain, hello.subspan(kHelloSealed));
}

Handshaken InitiatorHandshake::TakeAnswer(std::span<const uint8_t, kAnswerBytes> answer) {
  Handshaken result;
  PublicKey theirs;
  std::copy_n(answer.begin(), theirs.size(), theirs.begin());
  MixEphemeral(noise_, theirs);
  SecretKey shared;
  if (!SharedSecret(ephemeral_, theirs, &shared)) return {.refusal = Refusal::kLowOrderPoint};
  ephemeral_.Clear();
  noise_.MixKey(shared.span());
  std::array<uint8_t, kAnswerPlainBytes> plain{};
  if (!noise_.DecryptAndHash(answer.subspan<kAnswerSealed>(), plain))
    return {.refusal = Refusal::kAnswerNotAuthentic};
  const std::span<const uint8_t> fields(plain);
  result.peer = {.node = static_cast<uint32_t>(GetNumber(fields.subspan(0, 4))),
                 .incarnation = GetNumber(fields.subspan(8, 8))};
  if (!AllZero(fields.subspan(4, 4)) || !AllZero(fields.subspan(16)))
    return {.refusal = Refusal::kReservedBits};
  if (result.peer.node != responder_) return {.refusal = Refusal::kOtherNode};
  if (result.peer.incarnation == 0 || (wanted_ != 0 && result.peer.incarnation != wanted_))
    return {.refusal = Refusal::kOtherIncarnation};
  NoiseState::Keys keys = noise_.Split();
  result.channel.emplace(std::move(keys.from_initiator), std::move(keys.from_responder));
  return result;
}

// ---- Responder ----------------------------------------------------------------------------------

ResponderHandshake::ResponderHandshake(const JobKey& key, const HandshakeTerms& terms,
                                       const AgentIdentity& self, uint32_t nodes)
    : noise_(Begin(key, terms)), self_(self), nodes_(nodes) {
  PERDURE_CHECK(terms.responder == self.node);
}

Refusal ResponderHandshake::Look(std::span<const uint8_t> beginning) {
  const size_t count = std::min(beginning.size(), kMagic.size());
  if (!std::equal(beginning.begin(), beginning.begin() + count, kMagic.begin()))
    return Refusal::kNotOurProtocol;
  if (beginning.size() > kMagic.size() && beginning[kMagic.size()] != kVersion)
    return Refusal::kOtherVersion;
  return Refusal::kNone;
}

Refusal ResponderHandshake::TakeHello(std::span<const uint8_t, kHelloBytes> hello) {
  if (const Refusal refusal = Look(hello); refusal != Refusal::kNone) return refusal;
  std::copy_n(hello.begin() + kHelloKey, theirs_.size(), theirs_.begin());
  MixEphemeral(noise_, theirs_);
  std::array<uint8_t, kHelloPlainBytes> plain{};
  if (!noise_.DecryptAndHash(hello.subspan<kHelloSealed>(), plain))
    return Refusal::kHelloNotAuthentic;
  const std::span<const uint8_t> fields(plain);
  peer_ = {.node = static_cast<uint32_t>(GetNumber(fields.subspan(0, 4))),
           .incarnation = GetNumber(fields.subspan(8, 8))};
  const uint64_t wanted = GetNumber(fields.subspan(16, 8));
  if (!AllZero(fields.subspan(4, 4)) || !AllZero(fields.subspan(24))) return Refusal::kReservedBits;
  if (peer_.node == self_.node) return Refusal::kOwnHello;
  if (nodes_ != 0 && peer_.node >= nodes_ && peer_.node != kGuestNode) return Refusal::kUnknownNode;
  if (peer_.incarnation == 0 || (wanted != 0 && wanted != self_.incarnation))
    return Refusal::kOtherIncarnation;
  return Refusal::kNone;
}

Handshaken ResponderHandshake::Answer(SecretKey ephemeral, AnswerBytes* answer) {
  SecretKey shared;
  if (!SharedSecret(ephemeral, theirs_, &shared)) return {.refusal = Refusal::kLowOrderPoint};
  const PublicKey ours = PublicKeyOf(ephemeral);
  std::copy(ours.begin(), ours.end(), answer->begin());
  MixEphemeral(noise_, ours);
  noise_.MixKey(shared.span());
  std::array<uint8_t, kAnswerPlainBytes> plain{};
  const std::span<uint8_t> fields(plain);
  PutNumber(self_.node, fields.subspan(0, 4));
  PutNumber(self_.incarnation, fields.subspan(8, 8));
  noise_.EncryptAndHash(plain, std::span<uint8_t>(*answer).subspan(kAnswerSealed));
  NoiseState::Keys keys = noise_.Split();
  Handshaken result{.peer = peer_};
  result.channel.emplace(std::move(keys.from_responder), std::move(keys.from_initiator));
  return result;
}

}  // namespace perdure
