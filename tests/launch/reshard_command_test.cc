// perdure ckpt reshard on the checkpoint of a real run: there and back, what is refused, a kill.
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <set>
#include <thread>

#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

class ReshardCommand : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = FreshFolder("reshard_command");
    WriteNanoData(folder_);
    ASSERT_EQ(Perdure({"run", NanoToml(), "--run-dir", folder_ + "/run", "--data-dir", folder_,
                       "--nodes", "2", "--ranks-per-node", "2", "--set", "layout.tensor=2", "--set",
                       "layout.pipeline=2", "--until-step", "1", "--quiet"})
                  .exit_code,
              75);
    checkpoint_ = ListedCheckpoints(folder_ + "/run").back()["path"];
  }
  static void TearDownTestSuite() { fs::remove_all(folder_); }

  static std::string At(const std::string& name) { return folder_ + "/" + name; }
  static CommandResult Reshard(const std::string& source, const std::string& target,
                               const std::vector<std::string>& more = {}) {
    std::vector<std::string> words = {"ckpt", "reshard", source, "-o", target};
    words.insert(words.end(), more.begin(), more.end());
    return Perdure(words);
  }
  static void ExpectRefused(const CommandResult& result, const std::string& words) {
    EXPECT_EQ(result.exit_code, 2) << result.errors;
    EXPECT_NE(result.errors.find(words), std::string::npos) << result.errors;
  }
  static std::set<std::string> Names(const std::string& directory) {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(directory))
      names.insert(entry.path().filename());
    return names;
  }
  static void ExpectSameCheckpoint(const std::string& a, const std::string& b) {
    EXPECT_EQ(Names(a), Names(b));
    for (const std::string& name : Names(a))
      EXPECT_TRUE(ReadFile(a + "/" + name).value() == ReadFile(b + "/" + name).value()) << name;
  }

  static inline std::string folder_, checkpoint_;
};

TEST_F(ReshardCommand, FiveFilesAndBackAreTheSameBytes) {
  const CommandResult five = Reshard(folder_ + "/run", At("five"), {"--files", "5"});
  ASSERT_EQ(five.exit_code, 0) << five.errors;
  EXPECT_NE(five.output.find("in 5 files"), std::string::npos) << five.output;
  EXPECT_EQ(Perdure({"ckpt", "verify", At("five")}).exit_code, 0);
  EXPECT_EQ(Perdure({"ckpt", "diff", At("five"), checkpoint_}).output, "identical\n");
  // Files are a node's, of two ranks each.
  const CommandResult back = Reshard(At("five"), At("back"),
                                     {"--layout", "tensor=2,pipeline=2,data=1", "--ranks-per-file",
                                      "2", "--memory", "64MiB", "--threads", "1"});
  ASSERT_EQ(back.exit_code, 0) << back.errors;
  ExpectSameCheckpoint(checkpoint_, At("back"));
  // Consolidated, and as other ranks write it.
  ASSERT_EQ(Reshard(checkpoint_, At("one")).exit_code, 0);
  EXPECT_EQ(Names(At("one")), (std::set<std::string>{"manifest.json", "part-00000.h5", "view.h5"}));
  ASSERT_EQ(
      Reshard(At("one"), At("d3"), {"--layout", "tensor=1,pipeline=1,data=3,zero=3"}).exit_code, 0);
  EXPECT_TRUE(Names(At("d3")).contains("part-00002.h5"));
  EXPECT_EQ(Perdure({"ckpt", "diff", At("d3"), checkpoint_}).output, "identical\n");
}

TEST_F(ReshardCommand, KilledItContinues) {
  ASSERT_EQ(Reshard(checkpoint_, At("whole"), {"--files", "7"}).exit_code, 0);
  for (const int milliseconds : {30, 60, 90, 150}) {
    const std::string target = At(fmt::format("killed{}", milliseconds));
    const int pid =
        StartPerdure({"ckpt", "reshard", checkpoint_, "-o", target, "--files", "7"}, At("errors"));
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    ::kill(pid, SIGKILL);
    const bool finished = WaitFor(pid) == 0;
    const CommandResult again = Reshard(checkpoint_, target, {"--files", "7"});
    if (!finished) EXPECT_EQ(again.exit_code, 0) << again.errors;
    ExpectSameCheckpoint(At("whole"), target);
  }
}

TEST_F(ReshardCommand, WhatIsRefused) {
  ExpectRefused(Reshard(checkpoint_, At("x"), {"--files", "2", "--layout", "data=2"}), "exclude");
  ExpectRefused(Reshard(checkpoint_, At("x"), {"--layout", "tensor=2"}), "data=0 is missing");
  ExpectRefused(Reshard(checkpoint_, At("x"), {"--layout", "tensr=2,data=1"}), "'tensr=2'");
  ExpectRefused(Reshard(checkpoint_, At("x"), {"--layout", "tensor=,data=1"}), "'tensor='");
  ExpectRefused(Reshard(checkpoint_, At("x"), {"--layout", "tensor=3,data=1"}), "layout.tensor");
  ExpectRefused(Reshard(checkpoint_, At("x"), {"--ranks-per-file", "2"}), "needs --layout");
  ExpectRefused(Reshard(checkpoint_, At("x"), {"--memory", "1MiB"}), "at least 64.0 MiB");
  ExpectRefused(Reshard(checkpoint_, At("x"), {"--memory", "much"}), "--memory much");
  ExpectRefused(Reshard(checkpoint_, At("x"), {"--dtype", "bf16"}), "needs --params-only");
  ExpectRefused(Reshard(checkpoint_, At("x"), {"--params-only", "--files", "2"}), "one file");
  ExpectRefused(Reshard(checkpoint_, folder_ + "/run"), "run exists");
  ExpectRefused(Reshard(At("nothing"), At("x")), "not a directory");
  EXPECT_EQ(Reshard(checkpoint_, At("x"), {"--files", "0"}).exit_code, 2);
  EXPECT_FALSE(fs::exists(At("x")));
  EXPECT_FALSE(fs::exists(At("x.partial")));
  fs::create_directory(At("y.partial"));
  ASSERT_TRUE(ReplaceFile(At("y.partial/perdure.partial"), "other\nstep 5 in 2 files\n").ok());
  ExpectRefused(Reshard(checkpoint_, At("y")), "y.partial holds other work");
}

TEST_F(ReshardCommand, ParametersAlone) {
  ASSERT_EQ(Reshard(checkpoint_, At("fp32"), {"--params-only"}).exit_code, 0);
  ASSERT_EQ(Reshard(checkpoint_, At("bf16"), {"--params-only", "--dtype", "bf16"}).exit_code, 0);
  EXPECT_EQ(Names(At("bf16")), std::set<std::string>{"params.h5"});
  EXPECT_GT(fs::file_size(At("fp32/params.h5")), 4U * 1'049'728);
  EXPECT_LT(fs::file_size(At("bf16/params.h5")), fs::file_size(At("fp32/params.h5")));
}

}  // namespace
}  // namespace perdure
