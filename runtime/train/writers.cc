#include "runtime/train/writers.h"

#include <algorithm>

#include "model/arena.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/train/mesh.h"
#include "runtime/train/sharded_state.h"

namespace perdure {
namespace {

// By replica: the atoms that the ranks of one stage and tensor index answer for.
std::vector<std::vector<int64_t>> AtomsOf(const RunConfig& config, const AtomTable& table,
                                          const MeshPoint& at) {
  const TensorSlot slot{
      .shards = config.numerics.tensor_shards, .size = config.layout.tensor, .index = at.tensor};
  const std::vector<Bucket> buckets = MakeBuckets(
      table, config.model, slot, LayersOfRank(config.model.layers, config.layout, at.pipeline));
  std::vector<std::vector<int64_t>> atoms(static_cast<size_t>(config.layout.data));
  for (size_t b = 0; b < buckets.size(); ++b) {
    const std::vector<OwnedRun> runs =
        CutBucket(buckets[b], static_cast<int>(config.layout.data), static_cast<int64_t>(b));
    for (size_t d = 0; d < atoms.size(); ++d)
      for (int64_t a = runs[d].first_atom; a < runs[d].last_atom; ++a) {
        const int64_t atom = buckets[b].atoms[static_cast<size_t>(a)].atom;
        if (AnswersFor(table, atom, at.tensor)) atoms[d].push_back(atom);
      }
  }
  return atoms;
}

}  // namespace

bool AnswersFor(const AtomTable& table, int64_t atom, int tensor_index) {
  const auto tensor = static_cast<size_t>(table.atoms()[static_cast<size_t>(atom)].tensor);
  return tensor_index == 0 || table.tensors()[tensor].axis != SliceAxis::kNone;
}

std::vector<std::vector<int64_t>> AtomsByRank(const RunConfig& config, const AtomTable& table) {
  PERDURE_CHECK(config.layout.data > 0);
  const Mesh mesh(config.layout);
  std::vector<std::vector<int64_t>> atoms(static_cast<size_t>(mesh.ranks()));
  for (int p = 0; p < mesh.pipeline(); ++p)
    for (int t = 0; t < mesh.tensor(); ++t) {
      auto by_replica = AtomsOf(config, table, {.tensor = t, .pipeline = p});
      for (int d = 0; d < mesh.data(); ++d)
        atoms[static_cast<size_t>(mesh.Rank({.tensor = t, .data = d, .pipeline = p}))] =
            std::move(by_replica[static_cast<size_t>(d)]);
    }
  return atoms;
}

Writers PlanWriters(const RunConfig& config, const AtomTable& table, int64_t ranks_per_file) {
  PERDURE_CHECK(ranks_per_file > 0);
  const std::vector<std::vector<int64_t>> atoms = AtomsByRank(config, table);
  Writers writers;
  writers.ranks.resize(atoms.size());
  int64_t group = -1;
  for (size_t rank = 0; rank < atoms.size(); ++rank) {
    if (atoms[rank].empty()) continue;
    if (const auto of = static_cast<int64_t>(rank) / ranks_per_file; of != group) {
      group = of;
      writers.files.push_back({.file = fmt::format("part-{:05}.h5", group)});
    }
    PartPlan& file = writers.files.back();
    writers.ranks[rank] = {static_cast<int64_t>(writers.files.size()) - 1,
                           static_cast<int64_t>(file.runs.size())};
    file.runs.push_back(static_cast<int64_t>(atoms[rank].size()));
    file.atoms.insert(file.atoms.end(), atoms[rank].begin(), atoms[rank].end());
  }
  return writers;
}

}  // namespace perdure
