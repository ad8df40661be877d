// What a rank's process says about its device, and what comes of a bad one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/agent/rank_desk.h"
#include "tests/train/faulty_ops.h"

namespace perdure {
namespace {

using ::testing::HasSubstr;

// A device that does not compute what it should: the slot is lost, and nobody is met.
class RankMainBadDeviceTest : public RankMainTest {
 protected:
  RankMainBadDeviceTest()
      : RankMainTest(1, {.make = [](const RunConfig&, int) -> absl::StatusOr<RankDevice> {
                       return RankDevice{.ops = std::make_unique<FaultyOps>(Faults{.matmul = 1}),
                                         .name = "the faulty device"};
                     }}) {}
};

TEST_F(RankMainBadDeviceTest, LosesItsSlot) {
  rank().Send(Order(1));
  const auto health = rank().Get<from_rank::Health>();
  EXPECT_EQ(health.report["checked"], true);
  EXPECT_EQ(health.report["code"], static_cast<int>(absl::StatusCode::kDataLoss));
  EXPECT_THAT(health.report["device"].get<std::string>(), HasSubstr("the faulty device of host "));
  EXPECT_THAT(health.report["error"].get<std::string>(), HasSubstr("of a fp32 product"));
  const auto error = rank().Get<from_rank::Error>();  // Before it has an address.
  EXPECT_EQ(error.kind, EvidenceKind::kHealthCheckFailed);
  EXPECT_THAT(error.message, HasSubstr("exclude its node"));
  EXPECT_TRUE(error.slot_lost);
  EXPECT_EQ(rank().ExitCode(), 1);
}

// The device is made and tried once, whatever it then serves.
class RankMainDevicesTest : public RankMainTest {
 protected:
  RankMainDevicesTest()
      : RankMainTest(1, {.make = [this](const RunConfig&, int) -> absl::StatusOr<RankDevice> {
                       ++made_;
                       return RankDevice{.ops = NewCpuOps(1), .name = "a device"};
                     }}) {}
  std::atomic<int> made_ = 0;
};

TEST_F(RankMainDevicesTest, AreMadeOnce) {
  for (Generation generation = 1; generation <= 3; ++generation) {
    Load({}, generation);
    Go(generation);
    rank().Get<from_rank::Progress>();
    rank().Send(to_rank::Stop{.generation = generation});
    rank().Get<from_rank::Stopped>();
  }
  EXPECT_EQ(made_, 1);
}

constexpr char kFakeNvml[] = PERDURE_BINARY_DIR "/tests/libfake_nvml.so";

// What stands in the frames up to the first T, which is the last of them.
template <typename T>
std::vector<from_rank::Frame> UpTo(Rank& rank) {
  std::vector<from_rank::Frame> frames;
  while (frames.empty() || !std::holds_alternative<T>(frames.back())) {
    absl::StatusOr<from_rank::Frame> next = rank.Next();
    if (!next.ok()) {
      ADD_FAILURE() << next.status();
      return frames;
    }
    frames.push_back(*std::move(next));
  }
  return frames;
}

// Evidence among them.
std::vector<Json> EvidenceOf(const std::vector<from_rank::Frame>& frames) {
  std::vector<Json> evidence;
  for (const from_rank::Frame& frame : frames)
    if (const auto* said = std::get_if<from_rank::Evidence>(&frame))
      evidence.push_back(said->evidence);
  return evidence;
}

// It does not compute what it should, and NVML knows of an Xid.
class RankMainBadGpuTest : public RankMainTest {
 protected:
  RankMainBadGpuTest()
      : RankMainTest(1, {.make = [](const RunConfig&, int) -> absl::StatusOr<RankDevice> {
                           return RankDevice{
                               .ops = std::make_unique<FaultyOps>(Faults{.download = 0}),
                               .name = "a GPU",
                               .pci_bus_id = "0000:3b:00.0"};
                         },
                         .nvml = kFakeNvml}) {}
};

TEST_F(RankMainBadGpuTest, EvidenceComesBeforeTheVerdict) {
  rank().Send(Order(1));
  const std::vector<from_rank::Frame> frames = UpTo<from_rank::Health>(rank());
  ASSERT_GE(frames.size(), 2u);
  const std::vector<Json> evidence = EvidenceOf(frames);
  EXPECT_EQ(evidence.size(), frames.size() - 1);
  EXPECT_EQ(evidence[0]["xid"], 79);
  EXPECT_EQ(std::get<from_rank::Health>(frames.back()).report["facts"]["uuid"], "GPU-1234");
  const auto error = rank().Get<from_rank::Error>();
  EXPECT_THAT(error.message, HasSubstr("went over the link"));
  EXPECT_TRUE(error.slot_lost);
  EXPECT_EQ(rank().ExitCode(), 1);
}

// A GPU as far as NVML knows, which sees an Xid, a double-bit error and the end of the device.
class RankMainNvmlTest : public RankMainTest {
 protected:
  explicit RankMainNvmlTest(const std::string& nvml = kFakeNvml)
      : RankMainTest(1, {.make = [](const RunConfig&, int) -> absl::StatusOr<RankDevice> {
                           return RankDevice{
                               .ops = NewCpuOps(1), .name = "a GPU", .pci_bus_id = "0000:3b:00.0"};
                         },
                         .nvml = nvml}) {}
  // Says what to load, when the rank has its device.
  void Meet(const from_rank::Present& present) {
    rank().Send(to_rank::Table{.generation = 1, .first = 0, .addresses = {present.address}});
    rank().Send(to_rank::Load{1});
  }
};

TEST_F(RankMainNvmlTest, FactsAndEvidenceAreTold) {
  rank().page().Join(1);
  rank().Send(Order(1));
  std::vector<from_rank::Frame> frames = UpTo<from_rank::Present>(rank());
  EXPECT_TRUE(std::any_of(frames.begin(), frames.end(), [](const from_rank::Frame& frame) {
    const auto* health = std::get_if<from_rank::Health>(&frame);
    return health != nullptr && health->report["facts"]["uuid"] == "GPU-1234";
  }));
  Meet(std::get<from_rank::Present>(frames.back()));
  std::vector<Json> evidence = EvidenceOf(frames);
  bool loaded = false;
  while (!loaded || evidence.size() < 3) {
    const absl::StatusOr<from_rank::Frame> next = rank().Next();
    ASSERT_OK(next.status());
    loaded |= std::holds_alternative<from_rank::Loaded>(*next);
    if (const auto* said = std::get_if<from_rank::Evidence>(&*next))
      evidence.push_back(said->evidence);
  }
  EXPECT_EQ(evidence[0]["xid"], 79);
  EXPECT_EQ(evidence[2]["event"], "lost");
  rank().Goes();
  EXPECT_EQ(rank().ExitCode(), 1);
}

// What came in last is told before the error that it explains.
TEST_F(RankMainNvmlTest, EvidenceComesBeforeTheError) {
  std::filesystem::remove(directory_.path() + "/en.bin");
  rank().page().Join(1);
  rank().Send(Order(1));
  std::vector<from_rank::Frame> frames = UpTo<from_rank::Present>(rank());
  Meet(std::get<from_rank::Present>(frames.back()));
  std::vector<Json> evidence = EvidenceOf(frames);
  for (Json& said : EvidenceOf(UpTo<from_rank::Loaded>(rank()))) evidence.push_back(said);
  Go();
  for (Json& said : EvidenceOf(UpTo<from_rank::Error>(rank()))) evidence.push_back(said);
  EXPECT_FALSE(evidence.empty());
  EXPECT_EQ(rank().ExitCode(), 1);
}

class RankMainNoNvmlTest : public RankMainNvmlTest {
 protected:
  RankMainNoNvmlTest() : RankMainNvmlTest("libnone-at-all.so.1") {}
};

TEST_F(RankMainNoNvmlTest, IsSaidAndFailsNothing) {
  rank().Send(Order(1));
  const auto health = rank().Get<from_rank::Health>();
  EXPECT_THAT(health.report["no_nvml"].get<std::string>(),
              HasSubstr("libnone-at-all.so.1 is not here"));
  EXPECT_FALSE(health.report.contains("facts"));
  EXPECT_FALSE(health.report.contains("error"));
  EXPECT_FALSE(rank().Get<from_rank::Present>().address.empty());
}

}  // namespace
}  // namespace perdure
