// config.json: what is read, what is refused and how.
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "ckpt/convert/huggingface.h"
#include "model/parameters.h"
#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

using testing::HasSubstr;
using Json = nlohmann::json;

class ConfigTest : public testing::Test {
 protected:
  absl::StatusOr<HuggingFaceConfig> Read(const Json& json) { return ReadText(json.dump()); }
  absl::StatusOr<HuggingFaceConfig> ReadText(const std::string& text) {
    Spill(directory_.path() + "/config.json", text);
    return ReadHuggingFaceConfig(directory_.path());
  }

  // `config_` with one key changed.
  Json With(const char* key, const Json& value) const {
    Json json = config_;
    json[key] = value;
    return json;
  }
  void ExpectRefused(const Json& json, const std::string& words) {
    const absl::Status status = Read(json).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status << " for " << words;
    EXPECT_THAT(Message(status), HasSubstr("config.json"));
    EXPECT_THAT(Message(status), HasSubstr(words));
  }
  void ExpectRefused(const char* key, const Json& value, const std::string& words) {
    ExpectRefused(With(key, value), fmt::format("{} = {}: ", key, value.dump()));
    ExpectRefused(With(key, value), words);
  }

  TestDirectory directory_;
  // As transformers 4 wrote it.
  Json config_ = {{"architectures", Json::array({"LlamaForCausalLM"})},
                  {"attention_bias", false},
                  {"attention_dropout", 0.0},
                  {"bos_token_id", 0},
                  {"hidden_act", "silu"},
                  {"hidden_size", 4096},
                  {"initializer_range", 0.02},
                  {"intermediate_size", 12288},
                  {"max_position_embeddings", 32000},
                  {"model_type", "llama"},
                  {"num_attention_heads", 32},
                  {"num_hidden_layers", 32},
                  {"num_key_value_heads", 8},
                  {"pretraining_tp", 1},
                  {"rms_norm_eps", 1e-5},
                  {"rope_scaling", nullptr},
                  {"rope_theta", 20000000.0},
                  {"tie_word_embeddings", false},
                  {"torch_dtype", "bfloat16"},
                  {"vocab_size", 65024}};
};

TEST_F(ConfigTest, ReadsAPublishedOne) {
  const auto config = Read(config_);
  ASSERT_OK(config.status());
  const ModelConfig expected{.layers = 32,
                             .hidden = 4096,
                             .heads = 32,
                             .kv_heads = 8,
                             .head_dim = 128,
                             .ffn = 12288,
                             .vocab = 65024,
                             .norm_eps = 1e-5,
                             .init_range = 0.02};
  EXPECT_EQ(config->model, expected);
  EXPECT_EQ(config->rope_theta, 2e7);
  EXPECT_EQ(config->max_position_embeddings, 32000);
}

TEST_F(ConfigTest, DefaultsAreThoseOfTransformers) {
  const Json least = {{"model_type", "llama"},         {"hidden_size", 64},
                      {"intermediate_size", 96},       {"num_hidden_layers", 2},
                      {"num_attention_heads", 4},      {"vocab_size", 101},
                      {"num_key_value_heads", nullptr}};
  const auto config = Read(least);
  ASSERT_OK(config.status());
  EXPECT_EQ(config->model.kv_heads, 4);
  EXPECT_EQ(config->model.head_dim, 16);
  EXPECT_EQ(config->model.norm_eps, 1e-6);
  EXPECT_EQ(config->rope_theta, 10000);
  EXPECT_EQ(config->max_position_embeddings, 2048);
}

TEST_F(ConfigTest, RotaryKeysOfBothVersions) {
  Json json = config_;
  json.erase("rope_theta");
  json.erase("rope_scaling");
  json["rope_parameters"] = {{"rope_theta", 500000.0}, {"rope_type", "default"}};
  auto config = Read(json);
  ASSERT_OK(config.status());
  EXPECT_EQ(config->rope_theta, 500000);
  json["rope_theta"] = 500000;
  ASSERT_OK(Read(json).status());
  json["rope_theta"] = 10000;
  ExpectRefused(json, "is not the one beside it");
  ASSERT_OK(Read(With("rope_scaling", {{"type", "default"}})).status());
}

TEST_F(ConfigTest, WhatPerdureCannotExpressIsRefusedByKeyAndValue) {
  ExpectRefused("model_type", "mistral", "type \"llama\" only");
  ExpectRefused("model_type", nullptr, "type \"llama\" only");
  ExpectRefused("architectures", Json::array({"LlamaForSequenceClassification"}), "only");
  ExpectRefused("architectures", Json::array({"LlamaForCausalLM", "Other"}), "only");
  ExpectRefused("hidden_act", "gelu", "SwiGLU");
  ExpectRefused("attention_bias", true, "no biases");
  ExpectRefused("mlp_bias", true, "no biases");
  ExpectRefused("attention_dropout", 0.1, "no dropout");
  ExpectRefused("tie_word_embeddings", true, "does not train tied embeddings yet");
  ExpectRefused("quantization_config", {{"bits", 4}}, "quantized");
  ExpectRefused("auto_map", {{"AutoModel", "a.B"}}, "code of their own");
  ExpectRefused("partial_rotary_factor", 0.5, "whole heads");
  ExpectRefused("rope_scaling", {{"factor", 2.0}, {"type", "linear"}}, "plain rotary");
  ExpectRefused("rope_scaling", {{"factor", 8.0}, {"rope_type", "llama3"}}, "plain rotary");
  ExpectRefused("rope_scaling", 3, "plain rotary");
  ExpectRefused("rope_parameters", {{"full", {{"rope_theta", 1e4}}}}, "plain rotary");
  ExpectRefused("rope_parameters", {{"rope_theta", "x"}}, "plain rotary");
  ExpectRefused("rope_theta", 0, "above 0");
  ExpectRefused("rms_norm_eps", "small", "above 0");
  ExpectRefused("hidden_size", 0, "from 1 to");
  ExpectRefused("hidden_size", -4096, "from 1 to");
  ExpectRefused("hidden_size", 4096.0, "from 1 to");
  ExpectRefused("vocab_size", "65024", "from 1 to");
}

TEST_F(ConfigTest, ShapesAreValidated) {
  Json json = config_;
  json.erase("hidden_size");
  ExpectRefused(json, "has no hidden_size");
  ExpectRefused(With("num_key_value_heads", 5), "model.kv_heads = 5 must divide model.heads = 32");
  ExpectRefused(With("vocab_size", 1LL << 35), "model.vocab = 34359738368 must be between");
}

TEST_F(ConfigTest, WhatIsNoConfigIsRefused) {
  EXPECT_TRUE(absl::IsNotFound(ReadHuggingFaceConfig(directory_.path() + "/none").status()));
  EXPECT_TRUE(absl::IsDataLoss(ReadText("{").status()));
  EXPECT_TRUE(absl::IsDataLoss(ReadText("[]").status()));
  EXPECT_TRUE(absl::IsDataLoss(ReadText(std::string(2 << 20, ' ')).status()));
}

TEST_F(ConfigTest, SameModelIsComparedKeyByKey) {
  const auto config = Read(config_);
  ASSERT_OK(config.status());
  ModelConfig model = config->model;
  model.init_range = 0.01;
  model.scaled_init = false;
  model.head_dim = 0;
  EXPECT_OK(CheckSameModel(*config, model));
  const auto expect_refused = [&](const ModelConfig& other, const std::string& words) {
    const absl::Status status = CheckSameModel(*config, other);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << words;
    EXPECT_THAT(Message(status), HasSubstr(words));
  };
  ModelConfig other = model;
  other.heads = 64;
  expect_refused(other, "model.heads = 64, but config.json says 32");
  other = model;
  other.kv_heads = 0;
  expect_refused(other, "model.kv_heads = 32, but config.json says 8");
  other = model;
  other.norm_eps = 1e-6;
  expect_refused(other, "model.norm_eps = 1e-06, but config.json says 1e-05");
  other = model;
  other.position = "none";
  expect_refused(other, "model.position = \"none\"");
}

}  // namespace
}  // namespace perdure
