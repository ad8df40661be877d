// Exchange with Hugging Face: a model's directory (config.json and safetensors) of the Llama shape
// to Perdure's state and back (docs/formats.md, section 7).
//
// Names and layouts of tensors are the same on both sides, so a value is only ever moved and
// rounded: what was imported and is exported in the same dtype has the same bits. Whatever Perdure
// would compute otherwise than the directory's own config.json says is refused by key and value.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/checkpoint.h"
#include "ckpt/convert/safetensors.h"
#include "ckpt/state_source.h"
#include "model/config.h"
#include "runtime/base/atoms.h"

namespace perdure {

struct HuggingFaceConfig {
  ModelConfig model;  // As ResolveModel gives it; init_range from initializer_range.
  double rope_theta = 10000;
  int64_t max_position_embeddings = 2048;
};

// Reads DIR/config.json. InvalidArgument: another architecture, or a key whose value Perdure cannot
// express. DataLoss: not JSON.
absl::StatusOr<HuggingFaceConfig> ReadHuggingFaceConfig(const std::string& directory);

// Whether `model` computes what `theirs` does; rope_theta is a phase's and the caller's to compare.
// InvalidArgument names the first key that differs and both values. Initialisation is not compared.
absl::Status CheckSameModel(const HuggingFaceConfig& theirs, const ModelConfig& model);

// Weights of a model's directory, as a state that has not been trained: moments are zero.
class HuggingFaceSource final : public StateSource {
 public:
  // Compares names and shapes of all tensors with the table's, which outlives the source.
  // InvalidArgument: one is missing, unknown, or of another shape or kind of number.
  static absl::StatusOr<std::unique_ptr<HuggingFaceSource>> Open(const std::string& directory,
                                                                 const AtomTable& table);

  absl::Status Read(std::span<const AtomState> wanted) override;

 private:
  HuggingFaceSource(SafetensorsModel model, const AtomTable& table);

  absl::Status ReadParameters(const Atom& atom, std::span<float> out) const;

  SafetensorsModel model_;
  const AtomTable& table_;
  std::vector<SafetensorsModel::Place> places_;  // By tensor of the table.
};

struct HuggingFaceExport {
  std::string directory;  // Must not exist; its parent must.
  ModelConfig model;
  int64_t context = 0;  // Becomes max_position_embeddings.
  double rope_theta = 0;
  SafetensorsDType dtype = SafetensorsDType::kBF16;  // kBF16 or kF32.
  uint64_t shard_bytes_max = 5'000'000'000;
  // tokenizer.json or a SentencePiece *.model, copied under the name that Hugging Face's tools look
  // for, with tokenizer_config.json where that lies beside it. Empty: none.
  std::string tokenizer;
  std::optional<int64_t> bos_token_id, eos_token_id, pad_token_id;  // Absent: null.
};

// Writes the directory: config.json, generation_config.json, safetensors, tokenizer. It appears
// under its name when all of it is on the disk, or not at all. AlreadyExists: the target does.
// InvalidArgument: an option, or a model that transformers' Llama cannot express. Memory: the
// largest tensor that is sliced along its columns, in fp32. Equal state and options give equal
// bytes.
absl::Status ExportHuggingFace(StateSource& source, const AtomTable& table,
                               const HuggingFaceExport& options,
                               const Progress& progress = nullptr);

}  // namespace perdure
