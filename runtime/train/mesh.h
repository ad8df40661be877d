// Ranks as points of the mesh pipeline x data x tensor; rank = (p * D + d) * T + t, so that a
// tensor group's ranks are neighbours (one node).
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/train/run_config.h"

namespace perdure {

struct MeshPoint {
  int tensor = 0;    // t
  int data = 0;      // d: which replica.
  int pipeline = 0;  // p: which stage.
};

class Mesh {
 public:
  explicit Mesh(const LayoutConfig& layout)
      : tensor_(static_cast<int>(layout.tensor)),
        data_(static_cast<int>(layout.data)),
        pipeline_(static_cast<int>(layout.pipeline)) {}

  int tensor() const { return tensor_; }
  int data() const { return data_; }
  int pipeline() const { return pipeline_; }
  int ranks() const { return tensor_ * data_ * pipeline_; }

  int Rank(const MeshPoint& at) const {
    return (at.pipeline * data_ + at.data) * tensor_ + at.tensor;
  }
  MeshPoint At(int rank) const {
    return {.tensor = rank % tensor_,
            .data = rank / tensor_ % data_,
            .pipeline = rank / tensor_ / data_};
  }

  // The ranks that differ from `at` along one axis only, in the order of that axis.
  std::vector<int> TensorGroup(MeshPoint at) const;
  std::vector<int> DataGroup(MeshPoint at) const;
  std::vector<int> PipelineGroup(MeshPoint at) const;

 private:
  int tensor_, data_, pipeline_;
};

// Blocks of each virtual stage k = chunk * P + p: contiguous, as even as they divide, the first
// ones taking one more. The embedding (layer -1) is put before the first and the head (layer
// `layers`) behind the last.
std::vector<int64_t> LayersOfStage(int64_t layers, int64_t stages, int64_t stage);

// Those of all virtual stages of a pipeline rank, in the order of its buckets.
std::vector<int64_t> LayersOfRank(int64_t layers, const LayoutConfig& layout, int pipeline);

}  // namespace perdure
