// DeepSpeed universal checkpoints of Megatron-DeepSpeed runs: import with optimizer state, export.
//
// DIR/zero/<Megatron parameter>/{fp32,exp_avg,exp_avg_sq}.pt hold whole parameters, merged over
// ranks; DIR/mp_rank_00_model_states.pt says what version and model they are of. Importing checks
// that each parameter is there with the shape that the model gives it, and nothing else. Thread:
// one at a time.
#pragma once

#include <cstdint>
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

class UniversalSource final : public StateSource {
 public:
  // `directory` holds `zero`, or `latest_universal` that names such a directory. The table is of
  // ModelTensors(model, ...) and outlives the source.
  static absl::StatusOr<std::unique_ptr<UniversalSource>> Open(const std::string& directory,
                                                               const ModelConfig& model,
                                                               const AtomTable& table);

  absl::Status Read(std::span<const AtomState> wanted) override { return state_.Read(wanted); }

  const ForeignProgress& progress() const { return progress_; }
  // Compares the CRC of every record that is read from: DataLoss names it.
  absl::Status Verify(const Progress& tell = nullptr) const;

 private:
  friend class UniversalOpener;
  explicit UniversalSource(const AtomTable& table) : state_(table) {}

  FileCache files_;
  std::vector<std::string> paths_;
  AssembledState state_;
  ForeignProgress progress_;
};

// What an export says beside the state. The optimizer's settings go into optimizer_state.pt, whose
// two groups are Megatron's: with weight decay, then without.
struct UniversalExport {
  int64_t step = 0;
  int64_t samples = 0;
  int64_t tokens = 0;
  double clip_grad = 0;
  double rate = 0;  // Learning rate.
  double beta1 = 0, beta2 = 0, eps = 0, weight_decay = 0;
};

// Writes PARENT/<name> and then the pointer PARENT/latest_universal. AlreadyExists: something is
// there. Not in it, because the format wants them from the job that loads: Megatron's arguments,
// random states and learning rate scheduler.
absl::Status ExportUniversal(StateSource& source, const ModelConfig& model, const AtomTable& table,
                             const UniversalExport& about, const std::string& parent,
                             const std::string& name, const Progress& tell = nullptr);

}  // namespace perdure
