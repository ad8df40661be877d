#include "runtime/agent/snapshot_fetch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "runtime/agent/peers.h"
#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kFileBytes = 3'000'000;

// Nodes that serve one file each, without a network: what is sent waits until it is delivered.
class SnapshotFetchTest : public testing::Test {
 protected:
  SnapshotFetchTest() : loop_(*EventLoop::New()) {
    TestRandom random(5);
    content_.resize(kFileBytes);
    for (char& c : content_) c = static_cast<char>(random.Next());
    Spill(directory_.path() + "/held", content_);
    fetch_ = std::make_unique<SnapshotFetch>(
        loop_.get(), SnapshotFetch::Options{.window = 4, .timeout = absl::Milliseconds(300)},
        [this](NodeId to, const SnapshotFrame& frame) { return Ask(to, std::get<Fetch>(frame)); });
    for (const NodeId node : {1u, 2u, 3u})
      servers_[node] = std::make_unique<SnapshotServer>(
          loop_.get(), [this, node](const Fetch& f) { return PathAt(node, f); },
          [this, node](NodeId, const SnapshotFrame& frame) { return Give(node, frame); });
  }
  absl::Status Ask(NodeId to, const Fetch& fetch) {
    if (unreachable_ == to) return Unavailable("node {} is not known", to);
    ++open_[to];
    most_ = std::max(most_, open_[to]);
    if (silent_ == to) return absl::OkStatus();
    servers_.at(to)->Answer(0, fetch);
    return absl::OkStatus();
  }
  absl::Status Give(NodeId from, const SnapshotFrame& frame) {
    if (full_-- > 0) return ResourceExhausted("too much waits");
    loop_->AddTimer(MonotonicNow(), [this, from, frame] {
      --open_[from];
      if (const auto* piece = std::get_if<SnapshotPiece>(&frame))
        fetch_->Take(from, *piece);
      else
        fetch_->Take(from, std::get<Refused>(frame));
    });
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> PathAt(NodeId node, const Fetch& fetch) const {
    if (node == without_ || fetch.generation != 3 || fetch.step != 17)
      return NotFound("not held here");
    return directory_.path() + "/held";
  }
  SnapshotFetch::Order Order(std::vector<NodeId> holders,
                             std::vector<ByteRange> ranges = {{0, kFileBytes}}) const {
    return {.generation = 3,
            .step = 17,
            .rank = 5,
            .ranges = std::move(ranges),
            .holders = std::move(holders),
            .path = directory_.path() + "/fetched"};
  }
  absl::Status Fetched(const SnapshotFetch::Order& order) {
    std::optional<absl::Status> status;
    fetch_->Begin(order, [&](const absl::Status& s) { status = s; });
    EXPECT_FALSE(status.has_value());  // Never from inside the call.
    EXPECT_TRUE(Until([&] { return status.has_value(); }));
    EXPECT_TRUE(fetch_->idle());
    return status.value_or(Internal("it hangs"));
  }
  bool Until(const std::function<bool()>& done) {
    const absl::Time end = MonotonicNow() + absl::Seconds(60);
    while (!done() && MonotonicNow() < end) loop_->RunOnce(MonotonicNow() + absl::Milliseconds(5));
    return done();
  }
  std::string Result() const { return Slurp(directory_.path() + "/fetched"); }

  const TestDirectory directory_;
  const std::unique_ptr<EventLoop> loop_;
  std::string content_;
  std::map<NodeId, std::unique_ptr<SnapshotServer>> servers_;
  std::unique_ptr<SnapshotFetch> fetch_;
  std::map<NodeId, size_t> open_;
  size_t most_ = 0;
  NodeId unreachable_ = 99, silent_ = 99, without_ = 99;
  int full_ = 0;
};

TEST_F(SnapshotFetchTest, AWholeFileInAWindow) {
  full_ = 3;  // What a connection does not take at once is not lost.
  EXPECT_OK(Fetched(Order({1})));
  EXPECT_EQ(Result(), content_);
  EXPECT_EQ(most_, 4u);
  EXPECT_EQ(fetch_->counters().bytes, static_cast<uint64_t>(kFileBytes));
}

TEST_F(SnapshotFetchTest, OnlyWhatIsAskedFor) {
  EXPECT_OK(Fetched(Order({1}, {{0, 4096}, {1'000'000, 300'000}, {5, 0}})));
  const std::string result = Result();
  ASSERT_EQ(result.size(), content_.size());
  EXPECT_EQ(result.substr(0, 4096), content_.substr(0, 4096));
  EXPECT_EQ(result.substr(4096, 1000), std::string(1000, '\0'));
  EXPECT_EQ(result.substr(1'000'000, 300'000), content_.substr(1'000'000, 300'000));
  EXPECT_EQ(result.back(), '\0');
  EXPECT_EQ(fetch_->counters().bytes, 304'096u);
  // Nothing at all is there at once.
  EXPECT_OK(Fetched(Order({1}, {})));
  EXPECT_EQ(Result(), "");
}

TEST_F(SnapshotFetchTest, TheNextHolderIsAsked) {
  without_ = 1;
  unreachable_ = 2;
  EXPECT_OK(Fetched(Order({1, 2, 3})));
  EXPECT_EQ(Result(), content_);
  without_ = unreachable_ = 99;
  silent_ = 1;
  EXPECT_OK(Fetched(Order({1, 3})));
  EXPECT_EQ(Result(), content_);
  EXPECT_EQ(fetch_->counters().timeouts, 2u);
}

TEST_F(SnapshotFetchTest, NobodyHasIt) {
  without_ = 1;
  silent_ = 2;
  unreachable_ = 3;
  const absl::Status status = Fetched(Order({1, 2, 3}));
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_THAT(Message(status),
              AllOf(HasSubstr("rank 5 at step 17 of generation 3"),
                    HasSubstr("node 1 does not hold it"), HasSubstr("node 2 did not answer")));
  EXPECT_TRUE(absl::IsUnavailable(Fetched(Order({}))));
}

// A holder that has less than was asked for does not have it.
TEST_F(SnapshotFetchTest, AFileThatIsTooShort) {
  EXPECT_TRUE(absl::IsUnavailable(Fetched(Order({1}, {{0, kFileBytes + 1}}))));
}

TEST_F(SnapshotFetchTest, TroubleOfItsOwn) {
  SnapshotFetch::Order order = Order({1});
  order.path = directory_.path() + "/nowhere/file";
  EXPECT_THAT(Message(Fetched(order)), HasSubstr("nowhere"));
  for (const ByteRange& range : {ByteRange{-1, 5}, ByteRange{5, -1}, ByteRange{5, 1L << 62}})
    EXPECT_TRUE(absl::IsInvalidArgument(Fetched(Order({1}, {range}))));
}

TEST_F(SnapshotFetchTest, StrangeAnswersAreNone) {
  silent_ = 1;
  std::optional<absl::Status> status;
  fetch_->Begin(Order({1}, {{0, 10}}), [&](const absl::Status& s) { status = s; });
  const auto piece = [](uint64_t number, const std::string& bytes, uint64_t file_bytes = 10) {
    return SnapshotPiece{.number = number, .file_bytes = file_bytes, .bytes = bytes};
  };
  fetch_->Take(1, piece(77, "0123456789"));    // No question.
  fetch_->Take(2, piece(1, "0123456789"));     // Not his.
  fetch_->Take(1, piece(1, "012345678"));      // Too short.
  fetch_->Take(1, piece(1, "0123456789", 9));  // More than there is.
  fetch_->Take(2, Refused{.number = 1});
  fetch_->Take(1, Refused{.number = 77});
  EXPECT_EQ(fetch_->counters().strange, 6u);
  fetch_->Take(1, piece(1, "0123456789"));
  fetch_->Take(1, piece(1, "9876543210"));  // Answered already.
  ASSERT_TRUE(Until([&] { return status.has_value(); }));
  EXPECT_OK(*status);
  EXPECT_EQ(Result(), "0123456789");
}

// A connection went down with what was on its way.
TEST_F(SnapshotFetchTest, WhatIsLostIsAskedAgain) {
  silent_ = 1;
  std::optional<absl::Status> status;
  fetch_->Begin(Order({1}), [&](const absl::Status& s) { status = s; });
  EXPECT_EQ(open_[1], 4u);
  silent_ = 99;
  fetch_->Lost(2);
  open_[1] = 0;
  fetch_->Lost(1);
  ASSERT_TRUE(Until([&] { return status.has_value(); }));
  EXPECT_OK(*status);
  EXPECT_EQ(Result(), content_);
  EXPECT_EQ(fetch_->counters().timeouts, 0u);
}

// Not for ever: neither where all is lost nor where nobody has time.
TEST_F(SnapshotFetchTest, AHolderThatGivesNothingIsGivenUp) {
  for (const bool busy : {false, true}) {
    silent_ = 1;
    std::optional<absl::Status> status;
    fetch_->Begin(Order({1, 2}, {{0, 10}}), [&](const absl::Status& s) { status = s; });
    ASSERT_TRUE(Until([&] {
      if (busy)
        for (uint64_t number = 0; number < 1000; ++number)
          fetch_->Take(1, Refused{.number = number, .why = Refused::Why::kBusy});
      else
        fetch_->Lost(1);
      return status.has_value();
    }));
    EXPECT_OK(*status);
    EXPECT_EQ(fetch_->counters().timeouts, busy ? 2u : 1u);
    EXPECT_GT(open_[1], 2u);  // Again and again.
  }
}

TEST_F(SnapshotFetchTest, WhatIsCancelledIsNotTold) {
  for (int i = 0; i < 2; ++i) {
    bool told = false;
    fetch_->Begin(Order({1}), [&](const absl::Status&) { told = true; });
    if (i == 0)
      fetch_->CancelAll();
    else
      fetch_->Begin(Order({}), [&](const absl::Status&) { told = true; });
    fetch_->CancelAll();
    EXPECT_TRUE(fetch_->idle());
    (void)Until([end = MonotonicNow() + absl::Milliseconds(100)] { return MonotonicNow() > end; });
    EXPECT_FALSE(told);
  }
  EXPECT_OK(Fetched(Order({1})));
}

TEST_F(SnapshotFetchTest, ManyAtOnceShareAWindow) {
  int done = 0;
  for (int i = 0; i < 5; ++i) {
    SnapshotFetch::Order order = Order({static_cast<NodeId>(1 + i % 2)});
    order.path += std::to_string(i);
    fetch_->Begin(std::move(order), [&](const absl::Status& status) {
      EXPECT_OK(status);
      ++done;
    });
  }
  ASSERT_TRUE(Until([&] { return done == 5; }));
  EXPECT_EQ(most_, 4u);
  for (int i = 0; i < 5; ++i)
    EXPECT_TRUE(Slurp(directory_.path() + "/fetched" + std::to_string(i)) == content_) << i;
}

// Whoever asks without end is refused beyond a bound; others are served.
TEST_F(SnapshotFetchTest, AServerIsBounded) {
  std::map<NodeId, std::pair<int, int>> got;  // Pieces, refusals.
  SnapshotServer server(
      loop_.get(), [this](const Fetch& f) { return PathAt(1, f); },
      [&](NodeId to, const SnapshotFrame& frame) {
        ++(std::holds_alternative<SnapshotPiece>(frame) ? got[to].first : got[to].second);
        return absl::OkStatus();
      });
  const Fetch fetch{.number = 1, .generation = 3, .step = 17, .rank = 5, .offset = 0, .bytes = 100};
  for (int i = 0; i < 1000; ++i) server.Answer(7, fetch);
  server.Answer(8, fetch);
  EXPECT_EQ(server.waiting(), SnapshotServer::kWaitingMax + 1);
  EXPECT_EQ(got[7], std::pair(0, 1000 - static_cast<int>(SnapshotServer::kWaitingMax)));
  loop_->RunOnce(MonotonicNow());
  EXPECT_EQ(got[8], std::pair(1, 0));
  ASSERT_TRUE(Until([&] { return server.waiting() == 0; }));
  EXPECT_EQ(got[7].first, static_cast<int>(SnapshotServer::kWaitingMax));
}

// Over connections as they are, between nodes that do not know each other: who leads does.
TEST(SnapshotFetchOverPeers, AsksWhereTheHolderListens) {
  const std::unique_ptr<EventLoop> loop = *EventLoop::New();
  const TestDirectory directory;
  TestRandom random(5);
  std::string content(5'000'000, '\0');
  for (char& c : content) c = static_cast<char>(random.Next());
  Spill(directory.path() + "/held", content);

  std::vector<std::unique_ptr<Peers>> peers(3);
  std::unique_ptr<SnapshotServer> server;
  std::unique_ptr<SnapshotFetch> fetch;
  const auto send = [&](NodeId self) {
    return [&peers, self](NodeId to, const SnapshotFrame& frame) {
      return peers[self]->SendSnapshot(to, frame);
    };
  };
  server = std::make_unique<SnapshotServer>(
      loop.get(), [&](const Fetch&) { return directory.path() + "/held"; }, send(2));
  fetch = std::make_unique<SnapshotFetch>(loop.get(), SnapshotFetch::Options{}, send(1));
  for (NodeId node = 0; node < 3; ++node) {
    PeersOptions options;
    options.wire.run_id = "0123456789abcdef0123456789abcdef";
    options.wire.job = 1;
    options.wire.nodes = 3;
    options.wire.self = {.node = node, .incarnation = node + 1};
    options.wire.interface = "127.0.0.1";
    static const std::array<uint8_t, kSecretBytes> file_key{1, 2, 3};
    peers[node] = *Peers::New(
        loop.get(), JobKey::Derive({.file_key = file_key, .run_id = "r", .job = 1}), options,
        {.on_message = [](const Endpoint&, const ControlMessage&) {},
         .on_closed = [](NodeId) {},
         .on_snapshot =
             [&, node](NodeId from, const SnapshotFrame& frame) {
               if (const auto* question = std::get_if<Fetch>(&frame)) {
                 ASSERT_EQ(node, 2u);
                 server->Answer(from, *question);
               } else if (const auto* piece = std::get_if<SnapshotPiece>(&frame)) {
                 ASSERT_EQ(node, 1u);
                 fetch->Take(from, *piece);
               }
             },
         .key_of_job = [](uint64_t) -> absl::StatusOr<JobKey> { return NotFound("none"); }});
  }
  for (const NodeId node : {1u, 2u}) {
    peers[node]->LearnLeader({{1, 0}, 1}, {.address = WireAddressText(peers[0]->address())});
    peers[node]->Send({1, 0}, msg::Go{.term = 1});
  }
  std::optional<absl::Status> status;
  fetch->Begin({.generation = 3,
                .step = 17,
                .rank = 5,
                .ranges = {{0, static_cast<int64_t>(content.size())}},
                .holders = {2},
                .path = directory.path() + "/fetched"},
               [&](const absl::Status& s) { status = s; });
  const absl::Time end = MonotonicNow() + absl::Seconds(60);
  while (!status.has_value() && MonotonicNow() < end)
    loop->RunOnce(MonotonicNow() + absl::Milliseconds(5));
  ASSERT_TRUE(status.has_value());
  EXPECT_OK(*status);
  EXPECT_TRUE(Slurp(directory.path() + "/fetched") == content);
  for (const auto& node : peers) EXPECT_EQ(node->counters().malformed, 0u);
}

}  // namespace
}  // namespace perdure
