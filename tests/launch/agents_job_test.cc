// A job of agents as users meet it, beside what tests/chaos does to it: what is refused, how it is
// stopped, what is left when its own process dies, a bad checkpoint, a full disk.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "runtime/base/files.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class AgentsJob : public testing::Test {
 protected:
  AgentsJob() : folder_(FreshFolder("agents_job")), run_(folder_ + "/run") {
    WriteNanoData(folder_);
  }
  ~AgentsJob() override {
    ::umount2(run_.c_str(), MNT_DETACH);
    fs::remove_all(folder_);
  }

  std::vector<std::string> Arguments(const std::vector<std::string>& more) const {
    return RunOfTwoRanks(run_, folder_, more);
  }
  CommandResult Run(const std::vector<std::string>& more) const { return Perdure(Arguments(more)); }
  int Start(const std::vector<std::string>& more) const {
    return StartPerdure(Arguments(more), folder_ + "/errors");
  }
  // False: not within a minute.
  bool Await(const std::function<bool(const nlohmann::json& status)>& done) const {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (std::chrono::steady_clock::now() < deadline) {
      if (const nlohmann::json status = StatusOf(run_); status.is_object() && done(status))
        return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return false;
  }
  bool AwaitStep(int64_t step) const {
    return Await([=](const auto& s) { return s["state"] == "running" && s["step"] >= step; });
  }

  const std::string folder_, run_;
};

TEST_F(AgentsJob, WhatCannotBeIsRefused) {
  const CommandResult threads = Run({"--set", "layout.transport=local"});
  EXPECT_EQ(threads.exit_code, 2);
  EXPECT_THAT(threads.errors, HasSubstr("libfabric"));
  const CommandResult many = Run({"--set", "layout.tensor=4", "--set", "layout.pipeline=4"});
  EXPECT_EQ(many.exit_code, 2);
  EXPECT_THAT(many.errors, HasSubstr("16 ranks"));
  const CommandResult agent = Perdure({"agent", folder_ + "/absent", "--node", "0", "--nodes", "1",
                                       "--job", "1", "--data-dir", folder_});
  EXPECT_EQ(agent.exit_code, 2);
  EXPECT_THAT(agent.errors, HasSubstr("absent/run.toml"));
}

TEST_F(AgentsJob, IsStoppedWithACheckpointAndOneAtATime) {
  const int pid = Start({});
  ASSERT_TRUE(AwaitStep(2)) << ReadFile(folder_ + "/errors").value_or("");
  const nlohmann::json status = StatusOf(run_);
  EXPECT_EQ(status["launcher_pid"], pid);
  EXPECT_EQ(status["nodes"], 1);
  EXPECT_EQ(status["layout"]["data"], 2);
  EXPECT_EQ(status["members"][0]["ranks"].size(), 2U);
  const CommandResult second = Run({});
  EXPECT_EQ(second.exit_code, 2);
  EXPECT_THAT(second.errors, HasSubstr("live job"));
  EXPECT_EQ(Perdure({"stop", run_}).exit_code, 0);
  EXPECT_EQ(WaitFor(pid), 75);
  EXPECT_EQ(StatusOf(run_)["state"], "stopped");
  const nlohmann::json listed = ListedCheckpoints(run_);
  ASSERT_FALSE(listed.empty());
  EXPECT_EQ(std::to_string(listed.back()["step"].get<int64_t>()), LossColumn(run_, "step").back());
}

// Whoever takes its place knows, and saves what memory holds.
TEST_F(AgentsJob, StopsAlthoughItsAgentDies) {
  const int pid = Start({});
  ASSERT_TRUE(AwaitStep(2));
  const int agent = StatusOf(run_)["members"][0]["agent_pid"];
  ASSERT_EQ(::kill(agent, SIGSTOP), 0);
  ASSERT_EQ(::kill(pid, SIGTERM), 0);
  const auto errors = [&] { return ReadFile(folder_ + "/errors").value_or(""); };
  while (errors().find("signal 15") == std::string::npos)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  ASSERT_EQ(::kill(agent, SIGKILL), 0);
  EXPECT_EQ(WaitFor(pid), 75) << errors();
  EXPECT_THAT(errors(), HasSubstr("from memory at step"));
  EXPECT_EQ(StatusOf(run_)["state"], "stopped");
  const nlohmann::json listed = ListedCheckpoints(run_);
  ASSERT_FALSE(listed.empty()) << errors();
  EXPECT_EQ(std::to_string(listed.back()["step"].get<int64_t>()), LossColumn(run_, "step").back());
}

TEST_F(AgentsJob, DoesWhatFilesAskFor) {
  const int pid = Start({});
  ASSERT_TRUE(AwaitStep(2));
  ASSERT_TRUE(ReplaceFile(run_ + "/triggers/save", "").ok());
  ASSERT_TRUE(Await([&](const auto&) { return !ListedCheckpoints(run_).empty(); }))
      << "the first one by time would come after a minute";
  EXPECT_FALSE(fs::exists(run_ + "/triggers/save"));
  ASSERT_TRUE(ReplaceFile(run_ + "/triggers/stop", "please").ok());
  EXPECT_EQ(WaitFor(pid), 75);
  EXPECT_FALSE(fs::exists(run_ + "/triggers/stop"));
  EXPECT_EQ(StatusOf(run_)["state"], "stopped");
  ASSERT_EQ(JournalEvents(run_, "trigger").size(), 2U);
}

TEST_F(AgentsJob, StopsAtOnceWhenThatIsAskedFor) {
  const int pid = Start({});
  ASSERT_TRUE(AwaitStep(2));
  EXPECT_EQ(Perdure({"stop", run_, "--now"}).exit_code, 0);
  EXPECT_EQ(WaitFor(pid), 1);
  EXPECT_EQ(StatusOf(run_)["state"], "failed");
}

// All that belongs to it dies with it, and the next job need not wait for its leases.
TEST_F(AgentsJob, ALauncherThatDiedIsOutlived) {
  const int pid = Start({});
  ASSERT_TRUE(AwaitStep(2));
  const nlohmann::json member = StatusOf(run_)["members"][0];
  ASSERT_EQ(::kill(pid, SIGKILL), 0);
  EXPECT_EQ(WaitFor(pid), 128 + SIGKILL);
  EXPECT_TRUE(Await([](const auto& s) { return s["state"] == "lost"; }));
  for (const int process : {member["agent_pid"].get<int>(), member["ranks"][0]["pid"].get<int>()}) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (::kill(process, 0) == 0 && std::chrono::steady_clock::now() < deadline)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    EXPECT_NE(::kill(process, 0), 0) << process;
  }
  const CommandResult next = Run({"--until-step", "3"});
  EXPECT_EQ(next.exit_code, 75) << next.errors;
  EXPECT_EQ(LossColumn(run_, "step"), (std::vector<std::string>{"1", "2", "3"}));
}

TEST_F(AgentsJob, ABadCheckpointIsPutAwayAndTheOneBeforeIsTaken) {
  ASSERT_EQ(Run({"--until-step", "2"}).exit_code, 75);
  ASSERT_EQ(Run({"--until-step", "4"}).exit_code, 75);
  const std::string newest = ListedCheckpoints(run_).back()["path"];
  std::fstream part(newest + "/part-00000.h5", std::ios::in | std::ios::out | std::ios::binary);
  part.seekp(3 << 19);  // In the state of the first atoms.
  part.put('\x5a');
  part.close();
  const CommandResult resumed = Run({"--until-step", "5"});
  EXPECT_EQ(resumed.exit_code, 75) << resumed.errors;
  EXPECT_THAT(resumed.errors, HasSubstr("block 1 "));
  EXPECT_THAT(resumed.errors, HasSubstr("goes to quarantine/"));
  EXPECT_THAT(resumed.errors, HasSubstr("from a checkpoint at step 2"));
  EXPECT_EQ(LossColumn(run_, "step"), (std::vector<std::string>{"1", "2", "3", "4", "5"}));
}

// What was done last is not kept: nobody may take that for a good end.
TEST_F(AgentsJob, AFullDiskIsNoGoodEnd) {
  fs::create_directory(run_);
  if (::mount("perdure-test", run_.c_str(), "tmpfs", 0, "size=40m,mode=700") != 0)
    GTEST_SKIP() << "mounting needs root";
  const CommandResult full = Run({"--set", "checkpoint.every_steps=1", "--until-step", "4"});
  EXPECT_EQ(full.exit_code, 1) << full.errors;
  EXPECT_THAT(full.errors, HasSubstr("the state of step 4 could not be saved"));
  EXPECT_THAT(full.errors, HasSubstr("a checkpoint needs "));
  EXPECT_EQ(StatusOf(run_)["state"], "failed");
  EXPECT_EQ(LossColumn(run_, "step"), (std::vector<std::string>{"1", "2", "3", "4"}));
  const auto failed = JournalEvents(run_, "checkpoint_failed");
  ASSERT_FALSE(failed.empty());
  EXPECT_EQ(failed.back()["step"], 4);
  ASSERT_EQ(::mount("perdure-test", run_.c_str(), "tmpfs", MS_REMOUNT, "size=400m"), 0);
  const CommandResult again = Run({"--until-step", "4"});
  EXPECT_EQ(again.exit_code, 75) << again.errors;
}

}  // namespace
}  // namespace perdure
