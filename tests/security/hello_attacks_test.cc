// Strangers at the door: what they say before they are known. Nobody gets a word.
#include <sys/socket.h>

#include <thread>

#include "runtime/agent/peer_frame.h"
#include "tests/security/security_test.h"

namespace perdure {
namespace {

class HelloAttack : public SecurityTest {
 protected:
  // `bytes` are said to the coordinator, who counts `refusal`.
  void ExpectRefused(const Bytes& bytes, Refusal refusal, uint64_t times = 1) {
    const uint64_t before = lead()[refusal];
    ASSERT_EQ(Attack([&, to = LeadAddress()] { return Say(to, bytes); }), "");
    ExpectCounted(job().Lead(), refusal, before + times);
  }
  static Bytes Text(std::string_view text) { return {text.begin(), text.end()}; }
  // As an agent of the job would say it, but for the key.
  Bytes HelloWith(const JobKey& key) { return HelloOf(key, LeadTerms(), {2, 99}); }
  void ExpectKeyRefused(const JobKey& key) {
    ExpectRefused(HelloWith(key), Refusal::kHelloNotAuthentic);
  }
  static JobKey KeyFrom(std::span<const uint8_t> file_key) {
    return JobKey::Derive({.file_key = file_key,
                           .second_leg = {},
                           .run_id = job().RunId(),
                           .job = kJobNumber,
                           .restart = kJobRestart});
  }
};

// ---- Who says nothing, or slowly

TEST_F(HelloAttack, ConnectAndSayNothing) {
  ASSERT_EQ(Attack([&, to = LeadAddress()] {
              std::vector<std::unique_ptr<RawPeer>> peers;
              for (int i = 0; i < 20; ++i) peers.push_back(std::make_unique<RawPeer>(to));
              for (const auto& peer : peers)
                if (std::string what = TurnedAway(*peer); !what.empty()) return what;
              return std::string();
            }),
            "");
}

TEST_F(HelloAttack, AHelloByteByByte) {
  const uint64_t before = lead()[Refusal::kTooSlow];
  const Bytes hello = HelloWith(job().Key(kJobNumber, 0));
  ASSERT_EQ(Attack([&, to = LeadAddress()] {
              RawPeer peer(to);
              for (const uint8_t& byte : hello) {
                if (!peer.SendBytes({&byte, 1})) break;
                std::this_thread::sleep_for(std::chrono::milliseconds(50));
              }
              return TurnedAway(peer);
            }),
            "");
  ExpectCounted(job().Lead(), Refusal::kTooSlow, before + 1);
}

TEST_F(HelloAttack, RightMagicThenSilence) {
  ExpectRefused(Text("PRDWIRE\x01"), Refusal::kTooSlow);
}

TEST_F(HelloAttack, AHelloCutAtEachSeam) {
  const Bytes hello = HelloWith(job().Key(kJobNumber, 0));
  const std::vector<size_t> lengths = {1, 6, 7, 8, 9, 39, 40, 41, 79, 80, 95};
  const uint64_t before = lead()[Refusal::kGone];
  ASSERT_EQ(Attack([&, to = LeadAddress()] {
              for (const size_t length : lengths) {
                RawPeer peer(to);
                (void)peer.SendBytes(std::span(hello).first(length));
                ::shutdown(peer.fd(), SHUT_WR);
                if (std::string what = TurnedAway(peer); !what.empty())
                  return fmt::format("{} bytes: {}", length, what);
              }
              return std::string();
            }),
            "");
  ExpectCounted(job().Lead(), Refusal::kGone, before + lengths.size());
}

// ---- Who speaks something else

TEST_F(HelloAttack, Http) {
  ExpectRefused(Text("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"), Refusal::kNotOurProtocol);
}

TEST_F(HelloAttack, TlsClientHello) {
  Bytes hello(517, 0x5a);
  const Bytes head = {0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03};
  std::copy(head.begin(), head.end(), hello.begin());
  ExpectRefused(hello, Refusal::kNotOurProtocol);
}

TEST_F(HelloAttack, SshBanner) {
  ExpectRefused(Text("SSH-2.0-OpenSSH_9.2\r\n"), Refusal::kNotOurProtocol);
}

TEST_F(HelloAttack, GarbageOfManySizes) {
  const std::vector<size_t> sizes = {1, 2, 7, 8, 71, 95, 96, 97, 116, 4096, 65536, 1 << 20};
  const uint64_t before = lead()[Refusal::kNotOurProtocol];
  ASSERT_EQ(Attack([&, to = LeadAddress()] {
              for (const size_t size : sizes) {
                Bytes garbage = RandomBytes(size);
                garbage[0] = 0;  // No P.
                if (std::string what = Say(to, garbage); !what.empty())
                  return fmt::format("{} bytes: {}", size, what);
              }
              return std::string();
            }),
            "");
  ExpectCounted(job().Lead(), Refusal::kNotOurProtocol, before + sizes.size());
}

TEST_F(HelloAttack, SixtyFourMebibytesOfGarbage) {
  const uint64_t before = lead()[Refusal::kHelloNotAuthentic];
  ASSERT_EQ(Attack([&, to = LeadAddress()] {
              RawPeer peer(to);
              Bytes piece = RandomBytes(1 << 20);
              const Bytes magic = Text("PRDWIRE\x01");
              std::copy(magic.begin(), magic.end(), piece.begin());
              int sent = 0;
              while (sent < 64 && peer.SendBytes(piece)) ++sent;
              return sent == 64 ? "all of it was taken" : TurnedAway(peer);
            }),
            "");
  ExpectCounted(job().Lead(), Refusal::kHelloNotAuthentic, before + 1);
}

TEST_F(HelloAttack, AnotherVersion) {
  Bytes hello = HelloWith(job().Key(kJobNumber, 0));
  hello[7] = 2;
  ExpectRefused(hello, Refusal::kOtherVersion);
}

TEST_F(HelloAttack, UrgentBytes) {
  const uint64_t before = lead()[Refusal::kNotOurProtocol];
  ASSERT_EQ(Attack([&, to = LeadAddress()] {
              RawPeer peer(to);
              (void)::send(peer.fd(), "XYZ", 3, MSG_OOB | MSG_NOSIGNAL);
              return TurnedAway(peer);
            }),
            "");
  ExpectCounted(job().Lead(), Refusal::kNotOurProtocol, before + 1);
}

// Commands, as they stand in a frame and as they stand in the wire without encryption.
TEST_F(HelloAttack, CommandsWithoutAHello) {
  const std::vector<PeerFrame> commands = {
      ControlMessage(msg::Stop{.term = lead().term, .generation = lead().generation}),
      ControlMessage(msg::Bye{.term = lead().term, .exit_code = 0}),
      ControlMessage(msg::Announce{.term = lead().term + 1}),
      ControlMessage(msg::Report{.term = lead().term, .leaving = true}), Introduction{}};
  for (const PeerFrame& command : commands) {
    const std::string text = EncodePeerFrame(command);
    ExpectRefused(Text(text), Refusal::kNotOurProtocol);
    Bytes frame(kFrameOverheadBytes + text.size());
    frame[0] = static_cast<uint8_t>(text.size());
    std::copy(text.begin(), text.end(), frame.begin() + kFrameHeadBytes);
    ExpectRefused(frame, Refusal::kNotOurProtocol);
  }
}

// ---- Who has some key

TEST_F(HelloAttack, ARandomKey) { ExpectKeyRefused(KeyFrom(RandomBytes(kSecretBytes))); }

TEST_F(HelloAttack, AKeyOfZeros) { ExpectKeyRefused(KeyFrom(Bytes(kSecretBytes))); }

TEST_F(HelloAttack, TheRunsNameAsKey) { ExpectKeyRefused(KeyFrom(Text(job().RunId()))); }

TEST_F(HelloAttack, TheKeyOfAnotherRun) {
  // With that run's name, and with this one's.
  const Bytes file_key = RandomBytes(kSecretBytes);
  const JobKey other = JobKey::Derive({.file_key = file_key,
                                       .second_leg = {},
                                       .run_id = std::string(kTestRun),
                                       .job = kJobNumber,
                                       .restart = kJobRestart});
  ExpectKeyRefused(other);
  HandshakeTerms terms = LeadTerms();
  terms.run_id = kTestRun;
  ExpectRefused(HelloOf(other, terms, {2, 99}), Refusal::kHelloNotAuthentic);
}

TEST_F(HelloAttack, TheKeyOfAnotherJobOfTheRun) { ExpectKeyRefused(job().Key(kJobNumber + 1)); }

TEST_F(HelloAttack, TheKeyOfAnEarlierStart) { ExpectKeyRefused(job().Key(kJobNumber, 0)); }

TEST_F(HelloAttack, AnEphemeralKeyOfLowOrder) {
  for (uint8_t last = 0; last < 2; ++last) {
    Bytes hello = HelloWith(job().Key(kJobNumber, 0));
    std::fill(hello.begin() + 8, hello.begin() + 40, 0);
    hello[8] = last;
    ExpectRefused(hello, Refusal::kHelloNotAuthentic);
  }
}

// ---- Who has the key of this start and is not what he says: no stranger, but no agent either

TEST_F(HelloAttack, KeyHolderForAnotherResponder) {
  HandshakeTerms terms = LeadTerms();
  terms.responder = job().Member();
  ExpectRefused(HelloOf(job().Key(), terms, {2, 99}), Refusal::kHelloNotAuthentic);
}

TEST_F(HelloAttack, KeyHolderForAnotherAddress) {
  HandshakeTerms terms = LeadTerms();
  terms.address = job().Address(job().Member());
  ExpectRefused(HelloOf(job().Key(), terms, {2, 99}), Refusal::kHelloNotAuthentic);
}

TEST_F(HelloAttack, KeyHolderWithTheCoordinatorsNumber) {
  // Of another life than it has: the number alone must do.
  ExpectRefused(HelloOf(job().Key(), LeadTerms(), {job().Lead(), 99}), Refusal::kOwnHello);
}

TEST_F(HelloAttack, KeyHolderWithANumberThatTheJobHasNot) {
  for (const uint32_t node : {kJobNodes, 0xfffffffeU})
    ExpectRefused(HelloOf(job().Key(), LeadTerms(), {node, 99}), Refusal::kUnknownNode);
}

TEST_F(HelloAttack, KeyHolderForAnotherLife) {
  ExpectRefused(HelloOf(job().Key(), LeadTerms(), {2, 99}, 12345), Refusal::kOtherIncarnation);
}

// An agent of another job of the run may ask who leads, and nothing else.
TEST_F(HelloAttack, KeyHolderAsAGuestWhoGivesOrders) {
  const std::vector<PeerFrame> orders = {
      ControlMessage(msg::Stop{.term = lead().term, .generation = lead().generation}),
      ControlMessage(msg::Bye{.term = lead().term}),
      ControlMessage(msg::Report{.term = lead().term, .leaving = true}),
      Directory{.entries = {{.node = 1, .address = LeadAddress()}}}};
  for (const PeerFrame& order : orders) {
    const uint64_t before = lead().malformed;
    const JobKey key = job().Key();
    InitiatorHandshake handshake(key, LeadTerms(), {kGuestNode, 99}, 0, SecretKey::Random());
    RawPeer guest(LeadAddress());
    ASSERT_TRUE(guest.SendBytes(handshake.hello()));
    const Bytes answer = guest.Read(kAnswerBytes);
    ASSERT_EQ(answer.size(), kAnswerBytes);
    Handshaken done =
        handshake.TakeAnswer(std::span<const uint8_t, kAnswerBytes>(answer.data(), kAnswerBytes));
    ASSERT_EQ(done.refusal, Refusal::kNone);
    ASSERT_TRUE(guest.SendBytes(done.channel->SealConfirmation()));
    ASSERT_TRUE(guest.SendBytes(SealText(*done.channel, EncodePeerFrame(order))));
    EXPECT_EQ(TurnedAway(guest), "");
    EXPECT_TRUE(Job::Until([&] { return lead().malformed == before + 1; }));
  }
}

}  // namespace
}  // namespace perdure
