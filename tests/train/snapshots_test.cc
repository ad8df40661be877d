// The rule of runtime/train/snapshots.h: whoever dies, at whatever moment, the last finished step
// or the one before is whole in the memory of the others.
#include "runtime/train/snapshots.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "runtime/base/status.h"
#include "tests/train/killed_rank.h"
#include "tests/train/recovery_world.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

struct Case {
  const char* dtype;
  LayoutConfig layout;
  int ranks_per_node;
  int victim;
};

void PrintTo(const Case& tested, std::ostream* out) {
  *out << tested.dtype << ", " << tested.layout.ranks() << " ranks";
}

class KillTest : public testing::TestWithParam<Case> {
 protected:
  KillTest() : directory_(SharedMemory(fmt::format("snapshots_test.{}", ::getpid()))) {
    fs::create_directories(directory_);
    WriteTinyData(directory_);
  }
  ~KillTest() override { fs::remove_all(directory_); }

  // A short run: what is looked at lies in its third and fourth step.
  static RunConfig Config(const char* dtype) {
    RunConfig config = TinyConfig(dtype);
    config.model.layers = 2;
    config.phases.resize(1);
    config.phases[0].batch = {
        .initial = 6, .increment = 0, .ramp_samples = 0, .final = 6};  // 3 leaves.
    return config;
  }

  const std::string directory_;
};

constexpr int64_t kAfter = 2, kUntil = 5;
constexpr int64_t kKillsMax = 80;  // Of a layout: every event, where there are no more.

TEST_P(KillTest, AWholeStepSurvives) {
  const Case& of = GetParam();
  RunConfig config = Config(of.dtype);
  RecoveryWorld world(directory_, config);
  config.checkpoint.every_steps = 1;
  const TrainingResult reference = Train(config, directory_, directory_ + "/reference", "", kUntil);
  ASSERT_TRUE(reference.status.ok()) << reference.status;

  int64_t events = 1, tried = 0, stride = 1;
  for (int64_t at = -1; at < events; at += at < 0 ? 1 : stride) {
    SCOPED_TRACE(fmt::format("event {} of {}", at, events));
    TrainingJob job = world.Job(1, of.layout, of.ranks_per_node);
    job.until_step = kUntil;
    KilledRank killed(of.victim, kAfter, at);
    job.wrap_transport = [&](int rank, std::unique_ptr<Transport> transport) {
      return killed.WrapTransport(rank, std::move(transport));
    };
    job.wrap_host = [&](int rank, RankHost* host) { return killed.WrapHost(rank, host); };
    job.ended = [&](int rank) { killed.Ended(rank); };
    TrainingResult result;
    std::thread run([&] { result = RunJob(job); });
    const auto ranks = static_cast<int>(of.layout.ranks());
    killed.AwaitOthers(ranks);
    const int64_t finished = killed.finished();
    const int nodes = world.NodeOf(job, ranks - 1) + 1;
    for (int lost = -1; lost < nodes; ++lost) {
      const std::optional<int64_t> newest = world.NewestWhole(job, lost);
      EXPECT_TRUE(newest == finished || newest == finished - 1)
          << "newest " << newest.value_or(-1) << " of " << finished << " without node " << lost;
      if (!newest.has_value()) continue;
      const absl::StatusOr<Digest> held = world.CertificateOf(job, *newest, lost);
      EXPECT_TRUE(held.ok()) << held.status();
      if (held.ok()) {
        EXPECT_EQ(held->Hex(), reference.certificates.at(*newest).Hex());
      }
    }
    killed.LetGo();
    run.join();
    ++tried;
    if (at < 0) {
      ASSERT_TRUE(result.status.ok()) << result.status;
      events = killed.events_of_step();  // Of one step; the counts of others hardly differ.
      stride = (events + kKillsMax - 1) / kKillsMax;
    } else {
      EXPECT_TRUE(absl::IsUnavailable(result.status)) << result.status;
    }
    if (HasFailure()) break;
  }
  EXPECT_GT(tried, 20);
  RecordProperty("kills", static_cast<int>(tried - 1));
}

LayoutConfig Of(int64_t tensor, int64_t pipeline, int64_t data, int64_t zero) {
  return {.tensor = tensor, .pipeline = pipeline, .data = data, .zero = zero, .transport = "local"};
}

std::string CaseName(const testing::TestParamInfo<Case>& tested) {
  const LayoutConfig& l = tested.param.layout;
  return fmt::format("{}t{}p{}d{}z{}", tested.param.dtype, l.tensor, l.pipeline, l.data, l.zero);
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, KillTest,
    testing::Values(Case{"fp32", Of(1, 1, 2, 0), 1, 0}, Case{"fp32", Of(1, 1, 2, 1), 1, 1},
                    Case{"bf16", Of(1, 1, 2, 2), 1, 0}, Case{"fp32", Of(1, 1, 3, 3), 1, 2},
                    Case{"fp32", Of(2, 1, 2, 1), 2, 3}, Case{"fp32", Of(1, 2, 2, 0), 1, 1}),
    CaseName);

TEST(SnapshotsTest, MemoryIsCounted) {
  SnapshotConfig config;
  EXPECT_EQ(Snapshots::MemoryOf(config, 1000), 4 * 12 * 1000);
  config.peers = false;
  EXPECT_EQ(Snapshots::MemoryOf(config, 1000), 2 * 12 * 1000);
  config.every = 0;
  EXPECT_EQ(Snapshots::MemoryOf(config, 1000), 0);
}

}  // namespace
}  // namespace perdure
