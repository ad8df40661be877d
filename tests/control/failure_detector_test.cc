// Silence, pauses, exits, bounds.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <utility>

#include "tests/control/failure_detector_story.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// ---- Nodes --------------------------------------------------------------------------------------

TEST(FailureDetector, ANodeIsLostWhenItHasBeenSilentForTheLimit) {
  Story story;
  story.Now(D::NodeWatched{7});
  EXPECT_THAT(story.Until(absl::Seconds(2) - kNs), IsEmpty());
  EXPECT_THAT(story.Until(absl::Seconds(3)),
              ElementsAre("2s: node 7 is lost: nothing heard for 2s"));
}

TEST(FailureDetector, WhoSpeaksLives) {
  Story story;
  for (const NodeId node : {1, 2, 3}) story.Now(D::NodeWatched{node});
  EXPECT_THAT(story.Until(absl::Hours(1), {1, 3}),
              ElementsAre("2s: node 2 is lost: nothing heard for 2s"));
  EXPECT_THAT(story.Until(absl::Hours(2), {3}),
              ElementsAre("1h2s: node 1 is lost: nothing heard for 2s"));
}

TEST(FailureDetector, HeardAtTheLastInstantSaves) {
  Story story;
  story.Now(D::NodeWatched{7});
  story.Until(absl::Seconds(2) - kNs);
  EXPECT_THAT(story.JumpTo(absl::Seconds(2)).Now(D::Heard{7}), IsEmpty());
  EXPECT_THAT(story.Until(absl::Seconds(4) - kNs), IsEmpty());
  EXPECT_THAT(story.Until(absl::Seconds(4)),
              ElementsAre("4s: node 7 is lost: nothing heard for 2s"));
}

TEST(FailureDetector, AClosedConnectionShortensTheSilenceAndKillsNobody) {
  Story story;
  story.Now(D::NodeWatched{1});
  story.Now(D::NodeWatched{2});
  story.Until(absl::Milliseconds(500));
  EXPECT_THAT(story.Now(D::ConnectionClosed{1}), IsEmpty());
  EXPECT_THAT(story.Now(D::ConnectionClosed{2}), IsEmpty());
  story.Until(absl::Milliseconds(1400));
  EXPECT_THAT(story.Now(D::Heard{2}), IsEmpty());  // Over a new one.
  EXPECT_THAT(story.Until(absl::Milliseconds(1500) - kNs), IsEmpty());
  EXPECT_THAT(story.Until(absl::Seconds(3)),
              ElementsAre("1.5s: node 1 is lost: nothing heard for 1.5s, its connection closed"));
  EXPECT_THAT(story.Until(absl::Seconds(4)),
              ElementsAre("3.4s: node 2 is lost: nothing heard for 2s"));
}

TEST(FailureDetector, ClosingAgainAndAgainGainsNoTime) {
  Story story;
  story.Now(D::NodeWatched{1});
  story.Now(D::ConnectionClosed{1});
  story.Until(absl::Milliseconds(900));
  story.Now(D::ConnectionClosed{1});
  EXPECT_THAT(story.Until(absl::Seconds(5)),
              ElementsAre("1s: node 1 is lost: nothing heard for 1s, its connection closed"));
}

TEST(FailureDetector, ClosingLateDoesNotProlongTheSilence) {
  Story story;
  story.Now(D::NodeWatched{1});
  story.Until(absl::Milliseconds(1900));
  story.Now(D::ConnectionClosed{1});
  EXPECT_THAT(story.Until(absl::Seconds(5)),
              ElementsAre("2s: node 1 is lost: nothing heard for 2s"));
}

TEST(FailureDetector, ALostNodeIsNotHeardUntilItIsWatchedAgain) {
  Story story;
  story.Now(D::NodeWatched{1});
  story.Until(absl::Seconds(2));
  EXPECT_EQ(story.detector().dropped(), 0U);
  EXPECT_THAT(story.Until(absl::Seconds(9), {1}), IsEmpty());
  EXPECT_EQ(story.detector().dropped(), 28U);
  story.Now(D::NodeWatched{1});
  EXPECT_THAT(story.Until(absl::Seconds(20)),
              ElementsAre("11s: node 1 is lost: nothing heard for 2s"));
}

TEST(FailureDetector, AForgottenNodeIsNotMissed) {
  Story story;
  story.Now(D::NodeWatched{1});
  story.Now(D::NodeWatched{2});
  story.Now(D::ConnectionClosed{2});
  story.Now(D::NodeForgotten{1});
  story.Now(D::NodeForgotten{2});
  EXPECT_EQ(story.detector().NextDeadline(), absl::InfiniteFuture());
  EXPECT_THAT(story.Until(absl::Seconds(20)), IsEmpty());
  story.Now(D::NodeForgotten{2});
  story.Now(D::NodeForgotten{60000});
  EXPECT_EQ(story.detector().dropped(), 2U);
}

// ---- An observer that was away ------------------------------------------------------------------

TEST(FailureDetector, AnObserverThatWasAwayBeginsAnewAndSaysSoOnce) {
  Story story;
  for (const NodeId node : {1, 2}) story.Now(D::NodeWatched{node});
  story.Now(D::ConnectionClosed{1});
  story.Until(absl::Milliseconds(900));
  EXPECT_THAT(story.JumpTo(absl::Minutes(5)).Now(D::Tick{}),
              ElementsAre("the coordinator itself was away for 4m59.1s: all waits begin anew"));
  EXPECT_THAT(story.Now(D::Heard{2}), IsEmpty());
  EXPECT_THAT(story.Until(absl::Minutes(6)),
              ElementsAre("5m1s: node 1 is lost: nothing heard for 5m1s, its connection closed",
                          "5m2s: node 2 is lost: nothing heard for 2s"));
}

TEST(FailureDetector, APauseIsMoreThanHalfOfTheSilence) {
  Story exactly, longer;
  for (Story* story : {&exactly, &longer}) {
    story->Now(D::NodeWatched{1});
    story->Until(absl::Seconds(1));
  }
  EXPECT_THAT(exactly.JumpTo(absl::Seconds(2)).Now(D::Tick{}),
              ElementsAre("node 1 is lost: nothing heard for 2s"));
  EXPECT_THAT(
      longer.JumpTo(absl::Seconds(2) + kNs).Now(D::Tick{}),
      ElementsAre("the coordinator itself was away for 1.000000001s: all waits begin anew"));
  EXPECT_THAT(longer.Until(absl::Seconds(4)), IsEmpty());
  EXPECT_THAT(longer.Until(absl::Seconds(4) + kNs),
              ElementsAre("4.000000001s: node 1 is lost: nothing heard for 4.000000001s"));
}

TEST(FailureDetector, WithNobodyToWatchItMaySleep) {
  Story story;
  EXPECT_EQ(story.detector().NextDeadline(), absl::InfiniteFuture());
  EXPECT_THAT(story.JumpTo(absl::Hours(1)).Now(D::NodeWatched{1}), IsEmpty());
  EXPECT_EQ(story.detector().NextDeadline(), kStart + absl::Hours(1) + absl::Milliseconds(500));
}

TEST(FailureDetector, AClockThatFallsStandsStill) {
  Story story;
  story.JumpTo(absl::Seconds(100)).Now(D::NodeWatched{1});
  EXPECT_THAT(story.JumpTo(absl::Seconds(50)).Now(D::NodeWatched{2}), IsEmpty());
  EXPECT_EQ(story.detector().NextDeadline(), kStart + absl::Milliseconds(100500));
  story.JumpTo(absl::Seconds(100));
  EXPECT_THAT(story.Until(absl::Seconds(200)),
              ElementsAre("1m42s: node 1 is lost: nothing heard for 2s",
                          "1m42s: node 2 is lost: nothing heard for 2s"));
}

TEST(FailureDetector, APauseDelaysAStallAndIsNoMeasuredTime) {
  Story story;
  story.Now(FourNodes());
  story.Until(absl::Seconds(1));
  story.Finish(5, kFour, 101);
  story.Until(absl::Seconds(6));
  story.Finish(5, kFour, 102);
  EXPECT_EQ(story.detector().limit(), absl::Seconds(15));
  EXPECT_THAT(story.JumpTo(absl::Seconds(60)).Now(D::Tick{}),
              ElementsAre("the coordinator itself was away for 54s: all waits begin anew"));
  EXPECT_THAT(story.Until(absl::Seconds(75) - kNs), IsEmpty());
  story.Finish(5, kFour, 103);
  EXPECT_EQ(story.detector().limit(), absl::Seconds(15));
}

// ---- Ranks --------------------------------------------------------------------------------------

TEST(FailureDetector, AnExitIsALossAtOnceAndOnce) {
  Story story;
  story.Now(D::GenerationFormed{5, {8, 8, 9, 9}, 0});
  EXPECT_THAT(story.Now(D::RankExited{5, {8, 1}, 1, D::ExitKind::kSignal, 11}),
              ElementsAre("rank 1 is lost: killed by signal 11 (node 8, slot 1, generation 5)"));
  EXPECT_THAT(story.Now(D::RankExited{5, {8, 1}, 1, D::ExitKind::kSignal, 11}), IsEmpty());
  EXPECT_THAT(
      story.Now(D::RankExited{5, {9, 0}, 2, D::ExitKind::kOutOfMemory, 9}),
      ElementsAre("rank 2 is lost: killed because memory ran out (node 9, slot 0, generation 5)"));
  EXPECT_THAT(story.Now(D::RankExited{5, {9, 1}, 3, D::ExitKind::kCode, 0}),
              ElementsAre("rank 3 is lost: exited with code 0 (node 9, slot 1, generation 5)"));
}

TEST(FailureDetector, WhomWeKillIsNotLost) {
  Story story;
  story.Now(FourNodes());
  EXPECT_THAT(story.Now(D::RankExited{5, {1, 0}, 1, D::ExitKind::kKilledByUs, 9}), IsEmpty());
  EXPECT_EQ(story.detector().dropped(), 0U);
}

TEST(FailureDetector, ExitsOfOthersAreDropped) {
  Story story;
  story.Now(FourNodes());
  for (const D::RankExited& exit :
       {D::RankExited{4, {1, 0}, 1}, D::RankExited{6, {1, 0}, 1}, D::RankExited{5, {2, 0}, 1},
        D::RankExited{5, {1, 0}, 4}, D::RankExited{5, {1, 0}, -1}, D::RankExited{0, {1, 0}, 1}})
    EXPECT_THAT(story.Now(exit), IsEmpty());
  EXPECT_EQ(story.detector().dropped(), 6U);
}

// ---- Bounds -------------------------------------------------------------------------------------

TEST(FailureDetector, OptionsOutOfRangeAreNamed) {
  EXPECT_TRUE(D::Validate({}).ok());
  using Change = std::function<void(D::Options&)>;
  const std::vector<std::pair<std::string, Change>> wrong = {
      {"heartbeat_interval is 0; it must be 1ms to 30s",
       [](D::Options& o) { o.heartbeat_interval = absl::ZeroDuration(); }},
      {"silence_max is 749ms; it must be 750ms to 10m",
       [](D::Options& o) { o.silence_max = absl::Milliseconds(749); }},
      {"silence_after_close_max is 3s; it must be 250ms to 2s",
       [](D::Options& o) { o.silence_after_close_max = absl::Seconds(3); }},
      {"stall_min is 499ms; it must be 500ms to 24h",
       [](D::Options& o) { o.stall_min = absl::Milliseconds(499); }},
      {"stall_factor is 0; it must be 1 to 1000", [](D::Options& o) { o.stall_factor = 0; }},
      {"first_step_max is 9s; it must be 10s to 24h",
       [](D::Options& o) { o.first_step_max = absl::Seconds(9); }},
      {"first_step_max is inf; it must be 10s to 24h",
       [](D::Options& o) { o.first_step_max = absl::InfiniteDuration(); }},
      {"step_times_max is 4097; it must be 1 to 4096",
       [](D::Options& o) { o.step_times_max = 4097; }},
      {"reporters_min is 0; it must be 1 to 64", [](D::Options& o) { o.reporters_min = 0; }},
      {"report_window is -1s; it must be 250ms to 24h",
       [](D::Options& o) { o.report_window = -absl::Seconds(1); }},
      {"accused_max is 0; it must be 1 to 65536", [](D::Options& o) { o.accused_max = 0; }},
      {"suspects_max is 0; it must be 1 to 65536", [](D::Options& o) { o.suspects_max = 0; }},
      {"nodes_max is 0; it must be 1 to 1048576", [](D::Options& o) { o.nodes_max = 0; }},
  };
  for (const auto& [words, change] : wrong) {
    D::Options options;
    change(options);
    const absl::Status status = D::Validate(options);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(std::string(status.message()), "failure detector: " + words);
  }
}

TEST(FailureDetectorDeathTest, ProgrammersErrors) {
  D::Options options;
  options.stall_factor = 0;
  EXPECT_DEATH(D{options}, "Validate");
  Story story;
  EXPECT_DEATH(story.Now(D::NodeWatched{1 << 16}), "nodes_max");
  EXPECT_DEATH(story.Now(D::GenerationFormed{1, {}, 0}), "empty");
  EXPECT_DEATH(story.Now(D::GenerationFormed{1, {1 << 16}, 0}), "nodes_max");
}

}  // namespace
}  // namespace perdure
