// launch/recipes/lucie as somebody uses it: its datasets are made, it is submitted, and it runs
// through its three phases; small, but by the files themselves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <map>

#include "launch/config.h"
#include "launch/slurm/command.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "runtime/data/indexed_dataset.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr char kRecipe[] = PERDURE_SOURCE_DIR "/launch/recipes/lucie/";

class LucieRecipe : public testing::Test {
 protected:
  LucieRecipe() : folder_(FreshFolder("lucie_recipe")) {}
  ~LucieRecipe() override { fs::remove_all(folder_); }

  // Some text of its own for each source that run.toml names; by their names.
  std::map<std::string, std::string> WriteTexts() const {
    const auto config = LoadConfig(std::string(kRecipe) + "run.toml", {});
    EXPECT_TRUE(config.ok()) << config.status();
    std::map<std::string, std::string> sources;
    for (const PhaseConfig& phase : config->phases)
      for (const SourceConfig& source : phase.mixture) {
        const std::string name = fs::path(source.path).filename();
        sources[name] = source.path;
        fs::create_directories(raw() + "/" + name);
        std::string text;
        for (int word = 0; word < 300; ++word) text += fmt::format("{} {}. ", name, word * 7919);
        EXPECT_TRUE(ReplaceFile(raw() + "/" + name + "/text.txt", text).ok());
      }
    return sources;
  }
  InvocationResult MakeData(const std::string& tokenizer) const {
    const auto made =
        RunCommand({.argv = {std::string(kRecipe) + "data.sh", raw(), data(), tokenizer},
                    .environment = {{"PERDURE", PerdurePath()}}});
    EXPECT_TRUE(made.ok()) << made.status();
    return made.value_or(InvocationResult{.exit_code = -1});
  }
  std::string raw() const { return folder_ + "/raw"; }
  std::string data() const { return folder_ + "/data"; }

  const std::string folder_;
};

TEST_F(LucieRecipe, DatasetsAreMadeLinkedAndKept) {
  const std::map<std::string, std::string> sources = WriteTexts();
  EXPECT_EQ(sources.size(), 9U);
  // One that Megatron has made is taken as it is.
  auto writer = IndexedDatasetWriter::Create(raw() + "/it", 65024);
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE((*writer)->AddDocument(std::vector<int32_t>{3, 1, 65023}).ok());
  ASSERT_TRUE((*writer)->Finish().ok());
  InvocationResult made = MakeData("byte");
  ASSERT_EQ(made.exit_code, 0) << made.output << made.errors;
  for (const auto& [name, path] : sources) {
    const auto dataset = IndexedDataset::Open(data() + "/" + path);
    ASSERT_TRUE(dataset.ok()) << dataset.status();
    EXPECT_EQ((*dataset)->MaxToken(), name == "it" ? 65023 : 256) << name;
  }
  EXPECT_TRUE(fs::is_symlink(data() + "/lucie/it.bin"));
  // Again: nothing is made twice, and what was lost is made anew.
  fs::remove(data() + "/lucie/fr.idx");
  fs::remove(data() + "/lucie/fr.bin");
  made = MakeData("byte");
  ASSERT_EQ(made.exit_code, 0) << made.output << made.errors;
  EXPECT_THAT(made.output, HasSubstr("lucie/en is there"));
  EXPECT_THAT(made.output, HasSubstr("lucie/fr is built from"));
}

TEST_F(LucieRecipe, WhatIsMissingIsSaidBeforeAnythingIsMade) {
  WriteTexts();
  fs::remove_all(raw() + "/de");
  fs::remove_all(raw() + "/annealing");
  const InvocationResult made = MakeData("byte");
  EXPECT_EQ(made.exit_code, 1);
  EXPECT_THAT(made.errors, HasSubstr("nor a folder of texts for: de annealing"));
  EXPECT_FALSE(fs::exists(data()));
}

// By one command, on Jean Zay's H100 part; nothing is asked of a scheduler.
TEST_F(LucieRecipe, IsSubmittedByOneCommand) {
  const CommandResult shown =
      Perdure({"submit", std::string(kRecipe) + "run.toml", "--set", "slurm.account=abc",
               "--run-dir", folder_ + "/run", "--data-dir", data(), "--dry-run"});
  ASSERT_EQ(shown.exit_code, 0) << shown.errors;
  for (const char* line : {"#SBATCH \"--time=1200\"\n", "#SBATCH \"--account=abc@h100\"\n",
                           "#SBATCH \"--qos=qos_gpu_h100-t3\"\n", "#SBATCH \"--constraint=h100\"\n",
                           "#SBATCH \"--gres=gpu:4\"\n", "module load 'arch/h100' || exit 2\n",
                           // 128 and 2 spares, down to half of them.
                           "# sbatch --nodes=66-130 --dependency=singleton "})
    EXPECT_THAT(shown.output, HasSubstr(line));
  EXPECT_FALSE(fs::exists(folder_ + "/run"));
}

// Its phases, mixtures, rates and exports, of a model that two processes have room for.
TEST_F(LucieRecipe, RunsThroughItsPhases) {
  WriteTexts();
  const InvocationResult made = MakeData("byte");
  ASSERT_EQ(made.exit_code, 0) << made.errors;
  std::vector<std::string> arguments = {"run",
                                        std::string(kRecipe) + "run.toml",
                                        "--run-dir",
                                        folder_ + "/run",
                                        "--data-dir",
                                        data(),
                                        "--nodes",
                                        "1",
                                        "--ranks-per-node",
                                        "2",
                                        "--quiet"};
  for (const std::string& setting :
       {std::string("slurm.site=generic"),
        "layout.transport=" + BuiltTransport(),
        std::string("layout.tensor=1"),
        std::string("layout.pipeline=2"),
        std::string("numerics.backend=cpu"),
        std::string("model.layers=2"),
        std::string("model.hidden=64"),
        std::string("model.heads=8"),
        std::string("model.kv_heads=4"),
        std::string("model.ffn=128"),
        std::string("model.vocab=260"),
        std::string("phase.pretrain.samples=96"),
        std::string("phase.pretrain.context=64"),
        std::string("phase.pretrain.batch={initial=8, increment=8, ramp_samples=32, final=16}"),
        std::string("phase.pretrain.rate.warmup_samples=16"),
        std::string("phase.extension.samples=24"),
        std::string("phase.extension.context=256"),
        std::string("phase.extension.batch=8"),
        std::string("phase.annealing.samples=24"),
        std::string("phase.annealing.context=256"),
        std::string("phase.annealing.batch=8"),
        std::string("checkpoint.export_every_steps=4"),
        std::string("checkpoint.export_steps=[2]")})
    arguments.insert(arguments.end(), {"--set", setting});
  const CommandResult run = Perdure(arguments);
  ASSERT_EQ(run.exit_code, 0) << run.errors;
  const std::vector<std::string> phases = LossColumn(folder_ + "/run", "phase");
  EXPECT_EQ(phases.front(), "pretrain");
  EXPECT_EQ(std::count(phases.begin(), phases.end(), "extension"), 3);
  EXPECT_EQ(std::count(phases.begin(), phases.end(), "annealing"), 3);
  EXPECT_EQ(LossColumn(folder_ + "/run", "batch").front(), "8");
  EXPECT_EQ(LossColumn(folder_ + "/run", "learning_rate").back(), "0") << "it ends at 0";
  for (const char* step : {"step0000002", "step0000004", "step0000008"})
    EXPECT_TRUE(fs::exists(folder_ + "/run/export/" + step + "/model.safetensors")) << step;
}

}  // namespace
}  // namespace perdure
