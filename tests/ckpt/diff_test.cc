#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <filesystem>

#include "ckpt/stats.h"
#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class DiffTest : public testing::Test {
 protected:
  // Writes both and compares them, in different partitions.
  Difference Diff() {
    const TestDirectory a, b;
    WriteCheckpoint(a.path(), table_, ours_, 3, 1);
    WriteCheckpoint(b.path(), table_, theirs_, 2, 2);
    const auto difference = DiffCheckpoints(a.path(), b.path());
    EXPECT_TRUE(difference.ok()) << difference.status();
    return difference.value_or(Difference{false, "error"});
  }

  const AtomTable table_{OddTensors(), 16};
  TestState ours_{table_, 7}, theirs_{table_, 7};
};

TEST_F(DiffTest, EqualBitsAreIdenticalAcrossLayouts) {
  // NaNs with a payload are bits like others.
  for (TestState* state : {&ours_, &theirs_})
    state->at(2, 1, 3) = std::bit_cast<float>(0x7fc12345u);
  const Difference difference = Diff();
  EXPECT_TRUE(difference.identical) << difference.what;
  EXPECT_EQ(difference.what, "");
}

TEST_F(DiffTest, OneFloatIsFoundAndPlaced) {
  // Tensor "wide" is 5 x 26 in column slices of 7: its atom 32 begins in slice 1 (columns 7 to 13).
  const int64_t first = table_.SliceAtoms(2, 1).first;
  ours_.at(first, 1, 9) = 0.5f;
  theirs_.at(first, 1, 9) = 0.25f;
  const Difference difference = Diff();
  EXPECT_FALSE(difference.identical);
  EXPECT_EQ(
      difference.what,
      fmt::format("tensor wide, atom {}, element 9 (row 1, column 9), exp_avg: 0.5 against 0.25",
                  first));
}

TEST_F(DiffTest, TheFirstInAtomOrderIsNamed) {
  theirs_.at(20, 0, 0) = 5;
  theirs_.at(4, 2, 7) = 5;
  theirs_.at(4, 0, 8) = 5;
  EXPECT_THAT(Diff().what, AllOf(HasSubstr("atom 4, element 7"), HasSubstr("exp_avg_sq")));
}

TEST_F(DiffTest, SignOfZeroAndNanPayloadsCount) {
  ours_.at(0, 0, 0) = 0.0f;
  theirs_.at(0, 0, 0) = -0.0f;
  EXPECT_THAT(Diff().what, HasSubstr("param: 0 against -0"));
  ours_.at(0, 0, 0) = std::bit_cast<float>(0x7fc00000u);
  theirs_.at(0, 0, 0) = std::bit_cast<float>(0x7fc00001u);
  EXPECT_THAT(Diff().what, HasSubstr("nan (0x7fc00000) against nan (0x7fc00001)"));
}

class DiffTablesTest : public testing::Test {
 protected:
  static std::string Diff(const AtomTable& ours, const AtomTable& theirs) {
    const TestDirectory a, b;
    TestState state_a(ours, 7), state_b(theirs, 7);
    WriteCheckpoint(a.path(), ours, state_a, 2);
    WriteCheckpoint(b.path(), theirs, state_b, 2);
    const auto difference = DiffCheckpoints(a.path(), b.path());
    EXPECT_TRUE(difference.ok()) << difference.status();
    return difference->identical ? "identical" : difference->what;
  }
};

TEST_F(DiffTablesTest, MissingTensorsShapesAndCutsAreNamed) {
  const AtomTable table(OddTensors(), 16);
  auto fewer = OddTensors();
  fewer.erase(fewer.begin() + 1);
  EXPECT_THAT(Diff(table, AtomTable(fewer, 16)), HasSubstr("tensor norm is in"));
  EXPECT_THAT(Diff(AtomTable(fewer, 16), table), HasSubstr("tensor norm is in"));
  auto reshaped = OddTensors();
  reshaped[1].cols = 13;
  EXPECT_THAT(Diff(table, AtomTable(reshaped, 16)), HasSubstr("tensor norm: 1 x 12"));
  auto resliced = OddTensors();
  resliced[0].slices = 2;
  EXPECT_THAT(Diff(table, AtomTable(resliced, 16)), HasSubstr("4 slices of rows against"));
  EXPECT_THAT(Diff(table, AtomTable(OddTensors(), 8)), HasSubstr("atoms of 16 elements against 8"));
}

TEST_F(DiffTablesTest, OrderOfTensorsDoesNotMatter) {
  const AtomTable table({{.name = "a", .rows = 1, .cols = 5}, {.name = "b", .rows = 1, .cols = 5}},
                        4);
  const AtomTable other({{.name = "b", .rows = 1, .cols = 5}, {.name = "a", .rows = 1, .cols = 5}},
                        4);
  const TestDirectory a, b;
  TestState ours(table, 1), theirs(other, 2);
  for (int64_t atom = 0; atom < 4; ++atom)
    for (int part = 0; part < kStatePartCount; ++part)
      for (int64_t i = 0; i < table.atoms()[static_cast<size_t>(atom)].count; ++i)
        theirs.at((atom + 2) % 4, part, i) = ours.at(atom, part, i);
  WriteCheckpoint(a.path(), table, ours, 1);
  WriteCheckpoint(b.path(), other, theirs, 1);
  const auto difference = DiffCheckpoints(a.path(), b.path());
  ASSERT_OK(difference.status());
  EXPECT_TRUE(difference->identical) << difference->what;
}

TEST_F(DiffTest, CorruptSidesAreErrorsNotDifferences) {
  const TestDirectory a, b;
  WriteCheckpoint(a.path(), table_, ours_, 1);
  WriteCheckpoint(b.path(), table_, theirs_, 1);
  std::string bytes = Slurp(b.path() + "/part-00000.h5");
  bytes[bytes.size() / 2] ^= 1;
  Spill(b.path() + "/part-00000.h5", bytes);
  EXPECT_EQ(DiffCheckpoints(a.path(), b.path()).status().code(), absl::StatusCode::kDataLoss);
  std::filesystem::remove(b.path() + "/manifest.json");
  EXPECT_EQ(DiffCheckpoints(a.path(), b.path()).status().code(), absl::StatusCode::kNotFound);
}

TEST(Stats, AreThoseOfTheTensor) {
  const TestDirectory directory;
  const AtomTable table({{.name = "t", .rows = 1, .cols = 4}}, 3);
  TestState state(table, 1);
  const float values[] = {1, -3, 2, 0};
  for (int64_t i = 0; i < 4; ++i) {
    state.at(i / 3, 0, i % 3) = values[i];
    state.at(i / 3, 1, i % 3) = std::bit_cast<float>(0x7fc00000u);
    state.at(i / 3, 2, i % 3) = i == 3 ? std::bit_cast<float>(0x7f800000u) : 2.0f;
  }
  const Manifest manifest = WriteCheckpoint(directory.path(), table, state, 1);
  const auto stats = TensorStats(directory.path(), manifest, table, 0);
  ASSERT_OK(stats.status());
  EXPECT_EQ((*stats)[0].min, -3);
  EXPECT_EQ((*stats)[0].max, 2);
  EXPECT_EQ((*stats)[0].mean, 0);
  EXPECT_DOUBLE_EQ((*stats)[0].rms, std::sqrt(14.0 / 4));
  EXPECT_EQ((*stats)[1].not_finite, 4);
  EXPECT_EQ((*stats)[1].rms, 0);
  EXPECT_EQ((*stats)[2].not_finite, 1);
  EXPECT_EQ((*stats)[2].mean, 2);
}

}  // namespace
}  // namespace perdure
