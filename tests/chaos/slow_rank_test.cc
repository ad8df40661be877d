// A rank that is slow, and does not fail: it is named, its node is left out or replaced, no step is
// lost, and losses and state have the bits of the undisturbed run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "runtime/base/status.h"
#include "tests/chaos/chaos_job.h"
#include "tests/chaos/cpu_quota.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

using nlohmann::json;
using testing::HasSubstr;

constexpr int64_t kNever = 100'000;  // Steps: it is stopped before.

class SlowRank : public testing::Test {
 protected:
  SlowRank() { WriteNanoData(folder_); }
  ~SlowRank() override { std::filesystem::remove_all(folder_); }

  // Four replicas of one rank on nodes of their own, twelve leaves a step.
  std::vector<std::string> Settings() const {
    return {"--set", "layout.tensor=1",
            "--set", "layout.pipeline=1",
            "--set", "phase.pretrain.batch=48",
            "--set", "phase.pretrain.context=32",
            "--set", "phase.pretrain.samples=4800000"};
  }
  std::vector<std::string> Job(int64_t nodes, const std::vector<std::string>& more) const {
    std::vector<std::string> words = {"--nodes", std::to_string(nodes)};
    for (const auto& part : {Settings(), more}) words.insert(words.end(), part.begin(), part.end());
    return words;
  }
  // Ends it where it is, and compares with the same run on one rank that nobody slowed.
  void ExpectTheSame(ChaosJob& job) const {
    job.Stop();
    const ChaosEnd end = job.Wait();
    ASSERT_EQ(end.exit_code, 75) << job.Errors();
    const ChaosEnd undisturbed =
        Undisturbed(folder_, Settings(), static_cast<int64_t>(end.loss_bits.size()));
    EXPECT_EQ(end.certificate, undisturbed.certificate) << job.Errors();
    EXPECT_EQ(end.loss_bits, undisturbed.loss_bits) << job.Errors();
  }
  // Of the generation that follows one that ended because node `node` was slow.
  void ExpectLeftOut(const ChaosJob& job, int64_t node, int64_t data) const {
    const std::vector<json> failures = JournalEvents(job.run(), "failure_detected");
    ASSERT_FALSE(failures.empty()) << job.Errors();
    EXPECT_EQ(failures[0]["kind"], "slow");
    EXPECT_EQ(failures[0]["noticed"], "compared");
    EXPECT_EQ(failures[0]["node"], node);
    const std::vector<json> starts = JournalEvents(job.run(), "generation_starting");
    ASSERT_GE(starts.size(), 2U) << job.Errors();
    EXPECT_EQ(starts[1]["from"], "memory");
    EXPECT_EQ(starts[1]["redone"], 0) << "no step is lost";
    EXPECT_EQ(starts[1]["layout"]["data"], data);
    const json slow = job.Status()["slow"];
    ASSERT_EQ(slow.size(), 1U) << slow;
    EXPECT_EQ(slow[0]["node"], node);
    EXPECT_EQ(slow[0]["left_out"], true);
  }

  const std::string folder_ = FreshFolder("slow_rank");
};

// By turns of SIGSTOP and SIGCONT, as the drill does it; a spare takes over.
TEST_F(SlowRank, IsFoundByTheDrill) {
  ChaosJob job(folder_, Job(5, {"--set", "job.spares=1", "--set", "job.slow_window=4s"}), 1,
               kNever);
  ASSERT_TRUE(job.AwaitStep(3)) << job.Errors();
  const CommandResult drilled =
      Perdure({"drill", job.run(), "--kind", "slow", "--seed", "2", "--json"});
  EXPECT_EQ(drilled.exit_code, 0) << drilled.output << drilled.errors << job.Errors();
  const json injury = json::parse(drilled.output, nullptr, false)["injuries"][0];
  EXPECT_EQ(injury["failure"], "slow") << drilled.output;
  EXPECT_EQ(injury["redone"], 0);
  EXPECT_GT(injury["named"].get<double>(), 0);
  EXPECT_GE(injury["percent"].get<int64_t>(), 150);
  EXPECT_GT(injury["steps_per_second"]["after"].get<double>(), 0);
  ExpectLeftOut(job, injury["node"], 4);
  EXPECT_THAT(job.Errors(), HasSubstr("spare"));
  ExpectTheSame(job);
}

// Each rank has two fifths of a core, one of them a third of that.
TEST_F(SlowRank, LongByACpuQuota) {
  ChaosJob job(folder_, Job(4, {}), 1, kNever);
  ASSERT_TRUE(job.AwaitStep(3)) << job.Errors();
  std::vector<CpuQuota> quotas;
  for (int64_t node = 0; node < 4; ++node) {
    ASSERT_EQ(job.Ranks(node).size(), 1U);
    absl::StatusOr<CpuQuota> quota =
        CpuQuota::Hold(job.Ranks(node)[0], 40, fmt::format("perdure_slow_{}_{}", ::getpid(), node));
    if (!quota.ok()) GTEST_SKIP() << quota.status().message();
    quotas.push_back(*std::move(quota));
  }
  ASSERT_TRUE(job.AwaitStep(job.Step() + 20)) << job.Errors();
  const int64_t slow = (job.Coordinator() + 2) % 4;
  ASSERT_TRUE(quotas[static_cast<size_t>(slow)].Set(13).ok());
  ASSERT_TRUE(job.AwaitEvent("evidence", "\"slow\"", absl::Minutes(2))) << job.Errors();
  const json evidence = JournalEvents(job.run(), "evidence")[0];
  EXPECT_EQ(evidence["node"], slow);
  EXPECT_GE(evidence["number"].get<int64_t>(), 150);
  ASSERT_TRUE(job.AwaitEvent("first_step", "\"generation\":2", absl::Minutes(1))) << job.Errors();
  ASSERT_TRUE(job.AwaitStep(job.Step() + 20)) << job.Errors();
  ExpectLeftOut(job, slow, 3);
  ExpectTheSame(job);
}

}  // namespace
}  // namespace perdure
