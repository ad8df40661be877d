// The gradient is the derivative of the loss: central differences of the fp32 loss, at the largest
// element of every tensor's gradient and at two others.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/model/model_run.h"

namespace perdure {
namespace {

// Elements to differ by: the largest gradient and two by formula.
std::vector<int64_t> Chosen(const std::vector<float>& gradient, int64_t tensor) {
  const auto largest = std::max_element(gradient.begin(), gradient.end(),
                                        [](float a, float b) { return std::abs(a) < std::abs(b); });
  std::vector<int64_t> chosen = {largest - gradient.begin()};
  for (uint32_t j = 0; j < 2; ++j)
    chosen.push_back(Mix(static_cast<uint32_t>(tensor) + 500, j) % gradient.size());
  return chosen;
}

double LossAt(ModelRun run, int64_t at_tensor, int64_t at_element, float step) {
  run.weight = [=](const TensorSpec& spec, int64_t tensor, int64_t element) {
    const float value = GoldenWeight(spec, tensor, element);
    return tensor == at_tensor && element == at_element ? value + step : value;
  };
  return RunModel(run).loss;
}

// The five-point stencil: truncation falls with step^4, so that the step can be large against the
// fp32 loss's rounding. Steps are powers of two, so value + step is exact.
double Difference(const ModelRun& run, int64_t tensor, int64_t element) {
  constexpr float kStep = 1.0F / 64;
  const auto pair = [&](float step) {
    return LossAt(run, tensor, element, step) - LossAt(run, tensor, element, -step);
  };
  return (8 * pair(kStep) - pair(2 * kStep)) / (12 * static_cast<double>(kStep));
}

// Tensors of one block stand for those of the others.
bool IsChosen(const TensorSpec& spec, int64_t layers) {
  return spec.layer < 0 || spec.layer == layers || spec.layer == 1;
}

void ExpectDerivatives(const ModelRun& run) {
  const ModelGradients gradients = RunModel(run);
  for (size_t t = 0; t < gradients.tensors.size(); ++t) {
    const TensorSpec& spec = gradients.tensors[t];
    if (!IsChosen(spec, run.model.layers)) continue;
    const auto tensor = static_cast<int64_t>(t);
    for (const int64_t element : Chosen(gradients.values[t], tensor)) {
      const double gradient = gradients.values[t][static_cast<size_t>(element)];
      const double difference = Difference(run, tensor, element);
      EXPECT_NEAR(gradient, difference, 1e-5 + 5e-4 * std::abs(gradient))
          << spec.name << '[' << element << ']';
    }
  }
}

TEST(FiniteDifference, Rope) { ExpectDerivatives({.shards = 2}); }

TEST(FiniteDifference, NoPositions) {
  ModelRun run{.shards = 2};
  run.model.position = "none";
  ExpectDerivatives(run);
}

// Else the two tests above could be of one model.
TEST(FiniteDifference, PositionsMatter) {
  ModelRun rope{.shards = 1}, none{.shards = 1};
  none.model.position = "none";
  EXPECT_NE(RunModel(rope).loss, RunModel(none).loss);
}

}  // namespace
}  // namespace perdure
