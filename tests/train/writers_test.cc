// Who writes what: every atom once, whatever the layout, in the order in which ranks hold them.
#include "runtime/train/writers.h"

#include <gtest/gtest.h>

#include <numeric>

#include "model/parameters.h"
#include "runtime/base/status.h"
#include "runtime/comm/group.h"
#include "runtime/train/mesh.h"
#include "runtime/train/sharded_state.h"
#include "tests/model/counting_ops.h"
#include "tests/train/transport_threads.h"

namespace perdure {
namespace {

constexpr int64_t kShards = 4;

RunConfig ConfigOf(const LayoutConfig& layout) {
  RunConfig config;
  config.model.layers = 6;
  config.model.hidden = 16;
  config.model.heads = 4;
  config.model.kv_heads = 4;
  config.model.head_dim = 4;
  config.model.ffn = 24;
  config.model.vocab = 29;
  config.numerics.tensor_shards = kShards;
  config.numerics.atom_elements = 40;
  config.layout = layout;
  return config;
}

AtomTable TableOf(const RunConfig& config) {
  return AtomTable(ModelTensors(config.model, kShards), config.numerics.atom_elements);
}

std::vector<LayoutConfig> Layouts() {
  std::vector<LayoutConfig> layouts;
  int64_t zero = 0;
  for (const int64_t tensor : {1, 2, 4})
    for (const int64_t pipeline : {1, 2, 3})
      for (const int64_t data : {1, 2, 5}) {
        if (tensor * pipeline * data > 24) continue;
        layouts.push_back(
            {.tensor = tensor, .pipeline = pipeline, .data = data, .zero = zero++ % 4});
      }
  layouts.push_back({.tensor = 1, .pipeline = 2, .data = 2, .zero = 1, .virtual_stages = 2});
  layouts.push_back({.tensor = 2, .pipeline = 3, .data = 1, .zero = 1, .virtual_stages = 2});
  return layouts;
}

std::string Words(const LayoutConfig& layout) {
  return fmt::format("{} x {} x {}, zero {}, {} stages", layout.tensor, layout.pipeline,
                     layout.data, layout.zero, layout.virtual_stages);
}

// The atoms of a rank by its plan.
std::vector<int64_t> AtomsOf(const Writers& writers, int rank) {
  const Writers::Place& place = writers.ranks[static_cast<size_t>(rank)];
  if (place.file < 0) return {};
  const PartPlan& file = writers.files[static_cast<size_t>(place.file)];
  const auto first = std::accumulate(file.runs.begin(), file.runs.begin() + place.run, int64_t{0});
  const auto begin = file.atoms.begin() + first;
  return {begin, begin + file.runs[static_cast<size_t>(place.run)]};
}

TEST(PlanWriters, EveryAtomIsWrittenOnce) {
  ASSERT_GE(Layouts().size(), 20u);
  for (const LayoutConfig& layout : Layouts()) {
    SCOPED_TRACE(Words(layout));
    const RunConfig config = ConfigOf(layout);
    const AtomTable table = TableOf(config);
    for (const int64_t ranks_per_file : {int64_t{1}, int64_t{3}, layout.ranks(), int64_t{1000}}) {
      const Writers writers = PlanWriters(config, table, ranks_per_file);
      std::vector<int> seen(table.atoms().size());
      for (const PartPlan& file : writers.files) {
        EXPECT_EQ(std::accumulate(file.runs.begin(), file.runs.end(), int64_t{0}),
                  static_cast<int64_t>(file.atoms.size()));
        for (const int64_t atom : file.atoms) ++seen[static_cast<size_t>(atom)];
      }
      EXPECT_EQ(seen, std::vector<int>(seen.size(), 1));
      EXPECT_LE(static_cast<int64_t>(writers.files.size()),
                (layout.ranks() + ranks_per_file - 1) / ranks_per_file);
      // Consecutive ranks share a file; its runs are theirs, in their order.
      ASSERT_EQ(static_cast<int64_t>(writers.ranks.size()), layout.ranks());
      std::vector<int64_t> next(writers.files.size());
      for (int64_t rank = 0; rank < layout.ranks(); ++rank) {
        const Writers::Place& place = writers.ranks[static_cast<size_t>(rank)];
        if (place.file < 0) continue;
        EXPECT_EQ(writers.files[static_cast<size_t>(place.file)].file,
                  fmt::format("part-{:05}.h5", rank / ranks_per_file));
        EXPECT_EQ(place.run, next[static_cast<size_t>(place.file)]++);
      }
    }
  }
}

TEST(PlanWriters, OrderIsThatOfTheRanksState) {
  for (const LayoutConfig& layout : Layouts()) {
    SCOPED_TRACE(Words(layout));
    const RunConfig config = ConfigOf(layout);
    const AtomTable table = TableOf(config);
    const Writers writers = PlanWriters(config, table, 2);
    const Mesh mesh(layout);
    for (int p = 0; p < mesh.pipeline(); ++p)
      for (int t = 0; t < mesh.tensor(); ++t)
        RunTransportThreads(mesh.data(), [&](Transport* transport) {
          std::vector<int> members(static_cast<size_t>(mesh.data()));
          std::iota(members.begin(), members.end(), 0);
          Group group(transport, members, 5);
          CountingOps ops;
          const TensorSlot slot{.shards = kShards, .size = mesh.tensor(), .index = t};
          ShardedState state(
              {.zero = static_cast<int>(layout.zero)},
              MakeBuckets(table, config.model, slot, LayersOfRank(config.model.layers, layout, p)),
              &table, &ops, &group);
          std::vector<int64_t> atoms;
          for (const AtomState& atom : state.OwnedAtoms())
            if (AnswersFor(table, atom.atom, t)) atoms.push_back(atom.atom);
          const int rank = mesh.Rank({.tensor = t, .data = group.index(), .pipeline = p});
          EXPECT_EQ(AtomsOf(writers, rank), atoms) << "rank " << rank;
        });
  }
}

}  // namespace
}  // namespace perdure
