#include "kernels/cpu/cpu_ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <vector>

namespace perdure {
namespace {

TEST(CpuOpsTest, MemoryIsAlignedAndZeroAlsoWhenReused) {
  const auto ops = NewCpuOps(1);
  for (size_t bytes : {size_t{0}, size_t{1}, size_t{63}, size_t{4097}, size_t{5} << 20}) {
    for (int repeat = 0; repeat < 3; ++repeat) {
      auto* memory = static_cast<unsigned char*>(ops->Allocate(bytes));
      ASSERT_NE(memory, nullptr);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % 64, 0u);
      for (size_t i = 0; i < bytes; ++i) ASSERT_EQ(memory[i], 0);
      std::memset(memory, 0xff, bytes);
      ops->Free(memory);
    }
  }
  ops->Free(nullptr);
  ops->Allocate(100);  // Released with the object.
}

TEST(CpuOpsTest, AllocationsAreApart) {
  const auto ops = NewCpuOps(1);
  std::vector<void*> all;
  for (int i = 0; i < 20; ++i) {
    all.push_back(ops->Allocate(1000));
    std::memset(all.back(), i, 1000);
  }
  for (int i = 0; i < 20; ++i) EXPECT_EQ(static_cast<char*>(all[i])[999], i);
}

TEST(CpuOpsTest, DescribesItself) {
  EXPECT_EQ(NewCpuOps(1)->Describe(), "cpu, " + CpuIsa() + ", 1 thread");
  EXPECT_EQ(NewCpuOps(2)->Describe(), "cpu, " + CpuIsa() + ", 2 threads");
}

TEST(CpuOpsTest, UploadsAndDownloads) {
  const auto ops = NewCpuOps(1);
  EXPECT_TRUE(ops->DeviceIsHost());
  auto* host = static_cast<float*>(ops->AllocateHost(400));
  auto* device = static_cast<float*>(ops->Allocate(400));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(host) % 64, 0u);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(host[i], 0);
  for (int i = 0; i < 100; ++i) host[i] = static_cast<float>(i);
  ops->Upload(host, 400, device);
  ops->Upload(nullptr, 0, nullptr);
  std::vector<float> back(50, -1);
  ops->Download(device + 50, 200, back.data());
  ops->Download(nullptr, 0, nullptr);
  EXPECT_TRUE(ops->Sync().ok());
  for (int i = 0; i < 50; ++i) EXPECT_EQ(back[i], static_cast<float>(i + 50));
  ops->FreeHost(host);
  ops->FreeHost(nullptr);
}

TEST(CpuOpsTest, SyncIsOk) { EXPECT_TRUE(NewCpuOps(1)->Sync().ok()); }

TEST(CpuOpsDeathTest, FreeingWhatIsNotOursEndsTheProcess) {
  const auto ops = NewCpuOps(1);
  int other = 0;
  EXPECT_DEATH(ops->Free(&other), "allocations_");
  EXPECT_DEATH(ops->Allocate(size_t{1} << 60), "MAP_FAILED");
}

}  // namespace
}  // namespace perdure
