// An export that takes long: checkpoints are committed meanwhile, and what it reads is kept.
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <sstream>
#include <thread>
#include <utility>

#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

// Steps of the events `name`, in order.
std::vector<int64_t> Steps(const std::string& run, const std::string& name) {
  std::vector<int64_t> steps;
  for (const nlohmann::json& event : JournalEvents(run, name))
    steps.push_back(event.value("step", int64_t{-1}));
  return steps;
}

// The highest nice value among the threads of a process.
int Nicest(int pid) {
  int nicest = -20;
  for (const auto& task : fs::directory_iterator(fmt::format("/proc/{}/task", pid))) {
    const std::string stat = ReadFile(task.path().string() + "/stat").value_or("");
    std::istringstream words(stat.substr(std::min(stat.rfind(')') + 1, stat.size())));
    std::string word;
    for (int field = 3; field <= 19; ++field) words >> word;
    nicest = std::max(nicest, std::atoi(word.c_str()));
  }
  return nicest;
}

// A job on two ranks whose exports, or checkpoints, hang until a file is deleted.
class HeldJob {
 public:
  HeldJob(const std::string& name, const std::string& hold, const std::vector<std::string>& more)
      : folder_(FreshFolder(name)), run_(folder_ + "/run"), hold_(run_ + "/" + hold) {
    WriteNanoData(folder_);
    fs::create_directories(run_);
    EXPECT_TRUE(ReplaceFile(hold_, "").ok());
    ::setenv("LD_PRELOAD", PERDURE_BINARY_DIR "/tests/libslow_export.so", 1);
    pid_ = StartPerdure(RunOfTwoRanks(run_, folder_, more), folder_ + "/errors");
    ::unsetenv("LD_PRELOAD");
  }
  ~HeldJob() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      (void)WaitFor(pid_);
    }
    fs::remove_all(folder_);
  }

  const std::string& run() const { return run_; }
  std::string errors() const { return ReadFile(folder_ + "/errors").value_or(""); }
  // False: not within four minutes.
  bool Await(const std::function<bool()>& done) const {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(240);
    while (!done()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return true;
  }
  // Returns the exit code.
  int Release() {
    fs::remove(hold_);
    return WaitFor(std::exchange(pid_, -1));
  }

 private:
  const std::string folder_, run_, hold_;
  int pid_ = -1;
};

TEST(SlowExport, HoldsNoCommitUpAndKeepsItsCheckpoint) {
  HeldJob job("slow_export", "hold",
              {"--set", "checkpoint.every_steps=1", "--set", "checkpoint.keep_last=2", "--set",
               "checkpoint.export_steps=[1]", "--until-step", "6"});
  const std::string& run = job.run();
  EXPECT_TRUE(job.Await([&] {
    return !Steps(run, "retire").empty() && Steps(run, "checkpoint").size() >= 6;
  })) << job.errors();
  EXPECT_FALSE(fs::exists(run + "/export/step0000001"));
  EXPECT_EQ(Steps(run, "export"), std::vector<int64_t>{});
  EXPECT_EQ(Nicest(StatusOf(run)["members"][0]["agent_pid"]), 19);
  const nlohmann::json kept = ListedCheckpoints(run);
  ASSERT_FALSE(kept.empty());
  EXPECT_EQ(kept[0]["step"], 1);
  EXPECT_TRUE(fs::exists(kept[0]["path"].get<std::string>() + "/manifest.json"));
  EXPECT_EQ(job.Release(), 75) << job.errors();
  EXPECT_EQ(Steps(run, "export"), std::vector<int64_t>{1});
  EXPECT_TRUE(fs::exists(run + "/export/step0000001/model.safetensors"));
  // Then it goes the way of the others.
  std::vector<int64_t> steps;
  for (const nlohmann::json& entry : ListedCheckpoints(run)) steps.push_back(entry["step"]);
  EXPECT_EQ(steps, (std::vector<int64_t>{5, 6}));
  EXPECT_EQ(std::distance(fs::directory_iterator(run + "/ckpt"), {}), 2);
}

// A checkpoint that cannot be written: training goes on until the next is due, and the journal says
// who holds it up.
TEST(SlowCheckpoint, BackPressureIsSaidByName) {
  HeldJob job("slow_checkpoint", "hold_ckpt",
              {"--set", "checkpoint.every_steps=2", "--until-step", "4"});
  const std::string& run = job.run();
  ASSERT_TRUE(job.Await([&] { return !Steps(run, "back_pressure").empty(); })) << job.errors();
  EXPECT_EQ(Steps(run, "back_pressure"), std::vector<int64_t>{4});
  EXPECT_EQ(Steps(run, "checkpoint"), std::vector<int64_t>{});
  EXPECT_EQ(job.Release(), 75) << job.errors();
  EXPECT_EQ(Steps(run, "checkpoint"), (std::vector<int64_t>{2, 4}));
  const nlohmann::json said = JournalEvents(run, "back_pressure")[0];
  EXPECT_EQ(said["unsettled"], 2);
  ASSERT_EQ(said["under_way"].size(), 2U) << said;
  EXPECT_EQ(said["under_way"][1]["rank"], 1);
  EXPECT_EQ(said["under_way"][1]["node"], 0);
  const std::string what = said["under_way"][1]["what"];
  EXPECT_TRUE(what.starts_with("writing s000000002.g1.") && what.ends_with("/part-00000.h5"))
      << what;
}

}  // namespace
}  // namespace perdure
