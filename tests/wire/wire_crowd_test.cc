// Many at the door at once: agents of the job, who all get in soon, and others, who get nothing.
#include <gtest/gtest.h>

#include <atomic>
#include <optional>
#include <thread>

#include "tests/wire/wire_fixture.h"

namespace perdure {
namespace {

class CrowdTest : public WireTest {
 protected:
  // So many connections to one listener at once; each opens and can be spoken to. Both ends are in
  // this process.
  void Storm(size_t count, WireNode& server) {
    const auto clients = Node(2);
    const size_t open_before = server.opened.size();
    const absl::Time begin = MonotonicNow();
    for (size_t i = 0; i < count; ++i) clients->ConnectTo(server, 1, absl::Minutes(1));
    ASSERT_TRUE(RunUntil(*loop_, [&] {
      return clients->opened.size() + clients->closed.size() == count &&
             server.opened.size() - open_before == count;
    }));
    EXPECT_TRUE(clients->closed.empty()) << clients->closed.begin()->second;
    std::printf("%zu connections in %.2f s, %lu attempts\n", count,
                absl::ToDoubleSeconds(MonotonicNow() - begin), clients->wire().counters().attempts);
    // Each of them can be spoken to.
    const size_t frames_before = clients->frames.size();
    for (size_t i = open_before; i < server.opened.size(); ++i)
      ASSERT_TRUE(server.wire().Send(server.opened[i].id, "to all").ok());
    ASSERT_TRUE(RunUntil(*loop_, [&] { return clients->frames.size() == frames_before + count; }));
  }
};

TEST_F(CrowdTest, AThousandAgentsAtOnce) {
  if (DescriptorsMax() < 2200) GTEST_SKIP() << "needs 2,200 descriptors: ulimit -n";
  const auto server = Node(1);
  Storm(1000, *server);
  EXPECT_EQ(server->wire().Usage().half_open, 0U);
}

TEST_F(CrowdTest, FourThousandAgentsAtOnceLong) {
  if (DescriptorsMax() < 8300) GTEST_SKIP() << "needs 8,300 descriptors: ulimit -n";
  const auto server = Node(1);
  Storm(4000, *server);
}

TEST_F(CrowdTest, AFloodOfHalfOpenConnectionsShutsNobodyOut) {
  const auto server =
      Node(1, [](WireOptions* options) { options->admission.token_every = absl::Hours(1); });
  const WireAddress address = server->wire().address();
  const size_t before = ResidentBytes();
  std::atomic<bool> over = false;
  std::atomic<int> tried = 0;
  // Keeps the newest 200 open; says one right byte on each.
  std::thread flood([&] {
    std::vector<RawPeer> peers;
    while (!over) {
      RawPeer peer(address);
      if (!peer.open()) continue;
      (void)peer.SendBytes(BytesOf("P"));
      if (peers.size() < 200)
        peers.push_back(std::move(peer));
      else
        std::swap(peers[static_cast<size_t>(tried) % 200], peer);
      ++tried;
    }
  });
  uint32_t most = 0;
  EXPECT_TRUE(Until([&] {
    most = std::max(most, server->wire().Usage().half_open);
    return tried > 300;
  }));
  std::vector<std::unique_ptr<WireNode>> agents;
  for (uint32_t i = 0; i < 50; ++i) {
    agents.push_back(Node(10 + i));
    agents.back()->ConnectTo(*server, 1, absl::Seconds(60));
  }
  EXPECT_TRUE(Until([&] {
    most = std::max(most, server->wire().Usage().half_open);
    return server->opened.size() == 50;
  }));
  over = true;
  flood.join();
  EXPECT_LE(most, 32U);
  EXPECT_GT(most, 0U);
  // From its 64 tokens the source has 32 places, and pushes itself out of them.
  EXPECT_GE(server->wire().counters()[Refusal::kPushedOut], 32U);
  EXPECT_GT(server->wire().counters()[Refusal::kNoTokens], 0U);
  if (!kSanitized) EXPECT_LE(ResidentBytes(), before + (size_t{16} << 20));
  // When they have left, nothing of them remains.
  EXPECT_TRUE(Until([&] { return server->wire().Usage().half_open == 0; }));
  EXPECT_EQ(server->wire().Usage().connections, 50U);
}

TEST_F(CrowdTest, AgentsAndOthersAtOnceFromOneAddress) {
  if (DescriptorsMax() < 1300) GTEST_SKIP() << "needs 1,300 descriptors: ulimit -n";
  const auto server = Node(1);
  const WireAddress address = server->wire().address();
  std::atomic<bool> over = false;
  std::thread others([&] {
    for (int i = 0; !over; ++i) {
      RawPeer peer(address);
      if (peer.open()) (void)peer.SendBytes(Counting(static_cast<uint8_t>(i), kHelloBytes));
    }
  });
  Storm(500, *server);
  EXPECT_TRUE(Until([&] { return server->wire().counters()[Refusal::kNotOurProtocol] > 0; }));
  over = true;
  others.join();
}

TEST_F(CrowdTest, OneByteAtATimeIsTooSlow) {
  const auto server = Node(
      1, [](WireOptions* options) { options->admission.place_time = absl::Milliseconds(300); });
  const WireAddress address = server->wire().address();
  const RawAgent::Parts parts{.terms = TermsOf(address, 1)};
  const JobKey key = TestKey();
  const InitiatorHandshake handshake(key, parts.terms, parts.self, 0, SecretKey::Random());
  During(*loop_, [&] {
    // A right hello but for its end: each byte is no new beginning.
    RawPeer peer(address);
    ASSERT_TRUE(peer.open());
    size_t sent = 0;
    while (sent < kHelloBytes - 1 && !peer.Closed(absl::Milliseconds(20)))
      (void)peer.SendBytes(std::span<const uint8_t>(handshake.hello()).subspan(sent++, 1));
    EXPECT_TRUE(peer.Closed());
  });
  EXPECT_EQ(server->wire().counters()[Refusal::kTooSlow], 1U);
}

TEST_F(CrowdTest, AHelloMayComeInPieces) {
  const auto server = Node(1);
  const WireAddress address = server->wire().address();
  const RawAgent::Parts parts{.terms = TermsOf(address, 1)};
  const JobKey key = TestKey();
  const InitiatorHandshake handshake(key, parts.terms, parts.self, 0, SecretKey::Random());
  std::optional<RawPeer> peer;
  During(*loop_, [&] { peer.emplace(address); });
  ASSERT_TRUE(peer->open());
  for (size_t i = 0; i < kHelloBytes; i += 32) {
    ASSERT_TRUE(peer->SendBytes(std::span<const uint8_t>(handshake.hello()).subspan(i, 32)));
    if (i == 0) ASSERT_TRUE(Until([&] { return server->wire().Usage().half_open == 1; }));
  }
  During(*loop_, [&] { EXPECT_EQ(peer->Read(kAnswerBytes).size(), kAnswerBytes); });
  EXPECT_EQ(server->wire().Usage().half_open, 0U);
  EXPECT_EQ(server->wire().Usage().unconfirmed, 1U);
}

TEST_F(CrowdTest, WhoConnectsAndSaysNothingTakesNoPlaceForLong) {
  const auto server = Node(
      1, [](WireOptions* options) { options->admission.place_time = absl::Milliseconds(200); });
  const WireAddress address = server->wire().address();
  std::vector<RawPeer> silent;
  During(*loop_, [&] {
    for (int i = 0; i < 100; ++i) silent.emplace_back(address);
  });
  // Agents come in at once: the silent ones are not in their way, wherever the kernel keeps them.
  const auto agent = Node(2);
  Join(*agent, *server, 1);
  EXPECT_LE(server->wire().Usage().half_open, 32U);
  EXPECT_EQ(server->wire().Usage().connections, 1U);
}

}  // namespace
}  // namespace perdure
