// PyTorch distributed checkpoints (DCP): import with optimizer state where there is one, export.
//
// A directory of .distcp files with chunks of tensors, and .metadata that says where each stands
// and whose presence makes it a checkpoint. Names are those of a Llama's state dict
// ("model.layers.0.self_attn.q_proj.weight"), with a prefix if need be; moments are
// "<prefix>.<name>.exp_avg" and "... .exp_avg_sq". Chunks are opened when they are read. Thread:
// one at a time.
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
#include "ckpt/convert/assembled_state.h"
#include "ckpt/convert/dcp_metadata.h"
#include "ckpt/state_source.h"
#include "runtime/base/atoms.h"

namespace perdure {

struct DcpImport {
  // Prefix of the model's names, for example "model."; found by itself where only one will do.
  std::optional<std::string> prefix;
};

class DcpSource final : public StateSource {
 public:
  // The table outlives the source. Without any moments in the checkpoint they read as zeros and
  // progress().has_moments is false; moments under names that do not fit are an error.
  static absl::StatusOr<std::unique_ptr<DcpSource>> Open(const std::string& directory,
                                                         const AtomTable& table,
                                                         const DcpImport& how = {});

  absl::Status Read(std::span<const AtomState> wanted) override { return state_.Read(wanted); }

  const ForeignProgress& progress() const { return progress_; }
  // Of the values: "float32", or what they were rounded to.
  const std::string& type() const { return type_; }
  // Compares the CRC of every record that is read from: DataLoss names it.
  absl::Status Verify(const Progress& tell = nullptr);

 private:
  friend class DcpOpener;
  explicit DcpSource(const AtomTable& table) : state_(table) {}

  std::string directory_;
  FileCache files_;
  std::vector<DcpPlace> places_;
  AssembledState state_;
  ForeignProgress progress_;
  std::string type_;
};

struct DcpExport {
  int64_t step = 0;
  int64_t samples = 0;
  int64_t tokens = 0;
  // {"model": model.state_dict(), "optim": {"state": {name: {exp_avg, exp_avg_sq, step}}}}, and
  // "iteration", "samples", "tokens" as ints.
  std::string model_prefix = "model.";
  std::string optimizer_prefix = "optim.state.";
  int files = 1;  // For each of the three parts of the state.
};

// Writes DIRECTORY, .metadata last. AlreadyExists: something is there. Each slice of a tensor is a
// chunk. Not in it: param_groups, which are settings of the run that loads.
absl::Status ExportDcp(StateSource& source, const AtomTable& table, const DcpExport& about,
                       const std::string& directory, const Progress& tell = nullptr);

}  // namespace perdure
