// All that Prometheus is told of a run: what RunHistory has folded from its files, over all jobs,
// and what the coordinator's agent knows besides. Names, kinds and help texts are MetricList's.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "monitoring/run_history.h"

namespace perdure {

// What only the coordinator's agent knows, and as it is now.
struct LiveFacts {
  std::string run;                              // Its name: the label of every series.
  std::map<std::string, std::string> build;     // Labels of perdure_build_info,
  std::map<std::string, std::string> run_info;  // and of perdure_run_info.
  std::vector<std::string> failure_kinds;       // That perdure_failures_total may have.
  std::string state;                            // starting, running, recovering, stopping.
  bool complete = false;
  uint64_t generation = 0;
  int64_t ranks = 0, nodes = 0, spare_nodes = 0, replicas = 0;
  int64_t steps_planned = 0;                 // 0: not known.
  std::map<std::string, double> slow_nodes;  // Of others' work, by the node's name.
  std::optional<absl::Time> job_ends;        // By the wall clock.
  // Of a trainer that is not ours, as it has said them itself.
  std::optional<int64_t> told_step;
  std::optional<double> told_loss;
  double flops_per_token = 0;  // Of the model, forward and backward, at this context; 0: not told.
  double peak_flops = 0;       // Of one rank's device, a second; 0: not known.
  std::optional<uint64_t> disk_available_bytes, disk_size_bytes, disk_available_files;
  double refresh_seconds = 0;  // What the last fold took.
  absl::Time now;
};

// In Prometheus' text format.
std::string MetricsText(const RunHistory& history, const LiveFacts& live);

}  // namespace perdure
