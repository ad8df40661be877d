// What the coordinator's agent knows of its run beside the files: for the metrics endpoint.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "monitoring/run_metrics.h"
#include "runtime/control/coordinator.h"
#include "runtime/train/run_config.h"

namespace perdure {

// `state` as in status.json; `names` of the job's nodes, empty: they have none; `job_ends` by the
// wall clock, infinite: never.
LiveFacts LiveFactsOf(const Coordinator& lead, const RunConfig& config, const std::string& state,
                      const std::vector<std::string>& names, int64_t nodes_of_job,
                      absl::Time job_ends);

}  // namespace perdure
