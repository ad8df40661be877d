#include "model/parameters.h"

#include <fmt/format.h>

#include <cmath>
#include <string>

#include "runtime/base/check.h"

namespace perdure {
namespace {

// Appends the tensors of one place of the model; a place is a block, or what lies before or behind
// the blocks.
class TensorList {
 public:
  explicit TensorList(int64_t tensor_shards) : tensor_shards_(tensor_shards) {}

  void SetPlace(std::string prefix, int64_t layer) {
    prefix_ = std::move(prefix);
    layer_ = layer;
  }

  void AddMatrix(const char* name, int64_t rows, int64_t cols, SliceAxis axis, double init_std) {
    Add({.name = Name(name),
         .rows = rows,
         .cols = cols,
         .axis = axis,
         .slices = tensor_shards_,
         .layer = layer_,
         .decays = true,
         .init_std = init_std});
  }

  void AddNorm(const char* name, int64_t size) {
    Add({.name = Name(name),
         .rows = 1,
         .cols = size,
         .axis = SliceAxis::kNone,
         .slices = 1,
         .layer = layer_,
         .decays = false,
         .init_std = 0});
  }

  std::vector<TensorSpec> Take() { return std::move(tensors_); }

 private:
  std::string Name(const char* name) const { return fmt::format("{}{}.weight", prefix_, name); }
  void Add(TensorSpec tensor) { tensors_.push_back(std::move(tensor)); }

  int64_t tensor_shards_;
  std::string prefix_;
  int64_t layer_ = 0;
  std::vector<TensorSpec> tensors_;
};

void AddBlock(const ModelConfig& model, int64_t layer, TensorList& list) {
  const int64_t q_width = model.heads * model.head_dim;
  const int64_t kv_width = model.kv_heads * model.head_dim;
  const double in_std = model.init_range;
  const double out_std =
      model.scaled_init ? in_std / std::sqrt(2.0 * static_cast<double>(model.layers)) : in_std;
  list.SetPlace(fmt::format("model.layers.{}.", layer), layer);
  list.AddNorm("input_layernorm", model.hidden);
  list.AddMatrix("self_attn.q_proj", q_width, model.hidden, SliceAxis::kRows, in_std);
  list.AddMatrix("self_attn.k_proj", kv_width, model.hidden, SliceAxis::kRows, in_std);
  list.AddMatrix("self_attn.v_proj", kv_width, model.hidden, SliceAxis::kRows, in_std);
  list.AddMatrix("self_attn.o_proj", model.hidden, q_width, SliceAxis::kCols, out_std);
  list.AddNorm("post_attention_layernorm", model.hidden);
  list.AddMatrix("mlp.gate_proj", model.ffn, model.hidden, SliceAxis::kRows, in_std);
  list.AddMatrix("mlp.up_proj", model.ffn, model.hidden, SliceAxis::kRows, in_std);
  list.AddMatrix("mlp.down_proj", model.hidden, model.ffn, SliceAxis::kCols, out_std);
}

}  // namespace

ModelConfig ResolveModel(ModelConfig config) {
  PERDURE_CHECK(config.heads > 0);
  if (config.kv_heads == 0) config.kv_heads = config.heads;
  if (config.head_dim == 0) config.head_dim = config.hidden / config.heads;
  return config;
}

std::vector<TensorSpec> ModelTensors(const ModelConfig& config, int64_t tensor_shards) {
  PERDURE_CHECK(tensor_shards > 0);
  const ModelConfig model = ResolveModel(config);
  TensorList list(tensor_shards);
  list.SetPlace("model.", -1);
  list.AddMatrix("embed_tokens", model.vocab, model.hidden, SliceAxis::kRows, model.init_range);
  for (int64_t layer = 0; layer < model.layers; ++layer) AddBlock(model, layer, list);
  list.SetPlace("model.", model.layers);
  list.AddNorm("norm", model.hidden);
  if (!model.tied_embeddings) {
    list.SetPlace("", model.layers);
    list.AddMatrix("lm_head", model.vocab, model.hidden, SliceAxis::kRows, model.init_range);
  }
  return list.Take();
}

int64_t CountParameters(const ModelConfig& config) {
  const ModelConfig model = ResolveModel(config);
  const int64_t attention = 2 * (model.heads + model.kv_heads) * model.head_dim * model.hidden;
  const int64_t block = attention + 3 * model.ffn * model.hidden + 2 * model.hidden;
  const int64_t tables = (model.tied_embeddings ? 1 : 2) * model.vocab * model.hidden;
  return tables + model.layers * block + model.hidden;
}

}  // namespace perdure
