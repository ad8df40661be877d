// What becomes of unusual steps, who is believed, and what ranks make of each other's verdicts.
#include "runtime/train/judge_step.h"

#include <gtest/gtest.h>

#include <limits>

#include "runtime/train/audit.h"
#include "runtime/train/corruption.h"
#include "runtime/train/flip.h"

namespace perdure {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

IntegrityConfig Config(const std::string& bad_step, double grad_norm_max = 0) {
  IntegrityConfig config;
  config.bad_step = bad_step;
  config.grad_norm_max = grad_norm_max;
  return config;
}

TEST(JudgeStep, BadStepsAreWhatIsNotFiniteOrTooLarge) {
  for (const StepNumbers bad :
       {StepNumbers{kNaN, 1}, StepNumbers{1, kNaN}, StepNumbers{kInfinity, 1},
        StepNumbers{-kInfinity, 1}, StepNumbers{1, kInfinity}}) {
    EXPECT_EQ(JudgeStep(Config("stop"), {}, bad), StepDecision::kStop);
    EXPECT_EQ(JudgeStep(Config("skip"), {}, bad), StepDecision::kSkip);
    EXPECT_NE(WhyBad(Config("skip"), {}, bad).find("not both finite"), std::string::npos);
  }
  EXPECT_EQ(JudgeStep(Config("stop"), {}, {1e30, 1e30}), StepDecision::kTake);
  EXPECT_EQ(JudgeStep(Config("skip", 2), {}, {9, 2}), StepDecision::kTake);
  EXPECT_EQ(JudgeStep(Config("skip", 2), {}, {1, 2.0001}), StepDecision::kSkip);
  EXPECT_EQ(JudgeStep(Config("stop", 2), {}, {1, 2.0001}), StepDecision::kStop);
  EXPECT_EQ(WhyBad(Config("stop", 2), {}, {1, 2.5}),
            "gradient norm 2.5 is above integrity.grad_norm_max = 2");
}

TEST(JudgeStep, TheRunGoesBackForBadSteps) {
  EXPECT_EQ(JudgeStep(Config("rollback", 2), {}, {1, 2.0001}), StepDecision::kGoBack);
  EXPECT_EQ(JudgeStep(Config("rollback", 2), {}, {kNaN, 1}), StepDecision::kGoBack);
  EXPECT_EQ(JudgeStep(Config("rollback", 2), {}, {1, 2}), StepDecision::kTake);
}

// Nine steps of 4, 4, 4, 4, 10, ... samples, and then three of 6 in a phase of their own.
RunConfig TwoPhases() {
  RunConfig config;
  PhaseConfig phase;
  phase.samples = 66;
  phase.context = 16;
  phase.batch = {.initial = 4, .increment = 6, .ramp_samples = 16, .final = 10};
  config.phases.push_back(phase);
  phase.samples = 18;
  phase.batch = {.final = 6};
  config.phases.push_back(phase);
  config.integrity.bad_step = "rollback";
  config.integrity.rollback_steps = 2;
  return config;
}

// For step `step`, counted from 1, where the run has `gaps` already.
absl::StatusOr<Gap> GapOf(const RunConfig& config, int64_t step, const Gaps& gaps = {},
                          int64_t begins = 0) {
  const StepSchedule schedule(config, gaps);
  return GapFor(config.integrity, schedule, schedule.At(step - 1), begins);
}

TEST(GapFor, LeavesOutWhatWasSeenFromTheFirstStepThatIsTakenAgain) {
  const RunConfig config = TwoPhases();
  const Gap gap{.first_step = 4, .samples = 24, .bad_step = 6, .number = 1};
  EXPECT_EQ(*GapOf(config, 6), gap);
  const StepSchedule before(config), after(config, {gap});
  EXPECT_EQ(after.At(3).phase_sample, before.At(5).phase_sample + before.At(5).batch);
  for (int64_t step = 0; step < before.steps(); ++step) {
    const StepInfo a = before.At(step), b = after.At(step);
    EXPECT_EQ(b.phase_sample, a.phase_sample + (step >= 3 && a.phase == 0 ? 24 : 0)) << step;
    EXPECT_EQ(b.batch, a.batch) << step;
    EXPECT_EQ(b.rate, a.rate) << step;
    EXPECT_EQ(b.first_sample, a.first_sample) << step;
    EXPECT_EQ(b.ends_phase, a.ends_phase) << step;
    EXPECT_EQ(before.After(step), after.After(step)) << step;
  }
}

TEST(GapFor, GoesNotBeyondAPhaseNorTheBeginning) {
  RunConfig config = TwoPhases();
  config.integrity.rollback_steps = 5;
  EXPECT_EQ(GapOf(config, 3)->first_step, 1);
  EXPECT_EQ(GapOf(config, 3)->samples, 12);
  EXPECT_EQ(GapOf(config, 1)->first_step, 1);
  EXPECT_EQ(GapOf(config, 1)->samples, 4);
  EXPECT_EQ(GapOf(config, 11)->first_step, 10) << "the first of its phase";
  EXPECT_EQ(GapOf(config, 11)->samples, 12);
  EXPECT_EQ(GapOf(config, 6, {}, 5)->first_step, 6) << "what was imported";
  EXPECT_EQ(GapOf(config, 6, {}, 5)->samples, 10);
}

TEST(GapFor, OneBehindAnotherSeesWhatFollows) {
  const RunConfig config = TwoPhases();
  const Gap first = *GapOf(config, 6);
  // Before the steps that were taken again: both are one from then on.
  const absl::StatusOr<Gap> second = GapOf(config, 5, {first});
  EXPECT_EQ(*second, (Gap{.first_step = 3, .samples = 42, .bad_step = 5, .number = 2}));
  const StepSchedule schedule(config, WithGap(Gaps{first}, *second));
  EXPECT_EQ(schedule.gaps(), Gaps{*second});
  EXPECT_EQ(schedule.At(2).phase_sample, 16 + 24 + 10);
  // Behind them.
  const absl::StatusOr<Gap> third = GapOf(config, 9, {first});
  EXPECT_EQ(*third, (Gap{.first_step = 7, .samples = 30, .bad_step = 9, .number = 1}));
  const StepSchedule both(config, WithGap(Gaps{first}, *third));
  EXPECT_EQ(both.gaps().size(), 2u);
  EXPECT_EQ(both.At(6).phase_sample, 36 + 24 + 30);
}

TEST(GapFor, EndsWhereTheRunDoesNotGetOn) {
  RunConfig config = TwoPhases();
  config.integrity.rollbacks_max = 2;
  Gaps gaps = {*GapOf(config, 6)};
  gaps = WithGap(gaps, *GapOf(config, 8, gaps));
  EXPECT_EQ(gaps.back().number, 2) << "not further than it goes back";
  const absl::Status status = GapOf(config, 7, gaps).status();
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_NE(status.message().find("2 times in a row, the last time from step 8 to step 6"),
            std::string::npos)
      << status;
  EXPECT_EQ(GapOf(config, 11, gaps)->number, 1) << "it got on";
  const Gaps many(kGapsMax, {.first_step = 1, .samples = 1, .bad_step = 1, .number = 1});
  EXPECT_TRUE(absl::IsDataLoss(GapOf(config, 9, many).status()));
}

TEST(JudgeStep, OddIsWhatStandsOutOrIsBad) {
  const std::vector<StepNumbers> few(kRecentStepsMin - 1, {5, 1});
  std::vector<StepNumbers> before;
  for (int i = 0; i < 9; ++i) before.push_back({.loss = 5 + 0.1 * i, .grad_norm = 1.0 + i});
  const IntegrityConfig config = Config("stop");  // spike 10: norm above 50, loss above 13.8.
  EXPECT_FALSE(LooksOdd(config, before, {5, 50}));
  EXPECT_TRUE(LooksOdd(config, before, {5, 50.5}));
  EXPECT_FALSE(LooksOdd(config, before, {13.7, 1}));
  EXPECT_TRUE(LooksOdd(config, before, {13.9, 1}));
  EXPECT_FALSE(LooksOdd(config, before, {-100, 0}));
  EXPECT_FALSE(LooksOdd(config, few, {1000, 1000}));
  EXPECT_TRUE(LooksOdd(config, few, {kNaN, 1}));
  EXPECT_TRUE(LooksOdd(Config("stop", 3), few, {1, 4}));
  IntegrityConfig none = config;
  none.spike = 0;
  EXPECT_FALSE(LooksOdd(none, before, {1000, 1000}));
  EXPECT_TRUE(LooksOdd(none, before, {1, kInfinity}));
}

TEST(JudgeStep, SpikesAreBadWhereTheyAreSaidToBe) {
  std::vector<StepNumbers> before;
  for (int i = 0; i < 9; ++i) before.push_back({.loss = 5 + 0.5 * i, .grad_norm = 1.0 + i});
  IntegrityConfig config = Config("skip");
  EXPECT_EQ(JudgeStep(config, before, {1000, 1000}), StepDecision::kTake) << "none is bad for that";
  config.spike_max = 4;  // Norm above 20, loss above 25.
  EXPECT_EQ(JudgeStep(config, before, {25, 20}), StepDecision::kTake);
  EXPECT_EQ(JudgeStep(config, before, {25, 20.5}), StepDecision::kSkip);
  EXPECT_EQ(JudgeStep(config, before, {25.5, 20}), StepDecision::kSkip);
  EXPECT_EQ(JudgeStep(config, before, {-1000, 0}), StepDecision::kTake);
  EXPECT_EQ(WhyBad(config, before, {25.5, 20.5}),
            "gradient norm 20.5 is more than integrity.spike_max = 4 times 5, the median of the 9 "
            "steps before");
  EXPECT_EQ(WhyBad(config, before, {25.5, 20}),
            "loss 25.5 is above the 9 steps before by more than integrity.spike_max = 4 times what "
            "those span, 5 to 9");
  EXPECT_TRUE(LooksOdd(config, before, {25.5, 20})) << "before the bound of `spike`";
  const std::span<const StepNumbers> few(before.data(), kRecentStepsMin - 1);
  EXPECT_EQ(JudgeStep(config, few, {1000, 1000}), StepDecision::kTake);
  EXPECT_EQ(JudgeStep(config, few, {kNaN, 1}), StepDecision::kSkip);
}

TEST(Verdicts, WhoIsAtFaultEndsAndTheOthersWait) {
  using Kind = Verdict::Kind;
  const auto own = [](Kind kind) { return Verdict{.kind = kind, .peer = 1, .words = "words"}; };
  const auto numbers = [](std::vector<Kind> kinds) {
    return std::vector<int>(reinterpret_cast<const int*>(kinds.data()),
                            reinterpret_cast<const int*>(kinds.data() + kinds.size()));
  };
  EXPECT_TRUE(Resolve(own(Kind::kFine), numbers({Kind::kFine, Kind::kFine})).ok());
  // Who received what was wrong is at fault only where nobody says that he is.
  const auto received = numbers({Kind::kReceived, Kind::kFine});
  EXPECT_TRUE(IsCorruption(Resolve(own(Kind::kReceived), received)));
  EXPECT_TRUE(absl::IsUnavailable(Resolve(own(Kind::kFine), received)));
  const auto confessed = numbers({Kind::kReceived, Kind::kOwn, Kind::kFine});
  EXPECT_TRUE(absl::IsUnavailable(Resolve(own(Kind::kReceived), confessed)));
  EXPECT_TRUE(absl::IsUnavailable(Resolve(own(Kind::kFine), confessed)));
  const absl::Status culprit = Resolve(own(Kind::kOwn), confessed);
  EXPECT_TRUE(IsCorruption(culprit) && absl::IsDataLoss(culprit));
  EXPECT_EQ(culprit.message(), "silent corruption: words");
  EXPECT_NE(Resolve(own(Kind::kFine), confessed).message().find("rank 1"), std::string::npos);
  const auto suspected = numbers({Kind::kSuspected, Kind::kReceived});
  EXPECT_TRUE(IsSuspectedCorruption(Resolve(own(Kind::kSuspected), suspected)));
  EXPECT_FALSE(IsCorruption(Resolve(own(Kind::kSuspected), suspected)));
  EXPECT_TRUE(absl::IsUnavailable(Resolve(own(Kind::kReceived), suspected)));
  EXPECT_FALSE(IsCorruption(absl::DataLossError("something else")));
}

TEST(Verdicts, AThirdComputationDecides) {
  const std::vector<uint64_t> a = {1, 2}, b = {1, 3}, c = {4, 2};
  EXPECT_EQ(WhoIsWrong(a, b, a), 1);
  EXPECT_EQ(WhoIsWrong(a, b, b), -1);
  EXPECT_EQ(WhoIsWrong(a, b, c), 0);
}

TEST(Flips, HaveNames) {
  for (int i = 0; i < kFlipPlaces; ++i) {
    const auto place = static_cast<FlipPlace>(i);
    EXPECT_EQ(FlipPlaceOf(NameOf(place)), place);
  }
  EXPECT_FALSE(FlipPlaceOf("nowhere").has_value());
}

}  // namespace
}  // namespace perdure
