// config.json to ModelConfig.
#include <sys/stat.h>

#include <cmath>
#include <filesystem>
#include <string_view>

#include "ckpt/convert/huggingface.h"
#include "ckpt/json_object.h"
#include "model/parameters.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr int64_t kConfigBytesMax = 1 << 20;
constexpr int64_t kMost = int64_t{1} << 40;  // Of any size; ValidateModel has closer bounds.

// Keys of config.json with transformers' defaults; the first error stays. null means "left out", as
// it does there.
class ConfigReader {
 public:
  ConfigReader(const Json& config, std::string path) : config_(config), path_(std::move(path)) {}

  const absl::Status& status() const { return status_; }

  void Int(const char* key, std::optional<int64_t> otherwise, int64_t* out) {
    const Json* value = Find(key);
    if (value == nullptr) return Default(key, otherwise, out);
    if (!value->is_number_unsigned() || value->get<uint64_t>() < 1 ||
        value->get<uint64_t>() > static_cast<uint64_t>(kMost))
      return Refuse(key, *value, fmt::format("an integer from 1 to {} is expected", kMost));
    *out = value->get<int64_t>();
  }

  void Number(const char* key, double otherwise, double* out) {
    const Json* value = Find(key);
    if (value == nullptr) return Default(key, std::optional(otherwise), out);
    if (!value->is_number() || !std::isfinite(value->get<double>()) || value->get<double>() <= 0)
      return Refuse(key, *value, "a number above 0 is expected");
    *out = value->get<double>();
  }

  // Absent, null, or one of `allowed`; `why` says what the others would mean.
  void Only(const char* key, const std::vector<Json>& allowed, std::string_view why) {
    const Json* value = Find(key);
    if (value == nullptr) return;
    for (const Json& one : allowed)
      if (*value == one) return;
    Refuse(key, *value, why);
  }

  void Refuse(std::string_view key, const Json& value, std::string_view why) {
    if (!status_.ok()) return;
    status_ = InvalidArgument(
        "{}: {} = {}: {}", path_, key,
        value.dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 200), why);
  }

  // Null: not there, or null.
  const Json* Find(const char* key) const {
    const auto found = config_.find(key);
    return found == config_.end() || found->is_null() ? nullptr : &*found;
  }

 private:
  template <typename T>
  void Default(const char* key, const std::optional<T>& otherwise, T* out) {
    if (otherwise) *out = *otherwise;
    if (!otherwise && status_.ok())
      status_ =
          InvalidArgument("{} has no {}: is it the config.json of a whole model?", path_, key);
  }

  const Json& config_;
  std::string path_;
  absl::Status status_;
};

// transformers 4 writes rope_theta and rope_scaling, transformers 5 rope_parameters with both.
void ReadRope(ConfigReader& reader, double* theta) {
  reader.Number("rope_theta", 10000, theta);
  constexpr std::string_view kPlain =
      "Perdure has plain rotary embeddings only, no scaled, partial or alternating ones";
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const Json* rope = reader.Find(key);
    if (rope == nullptr) continue;
    if (!rope->is_object()) return reader.Refuse(key, *rope, kPlain);
    for (const auto& item : rope->items()) {
      const bool type = item.key() == "rope_type" || item.key() == "type";
      if (type && item.value() == "default") continue;
      if (item.key() == "partial_rotary_factor" && item.value() == 1.0) continue;
      if (item.key() != "rope_theta" || !item.value().is_number())
        return reader.Refuse(key, *rope, kPlain);
      const double inner = item.value().get<double>();
      if (!std::isfinite(inner) || inner <= 0 ||
          (reader.Find("rope_theta") != nullptr && inner != *theta))
        return reader.Refuse(key, *rope, "its rope_theta is not the one beside it, or no base");
      *theta = inner;
    }
  }
}

void CheckExpressible(ConfigReader& reader) {
  reader.Only("architectures", {Json::array({"LlamaForCausalLM"})},
              "Perdure exchanges LlamaForCausalLM only; no other architecture is known");
  reader.Only("hidden_act", {"silu"}, "Perdure's feed-forward blocks are SwiGLU: \"silu\" only");
  reader.Only("attention_bias", {false}, "Perdure's projections have no biases");
  reader.Only("mlp_bias", {false}, "Perdure's projections have no biases");
  reader.Only("attention_dropout", {0}, "Perdure has no dropout; set it to 0.0 to train without");
  reader.Only("tie_word_embeddings", {false},
              "Perdure does not train tied embeddings yet: the head must be a tensor of its own, "
              "lm_head.weight; untie the model (copy model.embed_tokens.weight, set false)");
  reader.Only("partial_rotary_factor", {1}, "Perdure rotates whole heads");
  for (const char* key : {"quantization_config", "auto_map"})
    reader.Only(key, {}, "quantized models and models with code of their own are not read");
}

absl::StatusOr<Json> ReadConfigJson(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, "stat " + path);
  if (!S_ISREG(info.st_mode)) return InvalidArgument("{} is not a file", path);
  if (info.st_size > kConfigBytesMax)
    return DataLoss("{} has {} bytes, too many for a model's configuration (at most {})", path,
                    info.st_size, kConfigBytesMax);
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return ParseJsonObject(text, path);
}

}  // namespace

absl::StatusOr<HuggingFaceConfig> ReadHuggingFaceConfig(const std::string& directory) {
  const std::string path = (std::filesystem::path(directory) / "config.json").string();
  ASSIGN_OR_RETURN(const Json json, ReadConfigJson(path));
  ConfigReader reader(json, path);
  const Json* type = reader.Find("model_type");
  if (type == nullptr || *type != "llama")
    return InvalidArgument("{}: model_type = {}: Perdure exchanges models of type \"llama\" only",
                           path, type == nullptr ? "null" : type->dump(-1, ' ', true));
  CheckExpressible(reader);
  HuggingFaceConfig config;
  ModelConfig& model = config.model;
  reader.Int("hidden_size", std::nullopt, &model.hidden);
  reader.Int("intermediate_size", std::nullopt, &model.ffn);
  reader.Int("num_hidden_layers", std::nullopt, &model.layers);
  reader.Int("num_attention_heads", std::nullopt, &model.heads);
  reader.Int("num_key_value_heads", model.heads, &model.kv_heads);
  reader.Int("head_dim", 0, &model.head_dim);
  reader.Int("vocab_size", std::nullopt, &model.vocab);
  reader.Int("max_position_embeddings", 2048, &config.max_position_embeddings);
  reader.Number("rms_norm_eps", 1e-6, &model.norm_eps);
  reader.Number("initializer_range", 0.02, &model.init_range);
  ReadRope(reader, &config.rope_theta);
  RETURN_IF_ERROR(reader.status());
  if (const absl::Status valid = ValidateModel(model, 1); !valid.ok())
    return InvalidArgument("{}: {}", path, Message(valid));
  config.model = ResolveModel(model);
  return config;
}

absl::Status CheckSameModel(const HuggingFaceConfig& theirs, const ModelConfig& model) {
  const ModelConfig ours = ResolveModel(model), other = ResolveModel(theirs.model);
  struct Key {
    const char* name;
    int64_t ours, theirs;
  };
  for (const Key& key : {Key{"layers", ours.layers, other.layers},
                         {"hidden", ours.hidden, other.hidden},
                         {"heads", ours.heads, other.heads},
                         {"kv_heads", ours.kv_heads, other.kv_heads},
                         {"head_dim", ours.head_dim, other.head_dim},
                         {"ffn", ours.ffn, other.ffn},
                         {"vocab", ours.vocab, other.vocab}})
    if (key.ours != key.theirs)
      return InvalidArgument("model.{} = {}, but config.json says {}: change it to that", key.name,
                             key.ours, key.theirs);
  if (ours.norm_eps != other.norm_eps)
    return InvalidArgument("model.norm_eps = {}, but config.json says {}: change it to that",
                           ours.norm_eps, other.norm_eps);
  if (ours.position != other.position)
    return InvalidArgument(
        "model.position = \"{}\", but the model of config.json has \"{}\": change it to that",
        ours.position, other.position);
  return absl::OkStatus();
}

}  // namespace perdure
