#include "runtime/train/schedule_math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

namespace perdure {
namespace {

BatchConfig LucieRamp() {
  return {.initial = 256, .increment = 64, .ramp_samples = 10'000'000, .final = 1024};
}

PhaseConfig Phase(int64_t samples, int64_t context, BatchConfig batch) {
  PhaseConfig phase;
  phase.samples = samples;
  phase.context = context;
  phase.batch = batch;
  phase.rate = {.peak = 1e-3};
  return phase;
}

RunConfig RunOf(std::vector<PhaseConfig> phases) {
  RunConfig config;
  config.phases = std::move(phases);
  return config;
}

RunConfig Lucie() {
  RunConfig config =
      RunOf({Phase(762'144'586, 4096, LucieRamp()), Phase(156'250, 32'000, {.final = 128}),
             Phase(156'250, 32'000, {.final = 128})});
  config.phases[0].rate = {3e-4, 3e-5, 2'000'000, "cosine"};
  config.phases[1].rate = {.peak = 2e-5};
  config.phases[2].rate = {2e-5, 0, 0, "linear"};
  return config;
}

// Megatron's calculator, transcribed.
int64_t MegatronBatch(const BatchConfig& b, int64_t consumed) {
  const double per_increment = static_cast<double>(b.ramp_samples) /
                               static_cast<double>((b.final - b.initial) / b.increment);
  if (consumed > b.ramp_samples) return b.final;
  return b.initial +
         b.increment * static_cast<int64_t>(static_cast<double>(consumed) / per_increment);
}

TEST(BatchAt, LucieBoundaries) {
  const BatchConfig ramp = LucieRamp();
  EXPECT_EQ(BatchAt(ramp, 0), 256);
  EXPECT_EQ(BatchAt(ramp, 833'333), 256);
  EXPECT_EQ(BatchAt(ramp, 833'334), 320);
  EXPECT_EQ(BatchAt(ramp, 2'499'999), 384);
  EXPECT_EQ(BatchAt(ramp, 2'500'000), MegatronBatch(ramp, 2'500'000));
  EXPECT_EQ(BatchAt(ramp, 9'999'999), 960);
  EXPECT_EQ(BatchAt(ramp, 10'000'000), 1024);
  EXPECT_EQ(BatchAt(ramp, 10'000'001), 1024);
  EXPECT_EQ(BatchAt(ramp, int64_t{1} << 50), 1024);
}

TEST(BatchAt, NoRampIsConstant) {
  EXPECT_EQ(BatchAt({.final = 128}, 0), 128);
  EXPECT_EQ(BatchAt({.final = 128}, 1'000'000), 128);
}

TEST(BatchAt, AgreesWithMegatronOnEveryBoundary) {
  for (const BatchConfig& ramp :
       {LucieRamp(), BatchConfig{8, 8, 1000, 64}, BatchConfig{1, 1, 997, 50},
        BatchConfig{16, 16, 640, 48}, BatchConfig{2, 6, 10, 20}}) {
    for (int64_t k = 0; k <= (ramp.final - ramp.initial) / ramp.increment; ++k) {
      const int64_t boundary = k * ramp.ramp_samples * ramp.increment / (ramp.final - ramp.initial);
      for (int64_t at = std::max<int64_t>(0, boundary - 2); at <= boundary + 2; ++at)
        EXPECT_EQ(BatchAt(ramp, at), std::min(ramp.final, MegatronBatch(ramp, at))) << at;
    }
  }
}

TEST(PlanPhases, LucieIsTheModelCard) {
  const std::vector<PhasePlan> plans = PlanPhases(Lucie());
  ASSERT_EQ(plans.size(), 3);
  EXPECT_EQ(plans[0].steps, 753'851);
  EXPECT_EQ(plans[0].samples, 762'144'064);
  EXPECT_EQ(plans[0].batch_initial, 256);
  EXPECT_EQ(plans[0].batch_final, 1024);
  EXPECT_EQ(plans[1].steps, 1'220);
  EXPECT_EQ(plans[1].first_step, 753'851);
  EXPECT_EQ(plans[1].first_sample, 762'144'064);
  EXPECT_EQ(plans[2].first_step, 755'071);
  EXPECT_EQ(plans[2].tokens, int64_t{1'220} * 128 * 32'000);
  const StepSchedule schedule(Lucie());
  EXPECT_EQ(schedule.steps(), 756'291);
  EXPECT_EQ(schedule.tokens(), 3'131'736'326'144);
  EXPECT_EQ(schedule.samples(), 762'144'064 + 2 * 1'220 * 128);
}

TEST(StepSchedule, WalkingStepByStepAgrees) {
  const std::vector<BatchConfig> batches = {
      {.final = 7},       {16, 16, 640, 48}, {1, 1, 997, 50},
      {2, 6, 10, 20},     {10, 90, 5, 1000},  // Ramp shorter than a step: increments are skipped.
      {100, 1, 100, 101},
  };
  for (const BatchConfig& batch : batches) {
    for (const int64_t samples : {1000, 1001, 2999, 4096}) {
      const RunConfig config = RunOf({Phase(samples, 16, batch), Phase(100, 32, {.final = 3})});
      const StepSchedule schedule(config);
      int64_t step = 0;
      int64_t consumed = 0;
      while (consumed + BatchAt(batch, consumed) <= samples) {
        const int64_t now = BatchAt(batch, consumed);
        const StepInfo info = schedule.At(step);
        ASSERT_EQ(info.batch, now) << step;
        ASSERT_EQ(info.phase, 0);
        ASSERT_EQ(info.phase_step, step);
        ASSERT_EQ(info.phase_sample, consumed);
        ASSERT_EQ(info.first_sample, consumed);
        ASSERT_EQ(info.context, 16);
        consumed += now;
        ++step;
        const Consumed after = schedule.After(step);
        ASSERT_EQ(after, (Consumed{.samples = consumed, .tokens = consumed * 16, .phase = 0}));
        ASSERT_EQ(info.ends_phase, consumed + BatchAt(batch, consumed) > samples);
      }
      ASSERT_EQ(schedule.phases()[0].steps, step);
      ASSERT_EQ(schedule.phases()[0].samples, consumed);
      ASSERT_EQ(schedule.phases()[0].batch_final, schedule.At(step - 1).batch);
      ASSERT_EQ(schedule.steps(), step + 33);
      ASSERT_EQ(schedule.After(0), Consumed());
      ASSERT_EQ(schedule.After(step + 2),
                (Consumed{.samples = consumed + 6, .tokens = consumed * 16 + 6 * 32, .phase = 1}));
      const StepInfo second = schedule.At(step);
      EXPECT_EQ(second.phase, 1);
      EXPECT_EQ(second.phase_step, 0);
      EXPECT_EQ(second.first_sample, consumed);
      EXPECT_EQ(second.phase_sample, 0);
      EXPECT_EQ(second.context, 32);
    }
  }
}

TEST(StepSchedule, LastStepOfLucie) {
  const StepSchedule schedule(Lucie());
  const StepInfo last = schedule.At(756'290);
  EXPECT_EQ(last.phase, 2);
  EXPECT_EQ(last.phase_step, 1'219);
  EXPECT_TRUE(last.ends_phase);
  EXPECT_EQ(last.phase_sample, 1'219 * 128);
  EXPECT_EQ(schedule.At(753'850).phase, 0);
  EXPECT_TRUE(schedule.At(753'850).ends_phase);
  EXPECT_EQ(schedule.At(753'851).phase, 1);
}

TEST(StepSchedule, LargestRunsDoNotOverflow) {
  const int64_t samples = int64_t{1} << 50;
  const StepSchedule schedule(RunOf({Phase(
      samples, 2048, {.initial = 1, .increment = 1, .ramp_samples = samples, .final = 1025})}));
  EXPECT_EQ(schedule.tokens() / 2048, schedule.samples());
  EXPECT_LE(schedule.samples(), samples);
  EXPECT_GT(schedule.samples(), samples - 1025);
  EXPECT_EQ(schedule.At(schedule.steps() - 1).batch, 1024);
}

TEST(RateAt, WarmUpIsLinearFromZero) {
  const RateConfig rate{3e-4, 3e-5, 2'000'000, "cosine"};
  EXPECT_EQ(RateAt(rate, 0, 762'144'586), 0);
  EXPECT_DOUBLE_EQ(RateAt(rate, 256, 762'144'586), 3e-4 * 256 / 2e6);
  EXPECT_DOUBLE_EQ(RateAt(rate, 1'000'000, 762'144'586), 1.5e-4);
  EXPECT_EQ(RateAt(rate, 2'000'000, 762'144'586), 3e-4);
}

TEST(RateAt, CosineByHand) {
  const RateConfig rate{1.0, 0.1, 100, "cosine"};
  // Thirds, halves and quarters of the 1200 samples behind the warm-up.
  EXPECT_NEAR(RateAt(rate, 100 + 300, 1300), 0.1 + 0.9 * 0.5 * (1 + std::sqrt(0.5)), 1e-15);
  EXPECT_NEAR(RateAt(rate, 100 + 400, 1300), 0.1 + 0.9 * 0.75, 1e-15);
  EXPECT_NEAR(RateAt(rate, 100 + 600, 1300), 0.1 + 0.9 * 0.5, 1e-15);
  EXPECT_NEAR(RateAt(rate, 100 + 800, 1300), 0.1 + 0.9 * 0.25, 1e-15);
  EXPECT_NEAR(RateAt(rate, 100 + 900, 1300), 0.1 + 0.9 * 0.5 * (1 - std::sqrt(0.5)), 1e-15);
  EXPECT_EQ(RateAt(rate, 1300, 1300), 0.1);
  EXPECT_EQ(RateAt(rate, 9999, 1300), 0.1);
}

TEST(RateAt, CosineAgreesWithLibm) {
  const RateConfig rate{2.0, 0, 0, "cosine"};
  for (int64_t at = 0; at <= 10'000; ++at) {
    const double ratio = static_cast<double>(at) / 10'000;
    ASSERT_NEAR(RateAt(rate, at, 10'000), 1 + std::cos(std::numbers::pi * ratio), 4e-16) << at;
  }
}

TEST(RateAt, LinearAndConstant) {
  const RateConfig linear{1e-3, 2e-4, 10, "linear"};
  EXPECT_DOUBLE_EQ(RateAt(linear, 5, 110), 5e-4);
  EXPECT_DOUBLE_EQ(RateAt(linear, 60, 110), 6e-4);
  EXPECT_EQ(RateAt(linear, 110, 110), 2e-4);
  const RateConfig constant{2e-5, 0, 0, "constant"};
  EXPECT_EQ(RateAt(constant, 0, 100), 2e-5);
  EXPECT_EQ(RateAt(constant, 100, 100), 2e-5);
  EXPECT_EQ(RateAt(constant, 1000, 100), 2e-5);
}

TEST(RateAt, AStepTakesTheRateOfItsEnd) {
  const StepSchedule schedule(Lucie());
  EXPECT_DOUBLE_EQ(schedule.At(0).rate, 3e-4 * 256 / 2e6);
  EXPECT_GT(schedule.At(0).rate, 0);
  EXPECT_EQ(schedule.At(753'851).rate, 2e-5);
  EXPECT_NEAR(schedule.At(756'290).rate, 2e-5 * (156'250 - 1'220 * 128) / 156'250, 1e-20);
}

}  // namespace
}  // namespace perdure
