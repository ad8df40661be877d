// What happens when a peer dies, leaves or is given up, over every transport.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <csignal>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "runtime/base/status.h"
#include "runtime/comm/transport.h"
#include "tests/comm/ranks.h"

namespace perdure {
namespace {

using testing::HasSubstr;

constexpr size_t kMiB = size_t{1} << 20;
constexpr absl::Duration kNoticed = absl::Seconds(5);
constexpr absl::Duration kPatience = absl::Seconds(1);  // Of Connect, where it must fail.

void Die() { ::raise(SIGKILL); }

void ExpectGone(const absl::Status& status, int rank) {
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr(fmt::format("rank {} is gone", rank)));
}

// A message each way.
void ExpectAlive(Transport& transport, int peer, Tag tag) {
  int sent = transport.rank(), got = -1;
  const RequestPtr receive = transport.Recv(peer, tag, &got, sizeof got);
  const absl::Status send = transport.Wait(transport.Send(peer, tag, &sent, sizeof sent));
  EXPECT_TRUE(send.ok()) << send;
  const absl::Status status = transport.Wait(receive);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(got, peer);
}

class PeerLossTest : public testing::TestWithParam<Wiring> {
 protected:
  void SetUp() override {
    if (!IsLinked(GetParam())) GTEST_SKIP() << GetParam().kind << " is not linked into this build";
  }
  const Wiring& wiring() const { return GetParam(); }
};

class ProcessLossTest : public PeerLossTest {};

std::vector<Wiring> ProcessWirings() {
  std::vector<Wiring> wirings = AllWirings();
  std::erase_if(wirings, [](const Wiring& wiring) { return !wiring.processes; });
  return wirings;
}

INSTANTIATE_TEST_SUITE_P(All, PeerLossTest, testing::ValuesIn(AllWirings()), LabelOf);
INSTANTIATE_TEST_SUITE_P(All, ProcessLossTest, testing::ValuesIn(ProcessWirings()), LabelOf);

TEST_P(ProcessLossTest, KilledPeerFailsOnlyItsOwnRequests) {
  RunRanks(wiring(), {.size = 4, .killed = {2}}, [](std::unique_ptr<Transport>& transport) {
    const int rank = transport->rank();
    if (rank == 2) {
      absl::SleepFor(absl::Milliseconds(100));
      Die();
    }
    std::vector<char> data(4 * kMiB);
    const absl::Time begin = absl::Now();
    const RequestPtr receive = transport->Recv(2, 1, data.data(), 8);
    const RequestPtr send = transport->Send(2, 2, data.data(), data.size());  // Nobody takes it.
    ExpectGone(transport->Wait(receive), 2);
    ExpectGone(transport->Wait(send), 2);
    EXPECT_LT(absl::Now() - begin, kNoticed);
    ExpectGone(transport->Wait(transport->Recv(2, 3, data.data(), 8)), 2);
    ExpectGone(transport->Wait(transport->Send(2, 4, data.data(), data.size())), 2);
    for (const int peer : {0, 1, 3})
      if (peer != rank) ExpectAlive(*transport, peer, 5);
    const absl::Time end = absl::Now();
    transport.reset();
    EXPECT_LT(absl::Now() - end, absl::Seconds(2));
  });
}

TEST_P(ProcessLossTest, KilledInTheMiddleOfATransfer) {
  for (const bool receiver_dies : {false, true}) {
    const int dies = receiver_dies ? 1 : 0;
    RunRanks(wiring(), {.size = 2, .killed = {dies}}, [&](std::unique_ptr<Transport>& transport) {
      std::vector<char> data(8 * kMiB);
      if (transport->rank() == dies)
        std::thread([] {
          absl::SleepFor(absl::Milliseconds(60));
          Die();
        }).detach();
      const absl::Time begin = absl::Now();
      absl::Status status;
      while (status.ok() && absl::Now() < begin + 2 * kNoticed)
        status = transport->Wait(transport->rank() == 0
                                     ? transport->Send(1, 1, data.data(), data.size())
                                     : transport->Recv(0, 1, data.data(), data.size()));
      ExpectGone(status, dies);
      EXPECT_LT(absl::Now() - begin, kNoticed);
    });
  }
}

// Long and short messages both ways, several under way, when one of three dies. The other two go on
// until both have noticed; or one is cancelled, where the dead one may have blocked its queue.
TEST_P(ProcessLossTest, KilledInTheMiddleOfAnExchange) {
  if (wiring().network == "shm") GTEST_SKIP() << "libfabric's shm shares locks with the dead";
  const bool may_block = wiring().kind == "ucx" && wiring().network != "tcp";
  RunRanks(wiring(), {.size = 3, .killed = {1}}, [=](std::unique_ptr<Transport>& transport) {
    constexpr std::array<size_t, 6> kSizes = {8, 3000, 2 * kMiB, 16, 40000, 100};
    constexpr size_t kSpace = kSizes.size() * 2 * kMiB;
    const int rank = transport->rank(), other = rank == 1 ? 0 : 2 - rank;
    std::vector<char> out(2 * kMiB), in(2 * kSpace);
    const auto exchange = [&](int peer, char* to) {
      std::vector<RequestPtr> requests;
      for (Tag tag = 0; tag < kSizes.size(); ++tag, to += 2 * kMiB) {
        requests.push_back(transport->Recv(peer, tag, to, kSizes[tag]));
        requests.push_back(transport->Send(peer, tag, out.data(), kSizes[tag]));
      }
      return requests;
    };
    if (rank == 1) {
      std::thread([] {
        absl::SleepFor(absl::Milliseconds(60));
        Die();
      }).detach();
      while (true) {
        const auto first = exchange(0, in.data()), second = exchange(2, in.data() + kSpace);
        (void)transport->WaitAll(first), (void)transport->WaitAll(second);
      }
    }
    absl::Notification through;
    std::thread canceller([&] {
      if (!through.WaitForNotificationWithTimeout(kNoticed) && may_block)
        transport->Cancel("blocked");
    });
    const absl::Time begin = absl::Now();
    absl::Status status;
    for (bool noticed = false, other_noticed = false;
         (!noticed || !other_noticed) && !testing::Test::HasFailure();) {
      EXPECT_LT(absl::Now() - begin, kNoticed);
      noticed = !status.ok();
      auto with_other = exchange(other, in.data() + kSpace);
      with_other.push_back(transport->Recv(other, 10, &other_noticed, sizeof other_noticed));
      with_other.push_back(transport->Send(other, 10, &noticed, sizeof noticed));
      if (!noticed) status = transport->WaitAll(exchange(1, in.data()));
      const absl::Status survives = transport->WaitAll(with_other);
      const bool was_blocked = absl::Now() - begin > kNoticed - absl::Seconds(1);
      if (may_block && was_blocked && !survives.ok()) break;  // By this Cancel() or the other's.
      EXPECT_TRUE(survives.ok()) << survives;
    }
    through.Notify();
    canceller.join();
    ExpectGone(status, 1);
  });
}

// UCX 1.13 rarely ends a process whose peer dies while they connect (wireup_ep.c:241, "Assertion
// `wireup_ep->pending_count == 0' failed"); to its agent that is one more rank to start again.
TEST_P(ProcessLossTest, KilledWhileConnecting) {
  const bool may_assert = wiring().kind == "ucx";
  for (const int microseconds : {0, 1000, 3000, 10000}) {
    RunUnconnected(
        wiring(), {.size = 3, .killed = {1}, .may_assert = may_assert},
        [&](std::unique_ptr<Transport>& transport, const std::vector<std::string>& table) {
          if (transport->rank() == 1)
            std::thread([=] {
              absl::SleepFor(absl::Microseconds(microseconds));
              Die();
            }).detach();
          const absl::Time begin = absl::Now();
          const absl::Status status = transport->Connect(table, kPatience);
          if (transport->rank() == 1) absl::SleepFor(2 * kNoticed);  // It dies first.
          EXPECT_LT(absl::Now() - begin, kNoticed);
          // It may have died just after. The others may have given up before this rank.
          if (status.ok())
            ExpectGone(transport->Wait(transport->Recv(1, 1, nullptr, 0)), 1);
          else  // One that died before it called is only missing.
            EXPECT_TRUE(absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status)) << status;
          const absl::Time end = absl::Now();
          transport.reset();
          EXPECT_LT(absl::Now() - end, absl::Seconds(2));
        });
  }
}

TEST_P(ProcessLossTest, SeveralDieAtOnce) {
  RunRanks(wiring(), {.size = 6, .killed = {0, 3, 5}}, [](std::unique_ptr<Transport>& transport) {
    const int rank = transport->rank();
    if (rank == 0 || rank == 3 || rank == 5) {
      absl::SleepFor(absl::Milliseconds(50));
      Die();
    }
    char data[3];
    const RequestPtr requests[] = {transport->Recv(0, 1, &data[0], 1),
                                   transport->Recv(3, 1, &data[1], 1),
                                   transport->Recv(5, 1, &data[2], 1)};
    const absl::Time begin = absl::Now();
    ExpectGone(transport->WaitAll(requests), 0);  // The first in order.
    EXPECT_LT(absl::Now() - begin, kNoticed);
    ExpectGone(requests[1]->status(), 3);
    ExpectGone(requests[2]->status(), 5);
    for (const int peer : {1, 2, 4})
      if (peer != rank) ExpectAlive(*transport, peer, 2);
  });
}

TEST_P(PeerLossTest, LeavingEarlyTakesNothingBack) {
  RunRanks(wiring(), 3, [](std::unique_ptr<Transport>& transport) {
    std::vector<char> large(kMiB, 'x'), small(2000, 'y');
    if (transport->rank() == 1) {
      const RequestPtr sends[] = {transport->Send(0, 1, small.data(), 8),
                                  transport->Send(0, 2, small.data(), small.size()),
                                  transport->Send(0, 3, large.data(), large.size())};
      EXPECT_TRUE(transport->WaitAll(sends).ok());
      const absl::Time begin = absl::Now();
      transport.reset();
      EXPECT_LT(absl::Now() - begin, absl::Seconds(2));
      return;
    }
    if (transport->rank() == 0) {
      std::vector<char> got_large(large.size()), got(small.size());
      EXPECT_TRUE(transport->Wait(transport->Recv(1, 3, got_large.data(), large.size())).ok());
      EXPECT_TRUE(got_large == large);
      absl::SleepFor(absl::Milliseconds(200));  // Rank 1 is gone by now.
      transport->Progress();
      EXPECT_TRUE(transport->Wait(transport->Recv(1, 1, got.data(), 8)).ok());
      const absl::Status status = transport->Wait(transport->Recv(1, 2, got.data(), got.size()));
      EXPECT_TRUE(status.ok()) << status;
      EXPECT_TRUE(got == small);
    }
    const absl::Time begin = absl::Now();
    const absl::Status left = transport->Wait(transport->Recv(1, 4, small.data(), 1));
    ExpectGone(left, 1);
    EXPECT_THAT(Message(left), HasSubstr("it has left"));
    ExpectGone(transport->Wait(transport->Send(1, 4, large.data(), large.size())), 1);
    EXPECT_LT(absl::Now() - begin, kNoticed);
    ExpectAlive(*transport, 2 - transport->rank(), 5);
  });
}

TEST_P(PeerLossTest, WaitingReceiveEndsWhenThePeerLeaves) {
  RunRanks(wiring(), 2, [](std::unique_ptr<Transport>& transport) {
    char byte = 0;
    if (transport->rank() == 0) {
      absl::SleepFor(absl::Milliseconds(100));
      return;
    }
    const absl::Time begin = absl::Now();
    const absl::Status left = transport->Wait(transport->Recv(0, 1, &byte, 1));
    ExpectGone(left, 0);
    EXPECT_THAT(Message(left), HasSubstr("it has left"));
    EXPECT_LT(absl::Now() - begin, kNoticed);
  });
}

// Everybody leaves as soon as it has what it needs, while others may still be waiting for what was
// sent to them.
TEST_P(PeerLossTest, LeavingInAnyOrderAfterACollective) {
  for (int round = 0; round < 3; ++round)
    RunRanks(wiring(), 6, [](std::unique_ptr<Transport>& transport) {
      std::vector<char> out(kMiB / 2), in(6 * out.size());
      for (Tag tag = 0; tag < 3; ++tag) {
        std::vector<RequestPtr> requests;
        for (int peer = 0; peer < 6; ++peer) {
          requests.push_back(transport->Recv(peer, tag, in.data() + peer * out.size(), out.size()));
          requests.push_back(transport->Send(peer, tag, out.data(), out.size()));
        }
        const absl::Status status = transport->WaitAll(requests);
        ASSERT_TRUE(status.ok()) << status;
      }
    });
}

TEST_P(PeerLossTest, FailPeerEndsItsRequestsOnBothSides) {
  RunRanks(wiring(), 3, [](std::unique_ptr<Transport>& transport) {
    char byte = 0;
    if (transport->rank() == 0) {
      const RequestPtr request = transport->Recv(1, 1, &byte, 1);
      transport->FailPeer(1, "the node has failed");
      const absl::Status status = transport->Wait(request);
      ExpectGone(status, 1);
      EXPECT_THAT(Message(status), HasSubstr("the node has failed"));
      ExpectGone(transport->Wait(transport->Send(1, 2, &byte, 1)), 1);
      transport->FailPeer(1, "again");  // Changes nothing.
    } else if (transport->rank() == 1) {
      const absl::Time begin = absl::Now();
      ExpectGone(transport->Wait(transport->Recv(0, 2, &byte, 1)), 0);
      EXPECT_LT(absl::Now() - begin, kNoticed);
    }
    for (int peer = 0; peer < 3; ++peer)
      if ((peer == 2) != (transport->rank() == 2)) ExpectAlive(*transport, peer, 3);
  });
}

// The peer lives on and may be filling the memory of the receive that is given up.
TEST_P(ProcessLossTest, FailPeerInTheMiddleOfAMessage) {
  RunRanks(wiring(), 2, [](std::unique_ptr<Transport>& transport) {
    std::vector<char> data(64 * kMiB);
    if (transport->rank() == 0) {
      // Starts the send and is then busy elsewhere; how it ends is up to the other side.
      const RequestPtr request = transport->Send(1, 1, data.data(), data.size());
      absl::SleepFor(absl::Milliseconds(300));
      const absl::Status status = transport->Wait(request);
      if (!status.ok()) ExpectGone(status, 1);
      return;
    }
    const RequestPtr request = transport->Recv(0, 1, data.data(), data.size());
    for (int i = 0; i < 20; ++i) transport->Progress();
    const absl::Time begin = absl::Now();
    transport->FailPeer(0, "it is too slow");
    EXPECT_LT(absl::Now() - begin, kNoticed);
    const absl::Status status = transport->Wait(request);
    if (!status.ok()) ExpectGone(status, 0);
    ExpectGone(transport->Wait(transport->Recv(0, 2, data.data(), 1)), 0);
  });
}

TEST_P(PeerLossTest, DestructionWithRequestsUnderWayIsQuick) {
  RunRanks(wiring(), 2, [](std::unique_ptr<Transport>& transport) {
    std::vector<char> data(kMiB);
    const int peer = 1 - transport->rank();
    const RequestPtr receive = transport->Recv(peer, 1, data.data(), data.size());
    const RequestPtr send = transport->Send(peer, 2, data.data(), data.size());
    const absl::Time begin = absl::Now();
    transport.reset();
    EXPECT_LT(absl::Now() - begin, absl::Seconds(3));
    ASSERT_TRUE(receive->done() && send->done());
    EXPECT_TRUE(absl::IsUnavailable(receive->status())) << receive->status();
    EXPECT_TRUE(absl::IsUnavailable(send->status())) << send->status();
  });
}

}  // namespace
}  // namespace perdure
