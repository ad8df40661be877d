// The handshake and the frames: the bytes that an independent program computes, and every way to
// get one of them wrong.
#include "runtime/wire/secure_channel.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <type_traits>

#include "tests/wire/channel_pair.h"

namespace perdure {
namespace {

std::string Hex(std::span<const uint8_t> bytes) {
  std::string text;
  for (const uint8_t byte : bytes) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

using Values = std::map<std::string, std::string>;

Values ReadGolden(const std::string& name) {
  Values values;
  std::ifstream file(PERDURE_SOURCE_DIR "/tests/golden/" + name);
  std::string key, value;
  while (file >> key >> value) values[key] = value;
  EXPECT_FALSE(values.empty()) << "tests/golden/" << name;
  return values;
}

// What tests/golden/make_wire_golden.py has computed, by name.
const Values& Golden() {
  static const Values golden = ReadGolden("wire_handshake.txt");
  return golden;
}

// ---- Known answers ------------------------------------------------------------------------------

KeyParts BothLegs() { return {.leg = 100}; }

TEST(WireGolden, JobKey) {
  EXPECT_EQ(Hex(TestKey().bytes()), Golden().at("job_key_one_leg"));
  EXPECT_EQ(Hex(TestKey(BothLegs()).bytes()), Golden().at("job_key"));
}

TEST(WireGolden, HandshakeAndFrames) {
  const JobKey key = TestKey(BothLegs());
  InitiatorHandshake initiator(key, TestTerms(), kTestInitiator, 99, CountingSecret(1));
  EXPECT_EQ(Hex(initiator.hello()), Golden().at("hello"));
  ResponderHandshake responder(key, TestTerms(), kTestResponder);
  ASSERT_EQ(responder.TakeHello(initiator.hello()), Refusal::kNone);
  EXPECT_EQ(responder.peer(), kTestInitiator);
  AnswerBytes answer{};
  Handshaken theirs = responder.Answer(CountingSecret(201), &answer);
  EXPECT_EQ(Hex(answer), Golden().at("answer"));
  Handshaken ours = initiator.TakeAnswer(answer);
  ASSERT_EQ(ours.refusal, Refusal::kNone);
  EXPECT_EQ(ours.peer, kTestResponder);

  const auto confirmation = ours.channel->SealConfirmation();
  EXPECT_EQ(Hex(confirmation), Golden().at("confirmation"));
  EXPECT_EQ(theirs.channel->OpenConfirmation(confirmation), Refusal::kNone);
  EXPECT_EQ(Hex(SealText(*ours.channel, "a frame")), Golden().at("frame_initiator_1"));
  std::string long_text;
  for (int i = 0; i < 512; ++i) long_text += static_cast<char>(i);
  EXPECT_EQ(Hex(SealText(*ours.channel, long_text)), Golden().at("frame_initiator_2"));
  EXPECT_EQ(Hex(SealText(*theirs.channel, "another")), Golden().at("frame_responder_0"));
}

// The pattern itself against another implementation of Noise, with a payload and a prologue that
// are not ours: make_noise_golden.py.
TEST(WireGolden, NoiseIsNoise) {
  const Values golden = ReadGolden("noise_nnpsk0.txt");
  const SecretKey psk = CountingSecret(0), secret_i = CountingSecret(100),
                  secret_r = CountingSecret(150);
  const PublicKey public_i = PublicKeyOf(secret_i), public_r = PublicKeyOf(secret_r);
  NoiseState noise("Noise_NNpsk0_25519_ChaChaPoly_BLAKE2b");
  noise.MixHash(BytesOf("perdure golden"));
  noise.MixKeyAndHash(psk.span());
  const auto say = [&](const PublicKey& key, std::string_view payload) {
    std::vector<uint8_t> sealed(payload.size() + kAeadTagBytes);
    noise.EncryptAndHash(BytesOf(payload), sealed);
    return Hex(key) + Hex(sealed);
  };
  noise.MixHash(public_i);
  noise.MixKey(public_i);
  EXPECT_EQ(say(public_i, "ping"), golden.at("message_1"));
  noise.MixHash(public_r);
  noise.MixKey(public_r);
  SecretKey shared;
  ASSERT_TRUE(SharedSecret(secret_r, public_i, &shared));
  noise.MixKey(shared.span());
  EXPECT_EQ(say(public_r, "pong!"), golden.at("message_2"));
  const NoiseState::Keys keys = noise.Split();
  EXPECT_EQ(Hex(keys.from_initiator.span()), golden.at("key_initiator"));
  EXPECT_EQ(Hex(keys.from_responder.span()), golden.at("key_responder"));
  std::array<uint8_t, 1 + kAeadTagBytes> sealed{};
  AeadSeal(keys.from_initiator, 0, {}, BytesOf("x"), sealed);
  EXPECT_EQ(Hex(sealed), golden.at("sealed_initiator"));
  AeadSeal(keys.from_responder, 0, {}, BytesOf("y"), sealed);
  EXPECT_EQ(Hex(sealed), golden.at("sealed_responder"));
}

// ---- Keys ---------------------------------------------------------------------------------------

static_assert(!std::is_copy_constructible_v<JobKey> && !std::is_copy_assignable_v<JobKey>);
static_assert(!std::is_copy_constructible_v<SecretKey> && !std::is_copy_assignable_v<SecretKey>);
static_assert(!std::is_copy_constructible_v<SecureChannel>);
static_assert(!std::is_convertible_v<JobKey, std::string> &&
              !std::is_convertible_v<JobKey, std::string_view>);

TEST(JobKeyTest, EveryPartCounts) {
  std::set<std::string> keys;
  for (const KeyParts& parts : {KeyParts{}, KeyParts{.file_key = 1}, KeyParts{.leg = 1},
                                KeyParts{.leg = 2}, KeyParts{.run_id = ""}, KeyParts{.run_id = "0"},
                                KeyParts{.job = 4712}, KeyParts{.restart = 1}})
    keys.insert(Hex(TestKey(parts).bytes()));
  EXPECT_EQ(keys.size(), 8U);
}

TEST(JobKeyTest, IsThereUntilTheLastHandleGoes) {
  std::optional<JobKey> first = TestKey();
  const JobKey second = first->Share();
  EXPECT_EQ(second.bytes().data(), first->bytes().data());
  first.reset();
  EXPECT_EQ(Hex(second.bytes()), Golden().at("job_key_one_leg"));
}

TEST(SecretTest, MovingLeavesNothingBehind) {
  SecretKey first = CountingSecret(1);
  const SecretKey second = std::move(first);
  for (size_t i = 0; i < 32; ++i) {
    EXPECT_EQ(first.data()[i], 0);
    EXPECT_EQ(second.data()[i], i + 1);
  }
}

TEST(SecretTest, IsWipedAtTheEnd) {
  alignas(SecretKey) uint8_t place[sizeof(SecretKey)];
  auto* secret = new (place) SecretKey(CountingSecret(1));
  EXPECT_EQ(place[5], 6);
  secret->~Secret();
  for (const volatile uint8_t& byte : place) EXPECT_EQ(byte, 0);
}

// ---- The handshake ------------------------------------------------------------------------------

HelloBytes TestHello(const JobKey& key, const HandshakeTerms& terms = TestTerms(),
                     const AgentIdentity& self = kTestInitiator, uint64_t wanted = 0) {
  return InitiatorHandshake(key, terms, self, wanted, CountingSecret(1)).hello();
}

// What the responder of kTestResponder makes of it.
Refusal TakeHello(const HelloBytes& hello, uint32_t nodes = 0) {
  return ResponderHandshake(TestKey(), TestTerms(), kTestResponder, nodes).TakeHello(hello);
}

TEST(Handshake, WrongKeysAreRefused) {
  EXPECT_EQ(TakeHello(TestHello(TestKey())), Refusal::kNone);
  for (const KeyParts& parts : {KeyParts{.file_key = 1}, KeyParts{.leg = 1}, KeyParts{.run_id = ""},
                                KeyParts{.job = 4710}, KeyParts{.restart = 1}})
    EXPECT_EQ(TakeHello(TestHello(TestKey(parts))), Refusal::kHelloNotAuthentic);
}

TEST(Handshake, OtherTermsAreRefused) {
  std::vector<HandshakeTerms> others(5, TestTerms());
  others[0].run_id = "fedcba98765432100123456789abcdef";
  others[1].job = 4712;
  others[2].responder = 8;
  others[3].address.ip[15] = 6;
  others[4].address.port = 40124;
  for (const HandshakeTerms& terms : others)
    EXPECT_EQ(TakeHello(TestHello(TestKey(), terms)), Refusal::kHelloNotAuthentic);
}

TEST(Handshake, WhoMayNotComeIn) {
  const JobKey key = TestKey();
  EXPECT_EQ(TakeHello(TestHello(key, TestTerms(), {.node = 7, .incarnation = 99})),
            Refusal::kOwnHello);
  EXPECT_EQ(TakeHello(TestHello(key, TestTerms(), {.node = 8, .incarnation = 1}), 8),
            Refusal::kUnknownNode);
  EXPECT_EQ(TakeHello(TestHello(key, TestTerms(), {.node = 6, .incarnation = 1}), 8),
            Refusal::kNone);
  EXPECT_EQ(TakeHello(TestHello(key, TestTerms(), {.node = kGuestNode, .incarnation = 1}), 8),
            Refusal::kNone);
  EXPECT_EQ(TakeHello(TestHello(key, TestTerms(), kTestInitiator, 98)), Refusal::kOtherIncarnation);
  EXPECT_EQ(TakeHello(TestHello(key, TestTerms(), kTestInitiator, 99)), Refusal::kNone);
}

TEST(Handshake, OtherProtocolsAndVersionsAreToldApart) {
  HelloBytes hello = TestHello(TestKey());
  hello[7] = 0;  // An older version: there is none to fall back to.
  EXPECT_EQ(TakeHello(hello), Refusal::kOtherVersion);
  hello[7] = 2;
  EXPECT_EQ(TakeHello(hello), Refusal::kOtherVersion);
  hello[0] = 'G';
  EXPECT_EQ(TakeHello(hello), Refusal::kNotOurProtocol);
  EXPECT_EQ(ResponderHandshake::Look(BytesOf("GET / HTTP/1.1")), Refusal::kNotOurProtocol);
  EXPECT_EQ(ResponderHandshake::Look(BytesOf("PRDWIRF")), Refusal::kNotOurProtocol);
  EXPECT_EQ(ResponderHandshake::Look(BytesOf("PRDWIRE\2")), Refusal::kOtherVersion);
  for (const char* beginning : {"", "P", "PRDWIRE", "PRDWIRE\1", "PRDWIRE\1x"})
    EXPECT_EQ(ResponderHandshake::Look(BytesOf(beginning)), Refusal::kNone);
}

TEST(Handshake, EveryBitOfTheHelloCounts) {
  const HelloBytes hello = TestHello(TestKey());
  for (size_t bit = 0; bit < 8 * kHelloBytes; ++bit) {
    HelloBytes changed = hello;
    changed[bit / 8] ^= static_cast<uint8_t>(1U << (bit % 8));
    const Refusal wanted = bit < 56   ? Refusal::kNotOurProtocol
                           : bit < 64 ? Refusal::kOtherVersion
                                      : Refusal::kHelloNotAuthentic;
    ASSERT_EQ(TakeHello(changed), wanted) << "bit " << bit;
  }
}

TEST(Handshake, EveryBitOfTheAnswerCounts) {
  const JobKey key = TestKey();
  ResponderHandshake responder(key, TestTerms(), kTestResponder);
  ASSERT_EQ(responder.TakeHello(TestHello(key)), Refusal::kNone);
  AnswerBytes answer{};
  ASSERT_EQ(responder.Answer(CountingSecret(201), &answer).refusal, Refusal::kNone);
  const auto take = [&](const AnswerBytes& bytes) {
    InitiatorHandshake initiator(key, TestTerms(), kTestInitiator, 0, CountingSecret(1));
    const Handshaken result = initiator.TakeAnswer(bytes);
    EXPECT_EQ(result.channel.has_value(), result.refusal == Refusal::kNone);
    return result.refusal;
  };
  EXPECT_EQ(take(answer), Refusal::kNone);
  for (size_t bit = 0; bit < 8 * kAnswerBytes; ++bit) {
    AnswerBytes changed = answer;
    changed[bit / 8] ^= static_cast<uint8_t>(1U << (bit % 8));
    ASSERT_EQ(take(changed), Refusal::kAnswerNotAuthentic) << "bit " << bit;
  }
}

// What an initiator that asked node 7 for this life makes of an answer with this inside.
Refusal TakeAnswerOf(std::span<const uint8_t, 24> plain, uint64_t wanted = 99) {
  const JobKey key = TestKey();
  InitiatorHandshake initiator(key, TestTerms(), kTestInitiator, wanted, CountingSecret(1));
  return initiator.TakeAnswer(AnswerOf(key, initiator.hello(), plain)).refusal;
}

TEST(Handshake, WhatAnAnswerMayHold) {
  for (size_t byte = 0; byte < 24; ++byte) {
    std::array<uint8_t, 24> plain{};
    plain[0] = 7;
    plain[8] = 99;
    ASSERT_EQ(TakeAnswerOf(plain), Refusal::kNone);
    plain[byte] ^= 0x80;
    EXPECT_EQ(TakeAnswerOf(plain), byte < 4                 ? Refusal::kOtherNode
                                   : byte < 8 || byte >= 16 ? Refusal::kReservedBits
                                                            : Refusal::kOtherIncarnation)
        << byte;
  }
}

TEST(Handshake, ReservedBitsAreZero) {
  const PublicKey ephemeral = PublicKeyOf(CountingSecret(1));
  for (size_t byte = 0; byte < 40; ++byte) {
    std::array<uint8_t, 40> plain{};
    plain[0] = 3;
    plain[8] = 1;
    EXPECT_EQ(TakeHello(HelloOf(TestKey(), ephemeral, plain)), Refusal::kNone);
    plain[byte] ^= 0x80;
    const Refusal refusal = TakeHello(HelloOf(TestKey(), ephemeral, plain));
    const bool reserved = (byte >= 4 && byte < 8) || byte >= 24;
    const bool wanted = byte >= 16 && byte < 24;
    EXPECT_EQ(refusal, reserved ? Refusal::kReservedBits
                       : wanted ? Refusal::kOtherIncarnation
                                : Refusal::kNone)
        << byte;
  }
}

TEST(Handshake, NobodyHasIncarnationZero) {
  std::array<uint8_t, 40> hello{};
  hello[0] = 3;
  EXPECT_EQ(TakeHello(HelloOf(TestKey(), PublicKeyOf(CountingSecret(1)), hello)),
            Refusal::kOtherIncarnation);
  std::array<uint8_t, 24> answer{};
  answer[0] = 7;
  EXPECT_EQ(TakeAnswerOf(answer, 0), Refusal::kOtherIncarnation);
  answer[8] = 5;
  EXPECT_EQ(TakeAnswerOf(answer, 0), Refusal::kNone);
}

// The points of order 1, 2, 4 and 8 and their non-canonical forms: with them the shared secret
// would be zero, whatever the other side has drawn.
std::vector<PublicKey> LowOrderPoints() {
  std::vector<PublicKey> points(5);
  points[1][0] = 1;
  points[2] = {0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3,
               0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32,
               0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00};
  points[3] = {0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1,
               0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c,
               0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57};
  points[4].fill(0xff);  // 2^255 - 20 + i: -1, 0 and 1.
  points[4][31] = 0x7f;
  for (const uint8_t low : {uint8_t{0xec}, uint8_t{0xed}, uint8_t{0xee}}) {
    points[4][0] = low;
    points.push_back(points[4]);
  }
  points.erase(points.begin() + 4);
  return points;
}

TEST(Handshake, LowOrderPointsAreRefusedByBoth) {
  const JobKey key = TestKey();
  std::array<uint8_t, 40> plain{};
  plain[0] = 3;
  plain[8] = 1;
  for (const PublicKey& point : LowOrderPoints()) {
    ResponderHandshake responder(key, TestTerms(), kTestResponder);
    ASSERT_EQ(responder.TakeHello(HelloOf(key, point, plain)), Refusal::kNone);
    AnswerBytes answer{};
    EXPECT_EQ(responder.Answer(CountingSecret(201), &answer).refusal, Refusal::kLowOrderPoint);
    EXPECT_EQ(answer, AnswerBytes{});  // Not a bit of it is told.
    InitiatorHandshake initiator(key, TestTerms(), kTestInitiator, 0, CountingSecret(1));
    std::copy(point.begin(), point.end(), answer.begin());
    EXPECT_EQ(initiator.TakeAnswer(answer).refusal, Refusal::kLowOrderPoint);
  }
}

TEST(Handshake, AReflectedHelloIsNoAnswer) {
  InitiatorHandshake initiator(TestKey(), TestTerms(), kTestInitiator, 0, CountingSecret(1));
  AnswerBytes reflected{};
  std::copy_n(initiator.hello().begin() + 8, kAnswerBytes, reflected.begin());
  EXPECT_EQ(initiator.TakeAnswer(reflected).refusal, Refusal::kAnswerNotAuthentic);
  // Nor a hello where the initiator itself listens: it was meant for another node.
  HandshakeTerms own = TestTerms();
  own.responder = kTestInitiator.node;
  ResponderHandshake self(TestKey(), own, kTestInitiator);
  EXPECT_EQ(self.TakeHello(initiator.hello()), Refusal::kHelloNotAuthentic);
}

TEST(Handshake, AnAnswerFitsOneHelloOnly) {
  const JobKey key = TestKey();
  InitiatorHandshake first(key, TestTerms(), kTestInitiator, 0, CountingSecret(1));
  InitiatorHandshake second(key, TestTerms(), kTestInitiator, 0, CountingSecret(2));
  ResponderHandshake responder(key, TestTerms(), kTestResponder);
  ASSERT_EQ(responder.TakeHello(first.hello()), Refusal::kNone);
  AnswerBytes answer{};
  ASSERT_EQ(responder.Answer(CountingSecret(201), &answer).refusal, Refusal::kNone);
  EXPECT_EQ(second.TakeAnswer(answer).refusal, Refusal::kAnswerNotAuthentic);
}

TEST(Handshake, AReplayedHelloCannotConfirm) {
  const JobKey key = TestKey();
  InitiatorHandshake initiator(key, TestTerms(), kTestInitiator, 0, CountingSecret(1));
  const auto answer_with = [&](uint8_t secret, AnswerBytes* answer) {
    ResponderHandshake responder(key, TestTerms(), kTestResponder);
    EXPECT_EQ(responder.TakeHello(initiator.hello()), Refusal::kNone);
    return responder.Answer(CountingSecret(secret), answer);
  };
  AnswerBytes first{}, second{};
  Handshaken original = answer_with(201, &first), replay = answer_with(202, &second);
  Handshaken ours = initiator.TakeAnswer(first);
  ASSERT_EQ(ours.refusal, Refusal::kNone);
  // The attacker has recorded the whole conversation.
  const auto confirmation = ours.channel->SealConfirmation();
  EXPECT_EQ(original.channel->OpenConfirmation(confirmation), Refusal::kNone);
  EXPECT_EQ(replay.channel->OpenConfirmation(confirmation), Refusal::kFrameNotAuthentic);
}

TEST(Handshake, SwappedEphemeralKeysAreRefused) {
  // The man in the middle lets the sealed parts through and puts his own keys before them.
  const PublicKey his = PublicKeyOf(CountingSecret(77));
  HelloBytes hello = TestHello(TestKey());
  std::copy(his.begin(), his.end(), hello.begin() + 8);
  EXPECT_EQ(TakeHello(hello), Refusal::kHelloNotAuthentic);

  const JobKey key = TestKey();
  InitiatorHandshake initiator(key, TestTerms(), kTestInitiator, 0, CountingSecret(1));
  ResponderHandshake responder(key, TestTerms(), kTestResponder);
  ASSERT_EQ(responder.TakeHello(initiator.hello()), Refusal::kNone);
  AnswerBytes answer{};
  ASSERT_EQ(responder.Answer(CountingSecret(201), &answer).refusal, Refusal::kNone);
  std::copy(his.begin(), his.end(), answer.begin());
  EXPECT_EQ(initiator.TakeAnswer(answer).refusal, Refusal::kAnswerNotAuthentic);
}

TEST(Handshake, ForwardSecrecyEachConversationHasItsOwnKeys) {
  // Same K_job, same ephemeral key of the initiator: the responder's alone makes other keys.
  const JobKey key = TestKey();
  std::set<std::string> frames;
  for (const uint8_t secret : {uint8_t{201}, uint8_t{202}}) {
    InitiatorHandshake initiator(key, TestTerms(), kTestInitiator, 0, CountingSecret(1));
    ResponderHandshake responder(key, TestTerms(), kTestResponder);
    ASSERT_EQ(responder.TakeHello(initiator.hello()), Refusal::kNone);
    AnswerBytes answer{};
    Handshaken theirs = responder.Answer(CountingSecret(secret), &answer);
    Handshaken ours = initiator.TakeAnswer(answer);
    frames.insert(Hex(SealText(*ours.channel, "x")));
    frames.insert(Hex(SealText(*theirs.channel, "x")));
  }
  EXPECT_EQ(frames.size(), 4U);
}

// ---- Frames -------------------------------------------------------------------------------------

TEST(Frames, GoBothWays) {
  ChannelPair pair = MakeChannelPair();
  for (int i = 0; i < 3; ++i) {
    for (const std::string& text :
         {std::string("x"), std::string(1000, 'y'), std::string(kFrameBytesMost, 'z')}) {
      std::vector<uint8_t> frame = SealText(pair.initiator, text);
      const auto head = std::span<const uint8_t>(frame).first<kFrameHeadBytes>();
      EXPECT_EQ(SecureChannel::FrameLength(head).frame_bytes, frame.size());
      SecureChannel::Opened opened = pair.responder.Open(frame);
      EXPECT_EQ(opened.refusal, Refusal::kNone);
      EXPECT_EQ(TextOf(opened.plain), text);
      frame = SealText(pair.responder, text);
      opened = pair.initiator.Open(frame);
      EXPECT_EQ(opened.refusal, Refusal::kNone);
      EXPECT_EQ(TextOf(opened.plain), text);
    }
  }
  EXPECT_EQ(pair.initiator.sent(), 9U);
  EXPECT_EQ(pair.initiator.received(), 9U);
}

TEST(Frames, EveryBitCounts) {
  ChannelPair fresh = MakeChannelPair();
  const std::vector<uint8_t> frame = SealText(fresh.initiator, "sixteen bytes!!!");
  std::vector<uint8_t> whole = frame;
  EXPECT_EQ(fresh.responder.Open(whole).refusal, Refusal::kNone);
  for (size_t bit = 0; bit < 8 * frame.size(); ++bit) {
    std::vector<uint8_t> changed = frame;
    changed[bit / 8] ^= static_cast<uint8_t>(1U << (bit % 8));
    ChannelPair pair = MakeChannelPair();
    const Refusal refusal = pair.responder.Open(changed).refusal;
    const uint64_t length = changed[0] | changed[1] << 8 | changed[2] << 16 | changed[3] << 24;
    const Refusal wanted = length > kFrameBytesMost ? Refusal::kFrameTooLong
                           : length == 0            ? Refusal::kFrameEmpty
                                                    : Refusal::kFrameNotAuthentic;
    ASSERT_EQ(refusal, wanted) << "bit " << bit;
  }
}

TEST(Frames, OrderRepetitionGapsAndReflectionAreSeen) {
  const auto expect = [](const char* what, const std::vector<int>& order) {
    ChannelPair pair = MakeChannelPair();
    std::vector<std::vector<uint8_t>> frames;
    for (const char* text : {"first", "second", "third"})
      frames.push_back(SealText(pair.initiator, text));
    Refusal refusal = Refusal::kNone;
    for (const int index : order) {
      std::vector<uint8_t> frame = frames[index];
      refusal = pair.responder.Open(frame).refusal;
      if (refusal != Refusal::kNone) break;
    }
    EXPECT_EQ(refusal, Refusal::kFrameNotAuthentic) << what;
  };
  expect("repeated", {0, 0});
  expect("out of order", {1});
  expect("left out", {0, 2});
  expect("an old one later", {0, 1, 2, 0});
  ChannelPair pair = MakeChannelPair();
  std::vector<uint8_t> own = SealText(pair.initiator, "reflected");
  EXPECT_EQ(pair.initiator.Open(own).refusal, Refusal::kFrameNotAuthentic);
}

TEST(Frames, OfAnotherConversationAreRefused) {
  ChannelPair pair = MakeChannelPair();
  const JobKey key = TestKey();
  InitiatorHandshake other(key, TestTerms(), kTestInitiator, 0, CountingSecret(3));
  ResponderHandshake responder(key, TestTerms(), kTestResponder);
  ASSERT_EQ(responder.TakeHello(other.hello()), Refusal::kNone);
  AnswerBytes answer{};
  ASSERT_EQ(responder.Answer(CountingSecret(201), &answer).refusal, Refusal::kNone);
  Handshaken others = other.TakeAnswer(answer);
  std::vector<uint8_t> frame = SealText(*others.channel, "same job, other keys");
  EXPECT_EQ(pair.responder.Open(frame).refusal, Refusal::kFrameNotAuthentic);
}

TEST(Frames, LengthsAreBounded) {
  ChannelPair pair = MakeChannelPair();
  std::vector<uint8_t> frame(kFrameOverheadBytes);
  EXPECT_EQ(pair.initiator.Seal({}, frame), Refusal::kFrameEmpty);
  const std::vector<uint8_t> big(kFrameBytesMost + 1);
  frame.resize(big.size() + kFrameOverheadBytes);
  EXPECT_EQ(pair.initiator.Seal(big, frame), Refusal::kFrameTooLong);
  EXPECT_EQ(pair.initiator.sent(), 0U);
  const auto length = [](std::array<uint8_t, 4> head) {
    return SecureChannel::FrameLength(head).refusal;
  };
  EXPECT_EQ(length({0, 0, 0, 0}), Refusal::kFrameEmpty);
  EXPECT_EQ(length({1, 0, 0, 0}), Refusal::kNone);
  EXPECT_EQ(length({0, 0, 16, 0}), Refusal::kNone);  // 1 MiB.
  EXPECT_EQ(length({1, 0, 16, 0}), Refusal::kFrameTooLong);
  EXPECT_EQ(length({255, 255, 255, 255}), Refusal::kFrameTooLong);
}

TEST(Frames, TheConfirmationIsTheEmptyFrameAndNothingElse) {
  ChannelPair pair = MakeChannelPair();
  const auto confirmation = pair.initiator.SealConfirmation();
  for (size_t bit = 0; bit < 8 * confirmation.size(); ++bit) {
    auto changed = confirmation;
    changed[bit / 8] ^= static_cast<uint8_t>(1U << (bit % 8));
    ChannelPair fresh = MakeChannelPair();
    ASSERT_EQ(fresh.responder.OpenConfirmation(changed), Refusal::kFrameNotAuthentic) << bit;
  }
  // The responder has none to give: one made with its key does not pass for the initiator's.
  ChannelPair fresh = MakeChannelPair();
  EXPECT_EQ(fresh.responder.OpenConfirmation(fresh.responder.SealConfirmation()),
            Refusal::kFrameNotAuthentic);
  EXPECT_EQ(pair.responder.OpenConfirmation(confirmation), Refusal::kNone);
}

TEST(Frames, CountersEndBeforeTheyWrap) {
  SecureChannel sender(CountingSecret(1), CountingSecret(2));
  SecureChannel receiver(CountingSecret(2), CountingSecret(1));
  sender.LimitFrames(3);
  receiver.LimitFrames(2);
  std::vector<std::vector<uint8_t>> frames;
  for (int i = 0; i < 3; ++i) frames.push_back(SealText(sender, "x"));
  std::vector<uint8_t> frame(1 + kFrameOverheadBytes);
  EXPECT_EQ(sender.Seal(BytesOf("x"), frame), Refusal::kCounterSpent);
  EXPECT_EQ(receiver.Open(frames[0]).refusal, Refusal::kNone);
  EXPECT_EQ(receiver.Open(frames[1]).refusal, Refusal::kNone);
  EXPECT_EQ(receiver.Open(frames[2]).refusal, Refusal::kCounterSpent);
}

TEST(Refusals, HaveNamesOfTheirOwn) {
  std::set<std::string_view> names;
  for (size_t i = 0; i < kRefusals; ++i) names.insert(RefusalName(static_cast<Refusal>(i)));
  EXPECT_EQ(names.size(), kRefusals);
  EXPECT_FALSE(names.contains("unknown"));
}

}  // namespace
}  // namespace perdure
