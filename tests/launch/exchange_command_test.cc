// perdure ckpt import and export: states out of a run, into a new one, and on.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <filesystem>
#include <set>

#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

class ExchangeCommand : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = FreshFolder("exchange_command");
    WriteNanoData(folder_);
    ASSERT_EQ(Run("run", {"--until-step", "2"}).exit_code, 75);
    certificate_ = ListedCheckpoints(At("run")).back()["certificate"];
    for (const char* format : {"hf", "universal", "dcp"}) {
      const CommandResult result = Export(At(format), format);
      ASSERT_EQ(result.exit_code, 0) << result.errors;
    }
  }
  static void TearDownTestSuite() { fs::remove_all(folder_); }

  static std::string At(const std::string& name) { return folder_ + "/" + name; }
  static CommandResult Run(const std::string& name, const std::vector<std::string>& more) {
    std::vector<std::string> words = RunOfTwoRanks(At(name), folder_, {"--quiet"});
    words.insert(words.end(), more.begin(), more.end());
    return Perdure(words);
  }
  static CommandResult Export(const std::string& target, const std::string& to,
                              const std::vector<std::string>& more = {}) {
    std::vector<std::string> words = {"ckpt", "export", At("run"), "-o", target, "--to", to};
    words.insert(words.end(), more.begin(), more.end());
    return Perdure(words);
  }
  static CommandResult Import(const std::string& from, const std::string& source,
                              const std::string& run, const std::vector<std::string>& more = {}) {
    std::vector<std::string> words = {"ckpt", "import",   NanoToml(),  "--from",
                                      from,   At(source), "--run-dir", At(run)};
    words.insert(words.end(), more.begin(), more.end());
    return Perdure(words);
  }
  static void ExpectRefused(const CommandResult& result, const std::string& words) {
    EXPECT_EQ(result.exit_code, 2) << result.errors;
    EXPECT_NE(result.errors.find(words), std::string::npos) << result.errors;
  }

  static inline std::string folder_, certificate_;
};

TEST_F(ExchangeCommand, WhatWasExportedAndImportedGoesOnWithTheSameBits) {
  ASSERT_EQ(Run("run", {"--until-step", "4"}).exit_code, 75);
  const std::vector<std::string> losses = LossColumn(At("run"), "loss_bits");
  for (const std::string format : {"universal", "dcp"}) {
    const CommandResult imported =
        Import(format, format, "from_" + format, {"--data-dir", folder_});
    ASSERT_EQ(imported.exit_code, 0) << imported.errors;
    const auto list = ListedCheckpoints(At("from_" + format));
    ASSERT_EQ(list.size(), 1U);
    EXPECT_EQ(list[0]["certificate"], certificate_);
    EXPECT_EQ(list[0]["step"], 2);
    EXPECT_EQ(list[0]["verified"], true);
    ASSERT_EQ(Run("from_" + format, {"--until-step", "4"}).exit_code, 75);
    EXPECT_EQ(LossColumn(At("from_" + format), "loss_bits"),
              (std::vector<std::string>{losses[2], losses[3]}));
  }
  // And once more around.
  ASSERT_EQ(Import("universal", "universal", "once").exit_code, 0);
  ASSERT_EQ(
      Perdure({"ckpt", "export", At("once"), "-o", At("again"), "--to", "universal"}).exit_code, 0);
  ASSERT_EQ(Import("universal", "again", "twice").exit_code, 0);
  EXPECT_EQ(ListedCheckpoints(At("twice"))[0]["certificate"], certificate_);
}

TEST_F(ExchangeCommand, AModelOfHuggingFaceIsTrainedOn) {
  const CommandResult imported = Import("hf", "hf", "from_hf");
  ASSERT_EQ(imported.exit_code, 0) << imported.errors;
  EXPECT_NE(imported.errors.find("no moments"), std::string::npos) << imported.errors;
  EXPECT_EQ(ListedCheckpoints(At("from_hf"))[0]["step"], 0);
  EXPECT_EQ(Perdure({"ckpt", "verify", At("from_hf")}).exit_code, 0);
  const CommandResult run = Run("from_hf", {"--until-step", "3"});
  EXPECT_EQ(run.exit_code, 75) << run.errors;
  EXPECT_EQ(LossColumn(At("from_hf"), "step"), (std::vector<std::string>{"1", "2", "3"}));
}

TEST_F(ExchangeCommand, AFreshScheduleWithAnOldState) {
  const CommandResult imported = Import("dcp", "dcp", "fresh", {"--step", "0"});
  ASSERT_EQ(imported.exit_code, 0) << imported.errors;
  const auto list = ListedCheckpoints(At("fresh"));
  EXPECT_EQ(list[0]["step"], 0);
  EXPECT_EQ(list[0]["samples"], 0);
  EXPECT_EQ(Run("fresh", {"--until-step", "1"}).exit_code, 75);
}

TEST_F(ExchangeCommand, ImportsThatAreRefused) {
  ExpectRefused(Import("hf", "hf", "x", {"--set", "model.ffn=512"}), "model.ffn = 512, but");
  ExpectRefused(Import("universal", "universal", "x", {"--set", "model.layers=2"}), "");
  ExpectRefused(Import("dcp", "dcp", "x", {"--set", "phase.pretrain.batch.initial=32"}),
                "samples, but the schedule of this run has consumed");
  ExpectRefused(Import("dcp", "hf", "x"), "");
  ExpectRefused(Import("megatron-deepspeed", "dcp", "x"), "");
  ExpectRefused(Import("hf", "nothing", "x"), "not a directory");
  ExpectRefused(Import("dcp", "dcp", "run"), "run exists");
  ExpectRefused(Import("dcp", "dcp", "x", {"--step", "100000"}), "end at step 120");
  ExpectRefused(Import("dcp", "dcp", "x", {"--data-dir", At("hf")}), "data/");
  EXPECT_EQ(Import("tar", "dcp", "x").exit_code, 2);
  EXPECT_FALSE(fs::exists(At("x")));
  EXPECT_FALSE(fs::exists(At("x.partial")));
}

TEST_F(ExchangeCommand, ExportsThatAreRefused) {
  ExpectRefused(Export(At("hf"), "hf"), "hf");
  ExpectRefused(Export(At("universal"), "universal"), "exists");
  ExpectRefused(Export(At("dcp"), "dcp"), "");
  ExpectRefused(Export(At("y"), "dcp", {"--dtype", "bf16"}), "are for --to hf");
  ExpectRefused(Export(At("y"), "hf", {"--shard-size", "0"}), "--shard-size 0");
  ExpectRefused(Export(At("y"), "hf", {"--tokenizer", At("none")}), "none");
  EXPECT_FALSE(fs::exists(At("y")));
}

// The kernel kills it in the middle: no file may be longer than this.
TEST_F(ExchangeCommand, AKilledExportIsMadeAnew) {
  for (const std::string format : {"universal", "dcp"}) {
    rlimit before{};
    ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
    const rlimit little{.rlim_cur = 1 << 18, .rlim_max = before.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &little), 0);
    const CommandResult killed = Export(At("killed"), format);
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
    ASSERT_EQ(killed.exit_code, 128 + SIGXFSZ) << killed.errors;
    EXPECT_FALSE(fs::exists(At("killed")));
    ASSERT_TRUE(fs::exists(At("killed.partial")));
    // Other work in its place is not touched.
    const CommandResult other = Export(At("killed"), format == "dcp" ? "universal" : "dcp");
    ExpectRefused(other, "holds other work that was interrupted");
    const CommandResult again = Export(At("killed"), format);
    ASSERT_EQ(again.exit_code, 0) << again.errors;
    EXPECT_FALSE(fs::exists(At("killed.partial")));
    EXPECT_FALSE(fs::exists(At("killed/perdure.partial")));
    const CommandResult imported = Import(format, "killed", "from_killed");
    EXPECT_EQ(imported.exit_code, 0) << imported.errors;
    EXPECT_EQ(ListedCheckpoints(At("from_killed"))[0]["certificate"],
              ListedCheckpoints(At("run")).back()["certificate"]);
    fs::remove_all(At("killed"));
    fs::remove_all(At("from_killed"));
  }
}

TEST_F(ExchangeCommand, ARunExportsByItself) {
  const std::vector<std::string> exports = {"--set", "checkpoint.export_steps=[1, 3]", "--set",
                                            "checkpoint.export_every_steps=4"};
  const auto run = [&](const char* until, std::vector<std::string> more) {
    more.insert(more.end(), exports.begin(), exports.end());
    more.insert(more.end(), {"--until-step", until});
    return Run("exporting", more);
  };
  // What stands in the way of one is a warning, and the next job makes up for it.
  fs::create_directories(At("exporting"));
  ASSERT_TRUE(ReplaceFile(At("exporting/export"), "no folder").ok());
  const CommandResult first = run("1", {});
  ASSERT_EQ(first.exit_code, 75) << first.errors;
  EXPECT_NE(first.errors.find("warning: step 1 was not exported"), std::string::npos)
      << first.errors;
  fs::remove(At("exporting/export"));
  ASSERT_EQ(run("5", {}).exit_code, 75);
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(At("exporting/export")))
    names.insert(entry.path().filename());
  EXPECT_EQ(names, (std::set<std::string>{"step0000001", "step0000003", "step0000004"}));
  EXPECT_TRUE(fs::exists(At("exporting/export/step0000003/model.safetensors")));
  const std::string journal = ReadFile(At("exporting/journal.jsonl")).value();
  EXPECT_NE(journal.find("\"written\":false"), std::string::npos);
  EXPECT_EQ(Import("hf", "exporting/export/step0000004", "from_own").exit_code, 0);
  // Another format in a later job; half made ones are made anew.
  fs::create_directories(At("exporting/export/step0000008.partial"));
  ASSERT_EQ(run("8", {"--set", "checkpoint.export_format=universal"}).exit_code, 75);
  EXPECT_TRUE(fs::exists(At("exporting/export/step0000008/latest_universal")));
  EXPECT_FALSE(fs::exists(At("exporting/export/step0000008.partial")));
}

TEST_F(ExchangeCommand, ShardsAndFullPrecision) {
  ASSERT_EQ(Export(At("shards"), "hf", {"--dtype", "fp32", "--shard-size", "1MB"}).exit_code, 0);
  EXPECT_TRUE(fs::exists(At("shards/model.safetensors.index.json")));
  ASSERT_EQ(Import("hf", "shards", "from_shards").exit_code, 0);
}

}  // namespace
}  // namespace perdure
