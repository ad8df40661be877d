// `perdure plan --queue`: the scheduler's history and a run's own steps, weighed against each other
// for each size of job that the run could ask for.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "launch/slurm/scheduler.h"
#include "runtime/train/run_config.h"

namespace perdure {

struct PlanQueueOptions {
  std::string run_directory;  // Where the run has its chain and loss.csv; empty: it has none yet.
  int64_t days = 30;          // Of history.
  double step_seconds = 0;    // On the most nodes that the phase may have; 0: from loss.csv.
  absl::Duration overhead = absl::Minutes(5);  // Of a job, without steps.
  bool json = false;
};

// The phase that the run is in, or its first one. Text, or one JSON object. REQUIRES: a validated
// configuration. Where neither the scheduler nor the run's own chain knows how long jobs have
// waited, or nobody says what a step takes: FailedPrecondition, which says what to do.
absl::StatusOr<std::string> PlanQueue(const RunConfig& config, const PlanQueueOptions& options,
                                      Scheduler* scheduler);

}  // namespace perdure
