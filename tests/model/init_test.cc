#include "model/init.h"

#include <gtest/gtest.h>

#include <cmath>

#include "model/parameters.h"

namespace perdure {
namespace {

ModelConfig Small() {
  ModelConfig model;
  model.layers = 2;
  model.hidden = 72;
  model.heads = 4;
  model.kv_heads = 4;
  model.head_dim = 16;
  model.ffn = 92;
  model.vocab = 203;  // Odd: pairs of normals cross rows and slices.
  return model;
}

// All logical tensors, atom by atom.
std::vector<std::vector<float>> Initialize(int64_t shards, int64_t atom_elements, uint64_t seed) {
  const AtomTable table(ModelTensors(Small(), shards), atom_elements);
  std::vector<std::vector<float>> tensors;
  for (const TensorSpec& spec : table.tensors())
    tensors.emplace_back(static_cast<size_t>(spec.size()), NAN);
  for (const Atom& atom : table.atoms()) {
    std::vector<float> values(static_cast<size_t>(atom.count), NAN);
    InitializeAtom(table, atom, seed, values);
    const TensorSpec& spec = table.tensors()[static_cast<size_t>(atom.tensor)];
    for (int64_t i = 0; i < atom.count; ++i) {
      const AtomTable::Place place = table.Locate(atom, i);
      tensors[static_cast<size_t>(atom.tensor)]
             [static_cast<size_t>(place.row * spec.cols + place.col)] =
                 values[static_cast<size_t>(i)];
    }
  }
  return tensors;
}

TEST(InitializeAtom, DoesNotDependOnHowTensorsAreCut) {
  const auto whole = Initialize(1, int64_t{1} << 30, 7);
  EXPECT_EQ(Initialize(4, 100, 7), whole);  // NaN, which is not equal to itself, would show.
  EXPECT_EQ(Initialize(2, 17, 7), whole);
  EXPECT_EQ(Initialize(1, 1, 7), whole);
}

TEST(InitializeAtom, HasTheSpreadOfTheTensor) {
  const std::vector<TensorSpec> specs = ModelTensors(Small(), 1);
  const auto tensors = Initialize(1, 1000, 7);
  for (size_t t = 0; t < specs.size(); ++t) {
    const auto count = static_cast<double>(tensors[t].size());
    if (specs[t].init_std == 0) {
      for (float value : tensors[t]) ASSERT_EQ(value, 1.0F) << specs[t].name;
      continue;
    }
    double sum = 0, squares = 0, fourths = 0;
    for (const float value : tensors[t]) {
      const double x = value / specs[t].init_std;
      sum += x;
      squares += x * x;
      fourths += x * x * x * x;
    }
    // The spread's own standard deviation is 1 / sqrt(2 count): 1.0 % here at the worst.
    ASSERT_GE(count, 4608);
    const double within = std::max(0.02, 3 / std::sqrt(2 * count));
    EXPECT_NEAR(std::sqrt(squares / count), 1, within) << specs[t].name;
    EXPECT_NEAR(sum / count, 0, 4 / std::sqrt(count)) << specs[t].name;
    EXPECT_NEAR(fourths / count, 3, 5 * std::sqrt(96 / count)) << specs[t].name;
  }
}

TEST(InitializeAtom, OfALargeMatrixIsWithinTwoPercent) {
  const AtomTable table({{.name = "w",
                          .rows = 300,
                          .cols = 401,
                          .axis = SliceAxis::kCols,
                          .slices = 4,
                          .init_std = 0.02}},
                        5000);
  double squares = 0;
  for (const Atom& atom : table.atoms()) {
    std::vector<float> values(static_cast<size_t>(atom.count));
    InitializeAtom(table, atom, 3, values);
    for (const float value : values) squares += static_cast<double>(value) * value;
  }
  EXPECT_NEAR(std::sqrt(squares / 120300), 0.02, 0.02 * 0.02);
}

TEST(InitializeAtom, SeedsAndTensorsDiffer) {
  const auto one = Initialize(1, 1000, 7), other = Initialize(1, 1000, 8);
  const std::vector<TensorSpec> specs = ModelTensors(Small(), 1);
  for (size_t t = 0; t < specs.size(); ++t)
    EXPECT_EQ(one[t] == other[t], specs[t].init_std == 0) << specs[t].name;
  EXPECT_NE(one[2], one[3]);  // q_proj and k_proj: same shape and spread.
  ASSERT_EQ(specs[2].size(), specs[3].size());
}

}  // namespace
}  // namespace perdure
