// A Megatron-DeepSpeed run goes on as Perdure's, by the commands that its users would type:
// imported, trained on at two layouts, exported as DeepSpeed's own converter would have converted
// it.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <numbers>
#include <set>

#include "ckpt/convert/torch_file.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

// Where make_torch_fixtures.py's run stands; its layout is tensor 2 x pipeline 2 x data 2.
constexpr int64_t kStep = 40, kBatch = 8, kContext = 32;
constexpr double kPeak = 3e-3, kFinal = 3e-4;
constexpr int64_t kWarmup = 64, kSamples = 800;

constexpr const char* kConfig = R"([run]
name = "from-megatron"
[model]
kind = "llama"
layers = 2
hidden = 8
heads = 4
kv_heads = 2
head_dim = 8
ffn = 12
vocab = 60
norm_eps = 1e-5
[data]
tokenizer = "data/none.model"
[[phase]]
name = "pretrain"
samples = 800
context = 32
rope_theta = 500000.0
batch = 8
rate = { peak = 3e-3, final = 3e-4, warmup_samples = 64, decay = "cosine" }
mixture = [ { path = "data/en", weight = 0.7 }, { path = "data/fr", weight = 0.3 } ]
[optimizer]
kind = "adamw"
[numerics]
tensor_shards = 2
micro_batch = 2
leaf = 1
[checkpoint]
every = "1h"
)";

class MegatronRoundTrip : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = FreshFolder("megatron_round_trip");
    WriteNanoData(folder_, 60);
    ASSERT_TRUE(ReplaceFile(At("run.toml"), kConfig).ok());
    imported_ = Import("run", {"--data-dir", folder_});
    ASSERT_EQ(imported_.exit_code, 0) << imported_.errors;
  }
  static void TearDownTestSuite() { fs::remove_all(folder_); }

  static std::string At(const std::string& name) { return folder_ + "/" + name; }
  static std::string Theirs(const std::string& name) {
    return std::string(PERDURE_TORCH_FIXTURES) + "/trained/" + name;
  }
  static CommandResult Import(const std::string& run, const std::vector<std::string>& more) {
    std::vector<std::string> words = {
        "ckpt",      "import", At("run.toml"), Theirs("megatron"), "--from", "megatron-deepspeed",
        "--run-dir", At(run)};
    words.insert(words.end(), more.begin(), more.end());
    return Perdure(words);
  }
  // Four steps on `ranks` processes.
  static void TrainOn(const std::string& run, int ranks, const std::string& tensor,
                      const std::string& pipeline) {
    const CommandResult result =
        Perdure({"run", At("run.toml"), "--run-dir", At(run), "--data-dir", folder_, "--quiet",
                 "--nodes", "1", "--ranks-per-node", std::to_string(ranks), "--set",
                 "layout.tensor=" + tensor, "--set", "layout.pipeline=" + pipeline, "--set",
                 "layout.transport=" + BuiltTransport(), "--until-step", "44"});
    ASSERT_EQ(result.exit_code, 75) << result.errors;
  }

  static inline std::string folder_;
  static inline CommandResult imported_;
};

// Megatron's rate when so many samples are consumed.
double RateAt(int64_t samples) {
  const double done = static_cast<double>(samples - kWarmup) / (kSamples - kWarmup);
  return kFinal + 0.5 * (1 + std::cos(std::numbers::pi * done)) * (kPeak - kFinal);
}

TEST_F(MegatronRoundTrip, TrainingGoesOnWhereItStoodAtAnyLayout) {
  EXPECT_EQ(imported_.errors.find("note:"), std::string::npos) << imported_.errors;
  const auto list = ListedCheckpoints(At("run"));
  ASSERT_EQ(list.size(), 1U);
  EXPECT_EQ(list[0]["step"], kStep);
  EXPECT_EQ(list[0]["samples"], kStep * kBatch);
  fs::copy(At("run"), At("other"), fs::copy_options::recursive);
  TrainOn("run", 2, "2", "1");
  TrainOn("other", 4, "1", "2");
  const std::vector<std::string> losses = LossColumn(At("run"), "loss_bits");
  EXPECT_EQ(losses.size(), 4U);
  EXPECT_EQ(std::set<std::string>(losses.begin(), losses.end()).size(), 4U);
  EXPECT_EQ(LossColumn(At("other"), "loss_bits"), losses);
  EXPECT_EQ(ListedCheckpoints(At("run")).back()["certificate"],
            ListedCheckpoints(At("other")).back()["certificate"]);
  // Step, samples, tokens and rate follow from those of the source.
  const std::vector<std::string> rates = LossColumn(At("run"), "learning_rate");
  EXPECT_EQ(LossColumn(At("run"), "step"), (std::vector<std::string>{"41", "42", "43", "44"}));
  EXPECT_EQ(LossColumn(At("run"), "samples"),
            (std::vector<std::string>{"328", "336", "344", "352"}));
  EXPECT_EQ(LossColumn(At("run"), "tokens")[0], std::to_string(328 * kContext));
  ASSERT_EQ(rates.size(), 4U);
  for (size_t i = 0; i < rates.size(); ++i) {
    const double expected = RateAt((kStep + 1 + static_cast<int64_t>(i)) * kBatch);
    EXPECT_NEAR(std::stod(rates[i]), expected, 1e-6 * expected) << i;
  }
}

TEST_F(MegatronRoundTrip, ARateThatIsNotTheSourcesIsNoted) {
  const CommandResult result = Import("noted", {"--set", "phase.pretrain.rate.peak=4e-3"});
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_NE(result.errors.find("has come to the learning rate 0.0022"), std::string::npos)
      << result.errors;
  EXPECT_NE(result.errors.find("at step 40"), std::string::npos) << result.errors;
  // A new schedule has a rate of its own.
  const CommandResult fresh =
      Import("fresh", {"--set", "phase.pretrain.rate.peak=4e-3", "--step", "0"});
  ASSERT_EQ(fresh.exit_code, 0) << fresh.errors;
  EXPECT_EQ(fresh.errors.find("learning rate"), std::string::npos) << fresh.errors;
}

// All elements of `param` in a file of a universal checkpoint.
std::vector<float> Param(const std::string& path) {
  const auto file = TorchFile::Open(path);
  EXPECT_TRUE(file.ok()) << file.status();
  if (!file.ok()) return {};
  const auto tensor = file->Tensor(*file->root().Get("param"));
  EXPECT_TRUE(tensor.ok()) << path << ": " << tensor.status();
  if (!tensor.ok()) return {};
  std::vector<float> floats(static_cast<size_t>(tensor->size()));
  const absl::Status read = ReadTorchFloats(file->file(), *tensor, 0, floats);
  EXPECT_TRUE(read.ok()) << read;
  return floats;
}

TEST_F(MegatronRoundTrip, ExportedItIsWhatDeepSpeedConvertsItTo) {
  // As imported: the other test may have trained on in `run`.
  ASSERT_EQ(Import("as_imported", {}).exit_code, 0);
  const CommandResult exported =
      Perdure({"ckpt", "export", At("as_imported"), "-o", At("universal"), "--to", "universal"});
  ASSERT_EQ(exported.exit_code, 0) << exported.errors;
  const std::string ours = At("universal/global_step40_universal/zero");
  size_t compared = 0;
  for (const auto& parameter : fs::directory_iterator(Theirs("universal/zero"))) {
    if (!parameter.is_directory()) continue;  // optimizer_state.pt.
    const std::string name = parameter.path().filename();
    for (const char* part : {"fp32.pt", "exp_avg.pt", "exp_avg_sq.pt"}) {
      const std::vector<float> theirs = Param(parameter.path() / part);
      const std::vector<float> got = Param(ours + "/" + name + "/" + part);
      ASSERT_EQ(got.size(), theirs.size()) << name << " " << part;
      EXPECT_EQ(std::memcmp(got.data(), theirs.data(), got.size() * sizeof(float)), 0)
          << name << " " << part;
      ++compared;
    }
  }
  EXPECT_EQ(compared, 3U * (2 * 7 + 3));
  size_t written = 0;
  for (const auto& entry : fs::directory_iterator(ours)) written += entry.is_directory() ? 1 : 0;
  EXPECT_EQ(3 * written, compared);
}

}  // namespace
}  // namespace perdure
