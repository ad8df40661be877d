// What a wire keeps is bounded: queues, frames that have come in part, connections, descriptors.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <optional>
#include <set>

#include "runtime/wire/wire_connection.h"
#include "runtime/wire/wire_limits.h"
#include "tests/wire/wire_fixture.h"

namespace perdure {
namespace {

using testing::HasSubstr;

TEST_F(WireTest, AQueueIsBoundedInBytesAndRecovers) {
  const auto a =
      Node(1, [](WireOptions* options) { options->outgoing_bytes_max = size_t{3} << 20; });
  const WireAddress address = a->wire().address();
  std::optional<RawAgent> agent;
  During(*loop_, [&] {
    agent.emplace(address, RawAgent::Parts{.terms = TermsOf(address, 1)});
    ASSERT_TRUE(agent->Open());
  });
  ASSERT_TRUE(Until([&] { return a->opened.size() == 1; }));
  const ConnectionId id = a->opened[0].id;
  const std::string frame = Patterned(100000, 1);
  absl::Status status;
  int sent = 0;
  while (status.ok()) {
    status = a->wire().Send(id, frame);
    if (status.ok()) ++sent;
    loop_->RunOnce(MonotonicNow());
    ASSERT_LT(sent, 1000);
  }
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("wait for node 90"));
  EXPECT_LE(a->wire().Usage().outgoing_bytes, size_t{3} << 20);
  EXPECT_GT(a->wire().Usage().outgoing_bytes, size_t{2} << 20);
  EXPECT_EQ(a->wire().counters().queue_full, 1U);
  EXPECT_FALSE(a->closed.contains(id));
  During(*loop_, [&] {
    for (int i = 0; i < sent; ++i) ASSERT_EQ(agent->ReadText(), frame) << i;
  });
  EXPECT_EQ(a->wire().Usage().outgoing_bytes, 0U);
  EXPECT_EQ(a->wire().Usage().outgoing_frames, 0U);
  EXPECT_TRUE(a->wire().Send(id, frame).ok());
}

TEST_F(WireTest, AQueueIsBoundedInFrames) {
  const auto a = Node(1, [](WireOptions* options) { options->outgoing_frames_max = 10; });
  const auto b = Node(2);
  const ConnectionId id = Join(*a, *b, 2);
  for (int round = 0; round < 3; ++round) {
    b->frames.clear();
    for (int i = 0; i < 10; ++i) ASSERT_TRUE(a->wire().Send(id, "x").ok());
    EXPECT_TRUE(absl::IsResourceExhausted(a->wire().Send(id, "x")));
    EXPECT_EQ(a->wire().Usage().outgoing_frames, 10U);
    ASSERT_TRUE(Until([&] { return b->frames.size() == 10; }));
    EXPECT_EQ(a->wire().Usage().outgoing_frames, 0U);
  }
}

TEST_F(WireTest, AllQueuesTogetherAreBounded) {
  const auto a =
      Node(1, [](WireOptions* options) { options->outgoing_bytes_total = size_t{1050} << 10; });
  const auto b = Node(2), c = Node(3);
  const ConnectionId to_b = Join(*a, *b, 2), to_c = Join(*a, *c, 3);
  ASSERT_TRUE(a->wire().Send(to_b, std::string(900000, 'x')).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(a->wire().Send(to_c, std::string(200000, 'x'))));
  EXPECT_TRUE(a->wire().Send(to_c, std::string(100000, 'x')).ok());
  EXPECT_LE(a->wire().Usage().outgoing_bytes, size_t{1050} << 10);
  a->wire().Close(to_b);
  EXPECT_LE(a->wire().Usage().outgoing_bytes, 110000U);
}

TEST_F(WireTest, FramesThatComeInPartAreBoundedAndAllArrive) {
  constexpr size_t kTotal = size_t{3} << 20;
  const auto node = Node(1, [](WireOptions* options) { options->incoming_bytes_total = kTotal; });
  const WireAddress address = node->wire().address();
  constexpr int kAgents = 12;
  size_t arrived = 0;
  uint64_t most = 0;
  std::set<std::string> texts;
  node->on_frame = [&](ConnectionId, std::string_view bytes) {
    ++arrived;
    most = std::max(most, node->wire().Usage().incoming_bytes);
    texts.emplace(bytes);
  };
  std::vector<std::unique_ptr<RawAgent>> agents;
  std::vector<std::vector<uint8_t>> frames;
  During(*loop_, [&] {
    for (int i = 0; i < kAgents; ++i) {
      agents.push_back(std::make_unique<RawAgent>(
          address,
          RawAgent::Parts{.terms = TermsOf(address, 1),
                          .self = {.node = 10U + static_cast<uint32_t>(i), .incarnation = 1}}));
      ASSERT_TRUE(agents.back()->Open());
      frames.push_back(SealText(agents.back()->channel(), Patterned(kFrameBytesMost, i)));
    }
  });
  // All begin a frame of a megabyte, and go on together once some have to wait. What the wire does
  // not read the kernel's buffers take.
  constexpr size_t kPieces = 16;
  const auto send_pieces = [&](size_t from, size_t to) {
    for (size_t piece = from; piece < to; ++piece)
      for (int i = 0; i < kAgents; ++i) {
        const std::span<const uint8_t> frame = frames[i];
        const size_t begin = frame.size() * piece / kPieces,
                     end = frame.size() * (piece + 1) / kPieces;
        ASSERT_TRUE(agents[i]->peer().SendBytes(frame.subspan(begin, end - begin)));
      }
  };
  During(*loop_, [&] { send_pieces(0, 1); });
  ASSERT_TRUE(Until([&] { return node->wire().counters().paused > 0; }));
  During(*loop_, [&] { send_pieces(1, kPieces); });
  ASSERT_TRUE(Until([&] { return arrived == kAgents; }));
  EXPECT_EQ(texts.size(), kAgents);
  EXPECT_LE(most, kTotal + kFrameBytesMost + kFrameOverheadBytes + kAgents * kUnreservedBytes);
  EXPECT_EQ(node->wire().Usage().incoming_bytes, 0U);
  EXPECT_TRUE(node->closed.empty());
}

TEST_F(WireTest, WhoWaitsForMemoryAndDiesIsForgotten) {
  const auto node =
      Node(1, [](WireOptions* options) { options->incoming_bytes_total = size_t{100} << 10; });
  const WireAddress address = node->wire().address();
  std::vector<std::unique_ptr<RawAgent>> agents;
  During(*loop_, [&] {
    for (int i = 0; i < 3; ++i) {
      agents.push_back(
          std::make_unique<RawAgent>(address, RawAgent::Parts{.terms = TermsOf(address, 1)}));
      ASSERT_TRUE(agents.back()->Open());
      std::vector<uint8_t> part = SealText(agents.back()->channel(), Patterned(500000, i));
      part.resize(1000);
      ASSERT_TRUE(agents.back()->peer().SendBytes(part));
    }
  });
  ASSERT_TRUE(Until([&] { return node->wire().counters().paused >= 2; }));
  agents[2]->peer().Reset();  // One that waits.
  ASSERT_TRUE(Until([&] { return node->closed.size() == 1; }));
  agents[0]->peer().Reset();  // The one that the others wait for, or another.
  agents[1]->peer().Reset();
  ASSERT_TRUE(Until([&] { return node->closed.size() == 3; }));
  EXPECT_EQ(node->wire().Usage().incoming_bytes, 0U);
  During(*loop_, [&] {
    RawAgent agent(address, {.terms = TermsOf(address, 1)});
    ASSERT_TRUE(agent.Open() && agent.SendText(Patterned(500000, 9)));
  });
  ASSERT_TRUE(Until([&] { return node->frames.size() == 1; }));
}

TEST_F(WireTest, WhoIsWokenAndHasNothingKeepsNobodyWaiting) {
  const auto node =
      Node(1, [](WireOptions* options) { options->incoming_bytes_total = size_t{100} << 10; });
  const WireAddress address = node->wire().address();
  std::vector<std::unique_ptr<RawAgent>> agents;
  std::vector<std::vector<uint8_t>> frames;
  // The first has the memory beyond the limit, the others wait for it in turn.
  for (uint64_t waiting = 0; waiting < 3; ++waiting) {
    During(*loop_, [&] {
      agents.push_back(
          std::make_unique<RawAgent>(address, RawAgent::Parts{.terms = TermsOf(address, 1)}));
      ASSERT_TRUE(agents.back()->Open());
      frames.push_back(SealText(agents.back()->channel(), Patterned(500000, 1)));
      ASSERT_TRUE(agents.back()->peer().SendBytes(std::span(frames.back()).first(1000)));
    });
    ASSERT_TRUE(Until([&] {
      return node->wire().counters().paused >= waiting &&
             node->wire().Usage().incoming_bytes > 500000;
    }));
  }
  agents[0]->peer().Reset();
  During(*loop_,
         [&] { ASSERT_TRUE(agents[2]->peer().SendBytes(std::span(frames[2]).subspan(1000))); });
  ASSERT_TRUE(Until([&] { return node->frames.size() == 1; }));
  EXPECT_EQ(node->frames[0].second, Patterned(500000, 1));
}

TEST_F(WireTest, AFrameThatDoesNotGoOnEndsTheConnection) {
  const auto node =
      Node(1, [](WireOptions* options) { options->silence = absl::Milliseconds(300); });
  const WireAddress address = node->wire().address();
  for (const size_t begun : {2, 1000}) {
    node->closed.clear();
    During(*loop_, [&] {
      RawAgent agent(address, {.terms = TermsOf(address, 1)});
      ASSERT_TRUE(agent.Open());
      const std::vector<uint8_t> frame = SealText(agent.channel(), Patterned(5000, 1));
      ASSERT_TRUE(agent.peer().SendBytes(std::span(frame).first(begun)));
      EXPECT_TRUE(agent.peer().Closed());
    });
    ASSERT_TRUE(Until([&] { return node->closed.size() == 1; }));
    EXPECT_TRUE(absl::IsUnavailable(node->closed.begin()->second));
    EXPECT_THAT(node->closed.begin()->second.message(),
                HasSubstr("node 90 has begun a frame and said nothing for 300ms"));
    EXPECT_EQ(node->wire().Usage().incoming_bytes, 0U);
  }
  EXPECT_EQ(node->wire().counters()[Refusal::kTooSlow], 2U);
}

TEST_F(WireTest, APeerThatTakesNothingIsGone) {
  const auto node =
      Node(1, [](WireOptions* options) { options->silence = absl::Milliseconds(300); });
  const WireAddress address = node->wire().address();
  std::optional<RawAgent> agent;  // It never reads.
  During(*loop_, [&] {
    agent.emplace(address, RawAgent::Parts{.terms = TermsOf(address, 1)});
    ASSERT_TRUE(agent->Open());
  });
  ASSERT_TRUE(Until([&] { return node->opened.size() == 1; }));
  const ConnectionId id = node->opened[0].id;
  ASSERT_TRUE(Until([&] {
    (void)node->wire().Send(id, Patterned(kFrameBytesMost, 1));
    return node->closed.contains(id);
  }));
  EXPECT_TRUE(absl::IsUnavailable(node->closed[id]));
  EXPECT_THAT(node->closed[id].message(), HasSubstr("the connection to node 90 is lost"));
  EXPECT_EQ(node->wire().Usage().outgoing_bytes, 0U);
}

TEST_F(WireTest, AKeyMaySealSoManyFrames) {
  const auto few = [](WireOptions* options) { options->frames_max = 3; };
  const auto a = Node(1, few), b = Node(2);
  const ConnectionId id = Join(*a, *b, 2);
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(a->wire().Send(id, "x").ok());  // After the confirmation.
  const absl::Status status = a->wire().Send(id, "x");
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(status.message(), HasSubstr("all 3 frames that a key may seal"));
  ASSERT_TRUE(Until([&] { return b->frames.size() == 2; }));
  // And as the one who receives them.
  const ConnectionId back = Join(*b, *a, 1);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(b->wire().Send(back, "y").ok());
  ASSERT_TRUE(Until([&] { return a->closed.size() == 1; }));
  EXPECT_TRUE(absl::IsDataLoss(a->closed.begin()->second));
  EXPECT_THAT(a->closed.begin()->second.message(), HasSubstr("counter_spent"));
  EXPECT_EQ(a->frames.size(), 2U);
  EXPECT_EQ(a->wire().counters()[Refusal::kCounterSpent], 1U);
}

TEST_F(WireTest, ConnectionsAreBounded) {
  const auto a = Node(1, [](WireOptions* options) {
    TryOnce(options);
    options->connections_max = 3;
  });
  std::vector<std::unique_ptr<WireNode>> others;
  for (uint32_t i = 2; i < 5; ++i) {
    others.push_back(Node(i));
    Join(*others.back(), *a, 1);
  }
  others.push_back(Node(9, TryOnce));
  const ConnectionId id = others.back()->ConnectTo(*a, 1);
  ASSERT_TRUE(Until([&] { return others.back()->closed.contains(id); }));
  EXPECT_EQ(a->wire().counters()[Refusal::kNoRoom], 1U);
  const ConnectionId out = a->ConnectTo(*others.back(), 9);
  ASSERT_TRUE(Until([&] { return a->closed.contains(out); }));
  EXPECT_THAT(a->closed[out].message(), HasSubstr("3 connections are the most"));
  EXPECT_EQ(a->wire().Usage().connections, 3U);
}

TEST_F(WireTest, AnIdleConnectionKeepsNoBuffers) {
  const auto a = Node(1), b = Node(2);
  const ConnectionId id = Join(*a, *b, 2);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(a->wire().Send(id, Patterned(kFrameBytesMost, i)).ok());
  ASSERT_TRUE(Until([&] { return b->frames.size() == 3; }));
  for (WireNode* node : {a.get(), b.get()}) {
    EXPECT_EQ(node->wire().Usage().outgoing_bytes, 0U);
    EXPECT_EQ(node->wire().Usage().incoming_bytes, 0U);
  }
  EXPECT_LE(sizeof(WireConnection), 512U);
  EXPECT_THAT(a->wire().Usage().Text(), HasSubstr("1 connections (0 unconfirmed), 0 half open"));
  EXPECT_GT(a->wire().Usage().bytes_bound, a->wire().Usage().table_bytes);
}

TEST_F(WireTest, WithoutDescriptorsConnectionsWait) {
  const auto a = Node(1), b = Node(2);
  const ConnectionId first = Join(*a, *b, 2);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  std::vector<std::unique_ptr<RawPeer>> waiting;
  waiting.push_back(std::make_unique<RawPeer>(b->wire().address()));
  ASSERT_TRUE(waiting.back()->open());
  // The number after the last one in use.
  rlimit low = before;
  low.rlim_cur = static_cast<rlim_t>(waiting.back()->fd()) + 1;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
  ASSERT_TRUE(waiting.back()->SendBytes(BytesOf("x")));  // Now it can be accepted.
  EXPECT_TRUE(Until([&] { return b->wire().counters()[Refusal::kNoRoom] >= 1; }));
  // The loop sleeps meanwhile, and open connections go on.
  const uint64_t tries = b->wire().counters()[Refusal::kNoRoom];
  EXPECT_TRUE(a->wire().Send(first, "still here").ok());
  RunFor(*loop_, absl::Milliseconds(50));
  EXPECT_LE(b->wire().counters()[Refusal::kNoRoom], tries + 1);
  EXPECT_TRUE(Until([&] { return b->frames.size() == 1; }));
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  ASSERT_TRUE(Until([&] { return b->wire().counters().accepted == 2; }));
}

// A process needs descriptors for more than its wire: without its log it would have to stop.
TEST_F(WireTest, StrangersLeaveDescriptorsFree) {
  const auto a = Node(1), b = Node(2);
  std::vector<std::unique_ptr<RawPeer>> strangers;
  for (int i = 0; i < 10; ++i) {
    strangers.push_back(std::make_unique<RawPeer>(b->wire().address()));
    ASSERT_TRUE(strangers.back()->SendBytes(BytesOf("PRDW")));
  }
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit low = before;  // Room for four of them.
  low.rlim_cur = static_cast<rlim_t>(strangers.back()->fd()) + 1 + 4 + kSpareDescriptors;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
  EXPECT_TRUE(Until([&] { return b->wire().counters().accepted == 10; }));
  EXPECT_EQ(b->wire().Usage().half_open, 4U);
  EXPECT_EQ(b->wire().counters()[Refusal::kNoRoom], 6U);
  Join(*a, *b, 2);  // Who has the key may have them.
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
}

}  // namespace
}  // namespace perdure
