// Somebody who has recorded what an honest agent said, and says it again: to the same agent, to
// another one, later, or while the first is still at the door.
#include <thread>

#include "tests/security/security_test.h"

namespace perdure {
namespace {

using Message = Relay::Message;
using Verdict = Relay::Verdict;

struct Recording {
  Bytes hello, rest, answer;  // `rest`: confirmation and frames.
};

class ReplayAttack : public SecurityTest {
 protected:
  // A member reconnects through the attacker's hands, who passes on and records; when it has taken
  // the straight way again, `replay` says how it went.
  void Record(const std::function<std::string(const Recording&)>& replay) {
    const uint32_t victim = job().Member();
    const uint16_t port = LeadAddress().port;
    Attacker attacker([&, to = LeadAddress()](Talk& talk) {
      Recording recording;
      int frames = 0;
      Relay relay(to, [&](const Message& message) {
        if (message.index == 0) {
          (message.from_initiator ? recording.hello : recording.answer) = message.bytes;
        } else if (message.from_initiator) {
          ++frames;
          recording.rest.insert(recording.rest.end(), message.bytes.begin(), message.bytes.end());
        }
        return Verdict{.onward = message.bytes};
      });
      talk.Tell(relay.port());
      relay.Run(talk, [&] { return frames > 4; });
      talk.Tell(1);
      relay.Run(talk);  // Until the test has taken him out of the way.
      (void)talk.Hear();
      return replay(recording);
    });
    const uint64_t way = attacker.Hear();
    job().Redirect(victim, port, static_cast<uint16_t>(way));
    EXPECT_EQ(attacker.Hear(), 1u);
    job().Redirect(victim, port, 0);
    attacker.Tell(0);
    EXPECT_EQ(attacker.Wait(), "");
  }
  // The member's hello stops here, at a listener of the attacker's, whose `attack` has it.
  void Hold(const std::function<std::string(RawPeer& victim, const Bytes& hello)>& attack) {
    const uint32_t victim = job().Member();
    const uint16_t port = LeadAddress().port;
    Attacker attacker([&](Talk& talk) -> std::string {
      std::optional<RawListener> listener(std::in_place);
      talk.Tell(listener->address().port);
      RawPeer held = listener->Accept();
      listener.reset();  // What comes after it finds nobody here.
      const Bytes hello = held.Read(kHelloBytes);
      if (hello.size() != kHelloBytes) return "no hello came";
      return attack(held, hello);
    });
    job().Redirect(victim, port, static_cast<uint16_t>(attacker.Hear()));
    EXPECT_EQ(attacker.Wait(), "");
    job().Redirect(victim, port, 0);
  }
};

TEST_F(ReplayAttack, ARecordedHello) {
  const uint64_t before = lead()[Refusal::kReplayedHello];
  Record([to = LeadAddress()](const Recording& heard) { return Say(to, heard.hello); });
  ExpectCounted(job().Lead(), Refusal::kReplayedHello, before + 1);
}

TEST_F(ReplayAttack, ARecordedSession) {
  const uint64_t before = lead()[Refusal::kReplayedHello];
  Record([to = LeadAddress()](const Recording& heard) {
    Bytes all = heard.hello;
    all.insert(all.end(), heard.rest.begin(), heard.rest.end());
    return Say(to, all);
  });
  ExpectCounted(job().Lead(), Refusal::kReplayedHello, before + 1);
}

TEST_F(ReplayAttack, ARecordedHelloAHundredTimes) {
  const uint64_t before = lead()[Refusal::kReplayedHello];
  Record([to = LeadAddress()](const Recording& heard) {
    for (int i = 0; i < 100; ++i)
      if (std::string what = Say(to, heard.hello); !what.empty()) return what;
    return std::string();
  });
  ExpectCounted(job().Lead(), Refusal::kReplayedHello, before + 100);
}

TEST_F(ReplayAttack, ARecordedHelloWithEachByteChanged) {
  const uint64_t before = lead()[Refusal::kHelloNotAuthentic];
  Record([to = LeadAddress()](const Recording& heard) {
    for (size_t i = 8; i < kHelloBytes; ++i) {
      Bytes hello = heard.hello;
      hello[i] ^= 0x40;
      if (std::string what = Say(to, hello); !what.empty())
        return fmt::format("byte {}: {}", i, what);
    }
    return std::string();
  });
  ExpectCounted(job().Lead(), Refusal::kHelloNotAuthentic, before + kHelloBytes - 8);
}

// The one to whom it was said is not the only one who could understand it.
TEST_F(ReplayAttack, AHelloToAnotherAgent) {
  uint32_t other = job().Member();
  do --other;
  while (other == job().Lead());
  const uint64_t before = job().at(other)[Refusal::kHelloNotAuthentic];
  Record([to = job().Address(other)](const Recording& heard) { return Say(to, heard.hello); });
  ExpectCounted(other, Refusal::kHelloNotAuthentic, before + 1);
}

TEST_F(ReplayAttack, ARecordedAnswer) {
  const uint32_t victim = job().Member();
  const uint64_t before = job().at(victim)[Refusal::kAnswerNotAuthentic];
  const uint16_t port = LeadAddress().port;
  Bytes answer(kAnswerBytes);
  Attacker attacker([&, to = LeadAddress()](Talk& talk) {
    Bytes old;
    bool replayed = false;
    Relay relay(to, [&](const Message& message) {
      const bool is_answer = !message.from_initiator && message.index == 0;
      if (is_answer && message.connection == 0) old = message.bytes;
      // The first connection ends here, the second gets the first one's answer.
      if (message.connection == 0 && message.index == 3)
        return Verdict{.onward = {}, .end = Verdict::End::kClose};
      if (is_answer && message.connection == 1) {
        replayed = true;
        talk.Tell(1);
        return Verdict{.onward = old};
      }
      return Verdict{.onward = message.bytes};
    });
    talk.Tell(relay.port());
    relay.Run(talk);
    return replayed ? "" : "there was no second connection";
  });
  job().Redirect(victim, port, static_cast<uint16_t>(attacker.Hear()));
  EXPECT_EQ(attacker.Hear(), 1u);
  ExpectCounted(victim, Refusal::kAnswerNotAuthentic, before + 1);
  job().Redirect(victim, port, 0);
  attacker.Tell(0);
  EXPECT_EQ(attacker.Wait(), "");
}

// Said twice before the first is confirmed; the first one is the honest agent's and gets in.
TEST_F(ReplayAttack, AHelloTwiceWhileTheFirstIsHalfOpen) {
  const uint64_t before = lead()[Refusal::kReplayedHello];
  Hold([to = LeadAddress()](RawPeer& victim, const Bytes& hello) -> std::string {
    RawPeer first(to);
    if (!first.SendBytes(hello)) return "the first was refused";
    const Bytes answer = first.Read(kAnswerBytes);
    if (answer.size() != kAnswerBytes) return "the first was not answered";
    if (std::string what = Say(to, hello); !what.empty()) return what;
    if (!victim.SendBytes(answer)) return "the victim has gone";
    const Bytes confirmation = victim.Read(kConfirmationBytes);
    if (!first.SendBytes(confirmation)) return "the first was put out";
    return first.Closed(absl::Milliseconds(200)) ? "the first was put out" : "";
  });
  ExpectCounted(job().Lead(), Refusal::kReplayedHello, before + 1);
}

// He says it himself, before the honest agent could: he is answered, and cannot go on.
TEST_F(ReplayAttack, AStolenHelloAndSilence) {
  const uint64_t before = lead()[Refusal::kTooSlow];
  Hold([to = LeadAddress()](RawPeer&, const Bytes& hello) -> std::string {
    RawPeer thief(to);
    if (!thief.SendBytes(hello)) return "it was refused";
    if (thief.Read(kAnswerBytes).size() != kAnswerBytes) return "it was not answered";
    return TurnedAway(thief);
  });
  ExpectCounted(job().Lead(), Refusal::kTooSlow, before + 1);
}

TEST_F(ReplayAttack, AStolenHelloAndAMadeUpConfirmation) {
  const uint64_t before = lead()[Refusal::kFrameNotAuthentic];
  Hold([to = LeadAddress()](RawPeer&, const Bytes& hello) -> std::string {
    RawPeer thief(to);
    if (!thief.SendBytes(hello)) return "it was refused";
    if (thief.Read(kAnswerBytes).size() != kAnswerBytes) return "it was not answered";
    Bytes confirmation = RandomBytes(kConfirmationBytes);
    std::fill_n(confirmation.begin(), kFrameHeadBytes, 0);
    (void)thief.SendBytes(confirmation);
    return TurnedAway(thief);
  });
  ExpectCounted(job().Lead(), Refusal::kFrameNotAuthentic, before + 1);
}

}  // namespace
}  // namespace perdure
