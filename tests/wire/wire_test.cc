// Two and more nodes over real sockets: how they get in, talk, and end.
#include "runtime/wire/wire.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <optional>
#include <set>

#include "tests/wire/wire_fixture.h"

namespace perdure {
namespace {

using testing::HasSubstr;

// ---- Talking ------------------------------------------------------------------------------------

TEST_F(WireTest, TwoNodesTalk) {
  const auto a = Node(1), b = Node(2);
  const ConnectionId at_a = Join(*a, *b, 2);
  ASSERT_EQ(a->opened.size(), 1U);
  ASSERT_EQ(b->opened.size(), 1U);
  EXPECT_EQ(a->opened[0].id, at_a);
  EXPECT_FALSE(a->opened[0].incoming);
  EXPECT_TRUE(b->opened[0].incoming);
  EXPECT_EQ(a->opened[0].peer, (WirePeer{.job = 4711, .node = 2, .incarnation = 1002}));
  EXPECT_EQ(b->opened[0].peer, (WirePeer{.job = 4711, .node = 1, .incarnation = 1001}));
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(a->wire().Send(at_a, "to b " + std::to_string(i)).ok());
    ASSERT_TRUE(b->wire().Send(b->opened[0].id, "to a " + std::to_string(i)).ok());
  }
  ASSERT_TRUE(Until([&] { return a->frames.size() == 100 && b->frames.size() == 100; }));
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(a->frames[i], std::pair(at_a, "to a " + std::to_string(i)));
    EXPECT_EQ(b->frames[i], std::pair(b->opened[0].id, "to b " + std::to_string(i)));
  }
  EXPECT_EQ(a->wire().counters().frames_sent, 100U);
  EXPECT_EQ(a->wire().counters().frames_received, 100U);
  EXPECT_EQ(a->wire().counters().attempts, 1U);
  for (size_t kind = 0; kind < kRefusals; ++kind) {
    EXPECT_EQ(a->wire().counters().refused[kind], 0U) << RefusalName(static_cast<Refusal>(kind));
    EXPECT_EQ(b->wire().counters().refused[kind], 0U) << RefusalName(static_cast<Refusal>(kind));
  }
}

TEST_F(WireTest, WhatOnOpenSaysArrives) {
  const auto a = Node(1), b = Node(2);
  a->on_open = [&](ConnectionId id) { EXPECT_TRUE(a->wire().Send(id, "a speaks first").ok()); };
  b->on_open = [&](ConnectionId id) { EXPECT_TRUE(b->wire().Send(id, "b speaks first").ok()); };
  a->ConnectTo(*b, 2);
  ASSERT_TRUE(Until([&] { return a->frames.size() == 1 && b->frames.size() == 1; }));
  EXPECT_EQ(a->frames[0].second, "b speaks first");
  EXPECT_EQ(b->frames[0].second, "a speaks first");
}

TEST_F(WireTest, FramesOfAllSizesArriveWholeAndInOrder) {
  const auto a = Node(1), b = Node(2, [](WireOptions*options) {
                            options->outgoing_bytes_max = size_t{16} << 20;
                          });
  const ConnectionId id = Join(*a, *b, 2);
  std::vector<size_t> sizes = {1,
                               2,
                               3,
                               4,
                               5,
                               1000,
                               4075,
                               4076,
                               4077,
                               65536,
                               EventLoop::kReadBytes - 20,
                               EventLoop::kReadBytes - 19,
                               EventLoop::kReadBytes - 21,
                               kFrameBytesMost};
  for (int i = 0; i < 40; ++i) sizes.push_back(1 + static_cast<size_t>(i * 7919) % 30000);
  sizes.push_back(kFrameBytesMost);
  sizes.push_back(1);
  size_t sent = 0;
  ASSERT_TRUE(Until([&] {
    while (sent < sizes.size() &&
           a->wire().Send(id, Patterned(sizes[sent], static_cast<int>(sent))).ok())
      ++sent;
    return b->frames.size() == sizes.size();
  }));
  for (size_t i = 0; i < sizes.size(); ++i)
    ASSERT_TRUE(b->frames[i].second == Patterned(sizes[i], static_cast<int>(i))) << i;
  // And back, all at once.
  for (size_t i = 0; i < sizes.size(); ++i)
    ASSERT_TRUE(b->wire().Send(b->opened[0].id, Patterned(sizes[i], static_cast<int>(i))).ok());
  ASSERT_TRUE(Until([&] { return a->frames.size() == sizes.size(); }));
  for (size_t i = 0; i < sizes.size(); ++i)
    ASSERT_TRUE(a->frames[i].second == Patterned(sizes[i], static_cast<int>(i))) << i;
}

TEST_F(WireTest, CallbacksMayCloseAndSend) {
  const auto a = Node(1), b = Node(2), c = Node(3);
  const ConnectionId to_b = Join(*a, *b, 2), to_c = Join(*a, *c, 3);
  a->on_frame = [&](ConnectionId id, std::string_view bytes) {
    // Closes both, and still reads what it was called for.
    a->wire().Close(to_b);
    a->wire().Close(to_c);
    EXPECT_TRUE(absl::IsNotFound(a->wire().Send(id, "x")));
    a->frames.emplace_back(id, bytes);
  };
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(b->wire().Send(b->opened[0].id, "from b").ok());
    ASSERT_TRUE(c->wire().Send(c->opened[0].id, Patterned(500000, i)).ok());
  }
  ASSERT_TRUE(Until([&] { return b->closed.size() == 1 && c->closed.size() == 1; }));
  EXPECT_EQ(a->frames.size(), 1U);
  EXPECT_TRUE(a->closed.empty());  // It knows.
  EXPECT_EQ(a->wire().Usage().connections, 0U);
  EXPECT_TRUE(absl::IsUnavailable(b->closed.begin()->second));
}

TEST_F(WireTest, CloseSendsWhatIsQueued) {
  const auto a = Node(1), b = Node(2);
  const ConnectionId id = Join(*a, *b, 2);
  ASSERT_TRUE(a->wire().Send(id, "I leave").ok());
  a->wire().Close(id);
  a->wire().Close(id);  // Nothing.
  ASSERT_TRUE(Until([&] { return b->closed.size() == 1; }));
  ASSERT_EQ(b->frames.size(), 1U);
  EXPECT_EQ(b->frames[0].second, "I leave");
}

TEST_F(WireTest, WhatCannotBeSent) {
  const auto a = Node(1), b = Node(2);
  EXPECT_TRUE(absl::IsNotFound(a->wire().Send(0, "x")));
  EXPECT_TRUE(absl::IsNotFound(a->wire().Send(0x100000000, "x")));
  const ConnectionId id = a->ConnectTo(*b, 2);
  EXPECT_TRUE(absl::IsFailedPrecondition(a->wire().Send(id, "too early")));
  ASSERT_TRUE(Until([&] { return !a->opened.empty(); }));
  EXPECT_TRUE(absl::IsInvalidArgument(a->wire().Send(id, "")));
  EXPECT_TRUE(absl::IsInvalidArgument(a->wire().Send(id, std::string(kFrameBytesMost + 1, 'x'))));
  EXPECT_TRUE(a->wire().Send(id, std::string(kFrameBytesMost, 'x')).ok());
  a->wire().Close(id);
  EXPECT_TRUE(absl::IsNotFound(a->wire().Send(id, "too late")));
  const ConnectionId next = a->ConnectTo(*b, 2);
  EXPECT_NE(next, id);  // Never used twice, though the place is the same.
  EXPECT_EQ(next % Wire::kConnectionsMost, id % Wire::kConnectionsMost);
}

TEST(WireOptionsTest, WhatIsRefused) {
  const auto loop = *EventLoop::New();
  const WireCallbacks callbacks{.on_open = [](ConnectionId, const WirePeer&, bool) {},
                                .on_frame = [](ConnectionId, std::string_view) {},
                                .on_close = [](ConnectionId, const absl::Status&) {}};
  const auto make = [&](WireOptions options) {
    return Wire::New(loop.get(), TestKey(), std::move(options), callbacks).status();
  };
  EXPECT_THAT(make({.run_id = "r"}).message(), HasSubstr("incarnation"));
  EXPECT_TRUE(absl::IsInvalidArgument(
      make({.run_id = std::string(256, 'r'), .self = {.node = 1, .incarnation = 1}})));
  EXPECT_THAT(make({.self = {.node = 1, .incarnation = 1}, .interface = "0.0.0.0"}).message(),
              HasSubstr("every interface"));
  const AgentIdentity self{.node = 1, .incarnation = 1};
  for (const uint32_t connections : {0U, Wire::kConnectionsMost + 1})
    EXPECT_THAT(make({.self = self, .connections_max = connections}).message(),
                HasSubstr("connections_max"));
  EXPECT_THAT(make({.self = self, .outgoing_bytes_max = kFrameBytesMost}).message(),
              HasSubstr("must have room"));
  EXPECT_THAT(make({.self = self, .outgoing_frames_max = 0}).message(),
              HasSubstr("must have room"));
  EXPECT_THAT(make({.self = self, .outgoing_bytes_total = kFrameBytesMost}).message(),
              HasSubstr("must have room"));
  EXPECT_TRUE(make({.self = self}).ok());
  const RawListener taken;
  EXPECT_THAT(make({.self = {.node = 1, .incarnation = 1},
                    .interface = "127.0.0.1",
                    .port = taken.address().port})
                  .message(),
              HasSubstr("bind 127.0.0.1:"));
}

// ---- Ends ---------------------------------------------------------------------------------------

TEST_F(WireTest, APeerThatDiesIsUnavailable) {
  const auto a = Node(1);
  auto b = Node(2);
  const ConnectionId id = Join(*a, *b, 2);
  b->Destroy();
  ASSERT_TRUE(Until([&] { return a->closed.contains(id); }));
  EXPECT_TRUE(absl::IsUnavailable(a->closed[id])) << a->closed[id];
  EXPECT_THAT(a->closed[id].message(), HasSubstr("node 2"));
}

TEST_F(WireTest, ResetHalfClosedAndCutFrames) {
  const auto node = Node(1);
  const WireAddress address = node->wire().address();
  struct End {
    const char* what;
    std::function<void(RawAgent&)> act;
    const char* message;
  };
  const std::vector<End> ends = {
      {"reset", [](RawAgent& agent) { agent.peer().Reset(); }, "lost"},
      {"half-closed", [](RawAgent& agent) { ::shutdown(agent.peer().fd(), SHUT_WR); }, "closed"},
      {"in the middle of a frame",
       [](RawAgent& agent) {
         std::vector<uint8_t> frame = SealText(agent.channel(), Patterned(100000, 1));
         frame.resize(50000);
         EXPECT_TRUE(agent.peer().SendBytes(frame));
         agent.peer().Close();
       },
       "in the middle of a frame"},
      {"in the middle of a length",
       [](RawAgent& agent) {
         EXPECT_TRUE(agent.peer().SendBytes(Counting(1, 2)));
         agent.peer().Close();
       },
       "in the middle of a frame"}};
  for (const End& end : ends) {
    SCOPED_TRACE(end.what);
    node->frames.clear();
    node->closed.clear();
    std::optional<RawAgent> agent;
    During(*loop_, [&] {
      agent.emplace(address, RawAgent::Parts{.terms = TermsOf(address, 1)});
      ASSERT_TRUE(agent->Open() && agent->SendText("hello"));
    });
    ASSERT_TRUE(Until([&] { return node->frames.size() == 1; }));
    During(*loop_, [&] {
      end.act(*agent);
      if (agent->peer().open()) EXPECT_TRUE(agent->peer().Closed());
    });
    ASSERT_TRUE(Until([&] { return node->closed.size() == 1; }));
    EXPECT_TRUE(absl::IsUnavailable(node->closed.begin()->second));
    EXPECT_THAT(node->closed.begin()->second.message(), HasSubstr(end.message));
    EXPECT_EQ(node->wire().Usage().incoming_bytes, 0U);
    EXPECT_EQ(node->wire().Usage().connections, 0U);
  }
}

TEST_F(WireTest, WrongBytesEndAConnection) {
  const auto node = Node(1);
  struct Wrong {
    const char* what;
    std::function<std::vector<uint8_t>(SecureChannel&)> bytes;
    Refusal refusal;
  };
  const auto head = [](uint32_t length) {
    std::vector<uint8_t> bytes = Counting(0, 64);
    for (int i = 0; i < 4; ++i) bytes[i] = static_cast<uint8_t>(length >> (8 * i));
    return bytes;
  };
  const std::vector<Wrong> wrongs = {
      {"garbage", [&](SecureChannel&) { return head(20); }, Refusal::kFrameNotAuthentic},
      {"oversized", [&](SecureChannel&) { return head(kFrameBytesMost + 1); },
       Refusal::kFrameTooLong},
      {"largest", [&](SecureChannel&) { return head(0xffffffff); }, Refusal::kFrameTooLong},
      {"empty", [&](SecureChannel&) { return head(0); }, Refusal::kFrameEmpty},
      {"one bit",
       [](SecureChannel& channel) {
         std::vector<uint8_t> frame = SealText(channel, "text");
         frame[6] ^= 1;
         return frame;
       },
       Refusal::kFrameNotAuthentic},
      {"twice",
       [](SecureChannel& channel) {
         std::vector<uint8_t> frame = SealText(channel, "text");
         frame.insert(frame.end(), frame.begin(), frame.begin() + frame.size());
         return frame;
       },
       Refusal::kFrameNotAuthentic}};
  for (const Wrong& wrong : wrongs) {
    SCOPED_TRACE(wrong.what);
    node->closed.clear();
    const uint64_t before = node->wire().counters()[wrong.refusal];
    During(*loop_, [&] {
      RawAgent agent(node->wire().address(), {.terms = TermsOf(node->wire().address(), 1)});
      ASSERT_TRUE(agent.Open() && agent.SendText("first"));
      ASSERT_TRUE(agent.peer().SendBytes(wrong.bytes(agent.channel())));
      EXPECT_TRUE(agent.peer().Closed());
    });
    ASSERT_TRUE(Until([&] { return node->closed.size() == 1; }));
    EXPECT_TRUE(absl::IsDataLoss(node->closed.begin()->second));
    EXPECT_THAT(node->closed.begin()->second.message(), HasSubstr(RefusalName(wrong.refusal)));
    EXPECT_EQ(node->wire().counters()[wrong.refusal], before + 1);
  }
}

// ---- Getting in ---------------------------------------------------------------------------------

TEST_F(WireTest, NobodyThereUntilTheDeadline) {
  const auto a = Node(1);
  const WireAddress nowhere = RawListener(OwnLoopback()).address();
  const ConnectionId id =
      a->wire().Connect(nowhere, 2, 0, MonotonicNow() + absl::Milliseconds(300));
  ASSERT_TRUE(Until([&] { return a->closed.contains(id); }));
  EXPECT_TRUE(absl::IsUnavailable(a->closed[id]));
  EXPECT_THAT(a->closed[id].message(), HasSubstr("connect to node 2 at 127."));
  EXPECT_THAT(a->closed[id].message(), HasSubstr("refused"));
  EXPECT_GE(a->wire().counters().attempts, 1U);
  EXPECT_LE(a->wire().counters().attempts, 20U);
  EXPECT_EQ(a->wire().Usage().connections, 0U);
}

TEST_F(WireTest, RetriesUntilThePeerIsThere) {
  const auto a = Node(1);
  const WireAddress later = RawListener(OwnLoopback()).address();
  const ConnectionId id = a->wire().Connect(later, 2, 0, MonotonicNow() + absl::Minutes(1));
  ASSERT_TRUE(Until([&] { return a->wire().counters().attempts == 3; }));
  EXPECT_TRUE(a->opened.empty());
  const auto b = Node(2, [&](WireOptions* options) {
    options->interface = OwnLoopback();
    options->port = later.port;
  });
  ASSERT_TRUE(Until([&] { return a->opened.size() == 1; }));
  EXPECT_EQ(a->opened[0].id, id);
}

TEST_F(WireTest, AnAttemptMayBeGivenUp) {
  const auto a = Node(1);
  const RawListener silent;
  const ConnectionId id =
      a->wire().Connect(silent.address(), 2, 0, MonotonicNow() + absl::Seconds(60));
  RunFor(*loop_, absl::Milliseconds(50));
  a->wire().Close(id);
  RunFor(*loop_, absl::Milliseconds(50));
  EXPECT_TRUE(a->closed.empty());
  EXPECT_EQ(a->wire().Usage().connections, 0U);
}

TEST_F(WireTest, WhatAnswersIsNotTheAgent) {
  struct Answerer {
    const char* what;
    std::function<void(RawPeer&)> act;
    Refusal refusal;
    const char* message;
  };
  const std::vector<Answerer> answerers = {
      {"close", [](RawPeer& peer) { peer.Close(); }, Refusal::kGone, "closed the connection at"},
      {"garbage", [](RawPeer& peer) { peer.SendBytes(Counting(1, kAnswerBytes)); },
       Refusal::kAnswerNotAuthentic, "answer_not_authentic"},
      {"zeros", [](RawPeer& peer) { peer.SendBytes(std::vector<uint8_t>(kAnswerBytes)); },
       Refusal::kLowOrderPoint, "low_order_point"},
      {"its own hello", [](RawPeer& peer) { peer.SendBytes(peer.Read(kHelloBytes)); },
       Refusal::kAnswerNotAuthentic, "answer_not_authentic"}};
  for (const Answerer& answerer : answerers) {
    SCOPED_TRACE(answerer.what);
    const auto a = Node(1, TryOnce);
    const RawListener listener;
    const ConnectionId id =
        a->wire().Connect(listener.address(), 2, 0, MonotonicNow() + absl::Minutes(1));
    During(*loop_, [&] {
      RawPeer peer = listener.Accept();
      ASSERT_TRUE(peer.open());
      answerer.act(peer);
      if (peer.open()) EXPECT_TRUE(peer.Closed());
    });
    ASSERT_TRUE(Until([&] { return a->closed.contains(id); }));
    EXPECT_TRUE(absl::IsUnavailable(a->closed[id]));
    EXPECT_THAT(a->closed[id].message(), HasSubstr(answerer.message));
    EXPECT_EQ(a->wire().counters()[answerer.refusal], 1U);
    EXPECT_TRUE(a->opened.empty());
  }
}

TEST_F(WireTest, WhoAcceptsAndSaysNothingIsTooSlow) {
  const auto a = Node(1, [](WireOptions* options) {
    TryOnce(options);
    options->attempt_time = absl::Milliseconds(100);
  });
  const RawListener silent;
  const ConnectionId id =
      a->wire().Connect(silent.address(), 2, 0, MonotonicNow() + absl::Minutes(1));
  ASSERT_TRUE(Until([&] { return a->closed.contains(id); }));
  EXPECT_THAT(a->closed[id].message(), HasSubstr("did not answer in time (1 tries)"));
  EXPECT_EQ(a->wire().counters()[Refusal::kTooSlow], 1U);
}

TEST_F(WireTest, ConnectsToTheWantedLifeOnly) {
  const auto a = Node(1, TryOnce), b = Node(2);
  const auto connect = [&](uint64_t incarnation) {
    return a->wire().Connect(b->wire().address(), 2, incarnation,
                             MonotonicNow() + absl::Minutes(1));
  };
  const ConnectionId wrong = connect(77), right = connect(1002);
  ASSERT_TRUE(Until([&] { return a->opened.size() == 1 && a->closed.size() == 1; }));
  EXPECT_EQ(a->opened[0].id, right);
  EXPECT_TRUE(a->closed.contains(wrong));
  EXPECT_EQ(b->wire().counters()[Refusal::kOtherIncarnation], 1U);
}

TEST_F(WireTest, OtherJobsRunsKeysAndNodesStayOutside) {
  const auto b = Node(2, [](WireOptions* options) { options->nodes = 10; });
  const std::vector<NodeParts> strangers = {{.node = 1, .key = {.file_key = 1}},
                                            {.node = 1, .key = {.restart = 1}},
                                            {.node = 1, .key = {.job = 4710}},
                                            {.node = 1, .run_id = "another"},
                                            {.node = 1, .job = 4710},
                                            {.node = 10},
                                            {.node = 2, .incarnation = 5}};
  for (NodeParts stranger_parts : strangers) {
    stranger_parts.change = TryOnce;
    WireNode stranger(loop_.get(), stranger_parts);
    const ConnectionId id = stranger.ConnectTo(*b, 2);
    ASSERT_TRUE(Until([&] { return stranger.closed.contains(id); }));
    EXPECT_TRUE(b->opened.empty());
  }
  EXPECT_EQ(b->wire().counters()[Refusal::kHelloNotAuthentic], 5U);
  EXPECT_EQ(b->wire().counters()[Refusal::kUnknownNode], 1U);
  EXPECT_EQ(b->wire().counters()[Refusal::kOwnHello], 1U);
  // Asked as another node than it is.
  const auto a = Node(1, TryOnce);
  const ConnectionId id = a->ConnectTo(*b, 3);
  ASSERT_TRUE(Until([&] { return a->closed.contains(id); }));
  EXPECT_EQ(b->wire().counters()[Refusal::kHelloNotAuthentic], 6U);
  EXPECT_TRUE(b->opened.empty());
}

TEST_F(WireTest, AnAgentThatConnectsToItselfIsRefused) {
  const auto a = Node(1, TryOnce);
  const ConnectionId id = a->ConnectTo(*a, 1);
  ASSERT_TRUE(Until([&] { return a->closed.contains(id); }));
  EXPECT_EQ(a->wire().counters()[Refusal::kOwnHello], 1U);
  EXPECT_TRUE(a->opened.empty());
}

TEST_F(WireTest, AHelloIsGoodForOnce) {
  const auto node = Node(1);
  const WireAddress address = node->wire().address();
  During(*loop_, [&] {
    RawAgent agent(address, {.terms = TermsOf(address, 1)});
    ASSERT_TRUE(agent.Open());
    RawPeer again(address);
    ASSERT_TRUE(again.SendBytes(agent.hello()));
    EXPECT_TRUE(again.Read(1).empty());
    EXPECT_TRUE(again.Closed());
  });
  EXPECT_EQ(node->wire().counters()[Refusal::kReplayedHello], 1U);
  ASSERT_TRUE(Until([&] { return node->opened.size() == 1; }));
}

TEST_F(WireTest, StrangersAreCountedByKindAndGetNoWord) {
  const auto node = Node(1);
  struct Stranger {
    std::vector<uint8_t> bytes;
    Refusal refusal;
  };
  const std::vector<Stranger> strangers = {
      {Counting('G', 1), Refusal::kNotOurProtocol},
      {Counting(0, 300), Refusal::kNotOurProtocol},
      {{'P', 'R', 'D', 'W', 'I', 'R', 'E', 2}, Refusal::kOtherVersion},
      {{'P', 'R', 'D', 'W', 'I', 'R', 'E', 1}, Refusal::kGone},
      {{'P'}, Refusal::kGone}};
  for (const Stranger& stranger : strangers) {
    SCOPED_TRACE(RefusalName(stranger.refusal));
    const uint64_t before = node->wire().counters()[stranger.refusal];
    During(*loop_, [&] {
      RawPeer peer(node->wire().address());
      ASSERT_TRUE(peer.SendBytes(stranger.bytes));
      if (stranger.refusal == Refusal::kGone) ::shutdown(peer.fd(), SHUT_WR);
      EXPECT_TRUE(peer.Read(1).empty());
    });
    EXPECT_EQ(node->wire().counters()[stranger.refusal], before + 1);
  }
  EXPECT_EQ(node->wire().counters().accepted, strangers.size());
  EXPECT_EQ(node->wire().Usage().half_open, 0U);
}

TEST_F(WireTest, WithoutItsConfirmationAHelloOpensNothing) {
  const auto node = Node(
      1, [](WireOptions* options) { options->admission.place_time = absl::Milliseconds(200); });
  const WireAddress address = node->wire().address();
  During(*loop_, [&] {
    RawAgent silent(address, {.terms = TermsOf(address, 1)});
    ASSERT_TRUE(silent.TakeAnswer());
    EXPECT_TRUE(silent.peer().Closed());
  });
  EXPECT_EQ(node->wire().counters()[Refusal::kTooSlow], 1U);
  EXPECT_EQ(node->wire().Usage().connections, 0U);
  EXPECT_EQ(node->wire().Usage().unconfirmed, 0U);
  EXPECT_TRUE(node->opened.empty());
  EXPECT_TRUE(node->closed.empty());  // Nobody was told that it was there.
}

TEST_F(WireTest, AWrongConfirmationOpensNothing) {
  const auto node = Node(1);
  const WireAddress address = node->wire().address();
  During(*loop_, [&] {
    RawAgent wrong(address, {.terms = TermsOf(address, 1)});
    ASSERT_TRUE(wrong.TakeAnswer());
    ASSERT_TRUE(wrong.peer().SendBytes(Counting(0, kConfirmationBytes)));
    RawAgent gone(address, {.terms = TermsOf(address, 1)});
    ASSERT_TRUE(gone.TakeAnswer());
    gone.peer().Close();
    EXPECT_TRUE(wrong.peer().Closed());
  });
  ASSERT_TRUE(Until([&] { return node->wire().Usage().connections == 0; }));
  EXPECT_EQ(node->wire().counters()[Refusal::kFrameNotAuthentic], 1U);
  EXPECT_EQ(node->wire().counters()[Refusal::kGone], 1U);
  EXPECT_EQ(node->wire().Usage().unconfirmed, 0U);
  EXPECT_TRUE(node->opened.empty());
  EXPECT_TRUE(node->closed.empty());
}

TEST_F(WireTest, ConfirmationsInPiecesAndFramesRightBehind) {
  const auto node = Node(1);
  const WireAddress address = node->wire().address();
  During(*loop_, [&] {
    RawAgent agent(address, {.terms = TermsOf(address, 1)});
    ASSERT_TRUE(agent.TakeAnswer());
    const auto confirmation = agent.channel().SealConfirmation();
    const std::vector<uint8_t> frame = SealText(agent.channel(), "right behind");
    std::vector<uint8_t> bytes(confirmation.begin(), confirmation.end());
    bytes.insert(bytes.end(), frame.begin(), frame.end());
    for (const uint8_t& byte : bytes) {
      ASSERT_TRUE(agent.peer().SendBytes({&byte, 1}));
      if (&byte - bytes.data() < 30) ::usleep(1000);
    }
    RawAgent other(address, {.terms = TermsOf(address, 1)});
    ASSERT_TRUE(other.Open() && other.SendText("at once"));
  });
  ASSERT_TRUE(Until([&] { return node->frames.size() == 2; }));
  EXPECT_EQ(node->wire().counters().opened_incoming, 2U);
  const std::set<std::string> texts = {node->frames[0].second, node->frames[1].second};
  EXPECT_EQ(texts, (std::set<std::string>{"right behind", "at once"}));
}

}  // namespace
}  // namespace perdure
