#include "model/arena.h"

#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "model/parameters.h"

namespace perdure {
namespace {

ModelConfig Small() {
  ModelConfig model;
  model.layers = 3;
  model.hidden = 24;
  model.heads = 8;
  model.kv_heads = 4;
  model.head_dim = 8;
  model.ffn = 40;
  model.vocab = 101;  // V = 4: 26, 26, 26, 23 rows.
  return model;
}

std::vector<int64_t> AllLayers(const ModelConfig& model) {
  std::vector<int64_t> layers(static_cast<size_t>(model.layers) + 2);
  std::iota(layers.begin(), layers.end(), -1);
  return layers;
}

struct Case {
  int64_t shards, size, atom_elements;
};
const Case kCases[] = {{1, 1, 100000}, {2, 1, 50}, {2, 2, 64}, {4, 1, 7}, {4, 2, 200}, {4, 4, 33}};

template <typename Check>
void ForEveryRank(const Check& check) {
  for (const Case& c : kCases) {
    const AtomTable table(ModelTensors(Small(), c.shards), c.atom_elements);
    for (int64_t t = 0; t < c.size; ++t) {
      SCOPED_TRACE(testing::Message() << "V " << c.shards << ", T " << c.size << ", t " << t);
      const TensorSlot slot{.shards = c.shards, .size = c.size, .index = t};
      check(table, slot, MakeBuckets(table, Small(), slot, AllLayers(Small())));
    }
  }
}

TEST(MakeBuckets, EveryAtomOfTheRankIsThereOnce) {
  ForEveryRank(
      [](const AtomTable& table, const TensorSlot& slot, const std::vector<Bucket>& buckets) {
        std::vector<int> times(table.atoms().size());
        for (const Bucket& bucket : buckets)
          for (const PlacedAtom& placed : bucket.atoms) {
            ++times.at(static_cast<size_t>(placed.atom));
            const Atom& atom = table.atoms()[static_cast<size_t>(placed.atom)];
            EXPECT_EQ(placed.count, atom.count);
            EXPECT_EQ(table.tensors()[static_cast<size_t>(atom.tensor)].layer, bucket.layer);
          }
        for (size_t a = 0; a < times.size(); ++a) {
          const Atom& atom = table.atoms()[a];
          const bool sliced = table.tensors()[static_cast<size_t>(atom.tensor)].slices > 1;
          const bool local =
              !sliced || (atom.slice >= slot.first() && atom.slice < slot.first() + slot.local());
          EXPECT_EQ(times[a], local ? 1 : 0) << "atom " << a;
        }
      });
}

TEST(MakeBuckets, PiecesAreAlignedInOrderAndHoldTheirAtoms) {
  ForEveryRank([](const AtomTable& table, const TensorSlot&, const std::vector<Bucket>& buckets) {
    int64_t arena = 0;
    for (const Bucket& bucket : buckets) {
      EXPECT_EQ(bucket.offset, arena);
      EXPECT_EQ(bucket.offset % 16, 0);
      EXPECT_EQ(bucket.size % 16, 0);
      arena += bucket.size;
      int64_t end = 0;
      size_t next = 0;
      for (const Piece& piece : bucket.pieces) {
        EXPECT_EQ(piece.offset % 16, 0);
        EXPECT_EQ(piece.offset, (end + 15) / 16 * 16);
        EXPECT_EQ(piece.size,
                  table.tensors()[static_cast<size_t>(piece.tensor)].SliceSize(piece.slice));
        end = piece.offset + piece.size;
        for (int64_t at = piece.offset; at < end; ++next) {
          ASSERT_LT(next, bucket.atoms.size());
          const PlacedAtom& placed = bucket.atoms[next];
          const Atom& atom = table.atoms()[static_cast<size_t>(placed.atom)];
          EXPECT_EQ(atom.tensor, piece.tensor);
          EXPECT_EQ(atom.slice, piece.slice);
          EXPECT_EQ(atom.begin, at - piece.offset);
          EXPECT_EQ(placed.offset, at);
          at += placed.count;
        }
      }
      EXPECT_EQ(next, bucket.atoms.size());
      EXPECT_EQ(bucket.size, (end + 15) / 16 * 16);
    }
  });
}

TEST(MakeBuckets, FusedMatricesAreNeighbours) {
  ForEveryRank(
      [](const AtomTable& table, const TensorSlot& slot, const std::vector<Bucket>& buckets) {
        for (const Bucket& bucket : buckets) {
          if (bucket.layer < 0 || bucket.layer == Small().layers) continue;
          std::map<std::string, std::map<int32_t, Piece>> by_name;
          for (const Piece& piece : bucket.pieces) {
            const std::string& name = table.tensors()[static_cast<size_t>(piece.tensor)].name;
            by_name[name.substr(name.find('.', sizeof "model.layers") + 1)][piece.slice] = piece;
          }
          const auto at = [&](const char* name, int64_t s) {
            EXPECT_TRUE(by_name[name].contains(static_cast<int32_t>(s))) << name;
            return by_name[name][static_cast<int32_t>(s)];
          };
          const auto follows = [](const Piece& piece, const Piece& before) {
            return piece.offset == before.offset + before.size;
          };
          for (int64_t s = slot.first(); s < slot.first() + slot.local(); ++s) {
            const Piece q = at("self_attn.q_proj.weight", s), k = at("self_attn.k_proj.weight", s),
                        v = at("self_attn.v_proj.weight", s);
            EXPECT_TRUE(follows(k, q) && follows(v, k));
            EXPECT_EQ(q.size, 2 * k.size);
            EXPECT_TRUE(follows(at("mlp.up_proj.weight", s), at("mlp.gate_proj.weight", s)));
          }
          EXPECT_EQ(by_name.size(), 9);
        }
      });
}

// A stage of a pipeline lays its buckets out as the whole model does, but for where they begin.
TEST(MakeBuckets, OfSomeLayers) {
  const AtomTable table(ModelTensors(Small(), 4), 64);
  const TensorSlot slot{.shards = 4, .size = 2, .index = 1};
  const std::vector<Bucket> all = MakeBuckets(table, Small(), slot, AllLayers(Small()));
  const std::vector<int64_t> layers = {1, 2, 3};
  const std::vector<Bucket> some = MakeBuckets(table, Small(), slot, layers);
  ASSERT_EQ(some.size(), 3);
  EXPECT_EQ(some[0].offset, 0);
  for (size_t b = 0; b < some.size(); ++b) {
    const Bucket& whole = all[b + 2];
    EXPECT_EQ(some[b].layer, whole.layer);
    EXPECT_EQ(some[b].size, whole.size);
    ASSERT_EQ(some[b].pieces.size(), whole.pieces.size());
    for (size_t p = 0; p < whole.pieces.size(); ++p) {
      EXPECT_EQ(some[b].pieces[p].offset, whole.pieces[p].offset);
      EXPECT_EQ(some[b].pieces[p].tensor, whole.pieces[p].tensor);
    }
  }
}

}  // namespace
}  // namespace perdure
