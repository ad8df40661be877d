// What every transport promises, over every transport.
#include "runtime/comm/transport.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <ctime>
#include <span>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "runtime/base/status.h"
#include "tests/comm/ranks.h"

namespace perdure {
namespace {

using testing::HasSubstr;

constexpr size_t kMiB = size_t{1} << 20;

std::vector<uint8_t> Pattern(size_t bytes, int seed) {
  std::vector<uint8_t> data(bytes);
  for (size_t i = 0; i < bytes; ++i)
    data[i] = static_cast<uint8_t>(i * 31 + (i >> 8) * 7 + static_cast<size_t>(seed) * 101);
  return data;
}

double ThreadCpuSeconds() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

// Burns CPU without driving the transport.
void Compute(absl::Duration duration) {
  const absl::Time end = absl::Now() + duration;
  while (absl::Now() < end) {
  }
}

class TransportTest : public testing::TestWithParam<Wiring> {
 protected:
  void SetUp() override {
    if (!IsLinked(GetParam())) GTEST_SKIP() << GetParam().kind << " is not linked into this build";
  }
  const Wiring& wiring() const { return GetParam(); }
};

INSTANTIATE_TEST_SUITE_P(All, TransportTest, testing::ValuesIn(AllWirings()), LabelOf);

TEST_P(TransportTest, PingPongOfEverySize) {
  RunRanks(wiring(), 2, [](std::unique_ptr<Transport>& transport) {
    const int peer = 1 - transport->rank();
    for (const size_t bytes : {size_t{0}, size_t{1}, size_t{8}, size_t{100}, size_t{8191},
                               size_t{8192}, size_t{8193}, size_t{65536}, kMiB + 3, 4 * kMiB}) {
      const std::vector<uint8_t> sent = Pattern(bytes, transport->rank());
      std::vector<uint8_t> got(bytes);
      for (Tag tag = 1; tag <= 3; ++tag) {
        std::fill(got.begin(), got.end(), uint8_t{0});
        const std::array<RequestPtr, 2> both = {transport->Recv(peer, tag, got.data(), bytes),
                                                transport->Send(peer, tag, sent.data(), bytes)};
        const absl::Status status = transport->WaitAll(both);
        ASSERT_TRUE(status.ok()) << status;
        ASSERT_TRUE(got == Pattern(bytes, peer)) << bytes << " bytes";
      }
    }
  });
}

TEST_P(TransportTest, TagsAreMatchedInAnyOrder) {
  RunRanks(wiring(), 2, [](std::unique_ptr<Transport>& transport) {
    constexpr int kMessages = 40;
    const auto size_of = [](int i) { return i % 4 == 3 ? size_t{50000} : size_t(i) * 10; };
    const auto tag_of = [](int i) { return (Tag{1} << kTagBits) - 1 - static_cast<Tag>(i) * 7; };
    std::vector<std::vector<uint8_t>> data;
    std::vector<RequestPtr> requests;
    for (int i = 0; i < kMessages; ++i) data.push_back(Pattern(size_of(i), i));
    if (transport->rank() == 0) {
      for (int i = 0; i < kMessages; ++i)
        requests.push_back(transport->Send(1, tag_of(i), data[i].data(), data[i].size()));
      EXPECT_TRUE(transport->WaitAll(requests).ok());
      return;
    }
    absl::SleepFor(absl::Milliseconds(20));  // Let some arrive unexpected.
    std::vector<std::vector<uint8_t>> got;
    for (int i = 0; i < kMessages; ++i) got.emplace_back(size_of(i));
    for (int i = kMessages - 1; i >= 0; --i)
      requests.push_back(transport->Recv(0, tag_of(i), got[i].data(), got[i].size()));
    EXPECT_TRUE(transport->WaitAll(requests).ok());
    EXPECT_TRUE(got == data);
  });
}

TEST_P(TransportTest, OneTagKeepsTheOrderOfPosting) {
  RunRanks(wiring(), 2, [](std::unique_ptr<Transport>& transport) {
    constexpr int kMessages = 300;
    std::vector<std::vector<uint8_t>> data(kMessages);
    std::vector<RequestPtr> requests;
    for (int i = 0; i < kMessages; ++i) {
      const size_t bytes = i % 10 == 0 ? 100000 : 4;
      data[i] = transport->rank() == 0 ? Pattern(bytes, i) : std::vector<uint8_t>(bytes);
      requests.push_back(transport->rank() == 0 ? transport->Send(1, 5, data[i].data(), bytes)
                                                : transport->Recv(0, 5, data[i].data(), bytes));
    }
    EXPECT_TRUE(transport->WaitAll(requests).ok());
    for (int i = 0; i < kMessages; ++i) EXPECT_TRUE(data[i] == Pattern(data[i].size(), i)) << i;
  });
}

TEST_P(TransportTest, ManyOutstandingAmongFour) {
  RunRanks(wiring(), 4, [](std::unique_ptr<Transport>& transport) {
    constexpr int kEach = 300;
    const int rank = transport->rank();
    std::vector<std::array<int, 2>> sent(4 * kEach), got(4 * kEach);
    std::vector<RequestPtr> requests;
    for (int peer = 0; peer < 4; ++peer)  // Also oneself.
      for (int i = 0; i < kEach; ++i)
        requests.push_back(transport->Recv(peer, static_cast<Tag>(i), &got[peer * kEach + i], 8));
    for (int peer = 0; peer < 4; ++peer)
      for (int i = 0; i < kEach; ++i) {
        sent[peer * kEach + i] = {rank * 1000 + peer, i};
        requests.push_back(transport->Send(peer, static_cast<Tag>(i), &sent[peer * kEach + i], 8));
      }
    requests.push_back(nullptr);  // Is skipped.
    EXPECT_TRUE(transport->WaitAll(requests).ok());
    for (int peer = 0; peer < 4; ++peer)
      for (int i = 0; i < kEach; ++i)
        ASSERT_EQ(got[peer * kEach + i], (std::array{peer * 1000 + rank, i}));
  });
}

TEST_P(TransportTest, MessagesToOneself) {
  RunRanks(wiring(), 1, [](std::unique_ptr<Transport>& transport) {
    const std::vector<uint8_t> small = Pattern(100, 1), large = Pattern(kMiB, 2);
    std::vector<uint8_t> got_small(small.size()), got_large(large.size());
    const RequestPtr first = transport->Send(0, 1, large.data(), large.size());
    EXPECT_TRUE(transport->Wait(transport->Send(0, 2, small.data(), small.size())).ok());
    EXPECT_FALSE(first->done());
    EXPECT_TRUE(transport->Wait(transport->Recv(0, 2, got_small.data(), small.size())).ok());
    EXPECT_TRUE(transport->Wait(transport->Recv(0, 1, got_large.data(), large.size())).ok());
    EXPECT_TRUE(transport->Wait(first).ok());
    EXPECT_TRUE(got_small == small && got_large == large);
  });
}

TEST_P(TransportTest, WrongLengthIsDataLossAndNothingElseSuffers) {
  if (wiring().network == "shm") GTEST_SKIP() << "libfabric's shm does not return from that";
  RunRanks(wiring(), 2, [](std::unique_ptr<Transport>& transport) {
    struct Case {
      size_t sent, expected;
    };
    Tag tag = 0;
    for (const Case c : {Case{16, 8}, Case{8, 16}, Case{0, 4}, Case{4, 0}, Case{kMiB, 1000},
                         Case{1000, kMiB}, Case{kMiB, 2 * kMiB}}) {
      for (const bool late : {false, true}) {
        std::vector<uint8_t> data(std::max(c.sent, c.expected));
        ++tag;
        if (transport->rank() == 0) {
          EXPECT_TRUE(transport->Wait(transport->Send(1, tag, data.data(), c.sent)).ok());
        } else {
          if (late) absl::SleepFor(absl::Milliseconds(5));
          const absl::Status status =
              transport->Wait(transport->Recv(0, tag, data.data(), c.expected));
          EXPECT_TRUE(absl::IsDataLoss(status))
              << c.sent << " for " << c.expected << ": " << status;
          EXPECT_THAT(Message(status), HasSubstr("rank 0 sent"));
        }
      }
    }
    const std::vector<uint8_t> sent = Pattern(kMiB, 3);
    std::vector<uint8_t> got(sent.size());
    if (transport->rank() == 0) {
      EXPECT_TRUE(transport->Wait(transport->Send(1, 1000, sent.data(), sent.size())).ok());
    } else {
      EXPECT_TRUE(transport->Wait(transport->Recv(0, 1000, got.data(), got.size())).ok());
      EXPECT_TRUE(got == sent);
    }
  });
}

TEST_P(TransportTest, WaitingCostsNoCpu) {
  RunRanks(wiring(), 8, [](std::unique_ptr<Transport>& transport) {
    char byte = 0;
    if (transport->rank() == 0) {
      Compute(absl::Milliseconds(300));
      for (int peer = 1; peer < 8; ++peer)
        EXPECT_TRUE(transport->Wait(transport->Send(peer, 1, &byte, 1)).ok());
      return;
    }
    const RequestPtr request = transport->Recv(0, 1, &byte, 1);
    const absl::Time begin = absl::Now();
    const double cpu_begin = ThreadCpuSeconds();
    EXPECT_TRUE(transport->Wait(request).ok());
    EXPECT_LT(ThreadCpuSeconds() - cpu_begin, 0.03);
    EXPECT_GT(absl::Now() - begin, absl::Milliseconds(200));
  });
}

TEST_P(TransportTest, SmallMessagesArriveWhileTheSenderComputes) {
  RunRanks(wiring(), 2, [](std::unique_ptr<Transport>& transport) {
    std::vector<uint8_t> data(1024);
    if (transport->rank() == 0) {
      const RequestPtr sent = transport->Send(1, 1, data.data(), data.size());
      Compute(absl::Milliseconds(300));
      EXPECT_TRUE(transport->Wait(sent).ok());
      EXPECT_TRUE(transport->Wait(transport->Recv(1, 2, data.data(), 1)).ok());
      return;
    }
    const absl::Time begin = absl::Now();
    EXPECT_TRUE(transport->Wait(transport->Recv(0, 1, data.data(), data.size())).ok());
    EXPECT_LT(absl::Now() - begin, absl::Milliseconds(250));
    EXPECT_TRUE(transport->Wait(transport->Send(0, 2, data.data(), 1)).ok());
  });
}

TEST_P(TransportTest, ProgressAloneFinishesRequests) {
  RunRanks(wiring(), 2, [](std::unique_ptr<Transport>& transport) {
    const int peer = 1 - transport->rank();
    std::vector<uint8_t> sent = Pattern(kMiB, 1), got(kMiB);
    const RequestPtr receive = transport->Recv(peer, 1, got.data(), got.size());
    const RequestPtr send = transport->Send(peer, 1, sent.data(), sent.size());
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    while (!(send->done() && receive->done()) && absl::Now() < deadline) transport->Progress();
    ASSERT_TRUE(send->done() && receive->done());
    EXPECT_TRUE(send->status().ok() && receive->status().ok());
    EXPECT_TRUE(got == sent);
    // Nobody leaves while the other still needs it.
    EXPECT_TRUE(transport->Wait(transport->Send(peer, 2, nullptr, 0)).ok());
    EXPECT_TRUE(transport->Wait(transport->Recv(peer, 2, nullptr, 0)).ok());
  });
}

TEST_P(TransportTest, AddressesAreChecked) {
  const auto body = [&] {
    TransportOptions options;
    options.size = 2;
    options.network = wiring().network;
    auto transport =
        NewTransport(wiring().kind, options, wiring().kind == "local" ? NewLocalHub(2) : nullptr);
    ASSERT_TRUE(transport.ok()) << transport.status();
    const std::string own = (*transport)->LocalAddress().value();
    EXPECT_LE(own.size(), size_t{64} << 10);
    for (const std::vector<std::string>& table :
         {std::vector<std::string>{own}, {own, ""}, {own, own}, {own, own.substr(1)}}) {
      const absl::Status status = (*transport)->Connect(table, absl::Seconds(5));
      EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    }
  };
  if (wiring().kind == "local")
    body();
  else
    RunForked(body);
}

TEST_P(TransportTest, AbsentPeerIsNamedInTime) {
  const auto body = [&] {
    const auto hub = wiring().kind == "local" ? NewLocalHub(2) : nullptr;
    std::vector<std::unique_ptr<Transport>> transports;
    std::vector<std::string> table;
    for (int rank = 0; rank < 2; ++rank) {
      TransportOptions options;
      options.rank = rank;
      options.size = 2;
      options.network = wiring().network;
      if (rank == 1 && hub != nullptr) {  // It is never made.
        std::string address = table[0];
        address.back() = '1';
        table.push_back(address);
        continue;
      }
      transports.push_back(NewTransport(wiring().kind, options, hub).value());
      table.push_back(transports.back()->LocalAddress().value());
    }
    // Rank 1 is there, but never connects; seen from both sides of the dialling.
    const absl::Time begin = absl::Now();
    const absl::Status status = transports[0]->Connect(table, absl::Milliseconds(300));
    EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
    EXPECT_THAT(Message(status), HasSubstr("rank 1"));
    EXPECT_LT(absl::Now() - begin, absl::Seconds(5));
    if (hub != nullptr) return;
    const absl::Status higher = transports[1]->Connect(table, absl::Milliseconds(300));
    EXPECT_TRUE(absl::IsDeadlineExceeded(higher)) << higher;
    EXPECT_THAT(Message(higher), HasSubstr("rank 0"));
  };
  if (wiring().kind == "local")
    body();
  else
    RunForked(body);
}

TEST_P(TransportTest, DeadPeerIsRefusedAtOnce) {
  if (wiring().kind == "local") GTEST_SKIP() << "threads do not die alone";
  RunForked([&] {
    std::vector<std::unique_ptr<Transport>> transports;
    std::vector<std::string> table;
    for (int rank = 0; rank < 2; ++rank) {
      TransportOptions options;
      options.rank = rank;
      options.size = 2;
      options.network = wiring().network;
      transports.push_back(NewTransport(wiring().kind, options).value());
      table.push_back(transports.back()->LocalAddress().value());
    }
    transports[0].reset();  // Its address stays in the table.
    const absl::Time begin = absl::Now();
    const absl::Status status = transports[1]->Connect(table, absl::Seconds(10));
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_THAT(Message(status), HasSubstr("rank 0"));
    EXPECT_LT(absl::Now() - begin, absl::Seconds(5));
  });
}

}  // namespace
}  // namespace perdure
