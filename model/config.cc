#include "model/config.h"

#include <algorithm>
#include <limits>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// Bounds that keep every product of a model's sizes within 62 bits.
constexpr int64_t kMostLayers = int64_t{1} << 14;
constexpr int64_t kMostWidth = int64_t{1} << 20;
constexpr int64_t kMostVocab = std::numeric_limits<int32_t>::max();  // Token ids are int32.

// The multiple of `unit` nearest to `value`, at least `unit`.
int64_t NearestMultiple(int64_t value, int64_t unit) {
  return std::max(unit, (value + unit / 2) / unit * unit);
}

absl::Status CheckSize(const char* key, int64_t value, int64_t most, int64_t usual) {
  if (value >= 1 && value <= most) return absl::OkStatus();
  return InvalidArgument("model.{} = {} must be between 1 and {}, for example {}", key, value, most,
                         usual);
}

absl::Status CheckSizes(const ModelConfig& config) {
  RETURN_IF_ERROR(CheckSize("layers", config.layers, kMostLayers, 32));
  RETURN_IF_ERROR(CheckSize("hidden", config.hidden, kMostWidth, 4096));
  RETURN_IF_ERROR(CheckSize("heads", config.heads, kMostWidth, 32));
  RETURN_IF_ERROR(CheckSize("ffn", config.ffn, kMostWidth, 14336));
  RETURN_IF_ERROR(CheckSize("vocab", config.vocab, kMostVocab, 65024));
  if (config.kv_heads < 0)
    return InvalidArgument("model.kv_heads = {} is negative; 0 means as many as heads ({})",
                           config.kv_heads, config.heads);
  if (config.head_dim < 0)
    return InvalidArgument("model.head_dim = {} is negative; 0 means hidden / heads",
                           config.head_dim);
  return absl::OkStatus();
}

absl::Status CheckHeads(const ModelConfig& config) {
  const int64_t kv_heads = config.kv_heads == 0 ? config.heads : config.kv_heads;
  if (kv_heads > config.heads || config.heads % kv_heads != 0) {
    int64_t divisor = std::min(kv_heads, config.heads);
    while (config.heads % divisor != 0) --divisor;
    return InvalidArgument("model.kv_heads = {} must divide model.heads = {}; {} would do",
                           config.kv_heads, config.heads, divisor);
  }
  if (config.head_dim == 0 && config.hidden % config.heads != 0)
    return InvalidArgument(
        "model.hidden = {} is not a multiple of model.heads = {}; {} would do, or set "
        "model.head_dim",
        config.hidden, config.heads, NearestMultiple(config.hidden, config.heads));
  const int64_t head_dim = config.head_dim == 0 ? config.hidden / config.heads : config.head_dim;
  if (head_dim % 8 != 0 || head_dim == 0)
    return InvalidArgument("model.head_dim = {}{} must be a multiple of 8; {} would do", head_dim,
                           config.head_dim == 0 ? " (hidden / heads)" : "",
                           NearestMultiple(head_dim, 8));
  if (head_dim > kMostWidth / config.heads)
    return InvalidArgument("model.head_dim = {} times model.heads = {} exceeds {}; {} would do",
                           head_dim, config.heads, kMostWidth,
                           std::max(int64_t{8}, kMostWidth / config.heads / 8 * 8));
  return absl::OkStatus();
}

absl::Status CheckKinds(const ModelConfig& config) {
  if (config.kind != "llama")
    return InvalidArgument("model.kind = \"{}\" is not known; the only kind is \"llama\"",
                           config.kind);
  if (config.position != "rope" && config.position != "none")
    return InvalidArgument("model.position = \"{}\" is not implemented; use \"rope\" or \"none\"",
                           config.position);
  if (config.activation != "swiglu")
    return InvalidArgument("model.activation = \"{}\" is not implemented; use \"swiglu\"",
                           config.activation);
  if (config.tied_embeddings)
    return InvalidArgument(
        "model.tied_embeddings = true is not implemented; use false: an own head of {} parameters",
        config.vocab * config.hidden);
  if (!(config.norm_eps > 0) || !(config.norm_eps < 1))
    return InvalidArgument("model.norm_eps = {} must be above 0 and below 1, for example 1e-05",
                           config.norm_eps);
  if (!(config.init_range > 0) || !(config.init_range < 100))
    return InvalidArgument("model.init_range = {} must be above 0 and below 100, for example 0.02",
                           config.init_range);
  return absl::OkStatus();
}

absl::Status CheckShards(const ModelConfig& config, int64_t tensor_shards) {
  struct Sliced {
    const char* key;
    int64_t value;
  };
  const int64_t kv_heads = config.kv_heads == 0 ? config.heads : config.kv_heads;
  for (const auto& [key, value] :
       {Sliced{"heads", config.heads}, Sliced{"kv_heads", kv_heads}, Sliced{"ffn", config.ffn}}) {
    if (value % tensor_shards == 0) continue;
    int64_t shards = tensor_shards;
    while (value % shards != 0) shards /= 2;
    return InvalidArgument(
        "model.{} = {} is not a multiple of numerics.tensor_shards = {}; {} would do, or "
        "tensor_shards = {}",
        key, value, tensor_shards, NearestMultiple(value, tensor_shards), shards);
  }
  // Slices are ceil(vocab / shards) rows each: the last one may be shorter, but not empty.
  const int64_t rows = (config.vocab + tensor_shards - 1) / tensor_shards;
  if (rows * (tensor_shards - 1) >= config.vocab)
    return InvalidArgument(
        "model.vocab = {} leaves the last of numerics.tensor_shards = {} slices empty; {} would do",
        config.vocab, tensor_shards, rows * tensor_shards);
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateModel(const ModelConfig& config, int64_t tensor_shards) {
  PERDURE_CHECK(tensor_shards > 0 && (tensor_shards & (tensor_shards - 1)) == 0);
  RETURN_IF_ERROR(CheckSizes(config));
  RETURN_IF_ERROR(CheckKinds(config));
  RETURN_IF_ERROR(CheckHeads(config));
  return CheckShards(config, tensor_shards);
}

}  // namespace perdure
