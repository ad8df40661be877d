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
    EXPECT_EQ(JudgeStep(Config("stop"), bad), StepDecision::kStop);
    EXPECT_EQ(JudgeStep(Config("skip"), bad), StepDecision::kSkip);
    EXPECT_NE(WhyBad(Config("skip"), bad).find("not both finite"), std::string::npos);
  }
  EXPECT_EQ(JudgeStep(Config("stop"), {1e30, 1e30}), StepDecision::kTake);
  EXPECT_EQ(JudgeStep(Config("skip", 2), {9, 2}), StepDecision::kTake);
  EXPECT_EQ(JudgeStep(Config("skip", 2), {1, 2.0001}), StepDecision::kSkip);
  EXPECT_EQ(JudgeStep(Config("stop", 2), {1, 2.0001}), StepDecision::kStop);
  EXPECT_EQ(WhyBad(Config("stop", 2), {1, 2.5}),
            "gradient norm 2.5 is above integrity.grad_norm_max = 2");
}

TEST(JudgeStep, OddIsWhatStandsOutOrIsBad) {
  const std::vector<StepNumbers> few(kOddStepsMin - 1, {5, 1});
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
