#include "runtime/base/gaps.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr Gap kFirst{.first_step = 10, .samples = 24, .bad_step = 12, .number = 1};
constexpr Gap kSecond{.first_step = 30, .samples = 8, .bad_step = 30, .number = 1};

TEST(Gaps, AStateHasThoseBehindItWhoseFirstStepItHasTaken) {
  const Gaps gaps = {kFirst, kSecond};
  EXPECT_TRUE(GapsBehind(gaps, 9).empty());
  EXPECT_THAT(GapsBehind(gaps, 10), ElementsAre(kFirst));
  EXPECT_THAT(GapsBehind(gaps, 29), ElementsAre(kFirst));
  EXPECT_THAT(GapsBehind(gaps, 30), ElementsAre(kFirst, kSecond));
}

TEST(Gaps, LinesPartAtTheFirstStepThatIsTakenAgain) {
  const Gaps one = {kFirst}, both = {kFirst, kSecond};
  EXPECT_TRUE(SameLine({}, one, 9));
  EXPECT_FALSE(SameLine({}, one, 10));
  EXPECT_TRUE(SameLine(one, both, 29));
  EXPECT_FALSE(SameLine(one, both, 30));
  Gaps other = one;
  ++other[0].samples;
  EXPECT_TRUE(SameLine(one, other, 9));
  EXPECT_FALSE(SameLine(one, other, 10));
}

TEST(Gaps, SamplesAreLeftOutBeforeTheirFirstStep) {
  const Gaps gaps = {kFirst, kSecond};
  EXPECT_EQ(SamplesLeftOut(gaps, 1, 9), 0);
  EXPECT_EQ(SamplesLeftOut(gaps, 1, 10), 24);
  EXPECT_EQ(SamplesLeftOut(gaps, 1, 30), 32);
  EXPECT_EQ(SamplesLeftOut(gaps, 11, 30), 8) << "the first is another phase's";
  EXPECT_EQ(SamplesLeftOut(gaps, 10, 10), 24);
}

// A gap before a step that is not taken again is part of the new one.
TEST(Gaps, GoingBackBehindAGapReplacesIt) {
  const Gap behind{.first_step = 8, .samples = 40, .bad_step = 11, .number = 2};
  EXPECT_THAT(WithGap(Gaps{kFirst}, behind), ElementsAre(behind));
  EXPECT_THAT(WithGap(Gaps{kFirst}, kSecond), ElementsAre(kFirst, kSecond));
  const Gap again{.first_step = 10, .samples = 16, .bad_step = 11, .number = 2};
  EXPECT_THAT(WithGap(Gaps{kFirst, kSecond}, again), ElementsAre(kFirst, again));
}

TEST(Gaps, NumbersAndBack) {
  const Gaps gaps = {kFirst, kSecond};
  EXPECT_THAT(NumbersOf(gaps), ElementsAre(10, 24, 12, 1, 30, 8, 30, 1));
  EXPECT_EQ(*GapsOf(NumbersOf(gaps)), gaps);
  EXPECT_TRUE(GapsOf({})->empty());
}

TEST(Gaps, WhatNoRunHasIsRefused) {
  const auto refusal = [](std::vector<int64_t> numbers) {
    return std::string(GapsOf(numbers).status().message());
  };
  EXPECT_THAT(refusal({10, 24, 12}), HasSubstr("3 numbers are no gaps"));
  EXPECT_THAT(refusal({0, 24, 12, 1}), HasSubstr("before step 0"));
  EXPECT_THAT(refusal({10, 0, 12, 1}), HasSubstr("of 0 samples"));
  EXPECT_THAT(refusal({10, -1, 12, 1}), HasSubstr("of -1 samples"));
  EXPECT_THAT(refusal({10, 24, 9, 1}), HasSubstr("for step 9"));
  EXPECT_THAT(refusal({10, 24, 12, 0}), HasSubstr("the 0. in a row"));
  EXPECT_THAT(refusal({10, 24, 12, 1, 9, 8, 9, 1}), HasSubstr("gap 1"));
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  EXPECT_THAT(refusal({10, kMost, 12, 1}), HasSubstr("gap 0"));
  EXPECT_THAT(refusal({1, kMost / 4, 1, 1, 1, 1, 1, 1}), HasSubstr("gap 1")) << "their sum";
  const Gaps many(kGapsMax + 1, kFirst);
  EXPECT_THAT(CheckGaps(many).message(), HasSubstr("1024 at most"));
  EXPECT_TRUE(CheckGaps(std::span(many).first(kGapsMax)).ok());
}

}  // namespace
}  // namespace perdure
