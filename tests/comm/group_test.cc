// Collectives against what they mean, bit for bit, for several sizes, over every transport.
#include "runtime/comm/group.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <numeric>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "tests/comm/ranks.h"

namespace perdure {
namespace {

class GroupTest : public testing::TestWithParam<Wiring> {
 protected:
  void SetUp() override {
    if (!IsLinked(GetParam())) GTEST_SKIP() << GetParam().kind << " is not linked into this build";
  }
  const Wiring& wiring() const { return GetParam(); }
};

INSTANTIATE_TEST_SUITE_P(All, GroupTest, testing::ValuesIn(AllWirings()), LabelOf);

std::vector<int> Everybody(int size) {
  std::vector<int> members(static_cast<size_t>(size));
  std::iota(members.begin(), members.end(), 0);
  return members;
}

// Values of very different size, so that another order of additions gives other bits.
float Value(int member, int64_t i) {
  const double phase = 1.7 * static_cast<double>(i) + 0.9 * member;
  return static_cast<float>(std::sin(phase) *
                            std::pow(10.0, (static_cast<int>(i) * 7 + member * 5) % 9 - 4));
}

std::vector<float> Partial(int member, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) values[i] = Value(member, i);
  return values;
}

// The definition: the left subtree has as many leaves as the largest power of two below the number
// of all.
float Tree(int first, int last, int64_t i) {
  if (last - first == 1) return Value(first, i);
  int left = 1;
  while (left * 2 < last - first) left *= 2;
  return Tree(first, first + left, i) + Tree(first + left, last, i);
}

void CheckAllGather(Group& group, size_t bytes) {
  const auto byte = [](int member, size_t i) {
    return static_cast<char>(member * 17 + static_cast<int>(i % 101));
  };
  std::vector<char> in(bytes), out(bytes * group.size());
  for (size_t i = 0; i < bytes; ++i) in[i] = byte(group.index(), i);
  for (const bool in_place : {false, true}) {
    std::fill(out.begin(), out.end(), '\0');
    char* own = out.data() + group.index() * bytes;
    if (in_place) std::copy(in.begin(), in.end(), own);
    const absl::Status status = group.AllGather(in_place ? own : in.data(), bytes, out.data());
    ASSERT_TRUE(status.ok()) << status;
    for (int member = 0; member < group.size(); ++member)
      for (size_t i = 0; i < bytes; ++i) ASSERT_EQ(out[member * bytes + i], byte(member, i));
  }
}

// Member i's block has i * 1000 bytes, the first none; they lie in reverse order.
void CheckAllGatherV(Group& group) {
  std::vector<Extent> extents(static_cast<size_t>(group.size()));
  size_t bytes = 0;
  for (int i = group.size() - 1; i >= 0; --i) {
    extents[i] = {bytes, static_cast<size_t>(i) * 1000};
    bytes += extents[i].bytes;
  }
  std::vector<char> buffer(bytes, -1);
  const Extent own = extents[group.index()];
  std::fill_n(buffer.begin() + own.begin, own.bytes, static_cast<char>(group.index()));
  const absl::Status status = group.AllGatherV(buffer.data(), extents);
  ASSERT_TRUE(status.ok()) << status;
  for (int i = 0; i < group.size(); ++i)
    for (size_t at = extents[i].begin; at < extents[i].begin + extents[i].bytes; ++at)
      ASSERT_EQ(buffer[at], static_cast<char>(i));
}

// Member i sends (i + 2 j) % 5 * 777 bytes of value 10 i + j to member j.
void CheckAllToAllV(Group& group) {
  const auto bytes_of = [](int from, int to) {
    return static_cast<size_t>((from + 2 * to) % 5) * 777;
  };
  const auto value_of = [](int from, int to) { return static_cast<char>(10 * from + to); };
  std::vector<Extent> sent, received;
  std::vector<char> send;
  size_t bytes = 0;
  for (int j = 0; j < group.size(); ++j) {
    sent.push_back({send.size(), bytes_of(group.index(), j)});
    send.insert(send.end(), sent.back().bytes, value_of(group.index(), j));
    received.push_back({bytes, bytes_of(j, group.index())});
    bytes += received.back().bytes;
  }
  std::vector<char> recv(bytes, -1);
  const absl::Status status = group.AllToAllV(send.data(), sent, recv.data(), received);
  ASSERT_TRUE(status.ok()) << status;
  for (int j = 0; j < group.size(); ++j)
    for (size_t i = 0; i < received[j].bytes; ++i)
      ASSERT_EQ(recv[received[j].begin + i], value_of(j, group.index()));
}

void CheckBroadcast(Group& group) {
  for (int root = 0; root < group.size(); ++root)
    for (const size_t bytes : {size_t{0}, size_t{5}, size_t{100000}}) {
      const char value = static_cast<char>(root + 1);
      std::vector<char> data(bytes, group.index() == root ? value : '\0');
      const absl::Status status = group.Broadcast(data.data(), bytes, root);
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_TRUE(data == std::vector<char>(bytes, value));
    }
}

void CheckAllReduce(Group& group, int64_t count) {
  const std::vector<float> partial = Partial(group.index(), count);
  for (const bool in_place : {false, true}) {
    std::vector<float> out = in_place ? partial : std::vector<float>(partial.size());
    const absl::Status status =
        group.AllReduceTree(in_place ? out.data() : partial.data(), count, out.data());
    ASSERT_TRUE(status.ok()) << status;
    for (int64_t i = 0; i < count; ++i) ASSERT_EQ(out[i], Tree(0, group.size(), i)) << i;
  }
}

void CheckReduceScatter(Group& group, int64_t count) {
  const std::vector<float> partial = Partial(group.index(), count * group.size());
  std::vector<float> out(static_cast<size_t>(count));
  const absl::Status status = group.ReduceScatterTree(partial.data(), count, out.data());
  ASSERT_TRUE(status.ok()) << status;
  for (int64_t i = 0; i < count; ++i)
    ASSERT_EQ(out[i], Tree(0, group.size(), group.index() * count + i)) << i;
}

void CheckEverything(Group& group) {
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{300}, size_t{70000}})
    CheckAllGather(group, bytes);
  CheckAllGatherV(group);
  CheckAllToAllV(group);
  CheckBroadcast(group);
  for (const int64_t count : {0, 1, 7, 1025, 8192, 20011}) CheckAllReduce(group, count);
  if ((group.size() & (group.size() - 1)) == 0)
    for (const int64_t count : {0, 1, 1025, 5000}) CheckReduceScatter(group, count);
  ASSERT_TRUE(group.Barrier().ok());
}

void CheckSize(const Wiring& wiring, int size) {
  RunRanks(wiring, size, [size](std::unique_ptr<Transport>& transport) {
    Group group(transport.get(), Everybody(size), 4095);
    EXPECT_EQ(group.size(), size);
    EXPECT_EQ(group.index(), transport->rank());
    EXPECT_EQ(group.transport(), transport.get());
    CheckEverything(group);
    EXPECT_GE(group.wait_seconds(), 0);
  });
}

TEST_P(GroupTest, OneMember) { CheckSize(wiring(), 1); }
TEST_P(GroupTest, TwoMembers) { CheckSize(wiring(), 2); }
TEST_P(GroupTest, ThreeMembers) { CheckSize(wiring(), 3); }
TEST_P(GroupTest, FourMembers) { CheckSize(wiring(), 4); }
TEST_P(GroupTest, FiveMembers) { CheckSize(wiring(), 5); }
TEST_P(GroupTest, EightMembers) { CheckSize(wiring(), 8); }

// Rows and columns of a 2 x 3 mesh in an odd order of members, all at once on one transport.
TEST_P(GroupTest, OverlappingGroups) {
  RunRanks(wiring(), 6, [](std::unique_ptr<Transport>& transport) {
    const int row = transport->rank() / 3, column = transport->rank() % 3;
    Group rows(transport.get(), {row * 3 + 2, row * 3, row * 3 + 1}, 1);
    Group columns(transport.get(), {column + 3, column}, 2);
    Group all(transport.get(), {5, 4, 3, 2, 1, 0}, 3);
    for (int round = 0; round < 3; ++round) {
      CheckAllReduce(columns, 33);
      CheckAllGather(all, 40);
      CheckAllReduce(rows, 20000);
      CheckReduceScatter(columns, 9);
    }
    EXPECT_TRUE(all.Barrier().ok());
  });
}

// Requests of one's own are under way while collectives run, between the same ranks and with equal
// numbers.
TEST_P(GroupTest, PointToPointBesideCollectives) {
  RunRanks(wiring(), 2, [](std::unique_ptr<Transport>& transport) {
    Group group(transport.get(), {0, 1}, 7);
    const int peer = 1 - group.index();
    constexpr uint32_t kLast = (1U << 20) - 1;
    std::vector<float> in(5), large(50000), got(large.size());
    std::vector<RequestPtr> requests;
    for (uint32_t i = 0; i < 5; ++i) requests.push_back(group.Recv(peer, i, &in[i], sizeof(float)));
    requests.push_back(group.Recv(peer, kLast, got.data(), got.size() * sizeof(float)));
    for (int i = 0; i < 5; ++i) CheckAllReduce(group, 10);
    const std::vector<float> out = Partial(group.index(), 5);
    large[49999] = Value(group.index(), 1);
    for (uint32_t i = 0; i < 5; ++i)
      requests.push_back(group.Send(peer, i, &out[i], sizeof(float)));
    requests.push_back(group.Send(peer, kLast, large.data(), large.size() * sizeof(float)));
    for (int i = 0; i < 5; ++i) CheckAllReduce(group, 10);
    EXPECT_TRUE(group.WaitAll(requests).ok());
    EXPECT_TRUE(in == Partial(peer, 5));
    EXPECT_EQ(got[49999], Value(peer, 1));
  });
}

TEST_P(GroupTest, WaitSecondsCountsTheWait) {
  RunRanks(wiring(), 2, [](std::unique_ptr<Transport>& transport) {
    Group group(transport.get(), {0, 1}, 1);
    if (group.index() == 0) absl::SleepFor(absl::Milliseconds(100));
    EXPECT_TRUE(group.Barrier().ok());
    if (group.index() == 1) {
      EXPECT_GT(group.wait_seconds(), 0.05);
    }
  });
}

TEST_P(GroupTest, ALostMemberFailsTheCollective) {
  RunRanks(wiring(), 3, [](std::unique_ptr<Transport>& transport) {
    Group group(transport.get(), {0, 1, 2}, 1);
    if (group.index() == 2) {
      absl::SleepFor(absl::Milliseconds(50));
      return;
    }
    std::vector<float> values(20000);
    const absl::Status status = group.AllReduceTree(values.data(), 20000, values.data());
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  });
}

// More members than a direct barrier serves: the other kind must hold everybody back, too.
TEST(GroupBarrierTest, HoldsTwentyBack) {
  const Wiring wiring{"LocalThreads", "local", "", false};
  std::atomic<int> arrived{0};
  RunRanks(wiring, 20, [&](std::unique_ptr<Transport>& transport) {
    Group group(transport.get(), Everybody(20), 1);
    for (int round = 1; round <= 5; ++round) {
      if (group.index() == round) absl::SleepFor(absl::Milliseconds(10));
      ++arrived;
      ASSERT_TRUE(group.Barrier().ok());
      ASSERT_GE(arrived.load(), 20 * round);
    }
  });
}

TEST(GroupDeathTest, WrongMembership) {
  auto transport = NewTransport("local", {.size = 2}, NewLocalHub(2)).value();
  EXPECT_DEATH(Group(transport.get(), {1}, 1), "own != members_.end");
  EXPECT_DEATH(Group(transport.get(), {0, 0}, 1), "adjacent_find");
  EXPECT_DEATH(Group(transport.get(), {0, 2}, 1), "sorted.back");
  EXPECT_DEATH(Group(transport.get(), {0, 1}, 4096), "channel");
}

}  // namespace
}  // namespace perdure
