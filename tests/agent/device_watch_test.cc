// NVML through a library of ours in its place: what is asked, what is told, what may be missing.
#include "runtime/agent/device_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <mutex>
#include <thread>
#include <vector>

#include "runtime/base/status.h"

namespace perdure {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

constexpr char kFake[] = PERDURE_BINARY_DIR "/tests/libfake_nvml.so";
constexpr char kOld[] = PERDURE_BINARY_DIR "/tests/libold_nvml.so";
constexpr char kDevice[] = "0000:3b:00.0";

TEST(DeviceWatch, ReportsWhatTheDeviceKnows) {
  const auto watch = DeviceWatch::Open(kFake, kDevice);
  ASSERT_TRUE(watch.ok()) << watch.status();
  const Json expected = {{"pci", kDevice},       {"name", "Fake GPU"},
                         {"uuid", "GPU-1234"},   {"ecc_corrected", 17},
                         {"ecc_uncorrected", 3}, {"remapped_rows", 3},
                         {"remap_pending", 1},   {"remap_failed", 0},
                         {"celsius", 61},        {"sm_mhz", 1980},
                         {"memory_mhz", 2619},   {"throttled", {"power cap", "hardware thermal"}}};
  EXPECT_EQ((*watch)->Facts(), expected);  // Without power and retired pages, which it lacks.
}

TEST(DeviceWatch, TellsEachEventAndThatThereWillBeNoMore) {
  const auto watch = DeviceWatch::Open(kFake, kDevice);
  ASSERT_TRUE(watch.ok()) << watch.status();
  std::mutex mutex;
  std::vector<Json> told;
  (*watch)->Start([&](const Json& evidence) {
    const std::lock_guard lock(mutex);
    told.push_back(evidence);
  });
  for (int i = 0; i < 500; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    const std::lock_guard lock(mutex);
    if (told.size() >= 3) break;
  }
  (*watch)->Stop();
  ASSERT_EQ(told.size(), 3);
  EXPECT_EQ(told[0]["xid"], 79);
  EXPECT_THAT(told[0]["what"].get<std::string>(), HasSubstr("fallen off the bus"));
  EXPECT_THAT(told[0]["what"].get<std::string>(), HasSubstr(kDevice));
  EXPECT_EQ(told[0]["facts"]["celsius"], 61);
  EXPECT_EQ(told[1]["event"], "double-bit ECC");
  EXPECT_EQ(told[2]["event"], "lost");
  EXPECT_THAT(told[2]["what"].get<std::string>(), HasSubstr("GPU is lost"));
}

// An Xid that comes in while its rank ends because of it is told still.
TEST(DeviceWatch, LooksOnceMoreAtItsEnd) {
  const auto watch = DeviceWatch::Open(kFake, kDevice);
  ASSERT_TRUE(watch.ok()) << watch.status();
  std::vector<Json> told;
  (*watch)->Start([&](const Json& evidence) { told.push_back(evidence); });
  (*watch)->Stop();
  ASSERT_GE(told.size(), 1);
  EXPECT_EQ(told[0]["xid"], 79);
}

TEST(DeviceWatch, EndsWithoutEverHavingStarted) {
  EXPECT_TRUE(DeviceWatch::Open(kFake, kDevice).ok());
}

TEST(DeviceWatch, AMissingLibraryADeviceThatItDoesNotKnowAndAnotherLibrary) {
  const absl::Status missing = DeviceWatch::Open("libnone-at-all.so.1", kDevice).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(missing), HasSubstr("libnone-at-all.so.1 is not here"));
  const absl::Status device = DeviceWatch::Open(kFake, "0000:99:00.0").status();
  EXPECT_EQ(device.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(device), HasSubstr("the GPU at 0000:99:00.0: Not Found"));
  const absl::Status old = DeviceWatch::Open(kOld, kDevice).status();
  EXPECT_EQ(old.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(old), HasSubstr("has no nvmlShutdown"));
}

TEST(DeviceWatch, XidsThatWeDoNotKnow) {
  EXPECT_EQ(XidWords(9999), "Xid 9999: see NVIDIA's catalogue of Xid errors");
}

}  // namespace
}  // namespace perdure
