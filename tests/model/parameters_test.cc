#include "model/parameters.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "runtime/base/status.h"

namespace perdure {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

ModelConfig Lucie() {
  ModelConfig model;
  model.layers = 32;
  model.hidden = 4096;
  model.heads = 32;
  model.kv_heads = 8;
  model.ffn = 12288;
  model.vocab = 65024;
  model.init_range = 0.009;
  return model;
}

ModelConfig Tiny() {
  ModelConfig model;
  model.layers = 2;
  model.hidden = 64;
  model.heads = 8;
  model.ffn = 96;
  model.vocab = 10;
  return model;
}

int64_t Sum(const std::vector<TensorSpec>& tensors) {
  int64_t sum = 0;
  for (const TensorSpec& tensor : tensors) sum += tensor.size();
  return sum;
}

TEST(ModelTensors, LucieHasThePublishedNumberOfParameters) {
  EXPECT_EQ(CountParameters(Lucie()), 6'706'958'336);
  EXPECT_EQ(Sum(ModelTensors(Lucie(), 4)), 6'706'958'336);
  EXPECT_EQ(ModelTensors(Lucie(), 4).size(), 1 + 32 * 9 + 2);
}

TEST(ModelTensors, Llama3HasThePublishedNumberOfParameters) {
  ModelConfig model = Lucie();
  model.ffn = 14336;
  model.vocab = 128256;
  EXPECT_EQ(CountParameters(model), 8'030'261'248);
}

TEST(ModelTensors, NamesAreHuggingFaceLlamaInOrder) {
  std::vector<std::string> names;
  for (const TensorSpec& tensor : ModelTensors(Tiny(), 2)) names.push_back(tensor.name);
  const std::vector<std::string> expected = {
      "model.embed_tokens.weight",
      "model.layers.0.input_layernorm.weight",
      "model.layers.0.self_attn.q_proj.weight",
      "model.layers.0.self_attn.k_proj.weight",
      "model.layers.0.self_attn.v_proj.weight",
      "model.layers.0.self_attn.o_proj.weight",
      "model.layers.0.post_attention_layernorm.weight",
      "model.layers.0.mlp.gate_proj.weight",
      "model.layers.0.mlp.up_proj.weight",
      "model.layers.0.mlp.down_proj.weight",
      "model.layers.1.input_layernorm.weight",
      "model.layers.1.self_attn.q_proj.weight",
      "model.layers.1.self_attn.k_proj.weight",
      "model.layers.1.self_attn.v_proj.weight",
      "model.layers.1.self_attn.o_proj.weight",
      "model.layers.1.post_attention_layernorm.weight",
      "model.layers.1.mlp.gate_proj.weight",
      "model.layers.1.mlp.up_proj.weight",
      "model.layers.1.mlp.down_proj.weight",
      "model.norm.weight",
      "lm_head.weight",
  };
  EXPECT_EQ(names, expected);
}

TEST(ModelTensors, ShapesAxesLayersAndInitialisation) {
  ModelConfig model = Lucie();
  const AtomTable table(ModelTensors(model, 4), 262144);
  const auto at = [&](const char* name) -> const TensorSpec& {
    const int64_t index = table.FindTensor(name);
    EXPECT_GE(index, 0) << name;
    return table.tensors()[static_cast<size_t>(index)];
  };
  const double out_std = 0.009 / 8;  // sqrt(2 * 32) = 8.
  const auto spec = [](const char* name, int64_t rows, int64_t cols, SliceAxis axis, int64_t layer,
                       double std) {
    const bool norm = axis == SliceAxis::kNone;
    return TensorSpec{name, rows, cols, axis, norm ? 1 : 4, layer, !norm, std};
  };
  for (const TensorSpec& expected : {
           spec("model.embed_tokens.weight", 65024, 4096, SliceAxis::kRows, -1, 0.009),
           spec("model.layers.3.input_layernorm.weight", 1, 4096, SliceAxis::kNone, 3, 0),
           spec("model.layers.3.self_attn.q_proj.weight", 4096, 4096, SliceAxis::kRows, 3, 0.009),
           spec("model.layers.3.self_attn.k_proj.weight", 1024, 4096, SliceAxis::kRows, 3, 0.009),
           spec("model.layers.3.self_attn.v_proj.weight", 1024, 4096, SliceAxis::kRows, 3, 0.009),
           spec("model.layers.3.self_attn.o_proj.weight", 4096, 4096, SliceAxis::kCols, 3, out_std),
           spec("model.layers.3.post_attention_layernorm.weight", 1, 4096, SliceAxis::kNone, 3, 0),
           spec("model.layers.3.mlp.gate_proj.weight", 12288, 4096, SliceAxis::kRows, 3, 0.009),
           spec("model.layers.3.mlp.up_proj.weight", 12288, 4096, SliceAxis::kRows, 3, 0.009),
           spec("model.layers.3.mlp.down_proj.weight", 4096, 12288, SliceAxis::kCols, 3, out_std),
           spec("model.norm.weight", 1, 4096, SliceAxis::kNone, 32, 0),
           spec("lm_head.weight", 65024, 4096, SliceAxis::kRows, 32, 0.009),
       })
    EXPECT_EQ(at(expected.name.c_str()), expected) << expected.name;
  EXPECT_EQ(table.parameters(), 6'706'958'336);
}

TEST(ModelTensors, UnscaledInitialisation) {
  ModelConfig model = Tiny();
  model.scaled_init = false;
  for (const TensorSpec& tensor : ModelTensors(model, 1))
    EXPECT_EQ(tensor.init_std, tensor.decays ? 0.02 : 0.0) << tensor.name;
}

TEST(ModelTensors, TiedEmbeddingsHaveNoHead) {
  ModelConfig model = Tiny();
  const int64_t untied = CountParameters(model);
  model.tied_embeddings = true;
  EXPECT_EQ(ModelTensors(model, 2).back().name, "model.norm.weight");
  EXPECT_EQ(CountParameters(model), untied - 10 * 64);
  EXPECT_EQ(Sum(ModelTensors(model, 2)), CountParameters(model));
}

TEST(ModelTensors, HeadDimNeedNotBeHiddenOverHeads) {
  ModelConfig model = Tiny();
  model.head_dim = 16;
  model.kv_heads = 2;
  const std::vector<TensorSpec> tensors = ModelTensors(model, 2);
  EXPECT_EQ(tensors[2].rows, 8 * 16);  // q_proj
  EXPECT_EQ(tensors[3].rows, 2 * 16);  // k_proj
  EXPECT_EQ(tensors[5].cols, 8 * 16);  // o_proj
  EXPECT_EQ(Sum(tensors), CountParameters(model));
}

TEST(ModelTensors, ShorterLastVocabularySlice) {
  const std::vector<TensorSpec> tensors = ModelTensors(Tiny(), 4);  // 10 rows: 3, 3, 3, 1.
  EXPECT_EQ(tensors.front().SliceRows(3), 1);
  EXPECT_TRUE(ValidateModel(Tiny(), 4).ok());
}

TEST(ResolveModel, FillsZerosOnly) {
  const ModelConfig filled = ResolveModel(Tiny());
  EXPECT_EQ(filled.kv_heads, 8);
  EXPECT_EQ(filled.head_dim, 8);
  EXPECT_EQ(ResolveModel(filled), filled);
  EXPECT_EQ(ResolveModel(Lucie()).kv_heads, 8);
}

TEST(ValidateModel, AcceptsPublishedShapes) {
  for (const int64_t shards : {1, 2, 4, 8})
    EXPECT_TRUE(ValidateModel(Lucie(), shards).ok()) << shards;
  ModelConfig nope = Lucie();
  nope.position = "none";
  EXPECT_TRUE(ValidateModel(nope, 4).ok());
}

struct BadModel {
  const char* what;
  std::function<void(ModelConfig&)> spoil;
  const char* key;     // The message begins with it.
  const char* remedy;  // And contains this.
};

TEST(ValidateModel, RefusesWithKeyValueAndRemedy) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const BadModel cases[] = {
      {"kind", [](auto& m) { m.kind = "gpt2"; }, "model.kind = \"gpt2\"", "\"llama\""},
      {"position", [](auto& m) { m.position = "alibi"; }, "model.position = \"alibi\"", "\"rope\""},
      {"activation", [](auto& m) { m.activation = "relu2"; }, "model.activation = \"relu2\"",
       "not implemented; use \"swiglu\""},
      {"tied", [](auto& m) { m.tied_embeddings = true; }, "model.tied_embeddings = true",
       "not implemented; use false"},
      {"eps", [](auto& m) { m.norm_eps = 0; }, "model.norm_eps = 0", "1e-05"},
      {"eps nan", [nan](auto& m) { m.norm_eps = nan; }, "model.norm_eps = nan", "1e-05"},
      {"init", [](auto& m) { m.init_range = -1; }, "model.init_range = -1", "0.02"},
      {"layers", [](auto& m) { m.layers = 0; }, "model.layers = 0", "for example 32"},
      {"layers", [](auto& m) { m.layers = 1 << 20; }, "model.layers = 1048576", "16384"},
      {"hidden", [](auto& m) { m.hidden = -4; }, "model.hidden = -4", "for example 4096"},
      {"heads", [](auto& m) { m.heads = 0; }, "model.heads = 0", "for example 32"},
      {"ffn", [](auto& m) { m.ffn = 0; }, "model.ffn = 0", "for example 14336"},
      {"vocab", [](auto& m) { m.vocab = int64_t{1} << 31; }, "model.vocab = 2147483648", "65024"},
      {"kv negative", [](auto& m) { m.kv_heads = -1; }, "model.kv_heads = -1", "0 means"},
      {"head_dim negative", [](auto& m) { m.head_dim = -8; }, "model.head_dim = -8", "0 means"},
      {"kv divides", [](auto& m) { m.kv_heads = 12; }, "model.kv_heads = 12", "8 would do"},
      {"kv more", [](auto& m) { m.kv_heads = 64; }, "model.kv_heads = 64", "32 would do"},
      {"hidden/heads", [](auto& m) { m.hidden = 4100; }, "model.hidden = 4100", "4096 would do"},
      {"head_dim 8", [](auto& m) { m.head_dim = 100; }, "model.head_dim = 100", "104 would do"},
      {"head_dim derived",
       [](auto& m) {
         m.hidden = 32 * 12;
         m.head_dim = 0;
       },
       "model.head_dim = 12 (hidden / heads)", "16 would do"},
      {"head_dim large", [](auto& m) { m.head_dim = 1 << 19; }, "model.head_dim = 524288",
       "32768 would do"},
      {"heads shards",
       [](auto& m) {
         m.heads = 30;
         m.kv_heads = 30;
         m.head_dim = 128;
       },
       "model.heads = 30", "32 would do, or tensor_shards = 2"},
      {"kv shards", [](auto& m) { m.kv_heads = 2; }, "model.kv_heads = 2",
       "4 would do, or tensor_shards = 2"},
      {"ffn shards", [](auto& m) { m.ffn = 12286; }, "model.ffn = 12286", "12288 would do"},
      {"vocab shards", [](auto& m) { m.vocab = 5; }, "model.vocab = 5", "8 would do"},
  };
  for (const BadModel& bad : cases) {
    ModelConfig model = Lucie();
    bad.spoil(model);
    const absl::Status status = ValidateModel(model, 4);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad.what;
    EXPECT_THAT(Message(status), StartsWith(bad.key));
    EXPECT_THAT(Message(status), HasSubstr(bad.remedy));
  }
}

}  // namespace
}  // namespace perdure
