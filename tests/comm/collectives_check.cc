#include "tests/comm/collectives_check.h"

#include <gtest/gtest.h>

#include <cmath>

namespace perdure {
namespace {

template <typename T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

std::vector<char> Pattern(int member, size_t bytes) {
  std::vector<char> values(bytes);
  for (size_t i = 0; i < bytes; ++i)
    values[i] = static_cast<char>(member * 17 + static_cast<int>(i % 101));
  return values;
}

void CheckAllGather(Collectives& group, Group& reference, Ops* ops, size_t bytes) {
  const std::vector<char> in = Pattern(group.index(), bytes);
  std::vector<char> expected(bytes * static_cast<size_t>(group.size()));
  ASSERT_TRUE(reference.AllGather(in.data(), bytes, expected.data()).ok());
  for (const bool in_place : {false, true}) {
    std::vector<char> before(expected.size(), 1);
    const size_t begin = static_cast<size_t>(group.index()) * bytes;
    if (in_place) std::copy(in.begin(), in.end(), before.data() + begin);
    OnDevice<char> from(ops, in), out(ops, before);
    const absl::Status status =
        group.AllGather(in_place ? out.data() + begin : from.data(), bytes, out.data());
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_TRUE(SameBits(out.Values(), expected)) << bytes << " bytes, in place: " << in_place;
  }
}

// Member i's block has i * 1000 bytes, the first none; they lie in reverse order with gaps.
void CheckAllGatherV(Collectives& group, Group& reference, Ops* ops, bool even) {
  std::vector<Extent> extents(static_cast<size_t>(group.size()));
  size_t bytes = 0;
  for (int i = group.size() - 1; i >= 0; --i) {
    extents[static_cast<size_t>(i)] = {bytes, even ? 512 : static_cast<size_t>(i) * 1000};
    bytes += extents[static_cast<size_t>(i)].bytes + (even ? 0 : 24);
  }
  std::vector<char> expected(bytes, -1);
  const Extent own = extents[static_cast<size_t>(group.index())];
  const std::vector<char> in = Pattern(group.index(), own.bytes);
  std::copy(in.begin(), in.end(), expected.data() + own.begin);
  OnDevice<char> buffer(ops, expected);
  ASSERT_TRUE(reference.AllGatherV(expected.data(), extents).ok());
  const absl::Status status = group.AllGatherV(buffer.data(), extents);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(SameBits(buffer.Values(), expected));
}

void CheckReduceScatter(Collectives& group, Group& reference, Ops* ops, int64_t count) {
  const std::vector<float> partial = Partial(group.index(), count * group.size());
  std::vector<float> expected(static_cast<size_t>(count));
  ASSERT_TRUE(reference.ReduceScatterTree(partial.data(), count, expected.data()).ok());
  OnDevice<float> in(ops, partial), out(ops, std::vector<float>(expected.size(), -1));
  const absl::Status status = group.ReduceScatterTree(in.data(), count, out.data());
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(SameBits(out.Values(), expected)) << count;
}

void CheckAllReduce(Collectives& group, Group& reference, Ops* ops, int64_t count) {
  const std::vector<float> partial = Partial(group.index(), count);
  std::vector<float> expected(partial.size());
  ASSERT_TRUE(reference.AllReduceTree(partial.data(), count, expected.data()).ok());
  for (const bool in_place : {false, true}) {
    OnDevice<float> in(ops, partial), out(ops, std::vector<float>(expected.size(), -1));
    float* sum = in_place ? in.data() : out.data();
    const absl::Status status = group.AllReduceTree(in.data(), count, sum);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_TRUE(SameBits(in_place ? in.Values() : out.Values(), expected))
        << count << " floats, in place: " << in_place;
  }
}

}  // namespace

std::vector<float> Partial(int member, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i)
    values[static_cast<size_t>(i)] =
        static_cast<float>(std::sin(1.7 * static_cast<double>(i) + 0.9 * member) *
                           std::pow(10.0, (static_cast<int>(i) * 7 + member * 5) % 9 - 4));
  return values;
}

void CheckCollectives(Collectives& group, Group& reference, Ops* ops) {
  for (const size_t bytes : {size_t{0}, size_t{2}, size_t{300}, size_t{70000}})
    CheckAllGather(group, reference, ops, bytes);
  for (const bool even : {false, true}) CheckAllGatherV(group, reference, ops, even);
  for (const int64_t count : {0, 1, 7, 1025, 8192, 20011, 70003})
    CheckAllReduce(group, reference, ops, count);
  if ((group.size() & (group.size() - 1)) == 0)
    for (const int64_t count : {0, 1, 1025, 5000}) CheckReduceScatter(group, reference, ops, count);
}

void CheckExchanges(Collectives& group, Ops* ops) {
  constexpr uint32_t kRounds = 3;
  constexpr size_t kCount = 3001;
  const auto all = static_cast<size_t>(group.size());
  const auto values = [&](int from, int to, uint32_t round) {
    return Partial(100 * from + 10 * to + static_cast<int>(round), kCount);
  };
  std::vector<std::unique_ptr<OnDevice<float>>> sent, received;
  std::vector<RequestPtr> requests;
  for (uint32_t round = 0; round < kRounds; ++round) {
    std::vector<Transfer> transfers;
    for (int step = 0; step < group.size(); ++step) {
      const int member = (group.index() + step) % group.size();
      sent.push_back(std::make_unique<OnDevice<float>>(ops, values(group.index(), member, round)));
      transfers.push_back(
          {Transfer::Kind::kSend, member, sent.back()->data(), sent.back()->bytes()});
    }
    for (int member = 0; member < group.size(); ++member) {
      received.push_back(std::make_unique<OnDevice<float>>(ops, std::vector<float>(kCount)));
      transfers.push_back(
          {Transfer::Kind::kRecv, member, received.back()->data(), received.back()->bytes()});
    }
    transfers.push_back({Transfer::Kind::kSend, (group.index() + 1) % group.size(), nullptr, 0});
    transfers.push_back(
        {Transfer::Kind::kRecv, (group.index() + group.size() - 1) % group.size(), nullptr, 0});
    for (RequestPtr& request : group.Start(round, transfers))
      requests.push_back(std::move(request));
    requests.push_back(nullptr);
  }
  // Beside the exchanges.
  OnDevice<float> sum(ops, Partial(group.index(), 100));
  ASSERT_TRUE(group.AllReduceTree(sum.data(), 100, sum.data()).ok());
  for (int again = 0; again < 2; ++again) {
    const absl::Status status = group.WaitAll(requests);
    ASSERT_TRUE(status.ok()) << status;
  }
  for (uint32_t round = 0; round < kRounds; ++round)
    for (size_t from = 0; from < all; ++from)
      EXPECT_TRUE(SameBits(received[round * all + from]->Values(),
                           values(static_cast<int>(from), group.index(), round)));
}

// Every number follows from small integers, so that sums are exact.
void CheckStreamOrder(Collectives& group, Ops* ops) {
  constexpr int64_t kCount = 40000;
  const auto full = [&](float value) {
    return std::vector<float>(static_cast<size_t>(kCount), value);
  };
  OnDevice<float> one(ops, full(1)), x(ops, full(0)), from_left(ops, full(0));
  const auto matrix = [&](OnDevice<float>& values) {
    return Matrix(values.data(), DType::kF32, 1, kCount);
  };
  const int right = (group.index() + 1) % group.size();
  const int left = (group.index() + group.size() - 1) % group.size();
  float expected = 0;
  for (int round = 0; round < 6; ++round) {
    ops->Add(matrix(one), matrix(x));
    ASSERT_TRUE(group.AllReduceTree(x.data(), kCount, x.data()).ok());
    ops->Add(matrix(one), matrix(x));
    expected = (expected + 1) * static_cast<float>(group.size()) + 1;
    const Transfer transfers[] = {{Transfer::Kind::kRecv, left, from_left.data(), x.bytes()},
                                  {Transfer::Kind::kSend, right, x.data(), x.bytes()}};
    const std::vector<RequestPtr> requests = group.Start(7, transfers);
    ASSERT_TRUE(group.WaitAll(requests).ok());
    ops->Zero(matrix(x));
    ops->Add(matrix(from_left), matrix(x));  // As everybody has the same.
    ops->Zero(matrix(from_left));
  }
  EXPECT_TRUE(SameBits(x.Values(), full(expected)));
}

}  // namespace perdure
