// Checkpoints of a model with Lucie's layers and heads, of any width, as the ranks of any layout
// write and load them: all in one process, each rank's share by itself, as a rank does it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/checkpoint.h"
#include "ckpt/run_writer.h"
#include "runtime/base/atoms.h"
#include "runtime/train/run_config.h"
#include "runtime/train/writers.h"

namespace perdure {

// Of the model; Lucie's own are 4096, 65024, 262144. These make 3.8 GB of state, in about as many
// atoms as Lucie has.
struct LucieSize {
  int64_t hidden = 768;  // A multiple of 256, or 64: then heads are wider than Lucie's share.
  int64_t vocab = 65024;
  int64_t atom_elements = 16384;
};

// launch/recipes/lucie/run.toml with its size and layout replaced.
absl::StatusOr<RunConfig> ScaledLucie(const LucieSize& size, const LayoutConfig& layout);
AtomTable LucieTable(const RunConfig& config);

// Memory for the state of some atoms: all parameters, then the moments, as a rank holds them.
// Values follow from the atom and its place alone.
class LucieState {
 public:
  // All zero.
  LucieState(const AtomTable& table, const std::vector<int64_t>& atoms);
  void Fill(const AtomTable& table);
  std::vector<AtomState>& atoms() { return atoms_; }

 private:
  std::vector<float> memory_;
  std::vector<AtomState> atoms_;
};

// What the rank of `writers` answers for, in the order of its file.
std::vector<int64_t> AtomsOfRank(const Writers& writers, size_t rank);

// The manifest of step 1000, without parts.
Manifest LucieManifest(const RunConfig& config, const AtomTable& table);
// Writes a whole checkpoint of step 1000 into `directory`, which exists.
absl::StatusOr<Manifest> WriteAsRanks(const std::string& directory, const RunConfig& config,
                                      const AtomTable& table, int64_t ranks_per_file);
// Each rank of the layout reads its share and digests what it has got. Returns the certificate.
absl::StatusOr<Digest> LoadAsRanks(const std::string& directory, const Manifest& manifest,
                                   const RunConfig& config, const AtomTable& table);

}  // namespace perdure
