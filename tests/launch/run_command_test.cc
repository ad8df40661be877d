// perdure run, status, stop as users meet them: what is refused, what a death looks like, what is
// left behind.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

class RunCommand : public testing::Test {
 protected:
  RunCommand() : folder_(FreshFolder("run_command")), run_(folder_ + "/run") {
    WriteNanoData(folder_);
  }
  ~RunCommand() override { std::filesystem::remove_all(folder_); }

  std::vector<std::string> Arguments(const std::vector<std::string>& more) const {
    return RunOfTwoRanks(run_, folder_, more);
  }
  void ExpectRefused(const std::vector<std::string>& more,
                     const std::vector<std::string>& words) const {
    const CommandResult result = Perdure(Arguments(more));
    EXPECT_EQ(result.exit_code, 2) << result.errors;
    for (const std::string& word : words)
      EXPECT_NE(result.errors.find(word), std::string::npos) << word << " in: " << result.errors;
  }
  // Waits until the job has finished `step` steps.
  void AwaitStep(int64_t step) const {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (std::chrono::steady_clock::now() < deadline) {
      const nlohmann::json status = StatusOf(run_);
      if (status.is_object() && status["state"] == "running" && status["step"] >= step) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    FAIL() << "the job did not reach step " << step;
  }

  std::string folder_, run_;
};

// Of what Slurm says of an allocation; tests/cluster has real ones.
TEST_F(RunCommand, AllocationsAreUsedUnlessNodesAreSaid) {
  ::setenv("SLURM_JOB_ID", "7", 1);
  const CommandResult torn = Perdure({"run", NanoToml(), "--run-dir", run_});
  ::setenv("SLURM_JOB_NODELIST", "n[1-2]", 1);
  const CommandResult here = Perdure(Arguments({"--until-step", "1"}));
  ::unsetenv("SLURM_JOB_ID");
  ::unsetenv("SLURM_JOB_NODELIST");
  EXPECT_EQ(torn.exit_code, 2);
  EXPECT_NE(torn.errors.find("SLURM_JOB_NODELIST is not"), std::string::npos) << torn.errors;
  EXPECT_NE(torn.errors.find("or give --nodes"), std::string::npos) << torn.errors;
  EXPECT_EQ(here.exit_code, 75) << here.errors;
  EXPECT_NE(here.errors.find("this machine alone, not the nodes n[1-2] of Slurm's job 7"),
            std::string::npos)
      << here.errors;
}

TEST_F(RunCommand, RefusesBadInputAndWritesNothing) {
  ExpectRefused({"--set", "model.layer=3"}, {"model.layer", "model.layers"});
  ExpectRefused({"--set", "layout.tensor=3"}, {"layout.tensor", "3"});
  ExpectRefused({"--set", "layout.transport=local"}, {"layout.transport", "ucx", "libfabric"});
  ExpectRefused({"--set", "layout.tensor=4", "--set", "layout.pipeline=4"},
                {"16 ranks", "nearest"});
  ExpectRefused({"--set", "model.vocab=900"}, {"900", ".bin"});
  std::filesystem::rename(folder_ + "/data/de.idx", folder_ + "/data/de.old");
  ExpectRefused({}, {"data/de", "pretrain"});
  std::filesystem::rename(folder_ + "/data/de.old", folder_ + "/data/de.idx");
  std::filesystem::resize_file(folder_ + "/data/it.bin",
                               std::filesystem::file_size(folder_ + "/data/it.bin") - 2);
  ExpectRefused({}, {"data/it"});
  EXPECT_FALSE(std::filesystem::exists(run_));
}

TEST_F(RunCommand, RefusesAMismatchedIndex) {
  std::filesystem::copy_file(folder_ + "/data/en.idx", folder_ + "/data/it.idx",
                             std::filesystem::copy_options::overwrite_existing);
  std::filesystem::resize_file(folder_ + "/data/it.bin", 1000);
  ExpectRefused({}, {"data/it"});
  EXPECT_FALSE(std::filesystem::exists(run_));
}

TEST_F(RunCommand, ARunIsFrozen) {
  ASSERT_EQ(Perdure(Arguments({"--until-step", "1"})).exit_code, 75);
  const std::string before = ReadFile(run_ + "/run.toml").value();
  ExpectRefused({"--set", "run.seed=99"}, {"run.seed", "99", "1234"});
  ExpectRefused({"--set", "numerics.leaf=1"}, {"numerics.leaf"});
  ExpectRefused({"--set", "model.ffn=512"}, {"model.ffn", "512", "384"});
  ExpectRefused({"--set", "numerics.dtype=bf16"}, {"numerics.dtype"});
  EXPECT_EQ(ReadFile(run_ + "/run.toml").value(), before);
  EXPECT_EQ(LossColumn(run_, "step"), std::vector<std::string>{"1"});
  // The layout is not.
  EXPECT_EQ(Perdure(Arguments({"--until-step", "2", "--set", "layout.tensor=2"})).exit_code, 75);
  EXPECT_EQ(LossColumn(run_, "step"), (std::vector<std::string>{"1", "2"}));
}

TEST_F(RunCommand, ADeadRankIsNamedAndTheJobGoesOn) {
  const int pid = StartPerdure(Arguments({"--until-step", "30"}), folder_ + "/errors");
  AwaitStep(3);
  const nlohmann::json status = StatusOf(run_);
  const int victim = status["members"][0]["ranks"][1]["pid"];
  const int other = status["members"][0]["ranks"][0]["pid"];
  EXPECT_EQ(status["state"], "running");
  ASSERT_EQ(::kill(victim, SIGKILL), 0);
  EXPECT_EQ(WaitFor(pid), 75);
  EXPECT_NE(::kill(other, 0), 0);
  const std::string errors = ReadFile(folder_ + "/errors").value();
  EXPECT_NE(errors.find(fmt::format("rank 1 (node 0, process {}): was killed by signal 9 (Killed)",
                                    victim)),
            std::string::npos)
      << errors;
  EXPECT_EQ(StatusOf(run_)["state"], "stopped");
  const auto failed = JournalEvents(run_, "rank_failed");
  ASSERT_EQ(failed.size(), 1U);
  EXPECT_EQ(failed[0]["rank"], 1);
  EXPECT_EQ(failed[0]["node"], 0);
  EXPECT_EQ(failed[0]["process"], victim);
  EXPECT_EQ(failed[0]["number"], SIGKILL);
  // No step is missing, none stands there twice.
  std::vector<std::string> steps;
  for (int step = 1; step <= 30; ++step) steps.push_back(std::to_string(step));
  EXPECT_EQ(LossColumn(run_, "step"), steps);
}

// Nobody is left to go on, and the next job resumes.
TEST_F(RunCommand, AJobThatFailsSaysSoAndTheRunResumes) {
  const int pid = StartPerdure(
      Arguments({"--set", "checkpoint.every_steps=2", "--until-step", "40", "--no-agent-restart"}),
      folder_ + "/errors");
  AwaitStep(3);
  const nlohmann::json member = StatusOf(run_)["members"][0];
  const int agent = member["agent_pid"];
  ASSERT_EQ(::kill(agent, SIGKILL), 0);
  EXPECT_EQ(WaitFor(pid), 1);
  for (const nlohmann::json& rank : member["ranks"]) EXPECT_NE(::kill(rank["pid"], 0), 0);
  const std::string errors = ReadFile(folder_ + "/errors").value();
  EXPECT_NE(errors.find("the agent of node 0 was killed by signal 9"), std::string::npos) << errors;
  EXPECT_EQ(StatusOf(run_)["state"], "failed");
  EXPECT_EQ(JournalEvents(run_, "end").back()["exit_code"], 1);
  ASSERT_EQ(Perdure(Arguments({"--until-step", "8"})).exit_code, 75);
  std::vector<std::string> steps;
  for (int step = 1; step <= 8; ++step) steps.push_back(std::to_string(step));
  EXPECT_EQ(LossColumn(run_, "step"), steps);
}

TEST_F(RunCommand, StopEndsAfterTheStepWithACheckpoint) {
  const int pid = StartPerdure(Arguments({}), folder_ + "/errors");
  AwaitStep(2);
  // A second job on the same directory is refused while the first lives.
  ExpectRefused({}, {"live job", "perdure stop"});
  const CommandResult stop = Perdure({"stop", run_});
  EXPECT_EQ(stop.exit_code, 0) << stop.errors;
  EXPECT_EQ(WaitFor(pid), 75);
  const nlohmann::json listed = ListedCheckpoints(run_);
  ASSERT_FALSE(listed.empty());
  EXPECT_EQ(std::to_string(listed.back()["step"].get<int64_t>()), LossColumn(run_, "step").back());
}

TEST_F(RunCommand, ACorruptCheckpointIsNotLoaded) {
  ASSERT_EQ(Perdure(Arguments({"--until-step", "2"})).exit_code, 75);
  ASSERT_EQ(Perdure(Arguments({"--until-step", "4"})).exit_code, 75);
  const std::string newest = ListedCheckpoints(run_).back()["path"];
  std::fstream part(newest + "/part-00000.h5", std::ios::in | std::ios::out | std::ios::binary);
  part.seekp(3 << 19);  // In the state of the first atoms.
  part.put('\x5a');
  part.close();
  const CommandResult resumed = Perdure(Arguments({"--until-step", "5"}));
  EXPECT_EQ(resumed.exit_code, 75);
  EXPECT_NE(resumed.errors.find("block 1 "), std::string::npos) << resumed.errors;
  EXPECT_NE(resumed.errors.find("goes to quarantine/"), std::string::npos) << resumed.errors;
  EXPECT_NE(resumed.errors.find("goes on from step 2,"), std::string::npos) << resumed.errors;
  EXPECT_EQ(LossColumn(run_, "step"), (std::vector<std::string>{"1", "2", "3", "4", "5"}));
}

TEST_F(RunCommand, WithoutAnyGoodCheckpointNothingIsTrained) {
  ASSERT_EQ(Perdure(Arguments({"--until-step", "2"})).exit_code, 75);
  const std::string only = ListedCheckpoints(run_).back()["path"];
  std::filesystem::resize_file(only + "/part-00000.h5", 1000);
  const CommandResult resumed = Perdure(Arguments({"--until-step", "3"}));
  EXPECT_EQ(resumed.exit_code, 93);
  EXPECT_NE(resumed.errors.find("1 are bad"), std::string::npos) << resumed.errors;
  EXPECT_NE(resumed.errors.find("goes to quarantine/"), std::string::npos) << resumed.errors;
  // Nothing is deleted, and the reason is beside it.
  const std::string name = std::filesystem::path(only).filename();
  EXPECT_TRUE(std::filesystem::exists(run_ + "/quarantine/" + name + "/manifest.json"));
  EXPECT_NE(ReadFile(run_ + "/quarantine/" + name + ".why").value().find("1000 bytes"),
            std::string::npos);
  EXPECT_EQ(LossColumn(run_, "step"), (std::vector<std::string>{"1", "2"}));
}

TEST_F(RunCommand, RetentionKeepsWhatIsAskedFor) {
  ASSERT_EQ(Perdure(Arguments({"--until-step", "7", "--set", "checkpoint.every_steps=1", "--set",
                               "checkpoint.keep_last=2", "--set", "checkpoint.keep_every_steps=3"}))
                .exit_code,
            75);
  std::vector<int64_t> steps;
  for (const nlohmann::json& entry : ListedCheckpoints(run_)) {
    steps.push_back(entry["step"]);
    EXPECT_TRUE(entry["verified"]);
    EXPECT_TRUE(std::filesystem::exists(entry["path"].get<std::string>()));
  }
  EXPECT_EQ(steps, (std::vector<int64_t>{3, 6, 7}));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(run_ + "/ckpt"), {}), 3);
}

// As after a purge of files that nobody touched.
TEST_F(RunCommand, KeptFilesAreTended) {
  const std::vector<std::string> keep = {"--set", "checkpoint.keep_every_steps=1", "--set",
                                         "checkpoint.every_steps=1"};
  const auto run = [&](const char* until, std::vector<std::string> more) {
    more.insert(more.end(), keep.begin(), keep.end());
    more.insert(more.end(), {"--until-step", until});
    const CommandResult result = Perdure(Arguments(more));
    EXPECT_EQ(result.exit_code, 75) << result.errors;
    return result.errors;
  };
  run("4", {});
  const nlohmann::json listed = ListedCheckpoints(run_);
  ASSERT_EQ(listed.size(), 4U);
  const auto path = [&](size_t n) { return listed[n]["path"].get<std::string>(); };
  std::filesystem::remove(path(1) + "/part-00000.h5");
  std::filesystem::remove_all(path(2));
  const std::vector<std::string> files = {path(0) + "/part-00000.h5", path(0) + "/manifest.json",
                                          run_ + "/log/00000000.rec", run_ + "/run.toml",
                                          folder_ + "/data/it.bin"};
  const auto access = [](const std::string& file) {
    struct stat info {};
    EXPECT_EQ(::stat(file.c_str(), &info), 0);
    EXPECT_EQ(info.st_mtim.tv_sec, 1'000'000) << "only the access time is refreshed";
    return info.st_atim.tv_sec;
  };
  // An access time in the future, which reading alone does not change.
  constexpr time_t kLater = 4'000'000'000;
  const timespec times[2] = {{.tv_sec = kLater, .tv_nsec = 0}, {.tv_sec = 1'000'000, .tv_nsec = 0}};
  for (const std::string& file : files) ASSERT_EQ(::utimensat(AT_FDCWD, file.c_str(), times, 0), 0);
  std::string errors = run("5", {});
  EXPECT_NE(errors.find("part-00000.h5 is gone (a purge"), std::string::npos) << errors;
  EXPECT_NE(errors.find("and goes to quarantine/"), std::string::npos) << errors;
  EXPECT_NE(errors.find(listed[2]["name"].get<std::string>() + " is gone"), std::string::npos)
      << errors;
  EXPECT_EQ(errors.find("none is whole"), std::string::npos) << errors;
  const nlohmann::json now = ListedCheckpoints(run_);
  EXPECT_EQ(now[1]["quarantined"], true);
  EXPECT_EQ(now[2]["gone"], true);
  EXPECT_EQ(now[3]["gone"], false);
  for (const std::string& file : files)
    if (!file.ends_with("run.toml")) EXPECT_EQ(access(file), kLater) << file;
  ASSERT_EQ(::utimensat(AT_FDCWD, files[3].c_str(), times, 0), 0);
  errors = run("6", {"--set", "checkpoint.refresh=access"});
  EXPECT_EQ(errors.find("quarantine"), std::string::npos) << errors;
  for (const std::string& file : files)
    if (!file.ends_with("run.toml")) EXPECT_LT(access(file), kLater) << file;
}

// What people and reports read in the journal of a job that nothing happened to.
TEST_F(RunCommand, TheJournalTellsTheStory) {
  ASSERT_EQ(Perdure(Arguments({"--until-step", "2"})).exit_code, 75);
  ASSERT_EQ(Perdure(Arguments({"--until-step", "3", "--set", "layout.tensor=2"})).exit_code, 75);
  const auto generations = JournalEvents(run_, "generation"),
             loaded = JournalEvents(run_, "loaded"), saved = JournalEvents(run_, "checkpoint"),
             steps = JournalEvents(run_, "step"), ends = JournalEvents(run_, "end");
  ASSERT_EQ(generations.size(), 2U);
  EXPECT_EQ(generations[0]["ranks"], 2);
  EXPECT_EQ(generations[0]["nodes"], 1);
  EXPECT_EQ(generations[0]["resumes"], 0);
  EXPECT_EQ(generations[0]["checkpoint"], "");
  EXPECT_EQ(generations[0]["backend"], "cpu");
  EXPECT_EQ(generations[0]["transport"], BuiltTransport());
  EXPECT_EQ(generations[1]["resumes"], 2);
  EXPECT_TRUE(std::filesystem::exists(generations[1]["checkpoint"].get<std::string>()));
  EXPECT_NE(generations[0]["layout"], generations[1]["layout"]);
  ASSERT_EQ(loaded.size(), 2U);
  EXPECT_EQ(loaded[1]["step"], 2);
  ASSERT_EQ(saved.size(), 2U);
  EXPECT_EQ(loaded[1]["certificate"], saved[0]["certificate"]);
  ASSERT_EQ(steps.size(), 3U);
  EXPECT_EQ(steps[2]["generation"], 2);
  EXPECT_EQ(steps[2]["sample_chain"].get<std::string>().size(), 32U);
  ASSERT_EQ(ends.size(), 2U);
  EXPECT_EQ(ends[1]["state"], "stopped");
  EXPECT_EQ(ends[1]["step"], 3);
  EXPECT_EQ(ends[1]["exit_code"], 75);
}

TEST_F(RunCommand, StatusOfNothingIsRefused) {
  const CommandResult result = Perdure({"status", folder_ + "/absent"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_NE(result.errors.find("absent"), std::string::npos);
}

TEST_F(RunCommand, StatusHasWhatScriptsReadFromIt) {
  ASSERT_EQ(Perdure(Arguments({"--until-step", "1"})).exit_code, 75);
  const nlohmann::json status = StatusOf(run_);
  for (const char* key : {"name", "state", "phase", "step", "steps_total", "loss",
                          "tokens_per_second", "generation", "layout", "nodes", "members", "time"})
    EXPECT_TRUE(status.contains(key)) << key;
  EXPECT_EQ(status["step"], 1);
  EXPECT_EQ(status["generation"], 1);
  EXPECT_TRUE(status["loss"].is_number());
  EXPECT_EQ(status["steps_total"], 120);
  EXPECT_EQ(status["layout"]["data"], 2);
  EXPECT_EQ(status["nodes"], 1) << "that the job had";
  const CommandResult text = Perdure({"status", run_});
  EXPECT_NE(text.output.find("nodes       1 until the job ended\n"), std::string::npos)
      << text.output;
}

}  // namespace
}  // namespace perdure
