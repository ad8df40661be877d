#include "runtime/control/leave_time.h"

#include <gtest/gtest.h>

namespace perdure {
namespace {

const absl::Time kEnd = absl::UnixEpoch() + absl::Hours(20);

LeaveTime Fresh() {
  return LeaveTime(
      {.save = absl::Seconds(30), .stop = absl::Seconds(3), .margin = absl::Seconds(10)});
}

TEST(LeaveTime, GuessesWhatItHasNotSeen) { EXPECT_EQ(Fresh().At(kEnd), kEnd - absl::Seconds(43)); }

TEST(LeaveTime, TakesTwoStepsAndWhatASaveTook) {
  LeaveTime leave = Fresh();
  leave.Stepped(absl::Seconds(5));
  leave.Saved(absl::Seconds(2));
  EXPECT_EQ(leave.At(kEnd), kEnd - absl::Seconds(2 * 5 + 2 + 3 + 10));
  EXPECT_EQ(leave.step(), absl::Seconds(5));
  EXPECT_EQ(leave.save(), absl::Seconds(2));
}

TEST(LeaveTime, TakesTheLongestOfEach) {
  LeaveTime leave = Fresh();
  for (const int seconds : {4, 9, 5}) leave.Stepped(absl::Seconds(seconds));
  for (const int seconds : {40, 70, 50}) leave.Saved(absl::Seconds(seconds));
  EXPECT_EQ(leave.Needs(), absl::Seconds(2 * 9 + 70 + 3 + 10));
}

TEST(LeaveTime, ForgetsWhatIsLongAgo) {
  LeaveTime leave = Fresh();
  leave.Stepped(absl::Minutes(10));  // The first one of a job.
  for (int i = 0; i < 63; ++i) leave.Stepped(absl::Seconds(4));
  EXPECT_EQ(leave.step(), absl::Minutes(10));
  leave.Stepped(absl::Seconds(4));
  EXPECT_EQ(leave.step(), absl::Seconds(4));
  leave.Saved(absl::Minutes(3));
  for (int i = 0; i < 4; ++i) leave.Saved(absl::Seconds(20));
  EXPECT_EQ(leave.save(), absl::Minutes(3));
  leave.Saved(absl::Seconds(20));
  EXPECT_EQ(leave.save(), absl::Seconds(20));
}

}  // namespace
}  // namespace perdure
