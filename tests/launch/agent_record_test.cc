// What an agent writes down of steps that are told again: loss.csv has each step once, with the
// numbers of the steps that the run takes.
#include "launch/agent_record.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "monitoring/loss_csv.h"
#include "runtime/base/status.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

class AgentRecordTest : public testing::Test {
 protected:
  AgentRecordTest() : run_(FreshFolder("agent_record")) {
    config_.phases = {{.name = "one", .samples = 10, .context = 1, .batch = {.final = 1}}};
  }
  ~AgentRecordTest() override { std::filesystem::remove_all(run_); }

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

TEST_F(AgentRecordTest, StepsThatAreTakenAgainReplaceWhatTheRunHasLeft) {
  const auto agent = Agent();
  for (const int64_t step : {1, 2, 3, 4}) Tell(*agent, 1, step, 5);
  // The run goes back to step 3, from the state after step 1.
  Tell(*agent, 2, 2, 5);
  Tell(*agent, 2, 3, 6);
  EXPECT_EQ(Rows(),
            (std::map<int64_t, std::string>{{1, LossBits(5)}, {2, LossBits(5)}, {3, LossBits(6)}}));
}

// Who took them again died before it had written them; the next generation resumes from memory.
TEST_F(AgentRecordTest, StepsThatAreToldAgainReplaceWhatTheRunHasLeft) {
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
