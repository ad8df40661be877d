#include "ckpt/convert/megatron_run.h"

#include <memory>
#include <optional>
#include <string>

#include "model/parameters.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// Key and value stand head by head, [2, head_dim], from this version on.
constexpr double kOldestVersion = 2.0;

// The value of a key that may be missing or None: then null.
absl::StatusOr<std::unique_ptr<PickleView>> FindSet(const PickleView& dict, std::string_view key) {
  ASSIGN_OR_RETURN(const std::optional<PickleView> found, dict.Find(key));
  if (!found.has_value() || found->IsNone()) return std::unique_ptr<PickleView>();
  return std::make_unique<PickleView>(*found);
}

absl::Status ReadInt(const PickleView& dict, std::string_view key, int64_t* out) {
  ASSIGN_OR_RETURN(const std::unique_ptr<PickleView> found, FindSet(dict, key));
  if (found == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(*out, found->Int());
  if (*out < 0) return found->Unexpected("a count was expected");
  return absl::OkStatus();
}

absl::Status CheckNumber(const PickleView& dict, std::string_view key, double expected,
                         std::string_view ours) {
  ASSIGN_OR_RETURN(const std::unique_ptr<PickleView> found, FindSet(dict, key));
  if (found == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const double value, found->Number());
  if (value == expected) return absl::OkStatus();
  return InvalidArgument("{} = {}, and {} = {}: change the configuration, or this is another model",
                         found->where(), value, ours, expected);
}

absl::Status CheckBool(const PickleView& dict, std::string_view key, bool expected) {
  ASSIGN_OR_RETURN(const std::unique_ptr<PickleView> found, FindSet(dict, key));
  if (found == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const bool value, found->Bool());
  if (value == expected) return absl::OkStatus();
  return InvalidArgument("{} = {}: Perdure's model has it {} only", found->where(), value,
                         expected);
}

absl::Status CheckArguments(const PickleView& args, const ModelConfig& model) {
  struct Number {
    const char* theirs;
    const char* ours;
    double value;
  };
  const auto number = [](int64_t value) { return static_cast<double>(value); };
  for (const Number& check :
       {Number{"num_layers", "model.layers", number(model.layers)},
        Number{"hidden_size", "model.hidden", number(model.hidden)},
        Number{"num_attention_heads", "model.heads", number(model.heads)},
        Number{"num_key_value_heads", "model.kv_heads", number(model.kv_heads)},
        Number{"kv_channels", "model.head_dim", number(model.head_dim)},
        Number{"ffn_hidden_size", "model.ffn", number(model.ffn)},
        Number{"layernorm_epsilon", "model.norm_eps", model.norm_eps},
        Number{"rotary_percent", "Perdure's part of a head that is rotated", 1.0}})
    RETURN_IF_ERROR(CheckNumber(args, check.theirs, check.value, check.ours));
  RETURN_IF_ERROR(CheckBool(args, "untie_embeddings_and_output_weights", true));
  RETURN_IF_ERROR(CheckBool(args, "add_bias_linear", false));
  RETURN_IF_ERROR(CheckBool(args, "swiglu", true));
  RETURN_IF_ERROR(CheckBool(args, "apply_layernorm_1p", false));
  RETURN_IF_ERROR(CheckBool(args, "use_rotary_position_embeddings", model.position == "rope"));
  ASSIGN_OR_RETURN(const std::unique_ptr<PickleView> norm, FindSet(args, "normalization"));
  if (norm == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string kind, norm->String());
  if (kind == "rmsnorm") return absl::OkStatus();
  return InvalidArgument("{} = \"{}\": Perdure's model has rmsnorm only", norm->where(), kind);
}

absl::Status CheckVersion(const PickleView& root) {
  ASSIGN_OR_RETURN(const PickleView found, root.Get("checkpoint_version"));
  ASSIGN_OR_RETURN(const double version, found.Number());
  if (version >= kOldestVersion && version < 4.0) return absl::OkStatus();
  return InvalidArgument(
      "{} = {}: key and value stand in another order there; 2.0 to 3.x are read: load and save the "
      "checkpoint with a newer Megatron",
      found.where(), version);
}

absl::Status CheckVocabulary(const PickleView& root, const ModelConfig& model) {
  ASSIGN_OR_RETURN(const std::unique_ptr<PickleView> info,
                   FindSet(root, "universal_checkpoint_info"));
  if (info == nullptr) return absl::OkStatus();
  return CheckNumber(*info, "original_vocab_size", static_cast<double>(model.vocab), "model.vocab");
}

}  // namespace

absl::StatusOr<MegatronRun> ReadMegatronRun(const TorchFile& file, const ModelConfig& config) {
  const ModelConfig model = ResolveModel(config);
  const PickleView root = file.root();
  RETURN_IF_ERROR(CheckVersion(root));
  RETURN_IF_ERROR(CheckVocabulary(root, model));
  MegatronRun run;
  ForeignProgress& progress = run.progress;
  RETURN_IF_ERROR(ReadInt(root, "iteration", &progress.iteration));
  RETURN_IF_ERROR(ReadInt(root, "tokens", &progress.tokens));
  RETURN_IF_ERROR(ReadInt(root, "consumed_train_samples", &progress.samples));
  ASSIGN_OR_RETURN(const std::unique_ptr<PickleView> object, FindSet(root, "args"));
  if (object == nullptr) return run;
  ASSIGN_OR_RETURN(const PickleView fields, object->Fields("argparse", "Namespace"));
  const PickleView args(fields.value(), fmt::format("{}.args", root.where()));
  RETURN_IF_ERROR(CheckArguments(args, model));
  RETURN_IF_ERROR(ReadInt(args, "consumed_train_samples", &progress.samples));
  if (progress.tokens < 0)
    RETURN_IF_ERROR(ReadInt(args, "consumed_train_tokens", &progress.tokens));
  RETURN_IF_ERROR(ReadInt(args, "tensor_model_parallel_size", &run.tensor_ranks));
  RETURN_IF_ERROR(ReadInt(args, "padded_vocab_size", &run.padded_vocab));
  return run;
}

}  // namespace perdure
