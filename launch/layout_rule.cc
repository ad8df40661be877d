#include "launch/layout_rule.h"

#include <algorithm>

#include "runtime/train/pipeline.h"
#include "runtime/train/plan.h"
#include "runtime/train/schedule_math.h"

namespace perdure {
namespace {

// For nodes that do not come: then the job ends, and the chain goes on.
constexpr absl::Duration kWaitForNodes = absl::Minutes(10);
// Growing costs a new generation: nodes that came must have stayed for so long.
constexpr absl::Duration kGrowAfter = absl::Seconds(5);
// And costs a trainer that is not ours a save, a start and a load.
constexpr absl::Duration kForeignGrowAfter = absl::Minutes(5);

// Of a trainer that is not ours: whole nodes, as many as job.nodes says. Where that is one number
// the trainer need not be able to go on with fewer.
LayoutRule ForeignRule(const RunConfig& config, int64_t nodes, int64_t ranks_per_node) {
  const absl::StatusOr<NodeRange> range = ParseNodeRange(config.job.nodes);
  const int64_t most = std::max<int64_t>(1, nodes - config.job.spares);
  const bool fixed = !range.ok() || range->least == range->most;
  const int64_t least = fixed ? most : std::min<int64_t>(range->least, most);
  return {.tensor = static_cast<int32_t>(ranks_per_node),
          .pipeline = 1,
          .data = static_cast<int32_t>(most),
          .data_min = static_cast<int32_t>(least),
          .leaves = static_cast<int32_t>(most),
          .spares = static_cast<int32_t>(config.job.spares),
          .nodes_max = static_cast<int32_t>(nodes),
          .ranks_per_node = static_cast<int32_t>(ranks_per_node),
          .grow_after = kForeignGrowAfter,
          .wait_max = kWaitForNodes};
}

}  // namespace

LayoutRule LayoutRuleOf(const RunConfig& config, int64_t step, int64_t nodes,
                        int64_t ranks_per_node) {
  if (config.foreign()) return ForeignRule(config, nodes, ranks_per_node);
  const StepSchedule schedule(config);
  const StepInfo info = schedule.At(std::clamp<int64_t>(step, 0, schedule.steps() - 1));
  return {.tensor = static_cast<int32_t>(config.layout.tensor),
          .pipeline = static_cast<int32_t>(config.layout.pipeline),
          .data = static_cast<int32_t>(config.layout.data),
          .leaves = static_cast<int32_t>(LeavesOf(config.numerics, info.batch)),
          .spares = static_cast<int32_t>(config.job.spares),
          .nodes_max = static_cast<int32_t>(nodes),
          .ranks_per_node = static_cast<int32_t>(ranks_per_node),
          .grow_after = kGrowAfter,
          .wait_max = kWaitForNodes};
}

}  // namespace perdure
