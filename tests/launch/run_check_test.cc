// perdure status --check: what it says of a run's status, and what cron gets of it.
#include "launch/run_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "launch/chain.h"
#include "launch/config.h"
#include "runtime/base/files.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using testing::HasSubstr;

constexpr absl::Duration kStall = absl::Minutes(30);

// Of a chain whose job 7 runs at step 12, and has job 8 behind it.
Json Running() {
  return {{"state", "running"},
          {"step", 12},
          {"chain",
           {{"queued", {{{"job", 8}, {"nodes", 2}, {"reason", "Dependency"}}}}, {"dry", false}}}};
}
RunVerdict Judge(const Json& status, absl::Duration since_step = absl::Seconds(5)) {
  return JudgeRun(status, since_step, kStall);
}
void ExpectFine(const Json& status, const std::string& line) {
  const RunVerdict verdict = Judge(status);
  EXPECT_FALSE(verdict.look) << verdict.line;
  EXPECT_EQ(verdict.cause, "");
  EXPECT_EQ(verdict.line, line);
}
void ExpectLook(const Json& status, const std::string& cause, const std::string& words,
                absl::Duration since_step = absl::Seconds(5)) {
  const RunVerdict verdict = Judge(status, since_step);
  EXPECT_TRUE(verdict.look) << verdict.line;
  EXPECT_EQ(verdict.cause, cause);
  EXPECT_THAT(verdict.line, HasSubstr(words));
}

TEST(RunCheck, WhatGetsOnIsFine) {
  ExpectFine(Running(), "running at step 12, job 8 is queued (Dependency)");
  Json status = Running();
  status["state"] = "stopped";
  ExpectFine(status, "stopped at step 12, job 8 is queued (Dependency)");
  status["state"] = "complete";
  status["chain"]["queued"] = Json::array();
  status["chain"]["dry"] = true;
  ExpectFine(status, "complete at step 12");
  ExpectFine({{"state", "stopped"}, {"step", 3}}, "stopped at step 3");
}

// Of a trainer of one's own: where it says nothing, nobody knows how long a step may take.
TEST(RunCheck, ATrainerThatIsNotOurs) {
  const absl::Duration long_ago = absl::Hours(5), stalled = absl::Minutes(30);
  Json status = {{"state", "running"}, {"command", {"python3"}}, {"progress", nullptr}};
  EXPECT_FALSE(JudgeRun(status, long_ago, stalled).look);
  status["progress"] = {{"step", 7}};
  EXPECT_TRUE(JudgeRun(status, long_ago, stalled).look);
  EXPECT_THAT(JudgeRun(status, long_ago, stalled).line, testing::HasSubstr("running at step 7"));
  EXPECT_FALSE(JudgeRun(status, absl::Minutes(1), stalled).look);
}

TEST(RunCheck, AChainThatRanDry) {
  Json status = Running();
  status["state"] = "lost";
  status["chain"]["queued"] = Json::array();
  status["chain"]["dry"] = true;
  ExpectLook(status, "dry", "lost at step 12, and nothing is queued: perdure submit goes on");
}

TEST(RunCheck, AChainThatWasStopped) {
  Json status = Running();
  status["state"] = "stopped";
  status["chain"]["queued"] = Json::array();
  for (const char* who : {kStopCommand, kStopTrigger}) {
    status["chain"]["stopped"] = who;
    ExpectFine(status, std::string("stopped at step 12, as ") + who + " asked");
  }
  const std::string why = "the last 3 jobs began at step 12 and left no new checkpoint";
  status["chain"]["stopped"] = why;
  ExpectLook(status, "stopped: " + why, why);
}

TEST(RunCheck, AJobThatNeverStarts) {
  Json status = Running();
  status["chain"]["queued"].push_back({{"job", 9},
                                       {"nodes", 2},
                                       {"reason", "JobHeldUser"},
                                       {"advice", "it is held: perdure resume lets it go on"}});
  ExpectLook(status, "job 9 JobHeldUser",
             "job 9 never starts by itself (JobHeldUser): it is held: perdure resume");
}

TEST(RunCheck, AJobWithoutSteps) {
  const RunVerdict still = Judge(Running(), kStall - absl::Seconds(1));
  EXPECT_FALSE(still.look) << still.line;
  ExpectLook(Running(), "no step behind 12", "running at step 12, and no step for 47 minutes",
             absl::Seconds(47 * 60 + 59));
  Json status = Running();
  status["state"] = "recovering";
  ExpectLook(status, "no step behind 12", "recovering", kStall);
  // What waits in the queue takes no steps.
  status["state"] = "stopped";
  EXPECT_FALSE(Judge(status, absl::Hours(100)).look);
}

TEST(RunCheck, WhatIsNotKnownIsNoTrouble) {
  Json status = Running();
  status["chain"]["queued"] = Json::array();
  status["chain"]["scheduler"] = "squeue took too long";
  ExpectFine(status, "running at step 12, what is queued is not known: squeue took too long");
}

TEST(RunCheck, WithoutAChain) {
  for (const char* state : {"failed", "lost"})
    ExpectLook({{"state", state}, {"step", 3}}, std::string(state) + " at step 3",
               "nothing goes on with it");
}

// ---- the command

class CheckCommand : public testing::Test {
 protected:
  CheckCommand() : folder_(FreshFolder("run_check")) {}
  ~CheckCommand() override { fs::remove_all(folder_); }

  // A run without a chain in that state.
  std::string Run(const std::string& name, const std::string& state) const {
    const std::string run = folder_ + "/" + name;
    fs::create_directories(run);
    EXPECT_TRUE(ReplaceFile(run + "/status.json",
                            Json{{"name", name}, {"state", state}, {"nodes", Json::array()}}.dump())
                    .ok());
    return run;
  }
  const std::string folder_;
};

TEST_F(CheckCommand, ALineForEachRunAndTheWorstCode) {
  const std::string fine = Run("fine", "stopped"), bad = Run("bad", "failed");
  const CommandResult good = Perdure({"status", "--check", fine});
  EXPECT_EQ(good.exit_code, 0);
  EXPECT_EQ(good.output, "ok   " + fine + ": stopped at step 0\n");
  EXPECT_EQ(good.errors, "");
  const CommandResult both = Perdure({"status", "--check", bad, fine});
  EXPECT_EQ(both.exit_code, 1);
  EXPECT_THAT(both.output, HasSubstr("LOOK " + bad + ": failed at step 0"));
  EXPECT_THAT(both.output, HasSubstr("ok   " + fine));
  const CommandResult none = Perdure({"status", "--check", fine, folder_ + "/none"});
  EXPECT_EQ(none.exit_code, 2);
  EXPECT_THAT(none.errors, HasSubstr("/none"));
  EXPECT_EQ(Perdure({"status", "--check", folder_ + "/none", bad}).exit_code, 1);
  EXPECT_EQ(Perdure({"status", fine, bad}).exit_code, 2);
  EXPECT_EQ(Perdure({"status", "--tell", fine}).exit_code, 2);
  EXPECT_EQ(Perdure({"status", "--check", "--json", fine}).exit_code, 2);
}

TEST_F(CheckCommand, TellsTheHookOnceOfATrouble) {
  const std::string run = Run("told", "failed"), hook = folder_ + "/hook";
  ASSERT_TRUE(ReplaceFile(hook, "#!/bin/sh\necho \"$1 $PERDURE_RUN $PERDURE_WHY\" >>" + folder_ +
                                    "/heard\n")
                  .ok());
  fs::permissions(hook, fs::perms::owner_all);
  const auto chain =
      Chain::Create(run, {.job_name = "perdure-x", .data_directory = "/d", .options = {}});
  ASSERT_TRUE(chain.ok()) << chain.status();
  const auto config = LoadConfig(NanoToml(), {"job.hook=" + hook});
  ASSERT_TRUE(config.ok()) << config.status();
  ASSERT_TRUE(ReplaceFile(chain->config_path(), PrintConfig(*config)).ok());
  ASSERT_TRUE(chain->StopFor({.why = "a loss is not finite", .job = 3, .time = {}}).ok());
  const auto check = [&] { return Perdure({"status", "--check", "--tell", run}).exit_code; };
  const auto heard = [&] { return ReadFile(folder_ + "/heard").value_or(""); };
  EXPECT_EQ(check(), 1);
  const std::string first =
      "look lucie-nano the chain was stopped: a loss is not finite; when that is mended, perdure "
      "submit goes on\n";
  EXPECT_EQ(heard(), first);
  EXPECT_EQ(check(), 1);
  EXPECT_EQ(heard(), first) << "the same trouble";
  Run("told", "complete");
  EXPECT_EQ(check(), 0);
  Run("told", "failed");
  EXPECT_EQ(check(), 1);
  EXPECT_EQ(heard(), first + first) << "anew";
}

}  // namespace
}  // namespace perdure
