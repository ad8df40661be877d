// What Megatron-DeepSpeed's mp_rank_*_model_states.pt say: progress, degrees, and the arguments
// that must agree with the model.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "ckpt/convert/assembled_state.h"
#include "ckpt/convert/torch_file.h"
#include "model/config.h"

namespace perdure {

struct MegatronRun {
  ForeignProgress progress;   // All but optimizer_step and rate.
  int64_t tensor_ranks = -1;  // -1 where the file does not say, as below.
  int64_t padded_vocab = -1;
};

// DataLoss or InvalidArgument names the file, the key and both values: the arguments describe
// another model, or one that Perdure does not have (biases, tied embeddings, LayerNorm, ...), or
// the checkpoint's version has another order of key and value.
absl::StatusOr<MegatronRun> ReadMegatronRun(const TorchFile& file, const ModelConfig& model);

}  // namespace perdure
