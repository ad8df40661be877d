// Collectives by NCCL against the Group on the host, bit for bit: ranks are processes that share
// one GPU, each under a host name of its own, since NCCL refuses two ranks on one GPU of one host.
// Messages then go over sockets: the order and the failures are real, the speed is not.
#include "runtime/comm/nccl_group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>
#include <numeric>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "runtime/base/status.h"
#include "runtime/comm/make_collectives.h"
#include "runtime/comm/sync_watching.h"
#include "tests/comm/collectives_check.h"
#include "tests/comm/ranks.h"

namespace perdure {
namespace {

using testing::HasSubstr;

constexpr absl::Duration kNoticed = absl::Seconds(20);

// Asked of a child: CUDA does not survive a fork, and the ranks are forked.
int DevicesOfAChild() {
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(std::min(CudaDeviceCount(), 100));
  int status = 0;
  ::waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 0;
}

std::vector<int> Everybody(int size) {
  std::vector<int> members(static_cast<size_t>(size));
  std::iota(members.begin(), members.end(), 0);
  return members;
}

class NcclGroupTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!NcclIsBuilt()) GTEST_SKIP() << "this build has no NCCL";
    static const int devices = DevicesOfAChild();
    if (devices == 0) GTEST_SKIP() << "there is no GPU";
    for (const Wiring& wiring : AllWirings())
      if (wiring.processes && wiring.network != "shm" && IsLinked(wiring)) wiring_ = wiring;
    if (wiring_.kind.empty()) GTEST_SKIP() << "no host transport between processes is linked";
  }

  // Calls `body` in every rank, with a device of its own.
  void Run(const RunOptions& options,
           const std::function<void(std::unique_ptr<Transport>&, Ops*)>& body) {
    RunRanks(wiring_, options, [&](std::unique_ptr<Transport>& transport) {
      const std::pair<const char*, std::string> settings[] = {
          {"NCCL_HOSTID", fmt::format("perdure-test-{}", transport->rank())},
          {"NCCL_SOCKET_IFNAME", "lo"},
          {"NCCL_IB_DISABLE", "1"},
          {"NCCL_P2P_DISABLE", "1"},
          {"NCCL_SHM_DISABLE", "1"},
          {"NCCL_NVLS_ENABLE", "0"},
          {"NCCL_MNNVL_ENABLE", "0"},
          {"NCCL_MAX_CTAS", "1"},
          {"NCCL_BUFFSIZE", "1048576"},
          {"CUDA_DEVICE_MAX_CONNECTIONS", "32"}};
      for (const auto& [name, value] : settings) ::setenv(name, value.c_str(), 1);
      ::setenv("NCCL_DEBUG", "WARN", 0);
      auto ops = NewCudaOps(0);
      ASSERT_TRUE(ops.ok()) << ops.status();
      body(transport, ops->get());
    });
  }
  void Run(int size, const std::function<void(std::unique_ptr<Transport>&, Ops*)>& body) {
    Run({.size = size, .limit = absl::Seconds(120)}, body);
  }

  static void CheckSize(std::unique_ptr<Transport>& transport, Ops* ops, int size) {
    Group reference(transport.get(), Everybody(size), 1);
    const absl::Time begin = absl::Now();
    auto group = NewNcclGroup(transport.get(), Everybody(size), 2, ops, StartOrder::kSame);
    ASSERT_TRUE(group.ok()) << group.status();
    if (transport->rank() == 0)
      std::cout << "init of " << size << ": " << absl::FormatDuration(absl::Now() - begin) << "\n";
    EXPECT_EQ((*group)->size(), size);
    EXPECT_EQ((*group)->index(), transport->rank());
    CheckCollectives(**group, reference, ops);
    CheckExchanges(**group, ops);
    CheckStreamOrder(**group, ops);
    Collectives* const groups[] = {group->get()};
    EXPECT_TRUE(SyncWatching(ops, groups).ok());
    EXPECT_TRUE((*group)->Watch().ok());
    EXPECT_TRUE(reference.Barrier().ok());  // Who has left counts as lost.
    const absl::Time end = absl::Now();
    group->reset();
    EXPECT_LT(absl::Now() - end, kNoticed);
  }

  Wiring wiring_;
};

TEST_F(NcclGroupTest, OneMember) {
  Run(1, [](auto& transport, Ops* ops) { CheckSize(transport, ops, 1); });
}
TEST_F(NcclGroupTest, TwoMembers) {
  Run(2, [](auto& transport, Ops* ops) { CheckSize(transport, ops, 2); });
}
// Not a power of two: the tree has a lone branch.
TEST_F(NcclGroupTest, ThreeMembers) {
  Run(3, [](auto& transport, Ops* ops) { CheckSize(transport, ops, 3); });
}
TEST_F(NcclGroupTest, FourMembers) {
  Run(4, [](auto& transport, Ops* ops) { CheckSize(transport, ops, 4); });
}

// One forward, one backward, with receives posted a pass ahead: stage s adds s + 1 to what goes
// forward and twice that to what comes back. Several steps, no wait on the host in between.
void RunPipeline(Collectives& group, Ops* ops) {
  constexpr int kMicroBatches = 7, kSteps = 3;
  constexpr int64_t kCount = 50000;
  const int stages = group.size(), stage = group.index(), last = stages - 1;
  const auto full = [](float value) {
    return std::vector<float>(static_cast<size_t>(kCount), value);
  };
  struct Pass {
    bool backward = false;
    int micro_batch = 0;
  };
  std::vector<Pass> passes;
  const int ahead = std::min(last - stage, kMicroBatches);
  for (int m = 0; m < ahead; ++m) passes.push_back({false, m});
  for (int m = 0; m < kMicroBatches; ++m) {
    if (m + ahead < kMicroBatches) passes.push_back({false, m + ahead});
    passes.push_back({true, m});
  }
  OnDevice<float> forward_own(ops, full(static_cast<float>(stage + 1)));
  OnDevice<float> backward_own(ops, full(static_cast<float>(2 * (stage + 1))));
  std::vector<std::unique_ptr<OnDevice<float>>> values;  // [micro-batch], forward, then backward.
  for (int m = 0; m < 2 * kMicroBatches; ++m)
    values.push_back(std::make_unique<OnDevice<float>>(ops, full(0)));
  const auto place = [&](const Pass& pass) -> OnDevice<float>& {
    return *values[static_cast<size_t>(pass.micro_batch + (pass.backward ? kMicroBatches : 0))];
  };
  const auto matrix = [&](OnDevice<float>& x) { return Matrix(x.data(), DType::kF32, 1, kCount); };
  const auto operation = [](int receiver, bool backward) {
    return static_cast<uint32_t>(2 * receiver + (backward ? 1 : 0));
  };
  for (int step = 0; step < kSteps; ++step) {
    std::map<std::pair<bool, int>, std::vector<RequestPtr>> received;
    std::vector<RequestPtr> sent;
    const auto post = [&](const Pass& pass) {
      if (stage == (pass.backward ? last : 0)) return;
      const Transfer transfer{Transfer::Kind::kRecv, pass.backward ? stage + 1 : stage - 1,
                              place(pass).data(), place(pass).bytes()};
      auto& requests = received[{pass.backward, pass.micro_batch}];
      if (requests.empty()) requests = group.Start(operation(stage, pass.backward), {&transfer, 1});
    };
    for (size_t i = 0; i < passes.size(); ++i) {
      const Pass& pass = passes[i];
      post(pass);
      if (i + 1 < passes.size()) post(passes[i + 1]);
      const auto requests = received.find({pass.backward, pass.micro_batch});
      if (requests != received.end())
        ASSERT_TRUE(group.WaitAll(requests->second).ok());
      else if (pass.backward)
        ops->Copy(matrix(place({false, pass.micro_batch})), matrix(place(pass)));
      else
        ops->Zero(matrix(place(pass)));
      ops->Add(matrix(pass.backward ? backward_own : forward_own), matrix(place(pass)));
      if (stage == (pass.backward ? 0 : last)) continue;
      const int to = pass.backward ? stage - 1 : stage + 1;
      const Transfer transfer{Transfer::Kind::kSend, to, place(pass).data(), place(pass).bytes()};
      for (RequestPtr& request : group.Start(operation(to, pass.backward), {&transfer, 1}))
        sent.push_back(std::move(request));
    }
    ASSERT_TRUE(group.WaitAll(sent).ok());
  }
  Collectives* const groups[] = {&group};
  ASSERT_TRUE(SyncWatching(ops, groups).ok());
  float forward = 0, backward = 0;
  for (int s = 0; s <= last; ++s) {
    if (s <= stage) forward += static_cast<float>(s + 1);
    backward += static_cast<float>(s + 1) + (s >= stage ? static_cast<float>(2 * (s + 1)) : 0);
  }
  for (int m = 0; m < kMicroBatches; ++m) {
    EXPECT_EQ(place({false, m}).Values(), full(forward));
    EXPECT_EQ(place({true, m}).Values(), full(backward));
  }
}

TEST_F(NcclGroupTest, PipelineOfTwo) {
  Run(2, [](auto& transport, Ops* ops) {
    auto group = NewNcclGroup(transport.get(), {0, 1}, 1, ops, StartOrder::kNeighbours);
    ASSERT_TRUE(group.ok()) << group.status();
    RunPipeline(**group, ops);
  });
}

TEST_F(NcclGroupTest, PipelineOfThree) {
  Run(3, [](auto& transport, Ops* ops) {
    auto group = NewNcclGroup(transport.get(), {0, 1, 2}, 1, ops, StartOrder::kNeighbours);
    ASSERT_TRUE(group.ok()) << group.status();
    RunPipeline(**group, ops);
    // Interleaved stages use the ring's last lane too: the last stage sends to the first.
    OnDevice<float> out(ops, Partial((*group)->index(), 1000)), in(ops, Partial(9, 1000));
    const int next = ((*group)->index() + 1) % 3, previous = ((*group)->index() + 2) % 3;
    const Transfer transfers[] = {{Transfer::Kind::kSend, next, out.data(), out.bytes()},
                                  {Transfer::Kind::kRecv, previous, in.data(), in.bytes()}};
    ASSERT_TRUE((*group)->WaitAll((*group)->Start(6, transfers)).ok());
    EXPECT_EQ(in.Values(), Partial(previous, 1000));
  });
}

// All groups of a mesh at once on one device, as a trainer has them.
TEST_F(NcclGroupTest, GroupsSideBySide) {
  Run(4, [](auto& transport, Ops* ops) {
    const int row = transport->rank() / 2, column = transport->rank() % 2;
    const std::vector<int> rows = {2 * row, 2 * row + 1}, columns = {column, column + 2};
    auto first = NewNcclGroup(transport.get(), rows, 1, ops, StartOrder::kSame);
    ASSERT_TRUE(first.ok()) << first.status();
    auto second = NewNcclGroup(transport.get(), columns, 2, ops, StartOrder::kNeighbours);
    ASSERT_TRUE(second.ok()) << second.status();
    Group reference(transport.get(), rows, 3);
    CheckStreamOrder(**first, ops);
    RunPipeline(**second, ops);
    CheckCollectives(**first, reference, ops);
    EXPECT_TRUE(Group(transport.get(), Everybody(4), 4).Barrier().ok());
  });
}

TEST_F(NcclGroupTest, AutomaticChoiceSharesNoGpu) {
  Run(2, [](auto& transport, Ops* ops) {
    EXPECT_THAT(GpuIdentity(ops), HasSubstr(":"));
    auto group = MakeCollectives(transport.get(), {0, 1}, 1, ops);
    ASSERT_TRUE(group.ok()) << group.status();
    Group reference(transport.get(), {0, 1}, 2);  // It is the staged one: one GPU serves both.
    CheckCollectives(**group, reference, ops);
    CheckExchanges(**group, ops);
    CheckStreamOrder(**group, ops);
  });
}

// The device waits for a message of a rank that is dead: the host must learn of it and come back,
// and the device must become free.
void CheckMemberKilled(std::unique_ptr<Transport>& transport, Ops* ops, StartOrder order,
                       bool exchange) {
  auto group = NewNcclGroup(transport.get(), {0, 1}, 1, ops, order);
  ASSERT_TRUE(group.ok()) << group.status();
  OnDevice<float> values(ops, Partial(transport->rank(), 100000));
  ASSERT_TRUE((*group)->AllReduceTree(values.data(), 100000, values.data()).ok());
  ASSERT_TRUE(ops->Sync().ok());
  if (transport->rank() == 1) {
    absl::SleepFor(absl::Milliseconds(300));
    ::raise(SIGKILL);
  }
  const absl::Time begin = absl::Now();
  absl::Status status;
  if (exchange) {
    const Transfer transfer{Transfer::Kind::kRecv, 1, values.data(), values.bytes()};
    status = (*group)->WaitAll((*group)->Start(1, {&transfer, 1}));
  } else {
    status = (*group)->AllReduceTree(values.data(), 100000, values.data());
  }
  Collectives* const groups[] = {group->get()};
  if (status.ok()) status = SyncWatching(ops, groups);
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("rank 1 is gone"));
  EXPECT_LT(absl::Now() - begin, kNoticed);
  EXPECT_FALSE((*group)->AllReduceTree(values.data(), 10, values.data()).ok());
  group->reset();
  (void)ops->Sync();
  EXPECT_LT(absl::Now() - begin, 2 * kNoticed);
}

TEST_F(NcclGroupTest, KilledMemberOfACollective) {
  Run({.size = 2, .killed = {1}, .limit = absl::Seconds(120)}, [](auto& transport, Ops* ops) {
    CheckMemberKilled(transport, ops, StartOrder::kSame, /*exchange=*/false);
  });
}

TEST_F(NcclGroupTest, KilledMemberOfAnExchange) {
  Run({.size = 2, .killed = {1}, .limit = absl::Seconds(120)}, [](auto& transport, Ops* ops) {
    CheckMemberKilled(transport, ops, StartOrder::kSame, /*exchange=*/true);
  });
}

TEST_F(NcclGroupTest, KilledNeighbour) {
  Run({.size = 2, .killed = {1}, .limit = absl::Seconds(120)}, [](auto& transport, Ops* ops) {
    CheckMemberKilled(transport, ops, StartOrder::kNeighbours, /*exchange=*/true);
  });
}

// As before, but nobody dies: this rank is told to stop.
TEST_F(NcclGroupTest, CancelledWhileTheDeviceWaits) {
  Run({.size = 2, .limit = absl::Seconds(120)}, [](auto& transport, Ops* ops) {
    auto group = NewNcclGroup(transport.get(), {0, 1}, 1, ops, StartOrder::kSame);
    ASSERT_TRUE(group.ok()) << group.status();
    OnDevice<float> values(ops, Partial(transport->rank(), 100000));
    absl::Time when = absl::InfiniteFuture();
    std::thread cancel([&] {
      absl::SleepFor(absl::Milliseconds(300));
      when = absl::Now();
      transport->Cancel("a new generation");
    });
    // Rank 1 sends nothing, and is told too.
    absl::Status status;
    if (transport->rank() == 0)
      status = (*group)->AllReduceTree(values.data(), 100000, values.data());
    Collectives* const groups[] = {group->get()};
    while (status.ok()) status = SyncWatching(ops, groups);
    cancel.join();
    EXPECT_LT(absl::Now() - when, absl::Seconds(1));
    EXPECT_TRUE(absl::IsCancelled(status) || absl::IsUnavailable(status)) << status;
    EXPECT_TRUE(absl::IsCancelled((*group)->Watch()));
    EXPECT_FALSE((*group)->AllReduceTree(values.data(), 10, values.data()).ok());
    group->reset();
    (void)ops->Sync();
    EXPECT_LT(absl::Now() - when, kNoticed);
  });
}

// Rank 1 tells what it has to tell on the host (nothing, in as many bytes as NcclGroup does), and
// dies where the other waits for it inside NCCL.
TEST_F(NcclGroupTest, KilledWhileTheOthersMeet) {
  Run({.size = 2, .killed = {1}, .limit = absl::Seconds(120)}, [](auto& transport, Ops* ops) {
    if (transport->rank() == 1) {
      const std::vector<char> own(388);
      std::vector<char> all(2 * own.size());
      EXPECT_TRUE(
          Group(transport.get(), {0, 1}, 1).AllGather(own.data(), own.size(), all.data()).ok());
      absl::SleepFor(absl::Milliseconds(500));
      ::raise(SIGKILL);
    }
    const absl::Time begin = absl::Now();
    const auto group = NewNcclGroup(transport.get(), {0, 1}, 1, ops, StartOrder::kSame);
    EXPECT_TRUE(absl::IsUnavailable(group.status())) << group.status();
    EXPECT_THAT(Message(group.status()), HasSubstr("rank 1"));
    EXPECT_LT(absl::Now() - begin, kNoticed);
  });
}

TEST(NcclGroupRefusalTest, NeedsACudaDevice) {
  if (!NcclIsBuilt()) GTEST_SKIP() << "this build has no NCCL";
  const auto transport = NewTransport("local", {}, NewLocalHub(1)).value();
  const std::unique_ptr<Ops> ops = NewCpuOps(1);
  EXPECT_EQ(GpuIdentity(ops.get()), "");
  const auto group = NewNcclGroup(transport.get(), {0}, 1, ops.get(), StartOrder::kSame);
  EXPECT_TRUE(absl::IsFailedPrecondition(group.status())) << group.status();
}

}  // namespace
}  // namespace perdure
