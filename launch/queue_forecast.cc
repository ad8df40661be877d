#include "launch/queue_forecast.h"

#include <algorithm>
#include <cmath>

#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/train/memory_estimate.h"
#include "runtime/train/pipeline.h"

namespace perdure {
namespace {

int64_t DivCeil(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool IsSuchAJob(const QueueWait& wait, int64_t nodes, absl::Duration limit) {
  return 3 * wait.nodes >= 2 * nodes && 2 * wait.nodes <= 3 * nodes &&
         2 * wait.time_limit >= limit && wait.time_limit <= 2 * limit;
}

// The least of which a share of `sorted` is not above.
absl::Duration Quantile(const std::vector<absl::Duration>& sorted, double share) {
  const auto rank = static_cast<int64_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[static_cast<size_t>(std::clamp<int64_t>(rank - 1, 0, std::ssize(sorted) - 1))];
}

}  // namespace

double StepPasses(const RunConfig& config, int64_t replicas, int64_t batch) {
  return static_cast<double>(ReplicaMicroBatches(config.numerics, replicas, batch)) +
         static_cast<double>(config.layout.pipeline - 1) /
             static_cast<double>(config.layout.virtual_stages);
}

absl::StatusOr<std::vector<JobSize>> UsefulSizes(const RunConfig& config, const NodeRange& range,
                                                 int64_t batch) {
  const int64_t replica = config.layout.tensor * config.layout.pipeline;
  const int64_t per_node = config.job.ranks_per_node;
  const int64_t leaves = LeavesOf(config.numerics, batch);
  // Tells what fits instead.
  RETURN_IF_ERROR(ResolveLayout(config, range.most * per_node).status());
  int64_t least = std::max<int64_t>(1, range.least * per_node / replica);
  int64_t most = std::min(range.most * per_node / replica, leaves);
  if (config.layout.data > 0) least = most = config.layout.data;
  std::vector<JobSize> sizes;
  for (int64_t replicas = std::min(least, most); replicas <= most; ++replicas) {
    const int64_t rounds = DivCeil(leaves, replicas);
    if (!sizes.empty() && rounds == sizes.back().rounds) continue;
    sizes.push_back(
        {.nodes = std::max(range.least, DivCeil(replicas * replica, per_node)) + config.job.spares,
         .replicas = replicas,
         .rounds = rounds,
         .passes = StepPasses(config, replicas, batch)});
  }
  return sizes;
}

std::vector<SizeForecast> ForecastSizes(const std::vector<JobSize>& sizes,
                                        const std::vector<QueueWait>& waits,
                                        const QueueForecastOptions& options) {
  const absl::Duration works = options.time_limit - options.overhead;
  PERDURE_CHECK(works > absl::ZeroDuration());
  PERDURE_CHECK(options.steps_left > 0);
  std::vector<SizeForecast> forecasts;
  SizeForecast* best = nullptr;
  forecasts.reserve(sizes.size());
  for (const JobSize& size : sizes) {
    SizeForecast& forecast = forecasts.emplace_back(SizeForecast{.size = size});
    forecast.step_seconds = options.seconds_per_pass * size.passes;
    forecast.steps_per_job =
        static_cast<int64_t>(absl::ToDoubleSeconds(works) / forecast.step_seconds);
    std::vector<absl::Duration> waited;
    for (const QueueWait& wait : waits)
      if (IsSuchAJob(wait, size.nodes, options.time_limit)) waited.push_back(wait.waited);
    forecast.jobs_behind = std::ssize(waited);
    if (waited.empty() || forecast.steps_per_job == 0) continue;
    std::sort(waited.begin(), waited.end());
    SizeForecast::Estimate estimate{.wait_median = Quantile(waited, 0.5),
                                    .wait_90 = Quantile(waited, 0.9)};
    const double hours = absl::ToDoubleHours(estimate.wait_median + options.time_limit);
    estimate.steps_per_day = static_cast<double>(forecast.steps_per_job) * 24 / hours;
    estimate.jobs = DivCeil(options.steps_left, forecast.steps_per_job);
    // The last job ends with the last step.
    const double running =
        static_cast<double>(options.steps_left) * forecast.step_seconds / 3600 +
        static_cast<double>(estimate.jobs) * absl::ToDoubleHours(options.overhead);
    estimate.days =
        (static_cast<double>(estimate.jobs) * absl::ToDoubleHours(estimate.wait_median) + running) /
        24;
    estimate.gpu_hours = running * static_cast<double>(size.nodes * options.gpus_per_node);
    forecast.estimate = estimate;
    if (forecast.jobs_behind >= kJobsBehindMin &&
        (best == nullptr || estimate.days < best->estimate->days))
      best = &forecast;
  }
  if (best != nullptr) best->best = true;
  return forecasts;
}

}  // namespace perdure
