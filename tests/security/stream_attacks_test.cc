// Somebody in the network between two agents who know each other: he hears all they say, and
// changes it. What he can do is cut the connection, which means nothing and is made again.
#include "runtime/agent/peer_frame.h"
#include "tests/security/security_test.h"

namespace perdure {
namespace {

using Message = Relay::Message;
using Verdict = Relay::Verdict;
using End = Relay::Verdict::End;

// Late enough for the introduction to have gone, of a connection's frames.
constexpr int kSomeFrame = 4;

class StreamAttack : public SecurityTest {
 protected:
  // The member whose connection to the coordinator is attacked.
  static uint32_t Victim() { return job().Member(); }

  // `hand` sees the messages of the first connection until it gives a verdict; from then on the
  // network is as it should be. Somebody counts `refusal` (kNone: the connection just ends).
  void Tamper(uint32_t who_counts, Refusal refusal,
              const std::function<std::optional<Verdict>(const Message&)>& hand) {
    const uint32_t victim = Victim();
    const uint16_t port = LeadAddress().port;
    const uint64_t before = job().at(who_counts)[refusal];
    const uint64_t attempts = job().at(victim).attempts;
    Attacker attacker([&, to = LeadAddress()](Talk& talk) {
      bool done = false;
      Relay relay(to, [&](const Message& message) {
        if (!done)
          if (std::optional<Verdict> verdict = hand(message)) {
            done = !verdict->more_comes;
            if (done) talk.Tell(1);
            return *std::move(verdict);
          }
        return Verdict{.onward = message.bytes};
      });
      talk.Tell(relay.port());
      relay.Run(talk);
      return done ? "" : "there was no occasion";
    });
    const uint64_t way = attacker.Hear();
    ASSERT_NE(way, 0u);
    job().Redirect(victim, port, static_cast<uint16_t>(way));
    EXPECT_EQ(attacker.Hear(), 1u);
    if (refusal != Refusal::kNone) ExpectCounted(who_counts, refusal, before + 1);
    // Through his hands, or past them.
    EXPECT_TRUE(Job::Until([&] { return job().at(victim).attempts >= attempts + 2; }));
    job().Redirect(victim, port, 0);
    attacker.Tell(0);
    EXPECT_EQ(attacker.Wait(), "");
  }
  void TamperAtLead(Refusal refusal, std::function<std::optional<Verdict>(const Message&)> hand) {
    Tamper(job().Lead(), refusal, [hand = std::move(hand)](const Message& message) mutable {
      return message.from_initiator ? hand(message) : std::nullopt;
    });
  }
  // Changes the bytes of one frame on its way to the coordinator.
  void ChangeFrame(Refusal refusal, const std::function<void(Bytes*)>& change) {
    TamperAtLead(refusal, [change](const Message& message) -> std::optional<Verdict> {
      if (message.index != kSomeFrame) return std::nullopt;
      Verdict verdict{.onward = message.bytes};
      change(&verdict.onward);
      return verdict;
    });
  }
  // Puts bytes in front of a frame.
  void Insert(Refusal refusal, const Bytes& more) {
    ChangeFrame(refusal,
                [more](Bytes* bytes) { bytes->insert(bytes->begin(), more.begin(), more.end()); });
  }
  void InsertCommand(const ControlMessage& command) {
    // Sealed as well as one can without the key.
    SecureChannel channel(SecretKey::Random(), SecretKey::Random());
    Insert(Refusal::kFrameNotAuthentic, SealText(channel, EncodePeerFrame(command)));
  }
};

// ---- Frames

TEST_F(StreamAttack, AFlippedBit) {
  ChangeFrame(Refusal::kFrameNotAuthentic, [](Bytes* bytes) { (*bytes)[7] ^= 0x10; });
}

TEST_F(StreamAttack, AFlippedBitOfTheTag) {
  ChangeFrame(Refusal::kFrameNotAuthentic, [](Bytes* bytes) { bytes->back() ^= 0x80; });
}

TEST_F(StreamAttack, ALengthOfFourGibibytes) {
  ChangeFrame(Refusal::kFrameTooLong,
              [](Bytes* bytes) { std::fill_n(bytes->begin(), kFrameHeadBytes, 0xff); });
}

TEST_F(StreamAttack, ALengthOfOneByteTooMany) {
  ChangeFrame(Refusal::kFrameTooLong, [](Bytes* bytes) {
    (*bytes)[0] = 1;
    (*bytes)[1] = 0;
    (*bytes)[2] = 0x10;
  });
}

TEST_F(StreamAttack, ALengthOfZero) {
  ChangeFrame(Refusal::kFrameEmpty,
              [](Bytes* bytes) { std::fill_n(bytes->begin(), kFrameHeadBytes, 0); });
}

TEST_F(StreamAttack, ALengthOfOneByteLess) {
  ChangeFrame(Refusal::kFrameNotAuthentic, [](Bytes* bytes) { --(*bytes)[0]; });
}

// Memory for a mebibyte is asked for, which never comes.
TEST_F(StreamAttack, ALengthThatIsAllowedAndTheEnd) {
  TamperAtLead(Refusal::kNone, [](const Message& message) -> std::optional<Verdict> {
    if (message.index != kSomeFrame) return std::nullopt;
    Verdict verdict{.onward = message.bytes, .end = End::kClose};
    verdict.onward[2] = 0x10;
    verdict.onward[0] = verdict.onward[1] = 0;
    return verdict;
  });
}

TEST_F(StreamAttack, AFrameTwice) {
  ChangeFrame(Refusal::kFrameNotAuthentic, [](Bytes* bytes) {
    const Bytes once = *bytes;
    bytes->insert(bytes->end(), once.begin(), once.end());
  });
}

TEST_F(StreamAttack, AFrameLeftOut) {
  ChangeFrame(Refusal::kFrameNotAuthentic, [](Bytes* bytes) { bytes->clear(); });
}

TEST_F(StreamAttack, TwoFramesExchanged) {
  TamperAtLead(Refusal::kFrameNotAuthentic,
               [kept = Bytes()](const Message& message) mutable -> std::optional<Verdict> {
                 if (message.index == kSomeFrame) {
                   kept = message.bytes;
                   return Verdict{.onward = {}, .more_comes = true};
                 }
                 if (message.index != kSomeFrame + 1) return std::nullopt;
                 Verdict verdict{.onward = message.bytes};
                 verdict.onward.insert(verdict.onward.end(), kept.begin(), kept.end());
                 return verdict;
               });
}

TEST_F(StreamAttack, AFrameThrownBack) {
  Tamper(Victim(), Refusal::kFrameNotAuthentic,
         [](const Message& message) -> std::optional<Verdict> {
           if (!message.from_initiator || message.index != kSomeFrame) return std::nullopt;
           return Verdict{.onward = message.bytes, .back = message.bytes};
         });
}

TEST_F(StreamAttack, AnAnswerThrownBackToTheCoordinator) {
  Tamper(job().Lead(), Refusal::kFrameNotAuthentic,
         [](const Message& message) -> std::optional<Verdict> {
           if (message.from_initiator || message.index != kSomeFrame) return std::nullopt;
           return Verdict{.onward = message.bytes, .back = message.bytes};
         });
}

TEST_F(StreamAttack, GarbageBetweenFrames) {
  Bytes garbage = RandomBytes(100);
  garbage[0] = 80;
  garbage[1] = garbage[2] = garbage[3] = 0;
  Insert(Refusal::kFrameNotAuthentic, garbage);
}

TEST_F(StreamAttack, AForgedStop) {
  InsertCommand(msg::Stop{.term = lead().term, .generation = lead().generation});
}

TEST_F(StreamAttack, AForgedBye) { InsertCommand(msg::Bye{.term = lead().term}); }

TEST_F(StreamAttack, AForgedAnnouncement) { InsertCommand(msg::Announce{.term = lead().term + 1}); }

TEST_F(StreamAttack, AForgedLeave) {
  InsertCommand(msg::Report{.term = lead().term, .sequence = 1 << 20, .leaving = true});
}

// ---- Ends: they mean "unknown", nobody leaves by them

TEST_F(StreamAttack, CutInTheMiddleOfAFrame) {
  TamperAtLead(Refusal::kNone, [](const Message& message) -> std::optional<Verdict> {
    if (message.index != kSomeFrame) return std::nullopt;
    return Verdict{.onward = Bytes(message.bytes.begin(), message.bytes.begin() + 9),
                   .end = End::kClose};
  });
}

TEST_F(StreamAttack, EndBetweenFrames) {
  TamperAtLead(Refusal::kNone, [](const Message& message) -> std::optional<Verdict> {
    if (message.index != kSomeFrame) return std::nullopt;
    return Verdict{.onward = message.bytes, .end = End::kClose};
  });
}

TEST_F(StreamAttack, Reset) {
  TamperAtLead(Refusal::kNone, [](const Message& message) -> std::optional<Verdict> {
    if (message.index != kSomeFrame) return std::nullopt;
    return Verdict{.onward = {}, .end = End::kReset};
  });
}

// ---- Handshakes

TEST_F(StreamAttack, AChangedHello) {
  TamperAtLead(Refusal::kHelloNotAuthentic, [](const Message& message) -> std::optional<Verdict> {
    Verdict verdict{.onward = message.bytes};
    verdict.onward[50] ^= 1;
    return verdict;
  });
}

TEST_F(StreamAttack, AnotherEphemeralKey) {
  TamperAtLead(Refusal::kHelloNotAuthentic, [](const Message& message) -> std::optional<Verdict> {
    Verdict verdict{.onward = message.bytes};
    const Bytes key = RandomBytes(32);
    std::copy(key.begin(), key.end(), verdict.onward.begin() + 8);
    return verdict;
  });
}

TEST_F(StreamAttack, AChangedAnswer) {
  Tamper(Victim(), Refusal::kAnswerNotAuthentic,
         [](const Message& message) -> std::optional<Verdict> {
           if (message.from_initiator) return std::nullopt;
           Verdict verdict{.onward = message.bytes};
           verdict.onward[71] ^= 1;
           return verdict;
         });
}

TEST_F(StreamAttack, AnAnswerOfHisOwn) {
  Tamper(Victim(), Refusal::kAnswerNotAuthentic, [](const Message&) -> std::optional<Verdict> {
    return Verdict{.onward = {}, .back = RandomBytes(kAnswerBytes)};
  });
}

TEST_F(StreamAttack, AMebibyteAsAnswer) {
  Tamper(Victim(), Refusal::kAnswerNotAuthentic, [](const Message&) -> std::optional<Verdict> {
    return Verdict{.onward = {}, .back = RandomBytes(1 << 20)};
  });
}

// His own E_i as a hello's, and the hello back as its answer.
TEST_F(StreamAttack, TheHelloAsItsAnswer) {
  Tamper(Victim(), Refusal::kAnswerNotAuthentic,
         [](const Message& message) -> std::optional<Verdict> {
           return Verdict{.onward = {},
                          .back = Bytes(message.bytes.begin() + 8, message.bytes.begin() + 80)};
         });
}

TEST_F(StreamAttack, AChangedConfirmation) {
  TamperAtLead(Refusal::kFrameNotAuthentic, [](const Message& message) -> std::optional<Verdict> {
    if (message.index != 1) return std::nullopt;
    Verdict verdict{.onward = message.bytes};
    verdict.onward[10] ^= 1;
    return verdict;
  });
}

// Nothing is wrong, and a slow network is no attack.
TEST_F(StreamAttack, EachByteByItself) {
  const uint64_t before = job().Refused(Refusal::kFrameNotAuthentic);
  Attacker attacker([&, to = LeadAddress()](Talk& talk) {
    int frames = 0;
    Relay relay(to, [&](const Message& message) {
      frames += message.from_initiator && message.index > 0;
      return Verdict{.onward = message.bytes, .in_pieces = true};
    });
    talk.Tell(relay.port());
    relay.Run(talk, [&] { return frames > 5; });
    talk.Tell(1);
    relay.Run(talk);
    return "";
  });
  const uint32_t victim = Victim();
  const uint16_t port = LeadAddress().port;
  job().Redirect(victim, port, static_cast<uint16_t>(attacker.Hear()));
  EXPECT_EQ(attacker.Hear(), 1u);
  EXPECT_EQ(job().Refused(Refusal::kFrameNotAuthentic), before);
  job().Redirect(victim, port, 0);
  attacker.Tell(0);
  EXPECT_EQ(attacker.Wait(), "");
}

}  // namespace
}  // namespace perdure
