// The CUDA backend as an object: memory of its own, errors that come out of Sync, its description;
// and what stands in for it where it is missing. Its arithmetic is tested with every backend's, and
// in cuda_against_cpu_test.cc and cuda_bits_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "tests/backends.h"

namespace perdure {
namespace {

using testing::HasSubstr;
using testing::MatchesRegex;

class CudaOpsTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = WhyMissing(Backend::kCuda); !why.empty()) GTEST_SKIP() << why;
    auto ops = NewCudaOps(0);
    ASSERT_TRUE(ops.ok()) << ops.status();
    ops_ = *std::move(ops);
  }
  std::vector<unsigned char> Read(const void* device, size_t bytes) {
    std::vector<unsigned char> host(bytes, 0xee);
    ops_->Download(device, bytes, host.data());
    EXPECT_TRUE(ops_->Sync().ok());
    return host;
  }

  std::unique_ptr<Ops> ops_;
};

TEST_F(CudaOpsTest, MemoryIsAlignedAndZeroAlsoWhenReused) {
  for (size_t bytes : {size_t{0}, size_t{1}, size_t{63}, size_t{4097}, size_t{5} << 20}) {
    const std::vector<unsigned char> dirt(bytes, 0xff);
    for (int repeat = 0; repeat < 3; ++repeat) {
      void* memory = ops_->Allocate(bytes);
      ASSERT_NE(memory, nullptr);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % 64, 0u);
      EXPECT_EQ(Read(memory, bytes), std::vector<unsigned char>(bytes, 0)) << bytes;
      ops_->Upload(dirt.data(), bytes, memory);
      EXPECT_EQ(Read(memory, bytes), dirt) << bytes;
      ops_->Free(memory);
    }
  }
  ops_->Free(nullptr);
  ops_->FreeHost(nullptr);
  EXPECT_TRUE(ops_->Sync().ok());
}

TEST_F(CudaOpsTest, AllocationsAreApart) {
  std::vector<void*> all;
  for (unsigned char i = 0; i < 20; ++i) {
    const std::vector<unsigned char> bytes(1000, i);
    all.push_back(ops_->Allocate(1000));
    ops_->Upload(bytes.data(), 1000, all.back());
    ASSERT_TRUE(ops_->Sync().ok());
  }
  for (unsigned char i = 0; i < 20; ++i) {
    EXPECT_EQ(Read(all[i], 1000), std::vector<unsigned char>(1000, i));
    ops_->Free(all[i]);
  }
}

TEST_F(CudaOpsTest, HostMemoryIsZeroAndCopiesKeepTheStreamsOrder) {
  EXPECT_FALSE(ops_->DeviceIsHost());
  constexpr int64_t kCount = 100000;
  constexpr size_t kBytes = kCount * sizeof(float);
  auto* host = static_cast<float*>(ops_->AllocateHost(kBytes));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(host) % 64, 0u);
  for (int64_t i = 0; i < kCount; ++i) ASSERT_EQ(host[i], 0);
  for (int64_t i = 0; i < kCount; ++i) host[i] = static_cast<float>(i);
  Matrix x(ops_->Allocate(kBytes), DType::kF32, 1, kCount);
  ops_->Upload(host, kBytes, x.data);
  ops_->Add(x, x);
  std::vector<float> doubled(kCount);
  ops_->Download(x.data, kBytes, doubled.data());
  ops_->Zero(x);
  std::vector<float> zeros(kCount, 1);
  ops_->Download(x.data, kBytes, zeros.data());
  ASSERT_TRUE(ops_->Sync().ok());
  for (int64_t i = 0; i < kCount; ++i) ASSERT_EQ(doubled[i], 2 * host[i]);
  for (int64_t i = 0; i < kCount; ++i) ASSERT_EQ(zeros[i], 0);
  ops_->Free(x.data);
  ops_->FreeHost(host);
  EXPECT_TRUE(ops_->Sync().ok());
}

TEST_F(CudaOpsTest, TheFirstErrorComesOutOfEverySync) {
  int not_ours = 0;
  ops_->FreeHost(&not_ours);
  const absl::Status first = ops_->Sync();
  EXPECT_EQ(first.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(first.message()), HasSubstr("CUDA device 0"));
  EXPECT_THAT(std::string(first.message()), HasSubstr("cudaFreeHost"));
  EXPECT_THAT(std::string(first.message()), HasSubstr("cudaErrorInvalidValue"));
  ops_->Free(&not_ours);
  EXPECT_EQ(ops_->Sync(), first);

  // It is this object's: another one works, in this thread too.
  const auto other = NewCudaOps(0);
  ASSERT_TRUE(other.ok()) << other.status();
  Matrix x((*other)->Allocate(64), DType::kF32, 1, 16);
  (*other)->Add(x, x);
  (*other)->Zero(x);
  (*other)->Free(x.data);
  EXPECT_EQ((*other)->Sync(), absl::OkStatus());
}

// A kernel's fault shows when the device gets there, and costs the process its device: hence a
// process of its own.
[[noreturn]] void AddWhereNoMemoryIs() {
  const std::unique_ptr<Ops> ops = *NewCudaOps(0);
  const Matrix nowhere(reinterpret_cast<void*>(uintptr_t{0x10000}), DType::kF32, 1, 1000);
  ops->Add(nowhere, nowhere);
  const absl::Status status = ops->Sync();
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::_Exit(status.code() == absl::StatusCode::kUnavailable && ops->Sync() == status ? 0 : 1);
}

TEST(CudaOpsDeathTest, FaultsOfKernelsComeOutOfSync) {
  if (const std::string why = WhyMissing(Backend::kCuda); !why.empty()) GTEST_SKIP() << why;
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(AddWhereNoMemoryIs(), testing::ExitedWithCode(0),
              "CUDA device 0: .*illegal memory access");
}

TEST(CudaOpsDeathTest, TooMuchMemoryEndsTheProcessNamingThePlan) {
  if (const std::string why = WhyMissing(Backend::kCuda); !why.empty()) GTEST_SKIP() << why;
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH((*NewCudaOps(0))->Allocate(size_t{1} << 50), "1125899906842624 bytes.*perdure plan");
}

TEST_F(CudaOpsTest, DescribesItself) {
  EXPECT_THAT(ops_->Describe(), MatchesRegex("cuda, .+, device 0"));
}

TEST_F(CudaOpsTest, IsaNamesWhatFixesTheBits) {
  const auto isa = CudaIsa(0);
  ASSERT_TRUE(isa.ok()) << isa.status();
  EXPECT_THAT(*isa, MatchesRegex("sm_[0-9]+ [0-9]+ cublas [0-9]+\\.[0-9]+\\.[0-9]+ "
                                 "cudnn [0-9]+\\.[0-9]+\\.[0-9]+"));
  EXPECT_EQ(*isa, *CudaIsa(0));
}

TEST_F(CudaOpsTest, NoSuchDeviceIsUnavailable) {
  for (int device : {-1, CudaDeviceCount(), 1000}) {
    const absl::Status status = NewCudaOps(device).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("CUDA device " + std::to_string(device) + " "));
    EXPECT_THAT(std::string(status.message()), HasSubstr("CUDA_VISIBLE_DEVICES"));
    EXPECT_EQ(CudaIsa(device).status().code(), absl::StatusCode::kUnavailable);
  }
}

TEST(MissingCudaTest, IsToldWithTheRemedy) {
  if (WhyMissing(Backend::kCuda).empty()) GTEST_SKIP() << "there is a CUDA device";
  EXPECT_EQ(CudaDeviceCount(), 0);
  const absl::StatusCode code =
      CudaIsBuilt() ? absl::StatusCode::kUnavailable : absl::StatusCode::kUnimplemented;
  for (const absl::Status& status : {NewCudaOps(0).status(), CudaIsa(0).status()}) {
    EXPECT_EQ(status.code(), code);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(CudaIsBuilt() ? "nvidia-smi" : "install the CUDA toolkit"));
    if (!CudaIsBuilt())
      EXPECT_THAT(std::string(status.message()), HasSubstr("numerics.backend to \"cpu\""));
  }
}

}  // namespace
}  // namespace perdure
