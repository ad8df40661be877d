// Runs a whole model through model::Stage in memory: one leaf forward and backward, cut into
// pipeline stages and tensor ranks (threads) as asked, over weights given by a formula.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "model/config.h"
#include "runtime/base/atoms.h"
#include "tests/backends.h"

namespace perdure {

// The formulas of tests/golden/make_model_golden.py.
uint32_t Mix(uint32_t stream, uint32_t element);
// A multiple of 2^-20 in [-0.25, 0.25).
float Value(int64_t tensor, int64_t element);

// The model of tests/golden/model_llama.txt: three blocks, two query heads a key head, 101 words.
ModelConfig GoldenModel();

struct ModelRun {
  Backend backend = Backend::kCpu;  // Tensor ranks share its one device.
  ModelConfig model = GoldenModel();
  DType dtype = DType::kF32;
  int64_t shards = 1;
  int64_t tensor_ranks = 1;
  // Layers of each pipeline stage (-1: embedding, model.layers: head); empty: one stage.
  std::vector<std::vector<int64_t>> stages;
  int64_t samples = 2;
  int64_t context = 24;
  int64_t micro_batch = 1;
  bool recompute = false;
  // Element `element` of logical tensor `tensor`, row-major; the golden model's unless set.
  std::function<float(const TensorSpec& spec, int64_t tensor, int64_t element)> weight;
};

float GoldenWeight(const TensorSpec& spec, int64_t tensor, int64_t element);

struct ModelGradients {
  double loss = 0;  // Mean over tokens.
  std::vector<TensorSpec> tensors;
  std::vector<std::vector<float>> values;  // [tensor], row-major as the logical tensor.
};

// Fails the test (and leaves loss NaN) if a stage breaks a rule of model/access.h, if an element of
// the gradient is missing, or if tensor ranks disagree about what they share.
ModelGradients RunModel(const ModelRun& run);

// Expects the same bits.
void ExpectSame(const ModelGradients& got, const ModelGradients& expected);

// Expects the loss within `loss`, and of each tensor's gradient the error's norm within `gradient`
// of the expected norm, both relative.
void ExpectClose(const ModelGradients& got, const ModelGradients& expected, double loss,
                 double gradient);

}  // namespace perdure
