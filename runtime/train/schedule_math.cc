#include "runtime/train/schedule_math.h"

#include <algorithm>
#include <limits>
#include <numbers>
#include <utility>

#include "runtime/base/check.h"

namespace perdure {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

int64_t CheckedProduct(int64_t a, int64_t b) {
  int64_t product = 0;
  PERDURE_CHECK(!__builtin_mul_overflow(a, b, &product));
  return product;
}

int64_t CheckedSum(int64_t a, int64_t b) {
  int64_t sum = 0;
  PERDURE_CHECK(!__builtin_add_overflow(a, b, &sum));
  return sum;
}

int64_t Increments(const BatchConfig& batch) {
  return batch.ramp_samples == 0 ? 0 : (batch.final - batch.initial) / batch.increment;
}

// Whole increments made when `consumed` samples are done. Two rounded divisions as in Megatron, so
// that a boundary falls on the same sample.
int64_t IncrementsAt(const BatchConfig& batch, int64_t consumed) {
  const int64_t increments = Increments(batch);
  if (increments == 0 || consumed > batch.ramp_samples) return increments;
  const double per_increment =
      static_cast<double>(batch.ramp_samples) / static_cast<double>(increments);
  const double made = static_cast<double>(consumed) / per_increment;
  return std::min(increments, static_cast<int64_t>(made));
}

// The least number of consumed samples at which `increments` are made; kNever for more than there
// are. The estimate can miss by the rounding of IncrementsAt, so it is walked to the exact place.
int64_t FirstSampleWith(const BatchConfig& batch, int64_t increments) {
  if (increments > Increments(batch)) return kNever;
  const auto estimate = static_cast<unsigned __int128>(batch.ramp_samples) *
                        static_cast<unsigned __int128>(increments) /
                        static_cast<unsigned __int128>(Increments(batch));
  int64_t consumed = static_cast<int64_t>(estimate);
  while (consumed > 0 && IncrementsAt(batch, consumed - 1) >= increments) --consumed;
  while (IncrementsAt(batch, consumed) < increments) ++consumed;
  return consumed;
}

// sin and cos for |x| <= pi / 4 by their series; the next term is below 1e-17.
double SmallSin(double x) {
  const double y = x * x;
  double sum = 1;
  for (double n = 16; n >= 2; n -= 2) sum = 1 - y / (n * (n + 1)) * sum;
  return x * sum;
}

double SmallCos(double x) {
  const double y = x * x;
  double sum = 1;
  for (double n = 17; n >= 1; n -= 2) sum = 1 - y / (n * (n + 1)) * sum;
  return sum;
}

// cos(pi x) for 0 <= x <= 1. Not libm's: its last bit depends on the library and the processor.
double CosPi(double x) {
  if (x > 0.5) return -CosPi(1 - x);
  if (x > 0.25) return SmallSin(std::numbers::pi * (0.5 - x));
  return SmallCos(std::numbers::pi * x);
}

// Calls visit(steps, first sample of the phase, batch) for each run of steps of one size, in order.
template <typename Visit>
void ForEachSegment(const PhaseConfig& phase, Visit visit) {
  int64_t consumed = 0;
  while (true) {
    const int64_t batch = BatchAt(phase.batch, consumed);
    PERDURE_CHECK(batch > 0);
    const int64_t whole = (phase.samples - consumed) / batch;
    if (whole <= 0) return;
    const int64_t next = FirstSampleWith(phase.batch, IncrementsAt(phase.batch, consumed) + 1);
    const int64_t until_next =
        next == kNever ? whole : (next - consumed) / batch + ((next - consumed) % batch != 0);
    const int64_t steps = std::min(whole, until_next);
    visit(steps, consumed, batch);
    consumed += steps * batch;
  }
}

}  // namespace

int64_t BatchAt(const BatchConfig& batch, int64_t consumed) {
  PERDURE_CHECK(consumed >= 0);
  if (batch.ramp_samples == 0 || consumed > batch.ramp_samples) return batch.final;
  return batch.initial + batch.increment * IncrementsAt(batch, consumed);
}

double RateAt(const RateConfig& rate, int64_t consumed, int64_t phase_samples) {
  if (rate.warmup_samples > 0 && consumed <= rate.warmup_samples)
    return rate.peak * static_cast<double>(consumed) / static_cast<double>(rate.warmup_samples);
  if (rate.decay == "constant") return rate.peak;
  if (consumed >= phase_samples) return rate.final;
  const double done = static_cast<double>(consumed - rate.warmup_samples) /
                      static_cast<double>(phase_samples - rate.warmup_samples);
  if (rate.decay == "linear") return rate.final + (1 - done) * (rate.peak - rate.final);
  PERDURE_CHECK(rate.decay == "cosine");
  return rate.final + 0.5 * (1 + CosPi(done)) * (rate.peak - rate.final);
}

std::vector<PhasePlan> PlanPhases(const RunConfig& config) {
  std::vector<PhasePlan> plans;
  int64_t step = 0;
  int64_t sample = 0;
  for (const PhaseConfig& phase : config.phases) {
    PhasePlan plan{.first_step = step, .first_sample = sample};
    plan.batch_initial = BatchAt(phase.batch, 0);
    plan.batch_final = plan.batch_initial;
    ForEachSegment(phase, [&](int64_t steps, int64_t first, int64_t batch) {
      plan.steps += steps;
      plan.samples = first + steps * batch;
      plan.batch_final = batch;
    });
    plan.tokens = CheckedProduct(plan.samples, phase.context);
    step = CheckedSum(step, plan.steps);
    sample = CheckedSum(sample, plan.samples);
    plans.push_back(plan);
  }
  return plans;
}

StepSchedule::StepSchedule(const RunConfig& config, Gaps gaps)
    : phases_(config.phases), plans_(PlanPhases(config)), gaps_(std::move(gaps)) {
  for (size_t i = 0; i < phases_.size(); ++i) {
    int64_t step = plans_[i].first_step;
    ForEachSegment(phases_[i], [&](int64_t steps, int64_t first, int64_t batch) {
      segments_.push_back({static_cast<int>(i), step, first, batch});
      step += steps;
    });
  }
}

int64_t StepSchedule::steps() const {
  return plans_.empty() ? 0 : plans_.back().first_step + plans_.back().steps;
}

int64_t StepSchedule::samples() const {
  return plans_.empty() ? 0 : plans_.back().first_sample + plans_.back().samples;
}

int64_t StepSchedule::tokens() const {
  int64_t tokens = 0;
  for (const PhasePlan& plan : plans_) tokens = CheckedSum(tokens, plan.tokens);
  return tokens;
}

StepInfo StepSchedule::At(int64_t step) const {
  PERDURE_CHECK(step >= 0 && step < steps());
  const auto behind =
      std::upper_bound(segments_.begin(), segments_.end(), step,
                       [](int64_t s, const Segment& g) { return s < g.first_step; });
  const Segment& segment = *std::prev(behind);
  const auto index = static_cast<size_t>(segment.phase);
  const PhaseConfig& phase = phases_[index];
  const PhasePlan& plan = plans_[index];
  const int64_t phase_sample = segment.phase_sample + (step - segment.first_step) * segment.batch;
  return {.step = step,
          .phase = segment.phase,
          .phase_step = step - plan.first_step,
          .first_sample = plan.first_sample + phase_sample,
          .phase_sample = phase_sample + SamplesLeftOut(gaps_, plan.first_step + 1, step + 1),
          .batch = segment.batch,
          .context = phase.context,
          .rate = RateAt(phase.rate, phase_sample + segment.batch, phase.samples),
          .ends_phase = step + 1 == plan.first_step + plan.steps};
}

Consumed StepSchedule::After(int64_t steps) const {
  if (steps == 0) return {};
  const StepInfo last = At(steps - 1);
  const int64_t samples = last.first_sample + last.batch;
  const int64_t of_phase = samples - plans_[static_cast<size_t>(last.phase)].first_sample;
  Consumed consumed{.samples = samples, .tokens = of_phase * last.context, .phase = last.phase};
  for (int p = 0; p < last.phase; ++p) consumed.tokens += plans_[static_cast<size_t>(p)].tokens;
  return consumed;
}

}  // namespace perdure
