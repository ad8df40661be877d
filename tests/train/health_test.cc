// The health check of a device that works, of devices that are wrong in one way each, and of a slow
// one.
#include "runtime/train/health.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/base/status.h"
#include "tests/backends.h"
#include "tests/kernels/device_ops.h"
#include "tests/train/faulty_ops.h"

namespace perdure {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

HealthOptions Options() { return HealthOptionsOf({.name = "the CPU"}, "n17"); }

std::string Found(const Faults& faults) {
  FaultyOps ops(faults);
  const HealthReport report = CheckHealth(ops, Options());
  EXPECT_EQ(report.status.code(), absl::StatusCode::kDataLoss) << report.status;
  EXPECT_THAT(Message(report.status),
              AllOf(HasSubstr("the CPU of host n17: "), HasSubstr("exclude its node")));
  return Message(report.status);
}

class Health : public OpsTest {};
INSTANTIATE_TEST_SUITE_P(Backend, Health, EveryBackend(), BackendName);

// On a GPU at full size, where it has to be quick as well.
TEST_P(Health, ADeviceThatWorksPasses) {
  const absl::StatusOr<RankDevice> device = [] {
    RunConfig config;
    config.numerics.backend = NameOf(backend());
    config.numerics.threads = 1;
    if (!on_cpu()) config.numerics.isa = CudaIsa(0).value();
    return NewRankDevice(config, 0);
  }();
  ASSERT_TRUE(device.ok()) << device.status();
  const HealthReport report = CheckHealth(*device->ops, HealthOptionsOf(*device, "here"));
  EXPECT_TRUE(report.status.ok()) << report.status;
  EXPECT_GT(report.seconds, 0);
  if (on_cpu()) {
    EXPECT_EQ(report.memory, 0);  // Too small to tell.
    return;
  }
  EXPECT_LT(report.seconds, 5);
  for (const auto& [key, rate] : {std::pair("matmul_bf16", report.matmul_bf16),
                                  {"matmul_fp32", report.matmul_fp32},
                                  {"memory", report.memory},
                                  {"upload", report.upload},
                                  {"download", report.download}}) {
    EXPECT_GT(rate, 1e9) << key;
    std::printf("%s %.3g\n", key, rate);
  }
  std::printf("seconds %.2f\n", report.seconds);
}

TEST(HealthCheck, NeitherTakesDeviceMemoryForTheHostsNorForgetsToWait) {
  DeviceOps ops;
  const HealthReport report = CheckHealth(ops, Options());
  EXPECT_TRUE(report.status.ok()) << report.status;
}

// Whatever the bit: the sign, the exponent, the last one of the mantissa. Products come in pairs of
// bf16 and fp32.
TEST(HealthCheck, OneWrongBitOfOneProductIsNamed) {
  for (const int bit : {31, 30, 23, 12, 0})
    for (const int matmul : {0, 1, 4, 5})
      EXPECT_THAT(Found({.matmul = matmul, .matmul_bit = bit}),
                  HasSubstr(fmt::format("element (5, 7) of a {} product of 128 x 128 is ",
                                        matmul % 2 == 0 ? "bf16" : "fp32")))
          << bit << " " << matmul;
}

// Repeating alone would not find it.
TEST(HealthCheck, ADeviceThatIsAlwaysWrongInTheSameWayIsFound) {
  EXPECT_THAT(Found({.matmul = 0, .matmul_bit = 5, .matmul_from = true}),
              HasSubstr("element (5, 7) of a bf16 product"));
}

TEST(HealthCheck, MemoryIsToldByOffsetAndBits) {
  EXPECT_THAT(Found({.copy = 0}),
              AllOf(HasSubstr("a copy inside its memory is not what was copied: the 8 bytes at "
                              "offset 0x101000 of 2 MiB are "),
                    HasSubstr("(bits 0000080000000000 differ; 1 such words in 256 KiB)")));
  EXPECT_THAT(Found({.copy = 1}), HasSubstr("at offset 0x1000 of 2 MiB"));
  EXPECT_THAT(Found({.upload = 9}),
              HasSubstr("its memory does not keep what is written: the 8 bytes at offset 0x60000"));
}

TEST(HealthCheck, TheLinkIsToldApart) {
  for (const Faults& faults : {Faults{.download = 2}, Faults{.upload = 3}})
    EXPECT_THAT(Found(faults),
                AllOf(HasSubstr("what went over the link to the host and back is changed: the 8 "
                                "bytes at offset 0x20000"),
                      HasSubstr("(bits 0000000000000008 differ")));
}

TEST(HealthCheck, TheDevicesOwnErrorIsNoWrongResult) {
  for (const int sync : {0, 20, 40}) {
    FaultyOps ops({.sync = sync});
    const absl::Status status = CheckHealth(ops, Options()).status;
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(Message(status), "the CPU of host n17, in the health check: an illegal access");
  }
}

TEST(HealthCheck, ASlowDeviceIsMeasuredAsSuch) {
  HealthOptions options = Options();
  options.rates = true;
  FaultyOps good({}), slow({.slow = std::chrono::milliseconds(5)});
  const HealthReport fast = CheckHealth(good, options), late = CheckHealth(slow, options);
  ASSERT_TRUE(fast.status.ok() && late.status.ok());
  EXPECT_LT(late.matmul_bf16, 2.0 * 128 * 128 * 128 / 0.005);
  EXPECT_GT(fast.matmul_bf16, late.matmul_bf16);
  for (const double rate : {fast.matmul_fp32, fast.memory, fast.upload, fast.download})
    EXPECT_GT(rate, 0);
}

TEST(HealthOptions, AGpuIsTriedInABoundedPartOfItsFreeMemory) {
  const auto of = [](size_t free_bytes) {
    return HealthOptionsOf({.pci_bus_id = "0000:3b:00.0", .free_bytes = free_bytes}, "n17");
  };
  EXPECT_EQ(of(size_t{80} << 30).memory_bytes, size_t{1} << 30);
  EXPECT_EQ(of(size_t{80} << 30).matmul_size, 4096);
  const HealthOptions small = of(size_t{4} << 30);
  EXPECT_EQ(small.memory_bytes, size_t{192} << 20);
  EXPECT_EQ(small.matmul_size, 2048);
  EXPECT_EQ(of(0).memory_bytes, size_t{32} << 20);
  EXPECT_EQ(of(0).matmul_size, 1024);
}

}  // namespace
}  // namespace perdure
