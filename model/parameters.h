// The parameters of a model: logical tensors under their Hugging Face names, in the order that
// atoms are counted in.
//
// A pure function of the model and tensor_shards; no layout, no memory. Checkpoints,
// initialisation, the arena and the plan all read the model's shape here.
#pragma once

#include <cstdint>
#include <vector>

#include "model/config.h"
#include "runtime/base/atoms.h"

namespace perdure {

// `config` with its zeros replaced: kv_heads = heads, head_dim = hidden / heads.
// REQUIRES: sizes that ValidateModel accepts.
ModelConfig ResolveModel(ModelConfig config);

// model.embed_tokens; then per block input_layernorm, self_attn.{q,k,v,o}_proj,
// post_attention_layernorm, mlp.{gate,up,down}_proj; then model.norm and lm_head (not when tied).
// REQUIRES: sizes that ValidateModel accepts with tensor_shards.
std::vector<TensorSpec> ModelTensors(const ModelConfig& config, int64_t tensor_shards);

// Elements of ModelTensors(config, ·), counted without listing them.
int64_t CountParameters(const ModelConfig& config);

}  // namespace perdure
