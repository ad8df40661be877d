#include "launch/layout_rule.h"

#include <algorithm>

#include "runtime/train/pipeline.h"
#include "runtime/train/schedule_math.h"

namespace perdure {
namespace {

// For nodes that do not come: then the job ends, and the chain goes on.
constexpr absl::Duration kWaitForNodes = absl::Minutes(10);
// Growing costs a new generation: nodes that came must have stayed for so long.
constexpr absl::Duration kGrowAfter = absl::Seconds(5);

}  // namespace

LayoutRule LayoutRuleOf(const RunConfig& config, int64_t step, int64_t nodes,
                        int64_t ranks_per_node) {
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
