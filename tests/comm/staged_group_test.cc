// Collectives through host memory, over a stand-in for a device that runs late and that the host
// cannot touch; and the choice between the implementations.
#include "runtime/comm/staged_group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <thread>

#include "absl/time/clock.h"
#include "runtime/base/status.h"
#include "runtime/comm/make_collectives.h"
#include "runtime/comm/nccl_group.h"
#include "runtime/comm/sync_watching.h"
#include "tests/comm/collectives_check.h"
#include "tests/comm/ranks.h"
#include "tests/kernels/device_ops.h"

namespace perdure {
namespace {

using testing::HasSubstr;

const Wiring kThreads{"LocalThreads", "local", "", false};

std::vector<int> Everybody(int size) {
  std::vector<int> members(static_cast<size_t>(size));
  std::iota(members.begin(), members.end(), 0);
  return members;
}

class StagedGroupTest : public testing::TestWithParam<int> {};

INSTANTIATE_TEST_SUITE_P(Sizes, StagedGroupTest, testing::Values(1, 2, 3, 4, 5));

TEST_P(StagedGroupTest, GivesTheBitsOfTheGroup) {
  const int size = GetParam();
  RunRanks(kThreads, size, [size](std::unique_ptr<Transport>& transport) {
    const std::unique_ptr<Ops> ops = std::make_unique<DeviceOps>();
    Group reference(transport.get(), Everybody(size), 1);
    StagedGroup group(transport.get(), Everybody(size), 2, ops.get());
    EXPECT_EQ(group.size(), size);
    EXPECT_EQ(group.index(), transport->rank());
    EXPECT_EQ(group.transport(), transport.get());
    CheckCollectives(group, reference, ops.get());
    CheckExchanges(group, ops.get());
    CheckStreamOrder(group, ops.get());
    EXPECT_GE(group.wait_seconds(), 0);
    EXPECT_TRUE(group.Watch().ok());
    if (size == 1) EXPECT_EQ(group.staging_bytes(), 0);
  });
}

TEST(StagedGroupOfOneTest, WaitsForNothing) {
  RunRanks(kThreads, 1, [](std::unique_ptr<Transport>& transport) {
    const std::unique_ptr<Ops> ops = std::make_unique<DeviceOps>();
    StagedGroup group(transport.get(), {0}, 1, ops.get());
    OnDevice<float> in(ops.get(), Partial(0, 100)), out(ops.get(), Partial(1, 100));
    const Extent whole{0, in.bytes()};
    ASSERT_TRUE(group.AllGather(in.data(), in.bytes(), out.data()).ok());
    ASSERT_TRUE(group.AllGatherV(in.data(), {&whole, 1}).ok());
    ASSERT_TRUE(group.ReduceScatterTree(in.data(), 100, out.data()).ok());
    ASSERT_TRUE(group.AllReduceTree(in.data(), 100, out.data()).ok());
    const Transfer send{Transfer::Kind::kSend, 0, in.data(), in.bytes()};
    const Transfer receive{Transfer::Kind::kRecv, 0, out.data(), out.bytes()};
    const std::vector<RequestPtr> sent = group.Start(3, {&send, 1});
    EXPECT_FALSE(sent[0]->done());
    EXPECT_TRUE(absl::IsFailedPrecondition(group.WaitAll(sent)));
    const std::vector<RequestPtr> received = group.Start(3, {&receive, 1});
    EXPECT_TRUE(sent[0]->done() && received[0]->done());
    EXPECT_TRUE(group.WaitAll(sent).ok());
    EXPECT_TRUE(group.WaitAll(received).ok());
    EXPECT_FALSE(ops->Idle());  // Not even the upload of `in` has been waited for.
    EXPECT_EQ(out.Values(), Partial(0, 100));
  });
}

// A long run needs no more memory than its busiest step.
TEST(StagingPoolTest, UsesItsMemoryAgain) {
  RunRanks(kThreads, 2, [](std::unique_ptr<Transport>& transport) {
    const std::unique_ptr<Ops> ops = std::make_unique<DeviceOps>();
    StagedGroup group(transport.get(), {0, 1}, 1, ops.get());
    const int peer = 1 - group.index();
    constexpr size_t kBytes = 100000;
    OnDevice<char> data(ops.get(), std::vector<char>(kBytes, static_cast<char>(group.index())));
    OnDevice<char> got(ops.get(), std::vector<char>(kBytes, 7));
    // One side only receives, so that its uploads are never followed by a download.
    for (int i = 0; i < 50; ++i) {
      const Transfer transfer{group.index() == 0 ? Transfer::Kind::kSend : Transfer::Kind::kRecv,
                              peer, group.index() == 0 ? data.data() : got.data(), kBytes};
      ASSERT_TRUE(group.WaitAll(group.Start(1, {&transfer, 1})).ok());
    }
    EXPECT_LE(group.staging_bytes(), 4 * kBytes);
    EXPECT_EQ(got.Values()[0], group.index() == 0 ? 7 : 0);
  });
}

TEST(StagedGroupErrorTest, ALostMemberFailsEveryKindOfCall) {
  for (int call = 0; call < 5; ++call)
    RunRanks(kThreads, 3, [call](std::unique_ptr<Transport>& transport) {
      if (transport->rank() == 2) {
        absl::SleepFor(absl::Milliseconds(30));
        return transport.reset();
      }
      const std::unique_ptr<Ops> ops = std::make_unique<DeviceOps>();
      StagedGroup group(transport.get(), {0, 1, 2}, 1, ops.get());
      OnDevice<float> values(ops.get(), Partial(0, 30000));
      const std::vector<Extent> extents(3, {0, 4000});
      const Transfer transfers[] = {{Transfer::Kind::kRecv, 2, values.data(), 4000},
                                    {Transfer::Kind::kRecv, 2, values.data() + 2000, 4000}};
      absl::Status status;
      switch (call) {
        case 0:
          status = group.AllGather(values.data(), 400, values.data());
          break;
        case 1:
          status = group.AllGatherV(values.data(), extents);
          break;
        case 2:
          status = group.AllReduceTree(values.data(), 10, values.data());
          break;
        case 3:
          status = group.AllReduceTree(values.data(), 30000, values.data());
          break;
        default:
          status = group.WaitAll(group.Start(1, transfers));
      }
      EXPECT_TRUE(absl::IsUnavailable(status)) << call << ": " << status;
      EXPECT_THAT(Message(status), HasSubstr("rank 2 is gone"));
    });
}

// A request that is dropped while its message is under way must not have its memory used again.
TEST(StagedGroupErrorTest, ADroppedRequestKeepsItsMemory) {
  RunRanks(kThreads, 2, [](std::unique_ptr<Transport>& transport) {
    const std::unique_ptr<Ops> ops = std::make_unique<DeviceOps>();
    StagedGroup group(transport.get(), {0, 1}, 1, ops.get());
    OnDevice<char> values(ops.get(), std::vector<char>(60000));
    if (group.index() == 0) {
      const Transfer receive{Transfer::Kind::kRecv, 1, values.data(), values.bytes()};
      (void)group.Start(1, {&receive, 1});
    }
    ASSERT_TRUE(group
                    .AllReduceTree(reinterpret_cast<float*>(values.data()), 15000,
                                   reinterpret_cast<float*>(values.data()))
                    .ok());
    const Transfer send{Transfer::Kind::kSend, 0, values.data(), values.bytes()};
    if (group.index() == 1) EXPECT_TRUE(group.WaitAll(group.Start(1, {&send, 1})).ok());
    ASSERT_TRUE(Group(transport.get(), {0, 1}, 2).Barrier().ok());  // The memory is still there.
  });
}

TEST(MakeCollectivesTest, ChoosesByMemoryAndWord) {
  RunRanks(kThreads, 2, [](std::unique_ptr<Transport>& transport) {
    const std::unique_ptr<Ops> host = NewCpuOps(1), device = std::make_unique<DeviceOps>();
    const auto make = [&](Ops* ops, const std::string& word) {
      return MakeCollectives(transport.get(), {0, 1}, 1, ops, word);
    };
    for (const char* word : {"auto", "nccl", "staged"})
      EXPECT_NE(dynamic_cast<Group*>(make(host.get(), word)->get()), nullptr) << word;
    // This device has no identity, so that nobody has a GPU.
    for (const char* word : {"auto", "staged"})
      EXPECT_NE(dynamic_cast<StagedGroup*>(make(device.get(), word)->get()), nullptr) << word;
    EXPECT_EQ((*make(host.get(), "auto"))->Describe(), "");
    EXPECT_EQ((*make(device.get(), "staged"))->Describe(), "staged");
    EXPECT_THAT((*make(device.get(), "auto"))->Describe(), HasSubstr("staged, because rank 0"));
    EXPECT_TRUE(absl::IsInvalidArgument(make(device.get(), "ncll").status()));
    if (!NcclIsBuilt()) {
      const absl::Status status = make(device.get(), "nccl").status();
      EXPECT_TRUE(absl::IsUnimplemented(status)) << status;
      EXPECT_THAT(Message(status), HasSubstr("staged"));
    }
  });
}

// A device that never ends is left to itself, wherever the host waits for it.
TEST(StagedGroupErrorTest, CancelEndsAWaitForTheDevice) {
  for (int call = 0; call < 5; ++call)
    RunRanks(kThreads, 2, [call](std::unique_ptr<Transport>& transport) {
      auto device = std::make_unique<DeviceOps>();
      StagedGroup group(transport.get(), {0, 1}, 1, device.get());
      OnDevice<float> values(device.get(), Partial(0, 30000));
      ASSERT_TRUE(device->Sync().ok());
      EXPECT_TRUE(group.Watch().ok());
      device->Hang();
      const std::vector<Extent> extents(2, {0, 4000});
      const Transfer send{Transfer::Kind::kSend, 1 - group.index(), values.data(), 4000};
      std::thread cancel([&] {
        absl::SleepFor(absl::Milliseconds(50));
        transport->Cancel("a new generation");
      });
      const absl::Time begin = absl::Now();
      absl::Status status;
      switch (call) {
        case 0:
          status = group.AllGather(values.data(), 400, values.data());
          break;
        case 1:
          status = group.AllGatherV(values.data(), extents);
          break;
        case 2:
          status = group.AllReduceTree(values.data(), 10, values.data());
          break;
        case 3:
          status = group.ReduceScatterTree(values.data(), 1000, values.data());
          break;
        default:
          status = group.WaitAll(group.Start(1, {&send, 1}));
      }
      cancel.join();
      EXPECT_TRUE(absl::IsCancelled(status)) << call << ": " << status;
      EXPECT_THAT(Message(status), HasSubstr("a new generation"));
      EXPECT_LT(absl::Now() - begin, absl::Seconds(2));
      EXPECT_TRUE(absl::IsCancelled(group.Watch()));
      Collectives* const groups[] = {&group};
      EXPECT_TRUE(absl::IsCancelled(SyncWatching(device.get(), groups)));
      device->Recover();
    });
}

// Finds after a while that a member is lost, as a group whose messages the device waits for.
class LosingCollectives final : public Collectives {
 public:
  int size() const override { return 1; }
  int index() const override { return 0; }
  Transport* transport() const override { return nullptr; }
  absl::Status AllGather(const void*, size_t, void*) override { return {}; }
  absl::Status AllGatherV(void*, std::span<const Extent>) override { return {}; }
  absl::Status ReduceScatterTree(const float*, int64_t, float*) override { return {}; }
  absl::Status AllReduceTree(const float*, int64_t, float*) override { return {}; }
  std::vector<RequestPtr> Start(uint32_t, std::span<const Transfer>) override { return {}; }
  absl::Status WaitAll(std::span<const RequestPtr>) override { return {}; }
  absl::Status Watch() override { return ++watched < 3 ? absl::OkStatus() : fault; }
  void Abort() override { aborted = true; }
  double wait_seconds() const override { return 0; }

  absl::Status fault = Unavailable("rank 7 is gone");
  int watched = 0;
  bool aborted = false;
};

TEST(SyncWatchingTest, GivesUpWhenAMemberIsLost) {
  const auto ops = std::make_unique<DeviceOps>();
  ops->Hang();
  LosingCollectives first, second;
  Collectives* const groups[] = {&first, nullptr, &second};
  const absl::Status status = SyncWatching(ops.get(), groups, absl::Milliseconds(50));
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("rank 7"));
  EXPECT_TRUE(first.aborted && second.aborted);
  EXPECT_GE(first.watched, 3);
}

TEST(SyncWatchingTest, HasNoPatienceOnceCancelled) {
  const auto ops = std::make_unique<DeviceOps>();
  ops->Hang();
  LosingCollectives group;
  group.fault = Cancelled("told to stop");
  Collectives* const groups[] = {&group};
  const absl::Time begin = absl::Now();
  const absl::Status status = SyncWatching(ops.get(), groups, absl::Hours(1));
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  EXPECT_LT(absl::Now() - begin, absl::Seconds(2));
  EXPECT_TRUE(group.aborted);
}

TEST(SyncWatchingTest, IsSyncForADeviceThatFinishes) {
  const std::unique_ptr<Ops> ops = std::make_unique<DeviceOps>();
  OnDevice<float> values(ops.get(), {1, 2, 3});
  LosingCollectives group;
  Collectives* const groups[] = {&group};
  EXPECT_TRUE(SyncWatching(ops.get(), groups, absl::Milliseconds(50)).ok());
  EXPECT_TRUE(ops->Idle());
  EXPECT_FALSE(group.aborted);
}

TEST(SyncWatchingTest, IsSyncWhereNothingIsUnderWay) {
  const std::unique_ptr<Ops> ops = NewCpuOps(1);
  LosingCollectives group;
  Collectives* const groups[] = {&group};
  EXPECT_TRUE(SyncWatching(ops.get(), groups).ok());
  EXPECT_EQ(group.watched, 0);
}

}  // namespace
}  // namespace perdure
