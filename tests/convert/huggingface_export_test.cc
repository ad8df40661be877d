// Export: every value, shards, files beside the weights, refusals, equal bytes, nothing half done.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/file.h>

#include <bit>
#include <filesystem>
#include <set>

#include "ckpt/atom_reader.h"
#include "ckpt/float_bits.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "runtime/base/unique_fd.h"
#include "tests/convert/small_model.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::UnorderedElementsAre;

std::set<std::string> Names(const std::string& directory) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory))
    names.insert(entry.path().filename().string());
  return names;
}

class ExportTest : public testing::Test {
 protected:
  std::string Path(const std::string& name) const { return directory_.path() + "/" + name; }

  absl::Status Export(const HuggingFaceExport& options) {
    MemorySource source(table_, state_);
    return ExportHuggingFace(source, table_, options);
  }

  // Every tensor of the directory is the state's, rounded.
  void ExpectTensors(const std::string& directory, SafetensorsDType dtype) {
    const auto model = SafetensorsModel::Open(directory);
    ASSERT_OK(model.status());
    ASSERT_EQ(model->tensors().size(), table_.tensors().size());
    for (size_t t = 0; t < table_.tensors().size(); ++t) {
      const std::string& name = table_.tensors()[t].name;
      ASSERT_TRUE(model->tensors().contains(name)) << name;
      const SafetensorsModel::Place& place = model->tensors().at(name);
      EXPECT_EQ(place.tensor->dtype, dtype) << name;
      std::vector<float> values(place.tensor->elements());
      ASSERT_OK(place.file->Read(*place.tensor, 0, values));
      const std::vector<float> expected = WholeTensor(table_, state_, static_cast<int64_t>(t));
      ASSERT_EQ(values.size(), expected.size()) << name;
      for (size_t i = 0; i < values.size(); ++i) {
        const float rounded =
            dtype == SafetensorsDType::kF32 ? expected[i] : FloatOfBF16(BF16OfFloat(expected[i]));
        ASSERT_EQ(std::bit_cast<uint32_t>(values[i]), std::bit_cast<uint32_t>(rounded))
            << name << '[' << i << ']';
      }
    }
  }

  TestDirectory directory_;
  AtomTable table_ = SmallTable(4);
  TestState state_{table_, 5};
};

TEST_F(ExportTest, WritesWhatTransformersReads) {
  ASSERT_OK(Export(SmallExport(Path("out"))));
  EXPECT_THAT(Names(Path("out")),
              ElementsAre("config.json", "generation_config.json", "model.safetensors"));
  EXPECT_EQ(Slurp(Path("out/config.json")),
            R"({
  "architectures": [
    "LlamaForCausalLM"
  ],
  "model_type": "llama",
  "hidden_size": 24,
  "intermediate_size": 36,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 4,
  "head_dim": 8,
  "max_position_embeddings": 64,
  "rms_norm_eps": 1e-06,
  "rope_theta": 500000.0,
  "rope_scaling": null,
  "vocab_size": 37,
  "hidden_act": "silu",
  "attention_bias": false,
  "attention_dropout": 0.0,
  "mlp_bias": false,
  "tie_word_embeddings": false,
  "bos_token_id": null,
  "eos_token_id": null,
  "pad_token_id": null,
  "torch_dtype": "float32",
  "initializer_range": 0.03,
  "pretraining_tp": 1,
  "use_cache": true
}
)");
  ExpectTensors(Path("out"), SafetensorsDType::kF32);
  const auto config = ReadHuggingFaceConfig(Path("out"));
  ASSERT_OK(config.status());
  EXPECT_EQ(config->model, SmallModel());
  EXPECT_EQ(config->rope_theta, 500000);
  EXPECT_EQ(config->max_position_embeddings, 64);
}

TEST_F(ExportTest, RoundsToBF16ByDefault) {
  HuggingFaceExport options = SmallExport(Path("out"));
  options.dtype = HuggingFaceExport().dtype;
  options.bos_token_id = 0;
  options.eos_token_id = 1;
  ASSERT_OK(Export(options));
  ExpectTensors(Path("out"), SafetensorsDType::kBF16);
  EXPECT_THAT(Slurp(Path("out/config.json")), HasSubstr("\"torch_dtype\": \"bfloat16\""));
  EXPECT_EQ(Slurp(Path("out/generation_config.json")),
            "{\n  \"_from_model_config\": true,\n  \"bos_token_id\": 0,\n  \"eos_token_id\": 1,\n"
            "  \"pad_token_id\": null\n}\n");
}

TEST_F(ExportTest, ShardsHoldAtMostWhatIsAsked) {
  for (const uint64_t most : {uint64_t{8000}, uint64_t{1}, uint64_t{100}}) {
    const std::string out = Path(fmt::format("out{}", most));
    HuggingFaceExport options = SmallExport(out);
    options.shard_bytes_max = most;
    ASSERT_OK(Export(options));
    ExpectTensors(out, SafetensorsDType::kF32);
    size_t shards = 0;
    for (const std::string& name : Names(out)) {
      if (!name.starts_with("model-")) continue;
      ++shards;
      const auto file = SafetensorsFile::Open(out + "/" + name);
      ASSERT_OK(file.status());
      uint64_t bytes = 0;
      for (const SafetensorsTensor& tensor : file->tensors()) bytes += tensor.end - tensor.begin;
      EXPECT_TRUE(bytes <= most || file->tensors().size() == 1) << name;
    }
    EXPECT_GT(shards, 4U);
    EXPECT_FALSE(fs::exists(out + "/model.safetensors"));
  }
}

TEST_F(ExportTest, SlicesAndAtomsDoNotShow) {
  ASSERT_OK(Export(SmallExport(Path("out"))));
  for (const int64_t shards : {1, 2})
    for (const int64_t elements : {7, 1 << 20}) {
      const AtomTable table = SmallTable(shards, elements);
      const auto source = HuggingFaceSource::Open(Path("out"), table);
      ASSERT_OK(source.status());
      const std::string again = fmt::format("again-{}-{}", shards, elements);
      ASSERT_OK(ExportHuggingFace(**source, table, SmallExport(Path(again))));
      for (const std::string& name : Names(Path("out")))
        EXPECT_EQ(Slurp(Path(again + "/" + name)), Slurp(Path("out/" + name))) << again << name;
    }
}

// What was bfloat16 comes back as the same bits, through fp32 state.
TEST_F(ExportTest, ImportAndExportKeepBits) {
  ASSERT_OK(Export(SmallExport(Path("a"), SafetensorsDType::kBF16)));
  const auto source = HuggingFaceSource::Open(Path("a"), table_);
  ASSERT_OK(source.status());
  ASSERT_OK(ExportHuggingFace(**source, table_, SmallExport(Path("b"), SafetensorsDType::kBF16)));
  EXPECT_EQ(Slurp(Path("a/model.safetensors")), Slurp(Path("b/model.safetensors")));
}

TEST_F(ExportTest, OutOfACheckpoint) {
  const std::string checkpoint = directory_.Make("checkpoint");
  const Manifest manifest = WriteCheckpoint(checkpoint, table_, state_, 3);
  const auto reader = AtomReader::Open(checkpoint, manifest, table_);
  ASSERT_OK(reader.status());
  uint64_t done = 0, total = 0;
  ASSERT_OK(ExportHuggingFace(**reader, table_, SmallExport(Path("out")),
                              [&](uint64_t d, uint64_t t) { done = d, total = t; }));
  EXPECT_EQ(done, total);
  EXPECT_EQ(total, static_cast<uint64_t>(table_.parameters()));
  ExpectTensors(Path("out"), SafetensorsDType::kF32);
}

TEST_F(ExportTest, TokenizersAreCopied) {
  const std::string from = directory_.Make("tokenizer");
  Spill(from + "/nano.model", "spm");
  Spill(from + "/tokenizer.json", "{}");
  HuggingFaceExport options = SmallExport(Path("a"));
  options.tokenizer = from + "/nano.model";
  ASSERT_OK(Export(options));
  EXPECT_EQ(Slurp(Path("a/tokenizer.model")), "spm");
  EXPECT_FALSE(fs::exists(Path("a/tokenizer_config.json")));
  Spill(from + "/tokenizer_config.json", "{\"a\":1}");
  options.directory = Path("b/");
  options.tokenizer = from + "/tokenizer.json";
  ASSERT_OK(Export(options));
  EXPECT_EQ(Slurp(Path("b/tokenizer.json")), "{}");
  EXPECT_EQ(Slurp(Path("b/tokenizer_config.json")), "{\"a\":1}");
}

TEST_F(ExportTest, TargetsThatExistAreRefused) {
  const auto expect_refused = [&](const std::string& name) {
    const absl::Status status = Export(SmallExport(Path(name)));
    EXPECT_TRUE(absl::IsAlreadyExists(status)) << status;
    EXPECT_THAT(Message(status), HasSubstr(name));
  };
  directory_.Make("empty");
  expect_refused("empty");
  Spill(Path("file"), "");
  expect_refused("file");
  fs::create_symlink("nowhere", Path("link"));
  expect_refused("link");
  EXPECT_THAT(Names(directory_.path()), UnorderedElementsAre("empty", "file", "link"));
}

// What makers that were killed left of the same target goes; what one that lives is at, what is of
// another target, and what bears no such name stays.
TEST_F(ExportTest, WhatTheDeadLeftIsRemoved) {
  for (const char* name : {"out.tmp.77.0", "out.tmp.78.1", "other.tmp.77.0", "out.tmp.old"}) {
    ASSERT_TRUE(fs::create_directory(Path(name)));
    ASSERT_OK(ReplaceFileFast(Path(name) + "/model.safetensors", "half"));
  }
  fs::create_directory_symlink(Path("other.tmp.77.0"), Path("out.tmp.79.0"));
  // Another process's lock: it is the open file's, not this process's.
  const UniqueFd lives(::open(Path("out.tmp.78.1").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  ASSERT_EQ(::flock(lives.get(), LOCK_EX | LOCK_NB), 0);
  ASSERT_OK(Export(SmallExport(Path("out"))));
  EXPECT_THAT(
      Names(directory_.path()),
      UnorderedElementsAre("out", "out.tmp.78.1", "other.tmp.77.0", "out.tmp.old", "out.tmp.79.0"));
  EXPECT_EQ(Slurp(Path("other.tmp.77.0/model.safetensors")), "half");
}

TEST_F(ExportTest, WhatFailsLeavesNothing) {
  const auto expect_failed = [&](const HuggingFaceExport& options, absl::StatusCode code,
                                 const std::string& words) {
    const absl::Status status = Export(options);
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(Message(status), HasSubstr(words));
    EXPECT_TRUE(fs::is_empty(directory_.path()));
  };
  const HuggingFaceExport good = SmallExport(Path("out"));
  HuggingFaceExport options = good;
  options.tokenizer = Path("none.model");
  expect_failed(options, absl::StatusCode::kNotFound, "none.model");
  options.tokenizer = Path("vocab.txt");
  expect_failed(options, absl::StatusCode::kInvalidArgument, "neither a tokenizer.json nor");
  options = good;
  options.model.position = "none";
  expect_failed(options, absl::StatusCode::kInvalidArgument, "position = \"none\"");
  options = good;
  options.model.vocab = 38;
  expect_failed(options, absl::StatusCode::kInvalidArgument, "another model");
  options = good;
  options.shard_bytes_max = 0;
  expect_failed(options, absl::StatusCode::kInvalidArgument, "0 bytes");
  options = good;
  options.directory = Path("no/where");
  expect_failed(options, absl::StatusCode::kNotFound, "mkdir");
  MemorySource source(table_, state_);
  source.Break();
  EXPECT_TRUE(absl::IsDataLoss(ExportHuggingFace(source, table_, good)));
  EXPECT_TRUE(fs::is_empty(directory_.path()));
}

}  // namespace
}  // namespace perdure
