#include "runtime/train/step_report.h"

namespace perdure {

StepReport PlannedReport(const StepSchedule& schedule, int64_t step) {
  const StepInfo info = schedule.At(step - 1);
  const Consumed consumed = schedule.After(step);
  StepReport report;
  report.step = step;
  report.phase = info.phase;
  report.samples = consumed.samples;
  report.tokens = consumed.tokens;
  report.step_tokens = info.batch * info.context;
  report.rate = info.rate;
  report.batch = info.batch;
  report.context = info.context;
  report.first_sample = info.phase_sample;
  return report;
}

}  // namespace perdure
