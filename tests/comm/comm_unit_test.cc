// The pieces below the transports: addresses, matching, the watch against strangers, and the choice
// of a transport.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/poll.h>
#include <sys/socket.h>

#include <cstring>
#include <thread>

#include "absl/time/clock.h"
#include "runtime/base/status.h"
#include "runtime/comm/address.h"
#include "runtime/comm/matcher.h"
#include "runtime/comm/peer_watch.h"
#include "runtime/comm/transport.h"
#include "tests/comm/ranks.h"

namespace perdure {
namespace {

using testing::HasSubstr;

RankAddress SomeAddress() {
  RankAddress address;
  address.kind = "ucx";
  address.network = "tcp";
  address.rank = 258;
  address.watch = {"boot net:[1]", {"10.0.0.1", "fd00::2"}, 40000, {1, 2, 3, 255}};
  address.fabric = std::string("\0\1binary", 8);
  return address;
}

TEST(AddressTest, ComesBackAsItWas) {
  const auto unpacked = UnpackAddress(PackAddress(SomeAddress()));
  ASSERT_TRUE(unpacked.ok()) << unpacked.status();
  EXPECT_TRUE(*unpacked == SomeAddress());
}

TEST(AddressTest, DamageIsInvalidArgument) {
  const std::string packed = PackAddress(SomeAddress());
  for (size_t bytes = 0; bytes < packed.size(); ++bytes)
    EXPECT_TRUE(absl::IsInvalidArgument(UnpackAddress(packed.substr(0, bytes)).status())) << bytes;
  EXPECT_TRUE(absl::IsInvalidArgument(UnpackAddress(packed + "x").status()));
  std::string other = packed;
  other[0] = 'X';
  EXPECT_TRUE(absl::IsInvalidArgument(UnpackAddress(other).status()));
  for (size_t at = 8; at < 12; ++at) {  // A length that points beyond the end.
    other = packed;
    other[at] = '\xff';
    EXPECT_TRUE(absl::IsInvalidArgument(UnpackAddress(other).status())) << at;
  }
}

OperationRef NewOperation(Operation::Kind kind, uint64_t tag, void* data, size_t bytes) {
  return std::make_shared<Operation>(kind, 0, tag, data, bytes);
}

TEST(MatcherTest, LongSendsWaitForTheirReceiveAndCanFail) {
  Matcher matcher;
  std::vector<char> data(Matcher::kEagerBytes + 1, 'a'), small(4, 'b'), got(4);
  const auto from_1 = NewOperation(Operation::Kind::kSend, 5, data.data(), data.size());
  const auto from_2 = NewOperation(Operation::Kind::kSend, 5, data.data(), data.size());
  const auto short_1 = NewOperation(Operation::Kind::kSend, 6, small.data(), small.size());
  const auto receive_1 = NewOperation(Operation::Kind::kRecv, 7, got.data(), got.size());
  EXPECT_FALSE(matcher.Send(1, from_1));
  EXPECT_FALSE(matcher.Send(2, from_2));
  EXPECT_FALSE(matcher.Send(1, short_1));
  EXPECT_FALSE(matcher.Recv(1, receive_1));
  EXPECT_TRUE(short_1->done());
  EXPECT_FALSE(from_1->done() || receive_1->done());
  matcher.Fail(1, Unavailable("receives"), Unavailable("sends"));
  EXPECT_EQ(Message(receive_1->status()), "receives");
  EXPECT_EQ(Message(from_1->status()), "sends");
  EXPECT_FALSE(from_2->done());
  EXPECT_FALSE(matcher.HasSend(1, 5));
  // What was copied survives its sender.
  ASSERT_TRUE(matcher.HasSend(1, 6));
  std::fill(small.begin(), small.end(), 'x');
  const auto late = NewOperation(Operation::Kind::kRecv, 6, got.data(), got.size());
  EXPECT_TRUE(matcher.Recv(1, late));
  EXPECT_TRUE(late->status().ok());
  EXPECT_EQ(std::string(got.begin(), got.end()), "bbbb");
  matcher.FailAll(Unavailable("all"));
  EXPECT_EQ(Message(from_2->status()), "all");
}

// Somebody who found the port but does not know the token.
void Knock(uint16_t port, const std::string& words) {
  const auto fd = StartConnect("127.0.0.1", port);
  ASSERT_TRUE(fd.ok()) << fd.status();
  pollfd writable{fd->get(), POLLOUT, 0};
  ASSERT_EQ(::poll(&writable, 1, 1000), 1);
  ASSERT_EQ(ConnectError(fd->get()), 0);
  ::send(fd->get(), words.data(), words.size(), MSG_NOSIGNAL);
  absl::SleepFor(absl::Milliseconds(20));
}

TEST(PeerWatchTest, StrangersAreNotTakenForPeers) {
  auto lower = PeerWatch::Listen(0).value(), higher = PeerWatch::Listen(1).value();
  const std::vector<WatchAddress> addresses = {lower->address(), higher->address()};
  const uint16_t port = lower->address().port;
  std::string forged = std::string("PRDUWAT1") + std::string("\1\0\0\0\0\0\0\0", 8);
  absl::Status status;
  std::thread connecting(
      [&] { status = lower->Connect(addresses, absl::Now() + absl::Seconds(20)); });
  Knock(port, forged + std::string(16, '\0'));  // Rank 1, but the token is wrong.
  Knock(port, std::string(100, 'G'));
  Knock(port, "half");
  std::string right = forged;
  right.append(reinterpret_cast<const char*>(lower->address().token.data()), 16);
  right[8] = 9;  // The right token, but no such rank.
  Knock(port, right);
  const absl::Status dialled = higher->Connect(addresses, absl::Now() + absl::Seconds(20));
  connecting.join();
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_TRUE(dialled.ok()) << dialled;
  EXPECT_TRUE(lower->Poll().empty());
  EXPECT_FALSE(lower->IsLost(1));
  higher->SayGoodbye(0);
  pollfd readable{lower->fd(), POLLIN, 0};
  ASSERT_EQ(::poll(&readable, 1, 5000), 1);
  const std::vector<PeerWatch::Event> events = lower->Poll();
  ASSERT_EQ(events.size(), 1U);
  EXPECT_TRUE(events[0].clean);
  EXPECT_EQ(events[0].peer, 1);
  EXPECT_TRUE(lower->Poll().empty());
  EXPECT_FALSE(lower->IsLost(1));
}

TEST(PeerWatchTest, AnImpostorAtThePeersAddressIsNotBelieved) {
  auto impostor = PeerWatch::Listen(0).value(), caller = PeerWatch::Listen(1).value();
  WatchAddress expected = impostor->address();
  expected.token[3] ^= 1;  // Who listens there is not whom the table means.
  const std::vector<WatchAddress> seen_by_caller = {expected, caller->address()};
  const std::vector<WatchAddress> seen_by_impostor = {impostor->address(), caller->address()};
  std::thread answering([&] {
    EXPECT_FALSE(impostor->Connect(seen_by_impostor, absl::Now() + absl::Milliseconds(500)).ok());
  });
  const absl::Status status =
      caller->Connect(seen_by_caller, absl::Now() + absl::Milliseconds(500));
  answering.join();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("rank 0 (it closed the connection)"));
}

TEST(PeerWatchTest, UnroutableAddressEndsAtTheDeadline) {
  auto watch = PeerWatch::Listen(1).value();
  WatchAddress far = watch->address();
  far.host = "another host";
  far.ips = {"240.0.0.1", "not an ip"};
  const std::vector<WatchAddress> addresses = {far, watch->address()};
  const absl::Time begin = absl::Now();
  const absl::Status status = watch->Connect(addresses, begin + absl::Milliseconds(400));
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("rank 0"));
  EXPECT_LT(absl::Now() - begin, absl::Seconds(3));
  far.ips.clear();
  const std::vector<WatchAddress> nowhere = {far, watch->address()};
  const absl::Status none = watch->Connect(nowhere, absl::Now() + absl::Seconds(5));
  EXPECT_TRUE(absl::IsUnavailable(none)) << none;
}

TEST(PeerWatchTest, SeveralInterfacesAreTriedInTurn) {
  auto lower = PeerWatch::Listen(0).value(), higher = PeerWatch::Listen(1).value();
  WatchAddress far = lower->address();
  far.host = "another host";
  far.ips = {"127.0.0.2", "127.0.0.1"};  // The listener answers under both.
  const std::vector<WatchAddress> addresses = {far, higher->address()};
  absl::Status status;
  std::thread answering(
      [&] { status = lower->Connect(addresses, absl::Now() + absl::Seconds(20)); });
  const absl::Status dialled = higher->Connect(addresses, absl::Now() + absl::Seconds(20));
  answering.join();
  EXPECT_TRUE(status.ok() && dialled.ok()) << status << dialled;
}

TEST(NewTransportTest, WrongArguments) {
  const auto code = [](const std::string& kind, TransportOptions options,
                       std::shared_ptr<LocalHub> hub) {
    const absl::Status status = NewTransport(kind, options, hub).status();
    return std::pair(status.code(), Message(status));
  };
  const auto invalid = absl::StatusCode::kInvalidArgument;
  const auto unknown = code("mpi", {}, nullptr);
  EXPECT_EQ(unknown.first, invalid);
  EXPECT_THAT(unknown.second, HasSubstr("ucx, libfabric, local"));
  EXPECT_EQ(code("local", {.rank = 2, .size = 2}, NewLocalHub(2)).first, invalid);
  EXPECT_EQ(code("local", {.rank = -1, .size = 2}, NewLocalHub(2)).first, invalid);
  EXPECT_EQ(code("local", {.size = 0}, NewLocalHub(2)).first, invalid);
  EXPECT_EQ(code("local", {.size = 2}, nullptr).first, invalid);
  EXPECT_EQ(code("local", {.size = 3}, NewLocalHub(2)).first, invalid);
  const auto hub = NewLocalHub(2);
  const auto first = NewTransport("local", {.size = 2}, hub);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(code("local", {.size = 2}, hub).first, absl::StatusCode::kAlreadyExists);
}

class NetworkTransportTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (!IsLinked({GetParam(), GetParam(), "", true}))
      GTEST_SKIP() << GetParam() << " is not linked into this build";
  }
};

INSTANTIATE_TEST_SUITE_P(All, NetworkTransportTest, testing::Values("ucx", "libfabric"),
                         [](const auto& instance) { return std::string(instance.param); });

TEST_P(NetworkTransportTest, UnknownNetworkIsNamed) {
  RunForked([] {
    const absl::Status status = NewTransport(GetParam(), {.network = "no-such-network"}).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(Message(status), HasSubstr("no-such-network"));
  });
}

TEST_P(NetworkTransportTest, NoMessageBeforeConnect) {
  RunForked([] {
    const auto transport = NewTransport(GetParam(), {.size = 2}).value();
    EXPECT_THAT(transport->name(), HasSubstr(GetParam()));
    const RequestPtr request = transport->Send(1, 1, nullptr, 0);
    EXPECT_EQ(transport->Wait(request).code(), absl::StatusCode::kFailedPrecondition);
    transport->Progress();
  });
}

TEST_P(NetworkTransportTest, OneRankAloneConnects) {
  RunForked([] {
    const auto transport = NewTransport(GetParam(), {}).value();
    const std::vector<std::string> table = {transport->LocalAddress().value()};
    EXPECT_TRUE(transport->Connect(table, absl::Seconds(5)).ok());
  });
}

TEST(DifferentNetworksTest, AreRefused) {
  if (!IsLinked({"ucx", "ucx", "", true})) GTEST_SKIP() << "ucx is not linked into this build";
  RunForked([] {
    const auto a = NewTransport("ucx", {.rank = 0, .size = 2}).value();
    const auto b = NewTransport("ucx", {.rank = 1, .size = 2, .network = "tcp"}).value();
    const std::vector<std::string> table = {a->LocalAddress().value(), b->LocalAddress().value()};
    const absl::Status status = a->Connect(table, absl::Seconds(5));
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(Message(status), HasSubstr("rank 1 uses ucx over 'tcp'"));
  });
}

}  // namespace
}  // namespace perdure
