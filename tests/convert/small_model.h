// A small model, its state in memory, and Hugging Face directories of it, for tests.
#pragma once

#include <string>
#include <vector>

#include "ckpt/convert/huggingface.h"
#include "ckpt/state_source.h"
#include "model/config.h"
#include "tests/ckpt/test_state.h"

namespace perdure {

// Two blocks; heads are not hidden / head_dim, and four slices of the vocabulary are uneven.
ModelConfig SmallModel();
// Cut into slices, and into atoms that end within rows.
AtomTable SmallTable(int64_t tensor_shards, int64_t atom_elements = 100);

// A state in memory as a source.
class MemorySource final : public StateSource {
 public:
  MemorySource(const AtomTable& table, TestState& state) : table_(table), state_(state) {}
  absl::Status Read(std::span<const AtomState> wanted) override;
  // From now on every read fails.
  void Break() { broken_ = true; }

 private:
  const AtomTable& table_;
  TestState& state_;
  bool broken_ = false;
};

// The tensor as Hugging Face has it: row-major, whole.
std::vector<float> WholeTensor(const AtomTable& table, TestState& state, int64_t tensor);

HuggingFaceExport SmallExport(const std::string& directory,
                              SafetensorsDType dtype = SafetensorsDType::kF32);

}  // namespace perdure
