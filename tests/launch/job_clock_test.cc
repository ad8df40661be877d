#include "launch/job_clock.h"

#include <gtest/gtest.h>

#include <atomic>

#include "absl/time/clock.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

class JobClockTest : public testing::Test {
 protected:
  JobClockTest() : loop_(*EventLoop::New()), now_(MonotonicNow()) {}
  std::unique_ptr<JobClock> Make(JobClock::Options options) {
    options.leave = {
        .save = absl::Seconds(30), .stop = absl::Seconds(3), .margin = absl::Seconds(10)};
    auto clock = JobClock::New(loop_.get(), std::move(options));
    EXPECT_TRUE(clock.ok()) << clock.status();
    return *std::move(clock);
  }
  // So many seconds later.
  void See(JobClock& clock, double later, const JobClock::Sight& sight) {
    now_ += absl::Seconds(later);
    clock.See(now_, sight);
  }

  const std::unique_ptr<EventLoop> loop_;
  absl::Time now_;
};

TEST_F(JobClockTest, AJobWithoutAnEndDoesNotLeave) {
  const auto clock = Make({});
  EXPECT_FALSE(clock->Leaves(now_ + absl::Hours(10000)));
}

TEST_F(JobClockTest, LeavesByWhatItHasSeen) {
  const auto clock = Make({.end = absl::Now() + absl::Hours(1)});
  See(*clock, 0, {.generation = 1, .finished = 10});
  See(*clock, 7, {.generation = 1, .finished = 11});
  EXPECT_EQ(clock->leave().step(), absl::ZeroDuration()) << "nobody knows when it had begun";
  See(*clock, 5, {.generation = 1, .finished = 12});
  EXPECT_EQ(clock->leave().step(), absl::Seconds(5));
  See(*clock, 4, {.generation = 1, .finished = 14});
  EXPECT_EQ(clock->leave().step(), absl::Seconds(5)) << "two of two seconds each";
  See(*clock, 0, {.generation = 1, .finished = 14, .saving = 14});
  See(*clock, 6, {.generation = 1, .finished = 15, .saving = 14});
  See(*clock, 2, {.generation = 1, .finished = 15, .saving = -1, .committed = 14});
  EXPECT_EQ(clock->leave().save(), absl::Seconds(8));
  const absl::Duration needs = absl::Seconds(2 * 6 + 8 + 3 + 10);
  EXPECT_EQ(clock->leave().Needs(), needs);
  const absl::Time end = now_ + absl::Hours(1) - absl::Seconds(24);
  EXPECT_FALSE(clock->Leaves(end - needs - absl::Seconds(1)));
  EXPECT_TRUE(clock->Leaves(end - needs + absl::Seconds(1)));
}

TEST_F(JobClockTest, AGenerationsFirstStepAndAFailedSaveSayNothing) {
  const auto clock = Make({.end = absl::Now() + absl::Hours(1)});
  See(*clock, 0, {.generation = 1, .finished = 10});
  See(*clock, 1, {.generation = 1, .finished = 11});
  See(*clock, 1, {.generation = 1, .finished = 12, .saving = 12});
  See(*clock, 60, {.generation = 2, .finished = 12, .saving = -1, .committed = 3});
  See(*clock, 60, {.generation = 2, .finished = 13, .saving = -1, .committed = 3});
  EXPECT_EQ(clock->leave().step(), absl::Seconds(1));
  EXPECT_EQ(clock->leave().save(), absl::Seconds(30)) << "the guess";
}

// A scheduler may move the end.
TEST_F(JobClockTest, AsksAnew) {
  std::atomic<int> asked = 0;
  std::string warned;
  const auto clock = Make({.end = absl::Now() + absl::Hours(10),
                           .ask = [&]() -> absl::StatusOr<absl::Time> {
                             if (++asked == 1) return Unavailable("it is away");
                             return absl::Now() + absl::Seconds(asked == 2 ? 20 : 36000);
                           },
                           .warn = [&](const std::string& line) { warned += line; }});
  const auto see_until = [&](const std::function<bool()>& done) {
    const absl::Time until = MonotonicNow() + absl::Seconds(30);
    while (!done() && MonotonicNow() < until) {
      clock->See(MonotonicNow(), {});
      loop_->RunOnce(MonotonicNow() + absl::Milliseconds(10));
    }
    EXPECT_TRUE(done());
  };
  see_until([&] { return !warned.empty(); });
  EXPECT_NE(warned.find("it is away"), std::string::npos);
  EXPECT_FALSE(clock->Leaves(MonotonicNow())) << "what was known holds";
  EXPECT_EQ(asked, 1) << "not again at once";
  clock->AskNow();
  see_until([&] { return clock->Leaves(MonotonicNow()); });
  EXPECT_EQ(asked, 2);
  clock->AskNow();
  see_until([&] { return !clock->Leaves(MonotonicNow()); });
}

}  // namespace
}  // namespace perdure
