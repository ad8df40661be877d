#include "runtime/train/judge_step.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

bool Finite(const StepNumbers& step) {
  return std::isfinite(step.loss) && std::isfinite(step.grad_norm);
}

bool Bad(const IntegrityConfig& config, const StepNumbers& step) {
  return !Finite(step) || (config.grad_norm_max > 0 && step.grad_norm > config.grad_norm_max);
}

}  // namespace

StepDecision JudgeStep(const IntegrityConfig& config, const StepNumbers& step) {
  if (!Bad(config, step)) return StepDecision::kTake;
  if (config.bad_step == "skip") return StepDecision::kSkip;
  return config.bad_step == "rollback" ? StepDecision::kGoBack : StepDecision::kStop;
}

bool LooksOdd(const IntegrityConfig& config, std::span<const StepNumbers> before,
              const StepNumbers& step) {
  if (Bad(config, step)) return true;
  if (config.spike <= 0 || before.size() < kOddStepsMin) return false;
  std::vector<double> norms;
  double least = before.front().loss, most = least;
  for (const StepNumbers& taken : before) {
    norms.push_back(taken.grad_norm);
    least = std::min(least, taken.loss);
    most = std::max(most, taken.loss);
  }
  const auto middle = norms.begin() + static_cast<int64_t>(norms.size() / 2);
  std::nth_element(norms.begin(), middle, norms.end());
  return step.grad_norm > config.spike * *middle ||
         step.loss > most + config.spike * (most - least);
}

std::string WhyBad(const IntegrityConfig& config, const StepNumbers& step) {
  PERDURE_CHECK(Bad(config, step));
  if (!Finite(step))
    return fmt::format("loss {} and gradient norm {} are not both finite", step.loss,
                       step.grad_norm);
  return fmt::format("gradient norm {} is above integrity.grad_norm_max = {}", step.grad_norm,
                     config.grad_norm_max);
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
        "step "
        "{}: other samples do not help",
        gaps.size(), gap.number - 1, gaps.empty() ? 0 : gaps.back().bad_step,
        gaps.empty() ? 0 : gaps.back().first_step);
  return gap;
}

}  // namespace perdure
