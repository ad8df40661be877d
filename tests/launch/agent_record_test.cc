// What a job leaves for people to read, told by one coordinator after another.
#include "launch/agent_record.h"

#include <gtest/gtest.h>

#include <filesystem>

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

}  // namespace
}  // namespace perdure
