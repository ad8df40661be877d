#include "runtime/control/step_times.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <deque>

namespace perdure {
namespace {

// The seconds of the 99th percentile of 1, 2, ... count, in a scrambled order.
int64_t P99OfFirst(int count) {
  StepTimes times(1000);
  for (int i = 0; i < count; ++i) times.Add(absl::Seconds(1 + i * 7919 % count));
  return absl::ToInt64Seconds(times.P99());
}

TEST(StepTimes, P99IsTheNearestRank) {
  EXPECT_EQ(P99OfFirst(1), 1);
  EXPECT_EQ(P99OfFirst(2), 2);
  EXPECT_EQ(P99OfFirst(99), 99);
  EXPECT_EQ(P99OfFirst(100), 99);
  EXPECT_EQ(P99OfFirst(101), 100);
  EXPECT_EQ(P99OfFirst(128), 127);
  EXPECT_EQ(P99OfFirst(200), 198);
  EXPECT_EQ(P99OfFirst(1000), 990);
}

TEST(StepTimes, OnlyTheLastCount) {
  StepTimes times(3);
  for (const int seconds : {100, 5, 7, 6}) times.Add(absl::Seconds(seconds));
  EXPECT_EQ(times.P99(), absl::Seconds(7));
  EXPECT_EQ(times.size(), 3U);
  for (const int seconds : {1, 1, 1}) times.Add(absl::Seconds(seconds));
  EXPECT_EQ(times.P99(), absl::Seconds(1));
  times.Clear();
  EXPECT_TRUE(times.empty());
  EXPECT_EQ(times, StepTimes(3));
  times.Add(absl::Seconds(2));
  EXPECT_EQ(times.P99(), absl::Seconds(2));
}

TEST(StepTimes, AsByCounting) {
  for (const size_t window : {1U, 2U, 99U, 128U, 300U}) {
    StepTimes times(static_cast<int>(window));
    std::deque<absl::Duration> last;
    uint64_t x = window;
    for (int i = 0; i < 2000; ++i) {
      x = x * 6364136223846793005 + 1442695040888963407;
      last.push_back(absl::Milliseconds(static_cast<int64_t>(x >> 54)));
      if (last.size() > window) last.pop_front();
      times.Add(last.back());
      const absl::Duration p99 = times.P99();
      const auto covered =
          std::count_if(last.begin(), last.end(), [&](absl::Duration t) { return t <= p99; });
      const auto below =
          std::count_if(last.begin(), last.end(), [&](absl::Duration t) { return t < p99; });
      ASSERT_GE(100 * static_cast<size_t>(covered), 99 * last.size());
      ASSERT_LT(100 * static_cast<size_t>(below), 99 * last.size());
    }
  }
}

TEST(StepTimesDeathTest, ProgrammersErrors) {
  EXPECT_DEATH(StepTimes(0), "times_max");
  EXPECT_DEATH(StepTimes(1).P99(), "empty");
}

}  // namespace
}  // namespace perdure
