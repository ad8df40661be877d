// One run, one loss curve, bit for bit the same at every layout: the promise of
// docs/architecture.md.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "runtime/base/status.h"
#include "tests/kernels/device_ops.h"
#include "tests/train/trainer_harness.h"

namespace perdure {
namespace {

struct Layout {
  int64_t tensor, pipeline, data, zero, virtual_stages = 1;
  const char* recompute = "none";
};

std::string Name(const Layout& l) {
  return fmt::format("t{}p{}d{}z{}v{}{}", l.tensor, l.pipeline, l.data, l.zero, l.virtual_stages,
                     l.recompute[0] == 'f' ? "full" : "");
}

RunConfig At(RunConfig config, const Layout& l) {
  config.layout.tensor = l.tensor;
  config.layout.pipeline = l.pipeline;
  config.layout.data = l.data;
  config.layout.zero = l.zero;
  config.layout.virtual_stages = l.virtual_stages;
  config.layout.recompute = l.recompute;
  return config;
}

class LayoutsTest : public testing::Test {
 protected:
  LayoutsTest() : directory_(fmt::format("{}/layouts_test.{}", testing::TempDir(), ::getpid())) {
    std::filesystem::create_directories(directory_);
    WriteTinyData(directory_);
  }
  ~LayoutsTest() override { std::filesystem::remove_all(directory_); }

  std::string Fresh(const std::string& name) { return directory_ + "/" + name; }
  TrainingResult Whole(const RunConfig& config, const Layout& layout) {
    return Train(At(config, layout), directory_, Fresh(Name(layout)), "", -1);
  }

  std::string directory_;
};

constexpr Layout kOne = {1, 1, 1, 1};

TEST_F(LayoutsTest, EveryLayoutEndsInTheSameBits) {
  const TrainingResult reference = Whole(TinyConfig(), kOne);
  ASSERT_TRUE(reference.status.ok()) << reference.status;
  ASSERT_TRUE(reference.complete);
  for (const Layout& layout : std::initializer_list<Layout>{{2, 1, 1, 1},
                                                            {4, 1, 1, 0},
                                                            {1, 2, 1, 1},
                                                            {1, 4, 1, 1},
                                                            {1, 1, 2, 0},
                                                            {1, 1, 2, 1},
                                                            {1, 1, 3, 2},
                                                            {1, 1, 5, 3},
                                                            {2, 2, 2, 1},
                                                            {2, 2, 2, 3},
                                                            {1, 2, 3, 3, 2},
                                                            {1, 2, 1, 2, 2},
                                                            {2, 2, 1, 1, 2, "full"},
                                                            {1, 1, 1, 0, 1, "full"},
                                                            {4, 1, 2, 2}}) {
    SCOPED_TRACE(Name(layout));
    const TrainingResult result = Whole(TinyConfig(), layout);
    ASSERT_TRUE(result.status.ok()) << result.status;
    EXPECT_EQ(result.loss_bits, reference.loss_bits);
    EXPECT_EQ(result.grad_norms, reference.grad_norms);
    EXPECT_EQ(result.certificate.Hex(), reference.certificate.Hex());
  }
}

TEST_F(LayoutsTest, TheSameInBf16) {
  const RunConfig config = TinyConfig("bf16");
  const TrainingResult reference = Whole(config, kOne);
  ASSERT_TRUE(reference.status.ok()) << reference.status;
  for (const Layout& layout : std::initializer_list<Layout>{
           {4, 1, 1, 1}, {1, 4, 1, 0}, {2, 1, 3, 3}, {1, 2, 2, 2, 2}, {2, 2, 1, 1}}) {
    SCOPED_TRACE(Name(layout));
    const TrainingResult result = Whole(config, layout);
    ASSERT_TRUE(result.status.ok()) << result.status;
    EXPECT_EQ(result.loss_bits, reference.loss_bits);
    EXPECT_EQ(result.certificate.Hex(), reference.certificate.Hex());
  }
}

TEST_F(LayoutsTest, StoppedAndResumedAtOtherLayouts) {
  const RunConfig config = TinyConfig();
  const TrainingResult reference = Whole(config, kOne);
  ASSERT_TRUE(reference.status.ok()) << reference.status;
  const auto steps = static_cast<int64_t>(reference.loss_bits.size());
  const int64_t phase_end = steps - 3;
  const std::vector<std::pair<Layout, int64_t>> jobs = {{{2, 2, 1, 1}, 2},
                                                        {{1, 1, 3, 3}, 5},
                                                        {{4, 1, 1, 0}, phase_end},
                                                        {{1, 2, 2, 2, 2}, phase_end + 1},
                                                        {{1, 1, 2, 1}, -1}};
  std::vector<uint64_t> loss_bits;
  TrainingResult last;
  for (const auto& [layout, until] : jobs) {
    SCOPED_TRACE(Name(layout));
    last = Train(At(config, layout), directory_, Fresh("chain"), last.checkpoint, until);
    ASSERT_TRUE(last.status.ok()) << last.status;
    loss_bits.insert(loss_bits.end(), last.loss_bits.begin(), last.loss_bits.end());
  }
  EXPECT_EQ(loss_bits, reference.loss_bits);
  EXPECT_EQ(last.certificate.Hex(), reference.certificate.Hex());
  EXPECT_TRUE(last.complete);
}

// Where the host cannot touch the memory that operations work on, nor rely on what it enqueued.
TEST_F(LayoutsTest, TheSameInDeviceMemory) {
  const OpsFactory device = [] { return std::make_unique<DeviceOps>(); };
  for (const char* dtype : {"fp32", "bf16"}) {
    const RunConfig config = TinyConfig(dtype);
    const TrainingResult reference = Train(config, directory_, Fresh(dtype), "", -1);
    ASSERT_TRUE(reference.status.ok()) << reference.status;
    for (Layout layout : std::initializer_list<Layout>{
             {1, 1, 1, 0}, {1, 1, 1, 1}, {1, 1, 1, 2}, {1, 1, 1, 3}, {1, 1, 1, 1, 1, "full"}})
      for (const bool asynchronous : {true, false}) {
        SCOPED_TRACE(Name(layout) + dtype + (asynchronous ? "" : " synchronous"));
        RunConfig here = At(config, layout);
        here.checkpoint.asynchronous = asynchronous;
        here.checkpoint.every_steps = 2;
        const std::string run = Fresh(fmt::format("{}{}{}", Name(layout), dtype, asynchronous));
        // Two jobs: what the first saves is loaded by the second.
        const TrainingResult first = Train(here, directory_, run, "", 3, device);
        ASSERT_TRUE(first.status.ok()) << first.status;
        const TrainingResult second = Train(here, directory_, run, first.checkpoint, -1, device);
        ASSERT_TRUE(second.status.ok()) << second.status;
        std::vector<uint64_t> loss_bits = first.loss_bits;
        loss_bits.insert(loss_bits.end(), second.loss_bits.begin(), second.loss_bits.end());
        EXPECT_EQ(loss_bits, reference.loss_bits);
        EXPECT_EQ(second.certificate.Hex(), reference.certificate.Hex());
      }
  }
}

TEST_F(LayoutsTest, TheLossFallsAndTheSeedMatters) {
  RunConfig config = TinyConfig();
  const TrainingResult one = Whole(config, kOne);
  ASSERT_TRUE(one.status.ok()) << one.status;
  EXPECT_LT(std::bit_cast<double>(one.loss_bits[7]),
            0.97 * std::bit_cast<double>(one.loss_bits[0]));
  config.seed = 8;
  const TrainingResult other = Train(config, directory_, Fresh("seed"), "", -1);
  ASSERT_TRUE(other.status.ok()) << other.status;
  EXPECT_NE(other.certificate.Hex(), one.certificate.Hex());
}

}  // namespace
}  // namespace perdure
