// An export that takes long: checkpoints are committed meanwhile, and what it reads is kept.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <thread>

#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

// Steps of the events `name`, in order.
std::vector<int64_t> Steps(const std::string& run, const std::string& name) {
  std::vector<int64_t> steps;
  std::istringstream lines(ReadFile(run + "/journal.jsonl").value_or(""));
  for (std::string line; std::getline(lines, line);)
    if (const auto event = nlohmann::json::parse(line, nullptr, false);
        event.is_object() && event["event"] == name)
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

TEST(SlowExport, HoldsNoCommitUpAndKeepsItsCheckpoint) {
  const std::string folder = FreshFolder("slow_export"), run = folder + "/run";
  WriteNanoData(folder);
  fs::create_directories(run);
  ASSERT_TRUE(ReplaceFile(run + "/hold", "").ok());
  ::setenv("LD_PRELOAD", PERDURE_BINARY_DIR "/tests/libslow_export.so", 1);
  const int pid = StartPerdure(
      RunOfTwoRanks(run, folder,
                    {"--set", "checkpoint.every_steps=1", "--set", "checkpoint.keep_last=2",
                     "--set", "checkpoint.export_steps=[1]", "--until-step", "6"}),
      folder + "/errors");
  ::unsetenv("LD_PRELOAD");
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(240);
  while (Steps(run, "retire").size() < 1 || Steps(run, "checkpoint").size() < 6) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << ReadFile(folder + "/errors").value();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_FALSE(fs::exists(run + "/export/step0000001"));
  EXPECT_EQ(Steps(run, "export"), std::vector<int64_t>{});
  EXPECT_EQ(Nicest(pid), 19);
  const nlohmann::json kept = ListedCheckpoints(run);
  ASSERT_FALSE(kept.empty());
  EXPECT_EQ(kept[0]["step"], 1);
  EXPECT_TRUE(fs::exists(kept[0]["path"].get<std::string>() + "/manifest.json"));
  fs::remove(run + "/hold");
  EXPECT_EQ(WaitFor(pid), 75) << ReadFile(folder + "/errors").value();
  EXPECT_EQ(Steps(run, "export"), std::vector<int64_t>{1});
  EXPECT_TRUE(fs::exists(run + "/export/step0000001/model.safetensors"));
  // Then it goes the way of the others.
  std::vector<int64_t> steps;
  for (const nlohmann::json& entry : ListedCheckpoints(run)) steps.push_back(entry["step"]);
  EXPECT_EQ(steps, (std::vector<int64_t>{5, 6}));
  EXPECT_EQ(std::distance(fs::directory_iterator(run + "/ckpt"), {}), 2);
  fs::remove_all(folder);
}

// A checkpoint that cannot be written: training goes on until the next is due, and the journal says
// who holds it up.
TEST(SlowCheckpoint, BackPressureIsSaidByName) {
  const std::string folder = FreshFolder("slow_checkpoint"), run = folder + "/run";
  WriteNanoData(folder);
  fs::create_directories(run);
  ASSERT_TRUE(ReplaceFile(run + "/hold_ckpt", "").ok());
  ::setenv("LD_PRELOAD", PERDURE_BINARY_DIR "/tests/libslow_export.so", 1);
  const int pid = StartPerdure(
      RunOfTwoRanks(run, folder, {"--set", "checkpoint.every_steps=2", "--until-step", "4"}),
      folder + "/errors");
  ::unsetenv("LD_PRELOAD");
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(240);
  while (Steps(run, "back_pressure").empty()) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << ReadFile(folder + "/errors").value();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_EQ(Steps(run, "back_pressure"), std::vector<int64_t>{4});
  EXPECT_EQ(Steps(run, "checkpoint"), std::vector<int64_t>{});
  fs::remove(run + "/hold_ckpt");
  EXPECT_EQ(WaitFor(pid), 75) << ReadFile(folder + "/errors").value();
  EXPECT_EQ(Steps(run, "checkpoint"), (std::vector<int64_t>{2, 4}));
  const std::string journal = ReadFile(run + "/journal.jsonl").value();
  const nlohmann::json said =
      nlohmann::json::parse(journal.substr(journal.rfind('\n', journal.find("back_pressure")) + 1,
                                           journal.find('\n', journal.find("back_pressure")) -
                                               journal.rfind('\n', journal.find("back_pressure"))));
  EXPECT_EQ(said["unsettled"], 2);
  ASSERT_EQ(said["under_way"].size(), 2U) << said;
  EXPECT_EQ(said["under_way"][1]["rank"], 1);
  EXPECT_EQ(said["under_way"][1]["node"], 0);
  const std::string what = said["under_way"][1]["what"];
  EXPECT_TRUE(what.starts_with("writing s000000002.g1.") && what.ends_with("/part-00000.h5"))
      << what;
  fs::remove_all(folder);
}

}  // namespace
}  // namespace perdure
