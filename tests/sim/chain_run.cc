#include <algorithm>

#include "launch/queue_forecast.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "tests/sim/chain_world.h"

namespace perdure::sim {

ChainRun::ChainRun(const ChainOptions& options) : options_(options), schedule_(options.config) {
  const absl::StatusOr<RunForecast> run = ForecastRun(options.config, {});
  PERDURE_CHECK(run.ok());
  phases_ = run->phases;
}

size_t ChainRun::PhaseOf(int64_t step) const {
  size_t phase = phases_.size() - 1;
  while (phase > 0 && schedule_.phases()[phase].first_step > step) --phase;
  return phase;
}

int64_t ChainRun::PhaseEnd(int64_t step) const {
  const size_t phase = PhaseOf(step);
  return phase + 1 < phases_.size() ? schedule_.phases()[phase + 1].first_step : steps();
}

double ChainRun::WholeGpus(int64_t step) const {
  return static_cast<double>(phases_[PhaseOf(step)].layout.ranks());
}

int64_t ChainRun::WholeNodes(int64_t step) const {
  const int64_t per_node = config().job.ranks_per_node;
  return (phases_[PhaseOf(step)].layout.ranks() + per_node - 1) / per_node;
}

absl::Duration ChainRun::StepTime(const ChainDraws& draws, int64_t step) const {
  return draws.Step(step, PhaseOf(step) > 0);
}

absl::Duration ChainRun::TimeOn(int64_t replicas, int64_t step, absl::Duration whole) const {
  const int64_t wanted = phases_[PhaseOf(step)].layout.data;
  if (replicas == wanted) return whole;
  const int64_t batch = schedule_.At(step).batch;
  return whole * (StepPasses(config(), replicas, batch) / StepPasses(config(), wanted, batch));
}

// ---- CountedLine

void CountedLine::Took(int64_t step, double productive, double idle) {
  if (step != next() && wrong_.empty())
    wrong_ = fmt::format("step {} was taken where {} was next", step, next());
  behind_.push_back({.step = step, .productive = productive, .idle = idle});
}

GpuHours CountedLine::Commit(int64_t step) {
  GpuHours hours;
  const auto kept = std::find_if(behind_.begin(), behind_.end(),
                                 [&](const Step& each) { return each.step >= step; });
  for (auto each = behind_.begin(); each != kept; ++each) {
    hours.productive += each->productive;
    hours.idle += each->idle;
    if (each->step >= std::ssize(taken_))
      wrong_ = fmt::format("step {} is behind the run's end", each->step);
    else
      ++taken_[static_cast<size_t>(each->step)];
  }
  behind_.erase(behind_.begin(), kept);
  committed_ = std::max(committed_, step);
  return hours;
}

GpuHours CountedLine::Lose() {
  GpuHours hours;
  for (const Step& each : behind_) hours.redone += each.productive + each.idle;
  behind_.clear();
  return hours;
}

std::string CountedLine::Check() const {
  if (!wrong_.empty()) return wrong_;
  for (size_t step = 0; step < taken_.size(); ++step)
    if (taken_[step] != 1) return fmt::format("step {} was taken {} times", step, taken_[step]);
  return "";
}

}  // namespace perdure::sim
