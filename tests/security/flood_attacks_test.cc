// Many at once. What counts is that an honest agent comes in meanwhile, and that the others step.
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <thread>

#include "tests/security/security_test.h"

namespace perdure {
namespace {

using SourceOf = std::function<std::string(int number)>;

std::string OneSource(int) { return "127.0.0.1"; }
// 127.x.y.z, as many as one likes: somebody on the same machine has a whole network.
std::string ManySources(int number) {
  return fmt::format("127.77.{}.{}", number / 250 % 250, 1 + number % 250);
}

class FloodAttack : public SecurityTest {
 protected:
  // Keeps `many` connections that have said `bytes`, making anew those that were ended, until the
  // test says that it is enough.
  static std::string Flood(Talk& talk, const WireAddress& to, const Bytes& bytes, int many,
                           const SourceOf& source) {
    std::vector<UniqueFd> open(static_cast<size_t>(many));
    int made = 0;
    bool told = false;
    while (!talk.Pending(absl::Milliseconds(1))) {
      for (UniqueFd& fd : open) {
        char byte = 0;
        if (fd.open()) {
          const ssize_t got = ::recv(fd.get(), &byte, 1, MSG_DONTWAIT);
          if (got > 0) return "it was answered";
          if (got < 0 && errno == EAGAIN) continue;
        }
        fd.Close();
        fd = ConnectFrom(source(made), to);
        if (!fd.open()) continue;
        ++made;
        (void)::send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      }
      if (!told && made >= many) {
        talk.Tell(1);
        told = true;
      }
    }
    return told ? "" : "there were never enough";
  }
  void JoinDuring(const Bytes& bytes, int many, const SourceOf& source) {
    Attacker attacker(
        [&, to = LeadAddress()](Talk& talk) { return Flood(talk, to, bytes, many, source); });
    EXPECT_EQ(attacker.Hear(), 1u);
    EXPECT_TRUE(LateNodeJoins());
    EXPECT_TRUE(job().Steps(20));
    EXPECT_LE(lead().half_open, AdmissionLimits{}.places);
    attacker.Tell(0);
    EXPECT_EQ(attacker.Wait(), "");
  }
  static Bytes Beginning() { return {'P', 'R', 'D', 'W'}; }
  static Bytes WrongHello() {
    Bytes hello = RandomBytes(kHelloBytes);
    const std::string_view magic("PRDWIRE\x01");
    std::copy(magic.begin(), magic.end(), hello.begin());
    return hello;
  }
};

TEST_F(FloodAttack, HalfAHelloFromOneAddress) { JoinDuring(Beginning(), 300, OneSource); }

TEST_F(FloodAttack, HalfAHelloFromManyAddresses) { JoinDuring(Beginning(), 300, ManySources); }

TEST_F(FloodAttack, SilenceFromOneAddress) { JoinDuring({}, 300, OneSource); }

TEST_F(FloodAttack, SilenceFromManyAddresses) { JoinDuring({}, 300, ManySources); }

TEST_F(FloodAttack, WrongHellosFromManyAddresses) {
  const uint64_t before = lead()[Refusal::kHelloNotAuthentic];
  JoinDuring(WrongHello(), 50, ManySources);
  EXPECT_GT(lead()[Refusal::kHelloNotAuthentic], before + 50);
}

TEST_F(FloodAttack, ConnectAndReset) {
  Attacker attacker([to = LeadAddress()](Talk& talk) {
    int made = 0;
    while (!talk.Pending(absl::ZeroDuration())) {
      RawPeer peer(to);
      if (peer.open()) peer.Reset();
      if (++made == 500) talk.Tell(1);
    }
    return "";
  });
  EXPECT_EQ(attacker.Hear(), 1u);
  EXPECT_TRUE(LateNodeJoins());
  EXPECT_TRUE(job().Steps(20));
  attacker.Tell(0);
  EXPECT_EQ(attacker.Wait(), "");
}

// As many strangers as the agent may have descriptors, and more.
class NarrowFloodAttack : public FloodAttack {
 protected:
  NarrowFloodAttack() { parts_.descriptors = 28; }
};

TEST_F(NarrowFloodAttack, HalfAHelloUntilNoDescriptorIsLeft) {
  const uint64_t before = lead()[Refusal::kNoRoom];
  JoinDuring(Beginning(), 300, ManySources);
  EXPECT_GT(lead()[Refusal::kNoRoom], before);
}

TEST_F(NarrowFloodAttack, SilenceUntilNoDescriptorIsLeft) { JoinDuring({}, 300, ManySources); }

}  // namespace
}  // namespace perdure
