// What a run's configuration asks of the layouts of a job.
#pragma once

#include <cstdint>

#include "runtime/control/layout_planner.h"
#include "runtime/train/run_config.h"

namespace perdure {

// For a job of `nodes` nodes that goes on at `step`: of the batch that is due then, more replicas
// than it has leaves would have nothing to do.
LayoutRule LayoutRuleOf(const RunConfig& config, int64_t step, int64_t nodes,
                        int64_t ranks_per_node);

}  // namespace perdure
