// Megatron-DeepSpeed's parameters of a Llama, and where their elements go in Perdure's tensors.
//
// Megatron keeps key and value in one matrix, head by head ([kv_heads, 2, head_dim] rows), gate and
// up in another ([gate; up], within each tensor rank's slice), pads the vocabulary and cuts all of
// it over tensor ranks. Pure functions of the model; no file is read here.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/convert/assembled_state.h"
#include "ckpt/convert/float_source.h"
#include "model/config.h"
#include "runtime/base/atoms.h"

namespace perdure {

enum class MegatronKind : uint8_t {
  kReplicated,  // Equal on every tensor rank.
  kRows,        // Cut along rows.
  kCols,        // Cut along columns.
  kVocabulary,  // Cut along rows, which are padded.
  kKeyValue,
  kGateUp,
};

struct MegatronParameter {
  std::string name;  // "2.self_attention.key_value.weight".
  MegatronKind kind = MegatronKind::kReplicated;
  std::vector<int64_t> tensors;  // Of the table; two for kKeyValue and kGateUp.
  int64_t rows = 0, cols = 0;    // Of the whole parameter, without padding; rows 1 for vectors.
  int64_t head_dim = 0;          // kKeyValue: rows of one head's key.
};

// All of them in order of layers. InvalidArgument: the table is not that model's.
absl::StatusOr<std::vector<MegatronParameter>> MegatronParameters(const ModelConfig& model,
                                                                  const AtomTable& table);

// A piece of a parameter that tensor rank `rank` of `ranks` holds, as it goes into a tensor.
struct MegatronPiece {
  int64_t tensor = 0;             // Of the table.
  int64_t row = 0, col = 0;       // In that tensor.
  int64_t rows = 0, cols = 0;     // Extent.
  int64_t first = 0, stride = 0;  // In the rank's parameter, row-major.
};
// REQUIRES: not kVocabulary, and CheckMegatronRanks.
std::vector<MegatronPiece> MegatronPieces(const MegatronParameter& parameter, int64_t rank,
                                          int64_t ranks);

// InvalidArgument: the parameter cannot be cut over so many tensor ranks.
absl::Status CheckMegatronRanks(const MegatronParameter& parameter, int64_t ranks);

// Sets the tensors that a parameter holds; `by_rank` has its elements on each tensor rank, `where`
// names the parameter and its part in messages. DataLoss: a wrong number of elements.
absl::Status PlaceMegatron(const MegatronParameter& parameter, const AtomTable& table, int part,
                           std::span<const std::shared_ptr<FloatSource>> by_rank,
                           const std::string& where, AssembledState& state);

}  // namespace perdure
