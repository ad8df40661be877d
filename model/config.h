// What is trained: the shape of a decoder-only transformer of the Llama family.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace perdure {

struct ModelConfig {
  std::string kind = "llama";  // The only kind so far.
  int64_t layers = 0;          // Transformer blocks.
  int64_t hidden = 0;          // Width of the residual stream.
  int64_t heads = 0;           // Query heads.
  int64_t kv_heads = 0;        // Key/value heads; 0 = heads.
  int64_t head_dim = 0;        // 0 = hidden / heads.
  int64_t ffn = 0;             // Inner width of the feed-forward block.
  int64_t vocab = 0;           // Rows of the embedding and of the output head.
  double norm_eps = 1e-5;      // Of every RMSNorm.
  double init_range = 0.02;    // Standard deviation of initial weights.
  bool scaled_init =
      true;  // Output projections (o_proj, down_proj) start at init_range / sqrt(2 layers).
  bool tied_embeddings = false;       // The head reads the embedding's weights.
  std::string position = "rope";      // "rope", or "none" (NoPE).
  std::string activation = "swiglu";  // "swiglu" (three matrices), or "relu2"-style kinds later.

  friend bool operator==(const ModelConfig&, const ModelConfig&) = default;
};

// InvalidArgument names the key, its value and a value that would do.
absl::Status ValidateModel(const ModelConfig& config, int64_t tensor_shards);

}  // namespace perdure
