// Trainers that are not ours, under perdure run --exec: real processes, which meet, crash, hang,
// are told to leave and go on where they were.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/time/clock.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

class ExecTest : public testing::Test {
 protected:
  ExecTest() : folder_(FreshFolder("exec")) {}
  ~ExecTest() override { fs::remove_all(folder_); }

  std::string run() const { return folder_ + "/run"; }
  // Two nodes of two ranks, unless `more` says otherwise.
  std::vector<std::string> Arguments(const std::vector<std::string>& trainer,
                                     const std::vector<std::string>& more = {}) const {
    std::vector<std::string> arguments = {"run", "--run-dir",        run(), "--nodes",
                                          "2",   "--ranks-per-node", "2"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    arguments.insert(arguments.end(), {"--exec", "python3", ExecTrainer(), folder_ + "/state"});
    arguments.insert(arguments.end(), trainer.begin(), trainer.end());
    return arguments;
  }
  json State() const {
    return json::parse(ReadFile(folder_ + "/state/state.json").value_or(""), nullptr, false);
  }
  // What local rank `slot` of `node` has printed, of all its lives in all jobs.
  std::string LogOf(int node, int slot) const {
    std::string text;
    for (const auto& job : fs::directory_iterator(run() + "/jobs"))
      text += ReadFile(fmt::format("{}/node-{:05}-slot-{:02}.log", job.path().string(), node, slot))
                  .value_or("");
    return text;
  }
  bool AwaitProgress(int64_t step) const {
    for (int tries = 0; tries < 600; ++tries, absl::SleepFor(absl::Milliseconds(100))) {
      const json status = StatusOf(run());
      if (status.is_object() && status.contains("progress") && status["progress"].is_object() &&
          status["progress"]["step"] >= step)
        return true;
    }
    return false;
  }
  std::string Errors() const { return ReadFile(folder_ + "/errors").value_or(""); }

  const std::string folder_;
};

TEST_F(ExecTest, ACrashedTrainerIsStartedAgain) {
  const CommandResult result =
      Perdure(Arguments({"100", "--crash-at", "55"}, {"--set", "monitoring.textfile=" + folder_}));
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_EQ(State()["step"], 100);
  EXPECT_EQ(State()["total"], 5050) << "every step once";
  EXPECT_THAT(result.errors, HasSubstr("exited with code 7"));
  EXPECT_THAT(result.errors, HasSubstr("this is why it crashed"));
  EXPECT_THAT(LogOf(0, 1),
              HasSubstr("rank 1 of 4 begins at step 0, local 1 of 2, group 0 of 2, life 0"));
  EXPECT_THAT(LogOf(1, 0),
              HasSubstr("rank 2 of 4 begins at step 50, local 0 of 2, group 1 of 2, life 1"));
  const std::vector<json> failed = JournalEvents(run(), "rank_failed");
  ASSERT_FALSE(failed.empty()) << "others may have followed";
  EXPECT_EQ(failed[0]["number"], 7);
  EXPECT_EQ(failed[0]["rank"], 1);
  const json status = StatusOf(run());
  EXPECT_EQ(status["state"], "complete");
  EXPECT_EQ(status["progress"]["step"], 100);
  EXPECT_EQ(status["progress"]["loss"], 0.01);
  const CommandResult shown = Perdure({"status", run()});
  EXPECT_THAT(shown.output, HasSubstr("command     python3 "));
  EXPECT_THAT(shown.output, HasSubstr("progress    {\"loss\":0.01,\"step\":100}"));
  EXPECT_THAT(Perdure({"status", "--check", run()}).output, HasSubstr("complete at step 100"));
  const std::string metrics = ReadFile(folder_ + "/perdure_run.prom").value_or("");
  EXPECT_THAT(metrics, HasSubstr("perdure_step{run=\"run\"} 100\n"));
  EXPECT_THAT(metrics, HasSubstr("perdure_loss{run=\"run\"} 0.01\n"));
  EXPECT_THAT(metrics, HasSubstr("perdure_failures_total{run=\"run\",kind=\"rank-crashed\"} 1\n"));
  EXPECT_THAT(metrics, HasSubstr("perdure_failures_total{run=\"run\",kind=\"node-lost\"} 0\n"));
  const CommandResult again = Perdure(Arguments({"100"}));
  EXPECT_EQ(again.exit_code, 0);
  EXPECT_THAT(again.errors, HasSubstr("run run is complete: its trainer has ended with 0"));
}

TEST_F(ExecTest, LeavesWhenItIsToldAndGoesOn) {
  const std::vector<std::string> arguments =
      Arguments({"2000", "--signal", "USR1"}, {"--set", "exec.signal=USR1"});
  const int pid = StartPerdure(arguments, folder_ + "/errors");
  ASSERT_TRUE(AwaitProgress(20)) << Errors();
  ::kill(pid, SIGTERM);
  EXPECT_EQ(WaitFor(pid), 75) << Errors();
  const json left = State();
  EXPECT_EQ(left["step"].get<int64_t>() * (left["step"].get<int64_t>() + 1) / 2, left["total"]);
  EXPECT_THAT(LogOf(0, 0), HasSubstr(fmt::format("rank 0 leaves at step {}", left["step"].dump())));
  for (const json& node : JournalEvents(run(), "trainer_left")) EXPECT_EQ(node["killed"], 0);
  EXPECT_EQ(JournalEvents(run(), "trainer_left").size(), 2U);
  // With another number of ranks, and another command: it is the trainer that must know what to do.
  const std::string steps = std::to_string(left["step"].get<int64_t>() + 30);
  const CommandResult resumed =
      Perdure({"run", "--run-dir", run(), "--ranks-per-node", "3", "--exec", "python3",
               ExecTrainer(), folder_ + "/state", steps});
  EXPECT_EQ(resumed.exit_code, 0) << resumed.errors;
  EXPECT_EQ(State()["world"], 3);
  EXPECT_EQ(State()["step"].dump(), steps);
  EXPECT_EQ(State()["total"],
            State()["step"].get<int64_t>() * (State()["step"].get<int64_t>() + 1) / 2);
}

TEST_F(ExecTest, WhoDoesNotLeaveIsKilled) {
  const int pid = StartPerdure(Arguments({"100000", "--deaf"}, {"--set", "exec.leave=1s"}),
                               folder_ + "/errors");
  ASSERT_TRUE(AwaitProgress(10)) << Errors();
  ::kill(pid, SIGTERM);
  EXPECT_EQ(WaitFor(pid), 75) << Errors();
  EXPECT_THAT(Errors(), HasSubstr("2 ranks had not left 1 s after SIGTERM and were killed"));
}

TEST_F(ExecTest, WhoGivesUpIsNotStartedAgain) {
  const CommandResult result = Perdure(Arguments({"100", "--give-up-at", "15"}));
  EXPECT_EQ(result.exit_code, 93) << result.errors;
  EXPECT_EQ(JournalEvents(run(), "generation").size(), 1U);
}

TEST_F(ExecTest, WhatFailsAgainAndAgainIsGivenUp) {
  const CommandResult result =
      Perdure({"run", "--run-dir", run(), "--exec", "/no/such/trainer", "--lr", "1"});
  EXPECT_EQ(result.exit_code, 93) << result.errors;
  EXPECT_THAT(result.errors, HasSubstr("No such file or directory"));
  EXPECT_THAT(result.errors, HasSubstr("a person must look"));
  EXPECT_EQ(JournalEvents(run(), "generation").size(), 3U);
}

TEST_F(ExecTest, WhoHangsIsStartedAgain) {
  const CommandResult result =
      Perdure(Arguments({"60", "--hang-at", "35"}, {"--set", "exec.stall=3s"}));
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(result.errors, HasSubstr("did not end in"));
  EXPECT_EQ(State()["total"], 1830);
}

// With its agent its ranks die; the others are told, and all begin again.
TEST_F(ExecTest, AnAgentIsLost) {
  const int pid = StartPerdure(Arguments({"400"}), folder_ + "/errors");
  ASSERT_TRUE(AwaitProgress(20)) << Errors();
  const json status = StatusOf(run());
  for (const json& member : status["members"])
    if (member["node"] == 1) ::kill(member["agent_pid"], SIGKILL);
  EXPECT_EQ(WaitFor(pid), 0) << Errors();
  EXPECT_EQ(State()["total"], 80200);
  EXPECT_GE(JournalEvents(run(), "generation").size(), 2U);
}

TEST_F(ExecTest, WhatMeansNothingIsRefused) {
  const auto refused = [&](const std::vector<std::string>& arguments) {
    const CommandResult result = Perdure(arguments);
    EXPECT_EQ(result.exit_code, 2) << result.errors;
    EXPECT_FALSE(fs::exists(run() + "/log")) << result.errors;
    return result.errors;
  };
  EXPECT_THAT(refused({"run", NanoToml(), "--run-dir", run(), "--exec", "true"}),
              HasSubstr("means nothing to exec.command = true"));
  EXPECT_THAT(refused({"run", "--run-dir", run(), "--set", "layout.tensor=2", "--exec", "true"}),
              HasSubstr("layout.tensor means nothing"));
  EXPECT_THAT(refused({"run", "--exec", "true"}), HasSubstr("the run has no name"));
  EXPECT_THAT(refused({"run"}), HasSubstr("what is to be run is not said"));
  EXPECT_THAT(refused({"run", "--run-dir", run(), "--exec", "A=b", "true"}),
              HasSubstr("must begin with a program"));
  EXPECT_THAT(refused({"run", "--run-dir", run(), "--set", "exec.signal=KILL", "--exec", "true"}),
              HasSubstr("exec.signal"));
  // What its own ranks run is no command, and the other way.
  WriteNanoData(folder_);
  ASSERT_EQ(Perdure({"run", "--run-dir", run(), "--exec", "true"}).exit_code, 0);
  const CommandResult other = Perdure(RunOfTwoRanks(run(), folder_, {"--until-step", "1"}));
  EXPECT_EQ(other.exit_code, 2);
  EXPECT_THAT(other.errors, HasSubstr("runs a trainer of its own"));
}

}  // namespace
}  // namespace perdure
