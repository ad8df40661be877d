#include "runtime/agent/peers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

WireAddress Loopback(uint16_t port) {
  return *ParseWireAddressText(fmt::format("127.0.0.1:{}", port));
}

TEST(PeerFrame, ComesBackAsItWas) {
  const std::vector<PeerFrame> frames = {
      ControlMessage(msg::Go{.term = 3, .generation = 9}),
      Introduction{Loopback(1)},
      Directory{{{.node = 7, .address = Loopback(65535)}, {.node = 0xfffffffe, .address = {}}}},
      Directory{},
      Where{{0, 7, 0xfffffffe}},
      Where{},
      Fetch{.number = ~0ull,
            .generation = 1ull << 63,
            .step = 1LL << 62,
            .rank = 1 << 30,
            .offset = kFetchOffsetMax,
            .bytes = kPieceBytesMax},
      SnapshotPiece{.number = 3, .file_bytes = kFetchOffsetMax, .bytes = std::string("\0\xff", 2)},
      SnapshotPiece{.number = 3, .bytes = std::string(kPieceBytesMax, 'x')},
      Refused{.number = 9, .why = Refused::Why::kBusy}};
  for (const PeerFrame& frame : frames) {
    const std::string bytes = EncodePeerFrame(frame);
    const auto decoded = DecodePeerFrame(bytes);
    ASSERT_OK(decoded.status());
    EXPECT_EQ(*decoded, frame);
    // No other bytes mean it.
    for (size_t cut = 0; cut < bytes.size(); cut += 1 + bytes.size() / 1000) {
      const auto part = DecodePeerFrame(std::string_view(bytes).substr(0, cut));
      EXPECT_FALSE(part.ok() && *part == frame) << cut;
    }
    const auto longer = DecodePeerFrame(bytes + "x");
    EXPECT_FALSE(longer.ok() && *longer == frame);
  }
}

TEST(PeerFrame, HostileBytesAreRefused) {
  EXPECT_TRUE(absl::IsDataLoss(DecodePeerFrame("").status()));
  EXPECT_TRUE(absl::IsDataLoss(DecodePeerFrame("\x07").status()));
  const auto fails = [](PeerFrame frame) {
    EXPECT_TRUE(absl::IsDataLoss(DecodePeerFrame(EncodePeerFrame(frame)).status()));
  };
  fails(Where{std::vector<NodeId>(kWhereNodesMax + 1, 5)});
  const Fetch fetch{.number = 1, .generation = 1, .step = 1, .rank = 1, .offset = 1, .bytes = 1};
  for (const auto& change : std::vector<std::function<void(Fetch&)>>{
           [](Fetch& f) { f.step = -1; }, [](Fetch& f) { f.rank = -1; },
           [](Fetch& f) { f.offset = kFetchOffsetMax + 1; }, [](Fetch& f) { f.bytes = 0; },
           [](Fetch& f) { f.bytes = kPieceBytesMax + 1; }}) {
    Fetch wrong = fetch;
    change(wrong);
    fails(wrong);
  }
  fails(SnapshotPiece{.number = 1, .bytes = ""});
  fails(SnapshotPiece{.number = 1, .bytes = std::string(kPieceBytesMax + 1, 'x')});
  fails(SnapshotPiece{.number = 1, .file_bytes = kFetchOffsetMax + 1, .bytes = "x"});
  fails(Refused{.number = 1, .why = static_cast<Refused::Why>(2)});
  TestRandom random(1);
  for (int i = 0; i < 20000; ++i) {
    std::string bytes(random.Below(60), '\0');
    for (char& c : bytes) c = static_cast<char>(random.Below(i % 2 == 0 ? 256 : 8));
    if (const auto frame = DecodePeerFrame(bytes); frame.ok())
      EXPECT_EQ(EncodePeerFrame(*frame), bytes);
  }
}

// An agent's connections, and what came over them.
struct Side {
  Side(EventLoop* loop, NodeId node, uint64_t job = 1, uint64_t incarnation = 0,
       const std::function<void(PeersOptions*)>& change = {}) {
    PeersOptions options;
    options.wire.run_id = "0123456789abcdef0123456789abcdef";
    options.wire.job = job;
    options.wire.nodes = 8;
    options.wire.self = {.node = node, .incarnation = incarnation == 0 ? node + 1 : incarnation};
    options.wire.interface = "127.0.0.1";
    if (change) change(&options);
    peers = *Peers::New(loop, Key(job), options,
                        {.on_message =
                             [this](const Endpoint& from, ControlMessage message) {
                               got.emplace_back(from, std::move(message));
                             },
                         .on_closed = [this](NodeId gone) { closed.push_back(gone); },
                         .on_snapshot =
                             [this](NodeId from, SnapshotFrame frame) {
                               snapshots.emplace_back(from, std::move(frame));
                             },
                         .on_lost = [this](NodeId of) { lost.push_back(of); },
                         .key_of_job = [](uint64_t other) { return Key(other); }});
  }
  static JobKey Key(uint64_t job) {
    static const std::array<uint8_t, kSecretBytes> file_key{1, 2, 3};
    return JobKey::Derive({.file_key = file_key, .run_id = "r", .job = job});
  }
  std::unique_ptr<Peers> peers;
  std::vector<std::pair<Endpoint, ControlMessage>> got;
  std::vector<NodeId> closed;
  std::vector<std::pair<NodeId, SnapshotFrame>> snapshots;
  std::vector<NodeId> lost;
};

class PeersTest : public testing::Test {
 protected:
  PeersTest() : loop_(*EventLoop::New()) {}
  bool Until(const std::function<bool()>& done) {
    const absl::Time end = MonotonicNow() + absl::Seconds(60);
    while (!done() && MonotonicNow() < end) loop_->RunOnce(MonotonicNow() + absl::Milliseconds(5));
    return done();
  }
  static void Knows(Side& side, NodeId node, const Side& other, uint64_t job = 1,
                    uint64_t incarnation = 0) {
    side.peers->LearnLeader({{job, node}, incarnation == 0 ? node + 1 : incarnation},
                            {.address = WireAddressText(other.peers->address())});
  }
  // `a`, node 1, knows from `lead`, node 0, where `b`, node 2, listens; false: not in time.
  bool LearnsOf(Side& a, Side& b, Side& lead) {
    for (Side* side : {&a, &b}) {
      Knows(*side, 0, lead);
      side->peers->Send({1, 0}, msg::Go{});
    }
    if (!Until([&] { return lead.got.size() == 2; })) return false;
    lead.peers->SendDirectory(1, {2});
    lead.peers->Send({1, 1}, msg::Go{});
    return Until([&] { return a.got.size() == 1; });
  }
  const std::unique_ptr<EventLoop> loop_;
};

TEST_F(PeersTest, OneConnectionServesBothWays) {
  Side a(loop_.get(), 0), b(loop_.get(), 1);
  b.peers->Send({1, 0}, msg::Go{.term = 1});  // Unknown address: dropped.
  EXPECT_EQ(b.peers->counters().dropped, 1u);
  Knows(b, 0, a);
  b.peers->Send({1, 0}, msg::Go{.term = 2});
  b.peers->Send({1, 0}, msg::Go{.term = 3});
  ASSERT_TRUE(Until([&] { return a.got.size() == 2; }));
  EXPECT_EQ(a.got[0].first, (Endpoint{1, 1}));
  EXPECT_EQ(a.got[1].second, ControlMessage(msg::Go{.term = 3}));
  a.peers->Send({1, 1}, msg::Announce{.term = 4});
  ASSERT_TRUE(Until([&] { return b.got.size() == 1; }));
  EXPECT_EQ(a.peers->wire().Usage().connections, 1u);
  // Its end is told once.
  b.peers.reset();
  ASSERT_TRUE(Until([&] { return !a.closed.empty(); }));
  EXPECT_THAT(a.closed, ElementsAre(1u));
  EXPECT_THAT(a.lost, ElementsAre(1u));
}

// The coordinator tells a node where its children in the table's tree listen.
TEST_F(PeersTest, AddressesAreHandedOn) {
  Side lead(loop_.get(), 0), parent(loop_.get(), 1), child(loop_.get(), 2);
  for (Side* side : {&parent, &child}) {
    Knows(*side, 0, lead);
    side->peers->Send({1, 0}, msg::Go{});
  }
  ASSERT_TRUE(Until([&] { return lead.got.size() == 2; }));
  lead.peers->SendDirectory(1, {2, 5});  // Nobody knows 5.
  lead.peers->Send({1, 1}, msg::Go{});
  ASSERT_TRUE(Until([&] { return parent.got.size() == 1; }));
  parent.peers->Send({1, 2}, msg::Table{.term = 9});
  ASSERT_TRUE(Until([&] { return child.got.size() == 1; }));
  EXPECT_EQ(child.got[0].first, (Endpoint{1, 1}));
}

// Of a node that it has never heard of, one asks whoever leads.
TEST_F(PeersTest, WhoLeadsKnowsWhereOthersListen) {
  Side lead(loop_.get(), 0), a(loop_.get(), 1), b(loop_.get(), 2);
  const Fetch fetch{.number = 5, .bytes = 1};
  EXPECT_TRUE(absl::IsUnavailable(a.peers->SendSnapshot(2, fetch)));  // Nobody leads.
  for (Side* side : {&a, &b}) {
    Knows(*side, 0, lead);
    side->peers->Send({1, 0}, msg::Go{});
  }
  ASSERT_TRUE(Until([&] { return lead.got.size() == 2; }));
  EXPECT_TRUE(absl::IsUnavailable(a.peers->SendSnapshot(3, fetch)));  // Nobody knows.
  ASSERT_TRUE(Until([&] { return a.peers->SendSnapshot(2, fetch).ok(); }));
  ASSERT_TRUE(Until([&] { return !b.snapshots.empty(); }));
  EXPECT_EQ(b.snapshots[0].first, 1u);
  EXPECT_EQ(std::get<Fetch>(b.snapshots[0].second), fetch);
  EXPECT_OK(b.peers->SendSnapshot(1, SnapshotPiece{.number = 5, .bytes = "x"}));
  EXPECT_OK(b.peers->SendSnapshot(1, Refused{.number = 6}));
  ASSERT_TRUE(Until([&] { return a.snapshots.size() == 2; }));
  EXPECT_EQ(std::get<SnapshotPiece>(a.snapshots[0].second).bytes, "x");
  EXPECT_EQ(std::get<Refused>(a.snapshots[1].second).number, 6u);
  EXPECT_THAT(lead.snapshots, IsEmpty());
}

TEST_F(PeersTest, ANewLifeReplacesTheOldOne) {
  Side a(loop_.get(), 0), old(loop_.get(), 1, 1, 77);
  Knows(old, 0, a);
  old.peers->Send({1, 0}, msg::Go{.term = 1});
  ASSERT_TRUE(Until([&] { return a.got.size() == 1; }));
  Side young(loop_.get(), 1, 1, 78);  // The old one has not been heard to end.
  Knows(young, 0, a);
  young.peers->Send({1, 0}, msg::Go{.term = 2});
  ASSERT_TRUE(Until([&] { return a.got.size() == 2; }));
  EXPECT_THAT(a.closed, ElementsAre(1u));
  EXPECT_THAT(a.lost, ElementsAre(1u));
  a.peers->Send({1, 1}, msg::Announce{.term = 3});
  ASSERT_TRUE(Until([&] { return young.got.size() == 1; }));
  EXPECT_THAT(old.got, IsEmpty());
}

// So whoever leads is asked again, who may know by then that it came back, and where.
TEST_F(PeersTest, AnAddressThatNobodyAnswersAtIsForgotten) {
  Side lead(loop_.get(), 0), a(loop_.get(), 1, 1, 0, [](PeersOptions*options) {
    options->connect_time = absl::Milliseconds(50);
  });
  auto old = std::make_unique<Side>(loop_.get(), 2, 1, 77);
  ASSERT_TRUE(LearnsOf(a, *old, lead));
  old.reset();
  const Fetch fetch{.number = 5, .bytes = 1};
  ASSERT_OK(a.peers->SendSnapshot(2, fetch));
  ASSERT_TRUE(Until([&] { return !a.lost.empty(); }));
  EXPECT_THAT(a.lost, ElementsAre(2u));
  EXPECT_THAT(a.closed, IsEmpty());
  EXPECT_TRUE(absl::IsUnavailable(a.peers->SendSnapshot(2, fetch)));
  Side young(loop_.get(), 2, 1, 78);
  Knows(young, 0, lead);
  young.peers->Send({1, 0}, msg::Go{});
  ASSERT_TRUE(Until([&] {
    (void)a.peers->SendSnapshot(2, fetch);
    return !young.snapshots.empty();
  }));
}

// Whoever leads is asked in any case, so it need not be found out first that nobody answers.
TEST_F(PeersTest, ANewAddressServesWhatWaitsForTheOldOne) {
  const auto patient = [](PeersOptions* options) { options->connect_time = absl::Hours(1); };
  Side lead(loop_.get(), 0), a(loop_.get(), 1, 1, 0, patient);
  auto old = std::make_unique<Side>(loop_.get(), 2, 1, 77);
  ASSERT_TRUE(LearnsOf(a, *old, lead));
  old.reset();
  Side young(loop_.get(), 2, 1, 78);
  Knows(young, 0, lead);
  young.peers->Send({1, 0}, msg::Go{});
  ASSERT_TRUE(Until([&] { return lead.got.size() == 3; }));
  ASSERT_OK(a.peers->SendSnapshot(2, Fetch{.number = 5, .bytes = 1}));
  ASSERT_TRUE(Until([&] { return !young.snapshots.empty(); }));
  EXPECT_THAT(a.lost, IsEmpty());
}

TEST_F(PeersTest, WhatWaitsIsBounded) {
  Side a(loop_.get(), 0, 1, 0, [](PeersOptions* options) {
    options->waiting_frames_max = 3;
    options->waiting_bytes_max = 1000;
    options->connect_time = absl::Milliseconds(200);
  });
  // Nobody listens there.
  const uint16_t port = Side(loop_.get(), 5).peers->address().port;
  a.peers->LearnLeader({{1, 4}, 5}, {.address = fmt::format("127.0.0.1:{}", port)});
  for (int i = 0; i < 10; ++i) a.peers->Send({1, 4}, msg::Go{});
  EXPECT_EQ(a.peers->counters().dropped, 7u);
  ASSERT_TRUE(Until([&] { return a.peers->counters().dropped == 10; }));
  a.peers->Send({1, 4}, msg::Table{.packed = std::string(2000, 'x')});
  EXPECT_EQ(a.peers->counters().dropped, 11u);
}

// Whoever holds the key and says nonsense is put out, and heard when he comes again.
TEST_F(PeersTest, MalformedFramesEndTheConnection) {
  Side a(loop_.get(), 0);
  auto liar = *Wire::New(loop_.get(), Side::Key(1),
                         {.run_id = "0123456789abcdef0123456789abcdef",
                          .job = 1,
                          .self = {.node = 3, .incarnation = 4}},
                         {.on_open = [](ConnectionId, const WirePeer&, bool) {},
                          .on_frame = [](ConnectionId, std::string_view) {},
                          .on_close = [](ConnectionId, const absl::Status&) {}});
  const ConnectionId id =
      liar->Connect(a.peers->address(), 0, 0, MonotonicNow() + absl::Seconds(20));
  ASSERT_TRUE(Until([&] { return liar->counters().opened_outgoing == 1; }));
  ASSERT_OK(liar->Send(id, "\x07nonsense"));
  ASSERT_TRUE(Until([&] { return a.peers->counters().malformed == 1; }));
  EXPECT_THAT(a.closed, ElementsAre(3u));
  EXPECT_THAT(a.got, IsEmpty());
  Side honest(loop_.get(), 3, 1, 9);
  Knows(honest, 0, a);
  honest.peers->Send({1, 0}, msg::Go{});
  ASSERT_TRUE(Until([&] { return a.got.size() == 1; }));
}

TEST_F(PeersTest, AnotherJobMayAskWhetherTheCoordinatorLives) {
  Side lead(loop_.get(), 0, 1), other(loop_.get(), 0, 2);
  Knows(other, 0, lead, 1);
  other.peers->Send({1, 0}, msg::Probe{.term = 6});
  ASSERT_TRUE(Until([&] { return lead.got.size() == 1; }));
  EXPECT_EQ(lead.got[0].second, ControlMessage(msg::Probe{.term = 6}));
  EXPECT_NE(lead.got[0].first.job, 1u);
  lead.peers->Send(lead.got[0].first, msg::Leading{.term = 6});
  ASSERT_TRUE(Until([&] { return other.got.size() == 1; }));
  EXPECT_EQ(other.got[0].first, (Endpoint{1, 0}));
  // And again on the same connection.
  other.peers->Send({1, 0}, msg::Probe{.term = 6});
  ASSERT_TRUE(Until([&] { return lead.got.size() == 2; }));
  EXPECT_EQ(lead.peers->wire().counters().opened_incoming, 1u);
  // But say nothing else.
  other.peers->Send({1, 0}, msg::Bye{.term = 6, .exit_code = 93});
  ASSERT_TRUE(Until([&] { return lead.peers->counters().malformed == 1; }));
  EXPECT_EQ(lead.got.size(), 2u);
  // The next leader is asked elsewhere.
  lead.peers.reset();
  Side next(loop_.get(), 2, 1);
  Knows(other, 2, next, 1);
  other.peers->Send({1, 2}, msg::Probe{.term = 8});
  ASSERT_TRUE(Until([&] { return next.got.size() == 1; }));
}

}  // namespace
}  // namespace perdure
