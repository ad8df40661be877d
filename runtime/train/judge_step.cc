#include "runtime/train/judge_step.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

bool Finite(const StepNumbers& step) {
  return std::isfinite(step.loss) && std::isfinite(step.grad_norm);
}

// What steps before came to, in the terms in which a step stands out from them.
struct Spread {
  double median_norm = 0, least_loss = 0, most_loss = 0;
};

// None: they are too few.
std::optional<Spread> SpreadOf(std::span<const StepNumbers> before) {
  if (before.size() < kRecentStepsMin) return std::nullopt;
  Spread spread{.least_loss = before.front().loss, .most_loss = before.front().loss};
  std::vector<double> norms;
  for (const StepNumbers& taken : before) {
    norms.push_back(taken.grad_norm);
    spread.least_loss = std::min(spread.least_loss, taken.loss);
    spread.most_loss = std::max(spread.most_loss, taken.loss);
  }
  const auto middle = norms.begin() + static_cast<int64_t>(norms.size() / 2);
  std::nth_element(norms.begin(), middle, norms.end());
  spread.median_norm = *middle;
  return spread;
}

bool NormStandsOut(double limit, const Spread& spread, const StepNumbers& step) {
  return step.grad_norm > limit * spread.median_norm;
}
bool LossStandsOut(double limit, const Spread& spread, const StepNumbers& step) {
  const double above = step.loss - spread.most_loss, span = spread.most_loss - spread.least_loss;
  return above > limit * span;
}
bool StandsOut(double limit, std::span<const StepNumbers> before, const StepNumbers& step) {
  if (limit <= 0) return false;
  const std::optional<Spread> spread = SpreadOf(before);
  return spread.has_value() &&
         (NormStandsOut(limit, *spread, step) || LossStandsOut(limit, *spread, step));
}

bool NormTooLarge(const IntegrityConfig& config, const StepNumbers& step) {
  return config.grad_norm_max > 0 && step.grad_norm > config.grad_norm_max;
}

bool Bad(const IntegrityConfig& config, std::span<const StepNumbers> before,
         const StepNumbers& step) {
  return !Finite(step) || NormTooLarge(config, step) || StandsOut(config.spike_max, before, step);
}

}  // namespace

StepDecision JudgeStep(const IntegrityConfig& config, std::span<const StepNumbers> before,
                       const StepNumbers& step) {
  if (!Bad(config, before, step)) return StepDecision::kTake;
  if (config.bad_step == "skip") return StepDecision::kSkip;
  return config.bad_step == "rollback" ? StepDecision::kGoBack : StepDecision::kStop;
}

bool LooksOdd(const IntegrityConfig& config, std::span<const StepNumbers> before,
              const StepNumbers& step) {
  return Bad(config, before, step) || StandsOut(config.spike, before, step);
}

std::string WhyBad(const IntegrityConfig& config, std::span<const StepNumbers> before,
                   const StepNumbers& step) {
  PERDURE_CHECK(Bad(config, before, step));
  if (!Finite(step))
    return fmt::format("loss {} and gradient norm {} are not both finite", step.loss,
                       step.grad_norm);
  if (NormTooLarge(config, step))
    return fmt::format("gradient norm {} is above integrity.grad_norm_max = {}", step.grad_norm,
                       config.grad_norm_max);
  const Spread spread = *SpreadOf(before);
  const std::string than =
      fmt::format("more than integrity.spike_max = {} times", config.spike_max);
  if (NormStandsOut(config.spike_max, spread, step))
    return fmt::format("gradient norm {} is {} {}, the median of the {} steps before",
                       step.grad_norm, than, spread.median_norm, before.size());
  return fmt::format("loss {} is above the {} steps before by {} what those span, {} to {}",
                     step.loss, before.size(), than, spread.least_loss, spread.most_loss);
}

absl::StatusOr<Gap> GapFor(const IntegrityConfig& config, const StepSchedule& schedule,
                           const StepInfo& bad, int64_t begins) {
  const int64_t step = bad.step + 1;
  const int64_t phase_begins = schedule.phases()[static_cast<size_t>(bad.phase)].first_step;
  const int64_t first = std::max({phase_begins + 1, begins + 1, step - config.rollback_steps});
  const Gaps& gaps = schedule.gaps();
  Gap gap{.first_step = first,
          .samples = bad.phase_sample + bad.batch - schedule.At(first - 1).phase_sample,
          .bad_step = step,
          .number = 1};
  if (!gaps.empty() && step <= gaps.back().bad_step + config.rollback_steps)
    gap.number = gaps.back().number + 1;
  if (gap.number > config.rollbacks_max || gaps.size() == kGapsMax)
    return DataLoss(
        "the run has {} gaps and has gone back {} times in a row, the last time from step {} to "
        "step {}: other samples do not help",
        gaps.size(), gap.number - 1, gaps.empty() ? 0 : gaps.back().bad_step,
        gaps.empty() ? 0 : gaps.back().first_step);
  return gap;
}

}  // namespace perdure
