// From phases to steps: how many samples each step takes, of which phase it is, and its learning
// rate.
//
// Everything is a pure function of the configuration and counts of samples, so that a run resumed
// anywhere goes on with the same steps. Arithmetic is plain IEEE double without libm, hence the
// same on every machine. Samples are counted within a phase unless a name says otherwise.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/base/gaps.h"
#include "runtime/train/run_config.h"

namespace perdure {

// Samples of the step that starts when `consumed` samples of the phase are done. As Megatron's
// --rampup-batch-size: initial + increment * floor(consumed / (ramp_samples / increments)), with
// both divisions in double, at most `final`. REQUIRES: a validated batch, consumed >= 0.
int64_t BatchAt(const BatchConfig& batch, int64_t consumed);

// The rate of the step that ends when `consumed` samples of the phase are done: the END of the
// step, so that the first step of a warm-up is not taken at rate 0. Linear from 0 to `peak` over
// warmup_samples, then `decay` from there to `final` at phase_samples (the configured number, as
// --lr-decay-samples), and `final` beyond.
double RateAt(const RateConfig& rate, int64_t consumed, int64_t phase_samples);

// What a phase amounts to when only whole steps are taken.
struct PhasePlan {
  int64_t steps = 0;
  int64_t samples = 0;
  int64_t tokens = 0;
  int64_t first_step = 0;    // Of the run.
  int64_t first_sample = 0;  // Of the run.
  int64_t batch_initial = 0;
  int64_t batch_final = 0;  // Of the last step.

  friend bool operator==(const PhasePlan&, const PhasePlan&) = default;
};

// One per phase, in O(increments of the ramps). REQUIRES: ValidateConfig accepts the phases (which
// bounds the counts, too).
std::vector<PhasePlan> PlanPhases(const RunConfig& config);

struct StepInfo {
  int64_t step = 0;          // Of the run.
  int phase = 0;             // Index in RunConfig::phases.
  int64_t phase_step = 0;    // Within the phase.
  int64_t first_sample = 0;  // Of the run: samples that it has trained on before this step.
  int64_t phase_sample = 0;  // Within the phase: samples before this step, left out ones too.
  int64_t batch = 0;
  int64_t context = 0;
  double rate = 0;
  bool ends_phase = false;
};

// What a run has trained on. What it has left out does not count.
struct Consumed {
  int64_t samples = 0;
  int64_t tokens = 0;
  int phase = 0;  // Of the last step.

  friend bool operator==(const Consumed&, const Consumed&) = default;
};

// The steps of a run. Gaps change which samples a step sees, and nothing else: batch and rate
// follow from what was trained on. Immutable; any thread.
class StepSchedule {
 public:
  explicit StepSchedule(const RunConfig& config, Gaps gaps = {});

  const Gaps& gaps() const { return gaps_; }

  const std::vector<PhasePlan>& phases() const { return plans_; }
  int64_t steps() const;
  int64_t samples() const;
  int64_t tokens() const;

  // REQUIRES: 0 <= step < steps().
  StepInfo At(int64_t step) const;
  // By its first `steps` steps. REQUIRES: 0 <= steps <= steps().
  Consumed After(int64_t steps) const;

 private:
  // A run of steps of one size.
  struct Segment {
    int phase = 0;
    int64_t first_step = 0;    // Of the run.
    int64_t phase_sample = 0;  // Before its first step.
    int64_t batch = 0;
  };

  std::vector<PhaseConfig> phases_;
  std::vector<PhasePlan> plans_;
  std::vector<Segment> segments_;  // Ordered by first_step.
  Gaps gaps_;
};

}  // namespace perdure
