// Import of a Megatron-DeepSpeed directory with its optimizer state (bf16 or ZeRO 1 and 2, any
// tensor, pipeline and data degrees).
//
// fp32 values and both moments come from the optimizer partitions alone
// ([bf16_]zero_pp_rank_D_mp_rank_MM_optim_states.pt): flat tensors that parameters' slices are
// mapped into, a parameter often over several data ranks. Opening reads the pickles of all files
// and checks that every parameter is there once, whole and cut as the model says; elements are read
// later, by ranges. Nothing is guessed: whatever is missing, additional or contradictory is an
// error that names file, key and value. Thread: one at a time.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/checkpoint.h"
#include "ckpt/convert/assembled_state.h"
#include "ckpt/state_source.h"
#include "model/config.h"
#include "runtime/base/atoms.h"

namespace perdure {

class MegatronDeepSpeedSource final : public StateSource {
 public:
  // `directory` is the one of a step (global_step5000), or its parent with a file `latest`. The
  // table is of ModelTensors(model, ...) and outlives the source.
  static absl::StatusOr<std::unique_ptr<MegatronDeepSpeedSource>> Open(const std::string& directory,
                                                                       const ModelConfig& model,
                                                                       const AtomTable& table);

  absl::Status Read(std::span<const AtomState> wanted) override { return state_.Read(wanted); }

  const ForeignProgress& progress() const { return progress_; }
  // "tensor 2 x pipeline 2 x data 2".
  const std::string& layout() const { return layout_; }
  // Compares the CRC of every record that is read from: DataLoss names it.
  absl::Status Verify(const Progress& tell = nullptr) const;

 private:
  friend class MegatronDeepSpeedOpener;
  explicit MegatronDeepSpeedSource(const AtomTable& table) : state_(table) {}

  FileCache files_;
  std::vector<std::string> paths_;  // Of the optimizer's files.
  AssembledState state_;
  ForeignProgress progress_;
  std::string layout_;
};

// Compares the CRCs of all storages of these files of torch.save.
absl::Status VerifyTorchFiles(std::span<const std::string> paths, const Progress& tell);

// The directory that a pointer file (`latest`) beside the checkpoints names, or `directory` itself
// when there is no such file. DataLoss: the name leads elsewhere.
absl::StatusOr<std::string> FollowPointer(const std::string& directory, const char* pointer);

}  // namespace perdure
