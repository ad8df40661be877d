// What a job leaves for people to read, told by one coordinator after another.
#include "launch/agent_record.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "monitoring/loss_csv.h"
#include "runtime/base/status.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

using Json = nlohmann::json;

class AgentRecordTest : public testing::Test {
 protected:
  ~AgentRecordTest() override { std::filesystem::remove_all(folder_); }
  // As a coordinator that begins to speak for the job.
  void Tell(int64_t job, int64_t generation, const Json& first_step) {
    const auto record = AgentRecord::Open(folder_, RunConfig{}, /*quiet=*/true);
    ASSERT_TRUE(record.ok());
    (*record)->Job({{"state", "running"},
                    {"job", job},
                    {"generation", generation},
                    {"nodes", {0, 1}},
                    {"time_to_first_step", first_step}});
  }
  static Json Told(int64_t generation) { return {{"generation", generation}, {"seconds", 2.5}}; }
  static Json NotSeen(int64_t generation) {
    return {{"generation", generation}, {"seconds", Json()}, {"not_known", "gone"}};
  }
  Json FirstStep() const { return (*ReadStatus(folder_))["time_to_first_step"]; }

  const std::string folder_ = FreshFolder("agent_record");
};

TEST_F(AgentRecordTest, WhoTakesAGenerationOverKeepsWhatWasToldOfItsFirstStep) {
  Tell(7, 3, Told(3));
  Tell(7, 3, NotSeen(3));
  EXPECT_EQ(FirstStep(), Told(3));
  Tell(7, 3, NotSeen(3));
  EXPECT_EQ(FirstStep(), Told(3)) << "and who comes after that";
}

TEST_F(AgentRecordTest, ButNotOfAnother) {
  Tell(7, 3, NotSeen(3));
  EXPECT_EQ(FirstStep(), NotSeen(3)) << "nobody had told it";
  Tell(7, 3, Told(3));
  Tell(7, 4, NotSeen(4));
  EXPECT_EQ(FirstStep(), NotSeen(4));
  Tell(7, 3, Told(3));
  Tell(8, 3, NotSeen(3));
  EXPECT_EQ(FirstStep(), NotSeen(3)) << "another job's generation";
  Tell(8, 3, Told(3));
  Tell(8, 4, Json());
  EXPECT_TRUE(FirstStep().is_null()) << "it has not come";
}

TEST_F(AgentRecordTest, WhatAnEndedJobHadIsStillTold) {
  Tell(7, 3, Told(3));
  ASSERT_TRUE(RecordState(folder_, RunConfig{}, "stopped").ok());
  EXPECT_EQ((*ReadStatus(folder_))["nodes"], 2);
  ASSERT_TRUE(RecordState(folder_, RunConfig{}, "starting").ok());
  EXPECT_EQ((*ReadStatus(folder_))["nodes"], 0) << "the next job's";
}

// loss.csv has each step once, with the numbers of the steps that the run takes.
class AgentStepsTest : public testing::Test {
 protected:
  AgentStepsTest() : run_(FreshFolder("agent_steps")) {
    config_.phases = {{.name = "one", .samples = 10, .context = 1, .batch = {.final = 1}}};
  }
  ~AgentStepsTest() override { std::filesystem::remove_all(run_); }

  std::unique_ptr<AgentRecord> Agent() { return *AgentRecord::Open(run_, config_, true); }
  // Step `step` of the generation came to this loss; `again`: that is told by who resumed behind
  // it.
  static void Tell(AgentRecord& agent, uint64_t generation, int64_t step, double loss,
                   bool again = false) {
    agent.Step(generation, 2, {.step = step, .loss = loss, .seconds = again ? 0.0 : 1.0});
  }
  std::map<int64_t, std::string> Rows() { return *ReadLossBits(run_ + "/metrics/loss.csv"); }

  const std::string run_;
  RunConfig config_;
};

TEST_F(AgentStepsTest, StepsThatAreTakenAgainReplaceWhatTheRunHasLeft) {
  const auto agent = Agent();
  for (const int64_t step : {1, 2, 3, 4}) Tell(*agent, 1, step, 5);
  // The run goes back to step 3, from the state after step 1.
  Tell(*agent, 2, 2, 5);
  Tell(*agent, 2, 3, 6);
  EXPECT_EQ(Rows(),
            (std::map<int64_t, std::string>{{1, LossBits(5)}, {2, LossBits(5)}, {3, LossBits(6)}}));
}

// Who took them again died before it had written them; the next generation resumes from memory.
TEST_F(AgentStepsTest, StepsThatAreToldAgainReplaceWhatTheRunHasLeft) {
  {
    const auto agent = Agent();
    for (const int64_t step : {1, 2, 3, 4}) Tell(*agent, 1, step, 5);
  }
  const auto next = Agent();
  for (const int64_t step : {1, 2}) Tell(*next, 3, step, 5, true);
  EXPECT_EQ(Rows().size(), 4u) << "they are as they were";
  Tell(*next, 3, 3, 6, true);
  Tell(*next, 3, 4, 7, true);
  EXPECT_EQ(Rows(), (std::map<int64_t, std::string>{
                        {1, LossBits(5)}, {2, LossBits(5)}, {3, LossBits(6)}, {4, LossBits(7)}}));
  Tell(*next, 3, 5, 8);
  EXPECT_EQ(Rows().size(), 5u);
  EXPECT_EQ(Rows()[5], LossBits(8));
}

}  // namespace
}  // namespace perdure
