#include "runtime/base/atoms.h"

#include <gtest/gtest.h>

#include <set>

namespace perdure {
namespace {

AtomTable SmallTable() {
  return AtomTable({{.name = "embed", .rows = 10, .cols = 3, .axis = SliceAxis::kRows, .slices = 4},
                    {.name = "o", .rows = 5, .cols = 8, .axis = SliceAxis::kCols, .slices = 4},
                    {.name = "norm", .rows = 1, .cols = 7}},
                   4);
}

TEST(AtomTableTest, EveryElementIsInOneAtom) {
  const AtomTable table = SmallTable();
  EXPECT_EQ(table.parameters(), 30 + 40 + 7);
  std::set<std::tuple<int32_t, int64_t, int64_t>> seen;
  for (const Atom& atom : table.atoms()) {
    EXPECT_LE(atom.count, 4);
    EXPECT_GT(atom.count, 0);
    for (int64_t i = 0; i < atom.count; ++i) {
      const auto place = table.Locate(atom, i);
      EXPECT_TRUE(seen.insert({atom.tensor, place.row, place.col}).second);
    }
  }
  EXPECT_EQ(static_cast<int64_t>(seen.size()), table.parameters());
}

TEST(AtomTableTest, TheLastSliceIsShorterWhereSlicesDoNotDivide) {
  const AtomTable table = SmallTable();
  const TensorSpec& embed = table.tensors()[0];
  EXPECT_EQ(embed.SliceRows(0), 3);
  EXPECT_EQ(embed.SliceRows(3), 1);
  EXPECT_EQ(embed.SliceBegin(3), 9);
  EXPECT_EQ(embed.SliceCols(3), 3);
}

TEST(AtomTableTest, RangesAndNames) {
  const AtomTable table = SmallTable();
  EXPECT_EQ(table.FindTensor("o"), 1);
  EXPECT_EQ(table.FindTensor("absent"), -1);
  int64_t covered = 0;
  for (int64_t t = 0; t < 3; ++t) {
    EXPECT_EQ(table.TensorAtoms(t).first, covered);
    for (int64_t s = 0; s < table.tensors()[static_cast<size_t>(t)].slices; ++s) {
      const IndexRange range = table.SliceAtoms(t, s);
      EXPECT_EQ(range.first, covered);
      covered = range.last;
    }
  }
  EXPECT_EQ(covered, static_cast<int64_t>(table.atoms().size()));
}

}  // namespace
}  // namespace perdure
