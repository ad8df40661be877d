#include <gtest/gtest.h>

#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

// Values computed by an independent program (Python, xxhash) from the definition in
// docs/formats.md.
TEST(Certificate, IsTheDocumentedNumber) {
  const AtomTable table(
      {{.name = "a", .rows = 2, .cols = 3},
       {.name = "b.weight", .rows = 4, .cols = 1, .axis = SliceAxis::kRows, .slices = 2}},
      4);
  ASSERT_EQ(table.atoms().size(), 4u);
  std::vector<float> memory(30);
  for (size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<float>(i) * 0.5f;
  std::vector<Digest> digests;
  float* at = memory.data();
  for (int64_t atom = 0; atom < 4; ++atom) {
    const int64_t count = table.atoms()[static_cast<size_t>(atom)].count;
    const AtomState state{atom, {at, at + count, at + 2 * count}};
    digests.push_back(AtomDigest(state, count));
    at += 3 * count;
  }
  EXPECT_EQ(digests[0].Hex(), "2c65614afb7b55a196d69a29a7808f14");
  EXPECT_EQ(TensorDigests(table, digests)[1].Hex(), "0419af2aa5382d9799183fe5f3e810fb");
  EXPECT_EQ(Certificate(table, digests, 120, 960).Hex(), "38ff9f0353fc8414d3f8a682343cb8bc");
}

TEST(Certificate, DependsOnEverythingItCovers) {
  const AtomTable table(OddTensors(), 10);
  TestState state(table, 1);
  const auto certificate = [&](int64_t step, int64_t samples, const AtomTable& names) {
    std::vector<Digest> digests;
    for (const AtomState& atom : state.states())
      digests.push_back(AtomDigest(atom, table.atoms()[static_cast<size_t>(atom.atom)].count));
    return Certificate(names, digests, step, samples);
  };
  const Digest base = certificate(5, 40, table);
  EXPECT_EQ(certificate(5, 40, table), base);
  EXPECT_NE(certificate(6, 40, table), base);
  EXPECT_NE(certificate(5, 41, table), base);
  std::vector<Digest> digests;
  for (const AtomState& atom : state.states())
    digests.push_back(AtomDigest(atom, table.atoms()[static_cast<size_t>(atom.atom)].count));
  Gaps gaps = {{.first_step = 3, .samples = 8, .bad_step = 4, .number = 1}};
  const Digest behind = Certificate(table, digests, 5, 40, gaps);
  EXPECT_NE(behind, base);
  ++gaps[0].samples;
  EXPECT_NE(Certificate(table, digests, 5, 40, gaps), behind);
  EXPECT_EQ(Certificate(table, digests, 5, 40, Gaps()), base);
  auto renamed = OddTensors();
  renamed[1].name = "other";
  EXPECT_NE(certificate(5, 40, AtomTable(renamed, 10)), base);
  for (int part = 0; part < kStatePartCount; ++part) {
    TestState changed(table, 1);
    changed.at(3, part, 0) += 1;
    std::swap(state, changed);
    EXPECT_NE(certificate(5, 40, table), base) << part;
    std::swap(state, changed);
  }
}

TEST(Certificate, CheckpointNamesSortByStep) {
  EXPECT_EQ(CheckpointName(120, 3, 0x9f3c21aa), "s000000120.g3.9f3c21aa");
  EXPECT_LT(CheckpointName(99, 7, 1), CheckpointName(100, 1, 0));
}

}  // namespace
}  // namespace perdure
