#include "runtime/train/mesh.h"

#include <algorithm>

namespace perdure {

std::vector<int> Mesh::TensorGroup(MeshPoint at) const {
  std::vector<int> ranks;
  for (at.tensor = 0; at.tensor < tensor_; ++at.tensor) ranks.push_back(Rank(at));
  return ranks;
}

std::vector<int> Mesh::DataGroup(MeshPoint at) const {
  std::vector<int> ranks;
  for (at.data = 0; at.data < data_; ++at.data) ranks.push_back(Rank(at));
  return ranks;
}

std::vector<int> Mesh::PipelineGroup(MeshPoint at) const {
  std::vector<int> ranks;
  for (at.pipeline = 0; at.pipeline < pipeline_; ++at.pipeline) ranks.push_back(Rank(at));
  return ranks;
}

std::vector<int64_t> LayersOfStage(int64_t layers, int64_t stages, int64_t stage) {
  const int64_t each = layers / stages, more = layers % stages;
  const int64_t first = stage * each + std::min(stage, more);
  const int64_t last = first + each + (stage < more ? 1 : 0);
  std::vector<int64_t> result;
  if (stage == 0) result.push_back(-1);
  for (int64_t layer = first; layer < last; ++layer) result.push_back(layer);
  if (stage == stages - 1) result.push_back(layers);
  return result;
}

std::vector<int64_t> LayersOfRank(int64_t layers, const LayoutConfig& layout, int pipeline) {
  std::vector<int64_t> result;
  const int64_t stages = layout.pipeline * layout.virtual_stages;
  for (int64_t chunk = 0; chunk < layout.virtual_stages; ++chunk) {
    const std::vector<int64_t> more =
        LayersOfStage(layers, stages, chunk * layout.pipeline + pipeline);
    result.insert(result.end(), more.begin(), more.end());
  }
  return result;
}

}  // namespace perdure
