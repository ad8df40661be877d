#include "runtime/train/mesh.h"

#include <gtest/gtest.h>

#include "model/arena.h"
#include "runtime/train/sharded_state.h"

namespace perdure {
namespace {

TEST(MeshTest, RanksAndPointsCorrespond) {
  LayoutConfig layout;
  layout.tensor = 2;
  layout.pipeline = 3;
  layout.data = 5;
  const Mesh mesh(layout);
  EXPECT_EQ(mesh.ranks(), 30);
  for (int rank = 0; rank < mesh.ranks(); ++rank) EXPECT_EQ(mesh.Rank(mesh.At(rank)), rank);
  EXPECT_EQ(mesh.TensorGroup({.tensor = 1, .data = 2, .pipeline = 1}), (std::vector<int>{14, 15}));
  EXPECT_EQ(mesh.DataGroup({.tensor = 1, .data = 2, .pipeline = 1}),
            (std::vector<int>{11, 13, 15, 17, 19}));
  EXPECT_EQ(mesh.PipelineGroup({.tensor = 1, .data = 2, .pipeline = 1}),
            (std::vector<int>{5, 15, 25}));
}

TEST(MeshTest, LayersAreCutEvenlyWithTheEndsOnTheOutside) {
  EXPECT_EQ(LayersOfStage(4, 1, 0), (std::vector<int64_t>{-1, 0, 1, 2, 3, 4}));
  EXPECT_EQ(LayersOfStage(7, 3, 0), (std::vector<int64_t>{-1, 0, 1, 2}));
  EXPECT_EQ(LayersOfStage(7, 3, 1), (std::vector<int64_t>{3, 4}));
  EXPECT_EQ(LayersOfStage(7, 3, 2), (std::vector<int64_t>{5, 6, 7}));
}

TEST(CutBucketTest, RunsAreDisjointCompleteAndBalanced) {
  Bucket bucket;
  for (int64_t a = 0; a < 37; ++a) {
    bucket.atoms.push_back({.atom = a, .offset = bucket.size, .count = 100 + a % 7});
    bucket.size += 112;
  }
  for (int replicas : {1, 2, 3, 5, 8, 36, 37, 64}) {
    for (int64_t rotation : {0, 1, 11}) {
      const auto runs = CutBucket(bucket, replicas, rotation);
      std::vector<int> owners(bucket.atoms.size(), 0);
      int64_t most = 0;
      for (const OwnedRun& run : runs) {
        int64_t elements = 0;
        for (int64_t a = run.first_atom; a < run.last_atom; ++a) {
          ++owners[static_cast<size_t>(a)];
          const PlacedAtom& atom = bucket.atoms[static_cast<size_t>(a)];
          EXPECT_GE(atom.offset, run.begin);
          EXPECT_LE(atom.offset + atom.count, run.end);
          elements += atom.count;
        }
        most = std::max(most, elements);
      }
      for (int owned : owners) EXPECT_EQ(owned, 1);
      EXPECT_LE(most, 37 * 103 / replicas + 2 * 106) << replicas;
    }
  }
}

TEST(CutBucketTest, RotationMovesTheLoadAround) {
  Bucket bucket;
  bucket.atoms = {{.atom = 0, .offset = 0, .count = 16}};
  bucket.size = 16;
  std::vector<int> owned(4, 0);
  for (int64_t rotation = 0; rotation < 4; ++rotation) {
    const auto runs = CutBucket(bucket, 4, rotation);
    for (size_t d = 0; d < 4; ++d) owned[d] += runs[d].size() > 0;
  }
  EXPECT_EQ(owned, (std::vector<int>{1, 1, 1, 1}));
}

}  // namespace
}  // namespace perdure
