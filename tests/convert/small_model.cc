#include "tests/convert/small_model.h"

#include <algorithm>

#include "model/parameters.h"
#include "runtime/base/status.h"

namespace perdure {

ModelConfig SmallModel() {
  return {.layers = 2,
          .hidden = 24,
          .heads = 4,
          .kv_heads = 4,
          .head_dim = 8,
          .ffn = 36,
          .vocab = 37,
          .norm_eps = 1e-6,
          .init_range = 0.03};
}

AtomTable SmallTable(int64_t tensor_shards, int64_t atom_elements) {
  return AtomTable(ModelTensors(SmallModel(), tensor_shards), atom_elements);
}

absl::Status MemorySource::Read(std::span<const AtomState> wanted) {
  if (broken_) return DataLoss("the memory is broken");
  for (const AtomState& state : wanted)
    for (size_t part = 0; part < state.parts.size(); ++part)
      std::copy_n(state_.states()[static_cast<size_t>(state.atom)].parts[part],
                  table_.atoms()[static_cast<size_t>(state.atom)].count, state.parts[part]);
  return absl::OkStatus();
}

std::vector<float> WholeTensor(const AtomTable& table, TestState& state, int64_t tensor) {
  const TensorSpec& spec = table.tensors()[static_cast<size_t>(tensor)];
  std::vector<float> whole(static_cast<size_t>(spec.size()));
  const IndexRange atoms = table.TensorAtoms(tensor);
  for (int64_t a = atoms.first; a < atoms.last; ++a) {
    const Atom& atom = table.atoms()[static_cast<size_t>(a)];
    for (int64_t i = 0; i < atom.count; ++i) {
      const AtomTable::Place place = table.Locate(atom, i);
      whole[static_cast<size_t>(place.row * spec.cols + place.col)] = state.at(a, 0, i);
    }
  }
  return whole;
}

HuggingFaceExport SmallExport(const std::string& directory, SafetensorsDType dtype) {
  return {.directory = directory,
          .model = SmallModel(),
          .context = 64,
          .rope_theta = 500000,
          .dtype = dtype};
}

}  // namespace perdure
