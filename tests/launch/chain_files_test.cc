// What a chain keeps in its run's directory, and what it works out from that.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "launch/batch_pulse.h"
#include "launch/chain.h"
#include "launch/chain_queue.h"
#include "launch/config.h"
#include "runtime/base/files.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::IsEmpty;

class ChainFiles : public testing::Test {
 protected:
  ChainFiles() : folder_(FreshFolder("chain_files")) {}
  ~ChainFiles() override { fs::remove_all(folder_); }
  Chain Fresh() const {
    auto chain = Chain::Create(
        folder_, {.job_name = "perdure-x", .data_directory = "/data", .options = {"--mem=0"}});
    EXPECT_TRUE(chain.ok()) << chain.status();
    return *std::move(chain);
  }
  void Write(const std::string& name, const std::string& text) const {
    EXPECT_TRUE(ReplaceFile(folder_ + "/chain/" + name, text).ok());
  }
  static ChainJob Job(int64_t job, double began, int64_t first_step) {
    return {
        .job = job, .began = absl::UnixEpoch() + absl::Seconds(began), .first_step = first_step};
  }
  const std::string folder_;
};

TEST_F(ChainFiles, ComeBack) {
  Fresh();
  const absl::StatusOr<Chain> chain = Chain::Open(folder_);
  ASSERT_TRUE(chain.ok()) << chain.status();
  EXPECT_EQ(chain->common().job_name, "perdure-x");
  EXPECT_EQ(chain->common().data_directory, "/data");
  EXPECT_EQ(chain->common().options, std::vector<std::string>{"--mem=0"});
  EXPECT_THAT(chain->Jobs(), IsEmpty());
  ChainJob job = Job(7, 1000.5, 40);
  job.restarts = 2;
  job.nodes = {"n1", "n2"};
  job.time_over = absl::UnixEpoch() + absl::Seconds(2000);
  ASSERT_TRUE(chain->Tell(job).ok());
  ASSERT_EQ(chain->Jobs().size(), 1U);
  EXPECT_FALSE(chain->Jobs()[0].left.has_value());
  job.left = absl::UnixEpoch() + absl::Seconds(1990);
  job.exit_code = 75;
  job.last_step = 99;
  job.why = "stopped";
  ASSERT_TRUE(chain->Tell(job).ok());
  ASSERT_EQ(chain->Jobs().size(), 1U);
  const ChainJob back = chain->Jobs()[0];
  EXPECT_EQ(back.job, 7);
  EXPECT_EQ(back.restarts, 2);
  EXPECT_EQ(back.nodes, job.nodes);
  EXPECT_EQ(back.began, job.began);
  EXPECT_EQ(back.time_over, job.time_over);
  EXPECT_EQ(back.first_step, 40);
  EXPECT_EQ(back.left, job.left);
  EXPECT_EQ(back.exit_code, 75);
  EXPECT_EQ(back.last_step, 99);
  EXPECT_EQ(back.why, "stopped");
}

TEST_F(ChainFiles, JobsAreByTime) {
  const Chain chain = Fresh();
  for (const auto& [job, began] : {std::pair{9, 30.0}, {3, 10.0}, {12, 20.0}})
    ASSERT_TRUE(chain.Tell(Job(job, began, 0)).ok());
  std::vector<int64_t> order;
  for (const ChainJob& job : chain.Jobs()) order.push_back(job.job);
  EXPECT_THAT(order, testing::ElementsAre(3, 12, 9));
}

TEST_F(ChainFiles, WhatIsNoneIsSaid) {
  EXPECT_TRUE(absl::IsNotFound(Chain::Open(folder_).status()));
  Fresh();
  for (const char* text : {"", "{", "[]", "{\"version\": 2, \"job_name\": \"x\"}",
                           "{\"version\": 1, \"job_name\": 3, \"data_directory\": \"/d\"}"}) {
    Write("chain.json", text);
    EXPECT_TRUE(absl::IsDataLoss(Chain::Open(folder_).status())) << text;
  }
}

TEST_F(ChainFiles, TornOnesOfJobsAreLeftOut) {
  const Chain chain = Fresh();
  ASSERT_TRUE(chain.Tell(Job(1, 10, 0)).ok());
  const std::string whole = *ReadFile(folder_ + "/chain/jobs/1-0.json");
  for (size_t length = 0; length + 2 < whole.size(); ++length)
    Write("jobs/" + std::to_string(100 + length) + "-0.json", whole.substr(0, length));
  Write("jobs/2-0.json", "{\"job\": \"2\", \"began\": []}");
  Write("jobs/3-0.json", "{\"job\": 3, \"began\": null, \"nodes\": [1], \"left\": \"now\"}");
  const std::vector<ChainJob> jobs = chain.Jobs();
  ASSERT_EQ(jobs.size(), 2U);
  EXPECT_EQ(jobs[0].job, 3);
  EXPECT_THAT(jobs[0].nodes, IsEmpty());
  EXPECT_EQ(jobs[1].job, 1);
}

TEST_F(ChainFiles, TheFirstReasonToStopCounts) {
  const Chain chain = Fresh();
  EXPECT_FALSE(chain.stopped().has_value());
  EXPECT_TRUE(chain.GoOn().ok());
  ASSERT_TRUE(chain.StopFor({.why = "a loss is not finite", .job = 5, .time = {}}).ok());
  ASSERT_TRUE(chain.StopFor({.why = "another", .job = 6, .time = {}}).ok());
  ASSERT_TRUE(chain.stopped().has_value());
  EXPECT_EQ(chain.stopped()->why, "a loss is not finite");
  EXPECT_EQ(chain.stopped()->job, 5);
  Write("stopped.json", "{");
  ASSERT_TRUE(chain.stopped().has_value()) << "one that cannot be read stops it as well";
  EXPECT_THAT(chain.stopped()->why, HasSubstr("stopped.json"));
  EXPECT_TRUE(chain.GoOn().ok());
  EXPECT_FALSE(chain.stopped().has_value());
}

TEST_F(ChainFiles, WhatAJobWasAskedFor) {
  const Chain chain = Fresh();
  EXPECT_EQ(chain.Asked(4), "");
  ASSERT_TRUE(chain.TellAsked(4, "2-8").ok());
  EXPECT_EQ(chain.Asked(4), "2-8");
}

TEST_F(ChainFiles, APulseChangesAsLongAsSomebodyLeavesIt) {
  const Chain chain = Fresh();
  BatchPulse script(folder_, 4, 1);
  const BatchPulse seen(folder_, 4, 1), of_another_start(folder_, 4, 0);
  EXPECT_EQ(seen.Find(), "");
  ASSERT_EQ(script.Leave(), absl::OkStatus());
  const std::string first = seen.Find();
  EXPECT_NE(first, "");
  EXPECT_EQ(seen.Find(), first);
  ASSERT_EQ(script.Leave(), absl::OkStatus());
  EXPECT_NE(seen.Find(), first);
  EXPECT_EQ(of_another_start.Find(), "");
  EXPECT_THAT(chain.Jobs(), IsEmpty()) << "it is no job";
  script.Remove();
  EXPECT_EQ(seen.Find(), "");
  fs::remove_all(folder_);
  EXPECT_FALSE(script.Leave().ok());
}

TEST(ChainNames, AreOfOneDirectoryEach) {
  EXPECT_EQ(JobNameOf("nano", "/a/run"), JobNameOf("nano", "/a/run"));
  EXPECT_NE(JobNameOf("nano", "/a/run"), JobNameOf("nano", "/b/run"));
  EXPECT_THAT(JobNameOf("nano", "/a/run"), HasSubstr("perdure-nano-"));
}

TEST(ChainNodes, FollowPhasesAndSpares) {
  const auto config =
      LoadConfig(NanoToml(), {"job.nodes=\"2-4\"", "job.spares=1", "phase.extension.nodes=1"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(NodesFor(*config, 0), "3-5");
  const int64_t other = OtherNodesFrom(*config, 0);
  EXPECT_EQ(other, 100) << "where nano's extension begins";
  EXPECT_EQ(NodesFor(*config, other - 1), "3-5");
  EXPECT_EQ(NodesFor(*config, other), "2");
  EXPECT_EQ(OtherNodesFrom(*config, other), -1);
  EXPECT_EQ(NodesFor(*config, 1 << 20), "2") << "behind the end as at the end";
  const auto same = LoadConfig(NanoToml(), {"job.nodes=2"});
  ASSERT_TRUE(same.ok());
  EXPECT_EQ(OtherNodesFrom(*same, 0), -1);
}

// Three bad nodes, of which one is none of the partition's.
TEST(ChainExcludes, AsManyAsTheJobCanSpare) {
  const absl::Time now = absl::FromUnixSeconds(1'795'883'579);
  EvidenceBook book{EvidenceBook::Options{.nodes = 40}};
  for (const char* node : {"n1", "n2", "x1"})
    ASSERT_TRUE(book.Record({.node = node,
                             .time = now,
                             .kind = EvidenceKind::kSilentCorruption,
                             .number = 0,
                             .generation = 1,
                             .job = "7",
                             .detail = ""})
                    .ok());
  std::set<std::string> choice;
  for (int node = 1; node <= 40; ++node) choice.insert("n" + std::to_string(node));
  const auto judged = [&](int64_t least) {
    const absl::StatusOr<EvidenceBook::Options> options = BookOptionsFor("40");
    EXPECT_TRUE(options.ok());
    const absl::StatusOr<DoneWithout> without = JudgeForJob(book, *options, choice, least, now);
    EXPECT_TRUE(without.ok()) << without.status();
    std::string text;
    for (const EvidenceBook::Verdict& verdict : without->excluded) text += verdict.node + " ";
    return text + std::to_string(without->kept);
  };
  EXPECT_EQ(judged(38), "n1 n2 0");
  EXPECT_EQ(judged(39).substr(2), " 1") << judged(39);
  EXPECT_EQ(judged(40), "2");
}

TEST(ChainNext, IsQueuedUnlessTheRunIsCompleteOrAPersonMustLook) {
  EXPECT_EQ(NextJobAfter(0), NextJob::kNone);
  EXPECT_EQ(NextJobAfter(93), NextJob::kStopped);
  EXPECT_EQ(NextJobAfter(2), NextJob::kStopped);
  for (const int exit_code : {75, 1, 137}) EXPECT_EQ(NextJobAfter(exit_code), NextJob::kQueued);
}

TEST(ChainProgress, IsMissedAfterSoManyJobs) {
  const auto jobs = [](const std::vector<int64_t>& first_steps) {
    std::vector<ChainJob> all;
    for (const int64_t step : first_steps) all.push_back({.job = 1, .first_step = step});
    return all;
  };
  EXPECT_FALSE(NoProgress(jobs({}), 0, 3));
  EXPECT_FALSE(NoProgress(jobs({0, 0}), 0, 3));
  EXPECT_TRUE(NoProgress(jobs({0, 0, 0}), 0, 3));
  EXPECT_TRUE(NoProgress(jobs({0, 50, 80, 80, 80}), 80, 3));
  EXPECT_FALSE(NoProgress(jobs({0, 50, 80, 80, 80}), 90, 3)) << "the last one got on";
  EXPECT_FALSE(NoProgress(jobs({80, 80, 50, 80, 80}), 80, 3)) << "in a row";
}

}  // namespace
}  // namespace perdure
