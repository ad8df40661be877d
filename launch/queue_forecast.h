// What size of job gets a run done soonest: how long jobs of each size have waited in the queue,
// against how fast they are once they run. Pure.
//
// The next job of a chain is queued while the one before it runs, but may start only when that one
// has ended. So a wait counts from when a job may start (what Slurm calls eligible) to when it
// does, and all of it lies between two jobs: nothing is taken off for having been queued before.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/train/plan.h"
#include "runtime/train/run_config.h"

namespace perdure {

// Of a job that has started.
struct QueueWait {
  int64_t nodes = 0;
  absl::Duration time_limit;
  absl::Duration waited;
};

// A job's size, and what a step takes on it.
struct JobSize {
  int64_t nodes = 0;  // All that are asked for, spares too.
  int64_t replicas = 0;
  int64_t rounds = 0;  // Leaves of the replica that has the most.
  double passes = 0;   // See StepPasses.
};

// Micro-batches that a rank's step lasts for, with those that its pipeline waits: what a step takes
// is in proportion to it, whatever the number of replicas.
double StepPasses(const RunConfig& config, int64_t replicas, int64_t batch);

// The sizes of `range` (of nodes that compute) worth asking for: where one more replica makes a
// step of `batch` shorter. By nodes. REQUIRES: a validated configuration. InvalidArgument: not even
// one replica fits, or not as many as layout.data asks for.
absl::StatusOr<std::vector<JobSize>> UsefulSizes(const RunConfig& config, const NodeRange& range,
                                                 int64_t batch);

struct QueueForecastOptions {
  int64_t steps_left = 0;
  absl::Duration time_limit;  // Of a job.
  absl::Duration overhead;    // Of that, without steps: starting and leaving.
  int64_t gpus_per_node = 1;
  double seconds_per_pass = 0;
};

inline constexpr int64_t kJobsBehindMin = 5;  // With fewer an estimate is none to choose by.

struct SizeForecast {
  JobSize size;
  double step_seconds = 0;
  int64_t steps_per_job = 0;
  int64_t jobs_behind = 0;  // Jobs of such a size and time limit that are known.
  bool best = false;        // The soonest, of those with kJobsBehindMin behind them.
  // Nothing: no job is behind it.
  struct Estimate {
    absl::Duration wait_median, wait_90;  // 90 % waited no longer.
    double steps_per_day = 0;             // The median wait included.
    double days = 0;                      // For all that are left, the first wait too.
    int64_t jobs = 0;
    double gpu_hours = 0;  // That they hold.
  };
  std::optional<Estimate> estimate;
};

// Jobs of two thirds to one and a half times the nodes, and of half to twice the time limit, are
// such as this one. REQUIRES: time_limit > overhead, steps_left > 0.
std::vector<SizeForecast> ForecastSizes(const std::vector<JobSize>& sizes,
                                        const std::vector<QueueWait>& waits,
                                        const QueueForecastOptions& options);

}  // namespace perdure
