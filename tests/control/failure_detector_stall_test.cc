// When a step counts as stalled, and whom to suspect of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>

#include "tests/control/failure_detector_story.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// ---- Steps --------------------------------------------------------------------------------------

TEST(FailureDetector, TheFirstStepHasItsAllowance) {
  Story story;
  story.Now(FourNodes());
  EXPECT_THAT(story.Until(absl::Minutes(10) - kNs), IsEmpty());
  EXPECT_THAT(story.Until(absl::Minutes(20)),
              ElementsAre("10m: generation 5 stalls after 100 steps: the first step takes longer "
                          "than 10m; nobody in particular is suspected",
                          "20m: generation 5 stalls after 100 steps: the first step takes longer "
                          "than 10m (report 2); nobody in particular is suspected"));
}

TEST(FailureDetector, TheSecondStepIsNotLongerThanTheFirst) {
  for (const auto& [first, limit] : {std::pair(absl::Seconds(2), absl::Seconds(10)),
                                     {absl::Seconds(40), absl::Minutes(2)},
                                     {absl::Minutes(5), absl::Minutes(10)}}) {
    Story story;
    story.Now(FourNodes());
    EXPECT_EQ(story.detector().limit(), absl::Minutes(10));
    story.Until(first);
    story.Finish(5, kFour, 101);
    EXPECT_EQ(story.detector().limit(), limit) << first;
  }
}

TEST(FailureDetector, AFirstStepThatWasNotSeenWholeTellsNothing) {
  Story story;
  story.Now(FourNodes());
  EXPECT_EQ(story.JumpTo(absl::Seconds(40)).Now(D::Tick{}).size(), 1U);
  story.Finish(5, kFour, 101);
  EXPECT_EQ(story.detector().limit(), absl::Minutes(10));
}

TEST(FailureDetector, AStallIsThreeTimesTheUsualStepAndAtLeastTenSeconds) {
  for (const auto& [usual, limit] :
       {std::pair(absl::Seconds(1), absl::Seconds(10)), {absl::Seconds(4), absl::Seconds(12)}}) {
    Story story;
    story.Now(FourNodes());
    absl::Duration at = absl::Minutes(1);
    story.Until(at);
    for (int step = 101; step <= 110; ++step) {
      story.Finish(5, kFour, step);
      story.Until(at += usual);
    }
    story.Finish(5, kFour, 111);
    EXPECT_EQ(story.detector().limit(), limit);
    EXPECT_THAT(story.Until(at + limit - kNs), IsEmpty());
    const std::string words = "generation 5 stalls after 111 steps: a step takes longer than " +
                              absl::FormatDuration(limit);
    EXPECT_THAT(story.Until(at + 2 * limit),
                ElementsAre(absl::FormatDuration(at + limit) + ": " + words +
                                "; nobody in particular is suspected",
                            absl::FormatDuration(at + 2 * limit) + ": " + words +
                                " (report 2); nobody in particular is suspected"));
  }
}

TEST(FailureDetector, AStepIsFinishedWhenTheLastNodeHasFinishedIt) {
  Story story;
  story.Now(FourNodes());
  story.Until(absl::Seconds(1));
  story.Finish(5, {0, 1, 2}, 101);
  story.Finish(5, {0, 1}, 102);
  EXPECT_EQ(story.detector().limit(), absl::Minutes(10));
  story.Finish(5, {3}, 101);
  EXPECT_EQ(story.detector().limit(), absl::Seconds(10));
  story.Until(absl::Seconds(9));
  story.Finish(5, {2, 3}, 102);
  EXPECT_EQ(story.detector().limit(), absl::Seconds(24));
}

TEST(FailureDetector, SeveralStepsBetweenHeartbeatsShareTheirTime) {
  Story story;
  story.Now(FourNodes());
  story.Finish(5, kFour, 101);
  story.Until(absl::Seconds(9));
  story.Finish(5, kFour, 103);
  EXPECT_EQ(story.detector().limit(), absl::Milliseconds(13500));
}

TEST(FailureDetector, ProgressDoesNotFall) {
  Story story;
  story.Now(FourNodes());
  story.Finish(5, kFour, 105);
  story.Finish(5, kFour, 103);  // Sent earlier.
  story.Until(absl::Seconds(10));
  story.Finish(5, kFour, 106);
  EXPECT_EQ(story.detector().limit(), absl::Seconds(30));
}

TEST(FailureDetector, AStepThatStalledCountsAsItsLimit) {
  Story story;
  story.Now(FourNodes());
  story.Finish(5, kFour, 101);
  EXPECT_EQ(story.detector().limit(), absl::Seconds(10));
  EXPECT_EQ(story.Until(absl::Minutes(8)).size(), 48U);
  story.Finish(5, kFour, 102);
  EXPECT_EQ(story.detector().limit(), absl::Seconds(30));
}

TEST(FailureDetector, AGenerationLearnsItsOwnPace) {
  Story story;
  story.Now(FourNodes());
  story.Finish(5, kFour, 101);
  story.Until(absl::Seconds(5));
  story.Finish(5, kFour, 102);
  EXPECT_EQ(story.detector().limit(), absl::Seconds(15));
  story.Now(D::GenerationEnded{5});
  EXPECT_EQ(story.detector().generation(), 0U);
  EXPECT_THAT(story.Until(absl::Hours(1)), IsEmpty());
  story.Now(D::GenerationFormed{6, {0}, 102});
  EXPECT_EQ(story.detector().limit(), absl::Minutes(10));
}

TEST(FailureDetector, ANewPhaseHasItsOwnPace) {
  Story story;
  story.Now(FourNodes());
  story.Now(D::PaceChanges{5, 103});
  story.Finish(5, kFour, 101);
  story.Until(absl::Seconds(5));
  story.Finish(5, kFour, 102);
  EXPECT_EQ(story.detector().limit(), absl::Seconds(15));
  story.Finish(5, kFour, 103);
  EXPECT_EQ(story.detector().limit(), absl::Minutes(10));
  story.Until(absl::Seconds(35));
  story.Finish(5, kFour, 104);
  EXPECT_EQ(story.detector().limit(), absl::Seconds(90));
  story.Until(absl::Seconds(65));
  story.Finish(5, kFour, 105);
  story.Until(absl::Seconds(70));
  story.Now(D::PaceChanges{5, 104});  // Late: it is so already.
  EXPECT_EQ(story.detector().limit(), absl::Minutes(10));
  EXPECT_THAT(story.Until(absl::Seconds(670) - kNs), IsEmpty());
  EXPECT_EQ(story.Until(absl::Seconds(670)).size(), 1U);
}

TEST(FailureDetector, WhatStoodStillIsWaitedForAnew) {
  Story story;
  story.Now(FourNodes());
  story.Until(absl::Seconds(5));
  story.Finish(5, kFour, 101);
  story.Until(absl::Seconds(10));
  story.Finish(5, kFour, 102);
  EXPECT_EQ(story.detector().limit(), absl::Seconds(15));
  story.Until(absl::Seconds(20));
  story.Now(D::StoodStill{5});
  EXPECT_THAT(story.Until(absl::Seconds(34)), IsEmpty());
  story.Finish(5, kFour, 103);
  EXPECT_EQ(story.detector().limit(), absl::Seconds(15)) << "and its time is not compared with";
  EXPECT_THAT(story.Until(absl::Seconds(49) - kNs), IsEmpty());
  EXPECT_EQ(story.Until(absl::Seconds(49)).size(), 1U);
}

TEST(FailureDetector, EventsOfAnotherGenerationAreDropped) {
  Story story;
  story.Now(FourNodes());
  const D before = story.detector();
  const std::vector<D::Event> foreign = {
      D::StepProgress{4, 0, 200, 201},
      D::StepProgress{6, 0, 200, 201},
      D::StepProgress{5, 4, 200, 201},  // A spare.
      D::StepProgress{0, 0, 200, 201},
      D::EndpointError{4, 0, 1},
      D::EndpointError{5, 0, 4},
      D::EndpointError{5, -1, 0},
      D::PaceChanges{4, 0},
      D::StoodStill{4},
      D::GenerationEnded{4},
      D::GenerationEnded{6},
      D::GenerationFormed{4, {0}, 0},
      D::GenerationFormed{5, {0}, 0},
  };
  for (const D::Event& event : foreign) EXPECT_THAT(story.Now(event), IsEmpty());
  EXPECT_EQ(story.detector().dropped(), foreign.size());
  // But for their number it is as if they had not been.
  Story other;
  other.Now(FourNodes());
  EXPECT_EQ(other.detector(), before);
  EXPECT_EQ(story.Until(absl::Hours(1)), other.Until(absl::Hours(1)));
}

TEST(FailureDetector, NodesBetweenThoseOfAGenerationDoNotBelongToIt) {
  Story story;
  story.Now(D::GenerationFormed{5, {0, 2}, 100});
  EXPECT_THAT(story.Now(D::StepProgress{5, 1, 101, 102}), IsEmpty());
  EXPECT_EQ(story.detector().dropped(), 1U);
}

TEST(FailureDetector, WithoutAGenerationNothingBelongsToIt) {
  Story story;
  for (const D::Event& event : std::vector<D::Event>{
           D::PaceChanges{0, 5}, D::GenerationEnded{0}, D::StepProgress{0, 0, 1, 1},
           D::EndpointError{0, 0, 0}, D::GenerationFormed{0, {0}, 0}})
    EXPECT_THAT(story.Now(event), IsEmpty());
  EXPECT_EQ(story.detector().dropped(), 5U);
}

TEST(FailureDetector, EachStepCountsItsOwnReports) {
  Story story;
  story.Now(FourNodes());
  story.Finish(5, kFour, 101);
  EXPECT_EQ(story.Until(absl::Seconds(25)).size(), 2U);
  story.Finish(5, kFour, 102);
  EXPECT_THAT(story.Until(absl::Seconds(55)),
              ElementsAre("55s: generation 5 stalls after 102 steps: a step takes longer than 30s; "
                          "nobody in particular is suspected"));
  story.Now(D::GenerationFormed{6, {0, 1, 2, 3}, 102});
  EXPECT_THAT(
      story.Until(absl::Seconds(655)),
      ElementsAre("10m55s: generation 6 stalls after 102 steps: the first step takes longer "
                  "than 10m; nobody in particular is suspected"));
}

TEST(FailureDetector, AnEndedGenerationDoesNotComeBack) {
  Story story;
  story.Now(FourNodes());
  story.Now(D::GenerationEnded{5});
  story.Now(FourNodes());
  EXPECT_EQ(story.detector().generation(), 0U);
  EXPECT_THAT(story.Now(D::RankExited{5, {1, 0}, 1}), IsEmpty());
  EXPECT_EQ(story.detector().dropped(), 2U);
}

// ---- Whom to suspect ----------------------------------------------------------------------------

// Ten nodes of one rank each; everybody has finished 101 and begun the next step.
Story TenNodes(const D::Options& options = {}) {
  Story story(options);
  std::vector<NodeId> all;
  for (NodeId node = 0; node < 10; ++node) all.push_back(node);
  story.Now(D::GenerationFormed{5, all, 100});
  story.Finish(5, all, 101);
  return story;
}
std::string SuspectsOf(Story& story, absl::Duration until = absl::Seconds(10)) {
  const Told told = story.Until(until);
  return told.size() != 1 ? "not one report" : told.front().substr(told.front().find("; ") + 2);
}

TEST(FailureDetector, TheFurthestBehindAreSuspectedFirst) {
  Story story = TenNodes();
  for (const NodeId node : {0, 1, 2, 4, 5, 6, 8, 9}) story.Now(D::StepProgress{5, node, 102, 103});
  story.Now(D::StepProgress{5, 7, 102, 102});
  EXPECT_EQ(SuspectsOf(story), "suspected: node 3 (behind), node 7 (behind)");
}

TEST(FailureDetector, WhatMostNodesDoIsNoClue) {
  Story story = TenNodes();
  for (const NodeId node : {0, 1, 2, 3}) story.Now(D::StepProgress{5, node, 102, 103});
  EXPECT_EQ(SuspectsOf(story), "nobody in particular is suspected");
  Story half = TenNodes();
  for (const NodeId node : {0, 1, 2, 3, 4}) half.Now(D::StepProgress{5, node, 102, 103});
  EXPECT_EQ(SuspectsOf(half),
            "suspected: node 5 (behind), node 6 (behind), node 7 (behind), node 8 (behind), node "
            "9 (behind)");
}

TEST(FailureDetector, ReportsChooseTheCulpritOfAStallAndNeverKill) {
  Story story = TenNodes();
  for (const NodeId node : kFour) story.Now(D::NodeWatched{node});
  for (int again = 0; again < 1000; ++again)
    for (const int32_t reporter : {0, 1, 2, 4, 5, 6, 7, 8, 9})
      EXPECT_THAT(story.Now(D::EndpointError{5, reporter, 3}), IsEmpty());
  const Told told = story.Until(absl::Seconds(10), kFour);
  EXPECT_THAT(told, ElementsAre("10s: generation 5 stalls after 101 steps: a step takes longer "
                                "than 10s; suspected: node 3 (reported by others)"));
}

TEST(FailureDetector, OneReporterProvesNothing) {
  D::Options options;
  for (const int reporters : {1, 2, 3}) {
    Story story = TenNodes(options);
    for (int again = 0; again < 5; ++again)
      for (int32_t reporter = 0; reporter < reporters; ++reporter)
        story.Now(D::EndpointError{5, reporter, 9});
    EXPECT_EQ(SuspectsOf(story), reporters < 3 ? "nobody in particular is suspected"
                                               : "suspected: node 9 (reported by others)");
  }
}

TEST(FailureDetector, RanksOfOneNodeAreOneReporter) {
  Story story;
  story.Now(D::GenerationFormed{5, {0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3}, 100});
  story.Finish(5, kFour, 101);
  for (const int32_t reporter : {0, 1, 2}) story.Now(D::EndpointError{5, reporter, 9});
  EXPECT_EQ(SuspectsOf(story), "nobody in particular is suspected");
  story.Now(D::EndpointError{5, 3, 9});
  story.Now(D::EndpointError{5, 6, 9});
  EXPECT_EQ(SuspectsOf(story, absl::Seconds(20)), "suspected: node 3 (reported by others)");
}

TEST(FailureDetector, ASmallGenerationHasFewReporters) {
  Story story;
  story.Now(D::GenerationFormed{5, {0, 1}, 100});
  story.Finish(5, {0, 1}, 101);
  story.Now(D::EndpointError{5, 0, 1});
  EXPECT_EQ(SuspectsOf(story), "suspected: node 1 (reported by others)");
  story.Now(D::EndpointError{5, 1, 0});  // Each accuses the other.
  EXPECT_EQ(SuspectsOf(story, absl::Seconds(20)), "nobody in particular is suspected");
}

TEST(FailureDetector, ReportsSupportEachOtherWithinTheWindowOnly) {
  for (const auto& [apart, suspected] :
       {std::pair(absl::Milliseconds(3500), true), {absl::Milliseconds(3500) + kNs, false}}) {
    D::Options options;
    options.report_window = absl::Seconds(7);
    Story story = TenNodes(options);
    absl::Duration at;
    for (const int32_t reporter : {0, 1, 2}) {
      story.Now(D::EndpointError{5, reporter, 9});
      if (reporter < 2) story.Until(at += apart);
    }
    EXPECT_EQ(SuspectsOf(story), suspected ? "suspected: node 9 (reported by others)"
                                           : "nobody in particular is suspected");
  }
}

TEST(FailureDetector, AStepThatEndsClearsTheAccusedButForTheLatest) {
  D::Options options;
  options.report_window = absl::Seconds(1);
  for (const auto& [wait, suspected] :
       {std::pair(absl::Seconds(1), true), {absl::Seconds(1) + kNs, false}}) {
    Story story = TenNodes(options);
    for (const int32_t reporter : {0, 1, 2}) story.Now(D::EndpointError{5, reporter, 9});
    story.Until(wait);
    for (NodeId node = 0; node < 10; ++node) story.Now(D::StepProgress{5, node, 102, 103});
    EXPECT_EQ(
        SuspectsOf(story, wait + absl::Seconds(10)),
        suspected ? "suspected: node 9 (reported by others)" : "nobody in particular is suspected");
  }
}

TEST(FailureDetector, SuspectsAreOrderedAndBounded) {
  D::Options options;
  options.suspects_max = 3;
  Story story = TenNodes(options);
  for (const NodeId node : {0, 1, 2, 3, 4, 5, 6}) story.Now(D::StepProgress{5, node, 102, 103});
  for (const int32_t accused : {8, 2})
    for (const int32_t reporter : {0, 1, 3}) story.Now(D::EndpointError{5, reporter, accused});
  EXPECT_EQ(SuspectsOf(story),
            "suspected: node 8 (behind, reported), node 7 (behind), node 9 (behind)");
}

TEST(FailureDetector, WhoIsBehindAndReportedIsNamedOnce) {
  Story story = TenNodes();
  for (const NodeId node : {0, 1, 2, 3, 4, 5, 6, 7, 9})
    story.Now(D::StepProgress{5, node, 102, 103});
  for (const int32_t accused : {8, 2})
    for (const int32_t reporter : {0, 1, 3}) story.Now(D::EndpointError{5, reporter, accused});
  EXPECT_EQ(SuspectsOf(story), "suspected: node 8 (behind, reported), node 2 (reported by others)");
}

TEST(FailureDetector, TheLatestReportsAreKept) {
  D::Options options;
  options.reporters_min = 2;
  options.report_window = absl::Seconds(3);
  Story story = TenNodes(options);
  for (const auto& [at, reporter] : {std::pair(0, 0), {5, 1}, {8, 2}}) {
    story.Until(absl::Seconds(at));
    story.Now(D::EndpointError{5, reporter, 9});
  }
  EXPECT_EQ(SuspectsOf(story), "suspected: node 9 (reported by others)");
}

TEST(FailureDetector, ANewGenerationAccusesNobody) {
  Story story = TenNodes();
  for (const int32_t reporter : {0, 1, 2}) story.Now(D::EndpointError{5, reporter, 3});
  story.Now(D::GenerationFormed{6, {0, 1, 2, 3}, 101});  // Ranks are other processes now.
  for (const NodeId node : kFour) story.Now(D::StepProgress{6, node, 102, 103});
  EXPECT_EQ(SuspectsOf(story), "nobody in particular is suspected");
}

TEST(FailureDetector, OfThoseReportedTheMostReportedIsFirst) {
  D::Options options;
  options.reporters_min = 5;
  Story story(options);
  story.Now(FourNodes());  // Too few for five reporters: three are enough.
  story.Finish(5, kFour, 101);
  for (const int32_t accused : {1, 2})
    for (const int32_t reporter : {0, 1, 3}) story.Now(D::EndpointError{5, reporter, accused});
  story.Now(D::EndpointError{5, 2, 2});
  EXPECT_EQ(SuspectsOf(story),
            "suspected: node 2 (reported by others), node 1 (reported by others)");
}

TEST(FailureDetector, IsAValue) {
  Story story = TenNodes();
  story.Until(absl::Seconds(3));
  Story copy = story;
  EXPECT_EQ(copy.detector(), story.detector());
  const Told told = story.Until(absl::Seconds(30));
  EXPECT_FALSE(copy.detector() == story.detector());
  EXPECT_EQ(copy.Until(absl::Seconds(30)), told);
  EXPECT_EQ(copy.detector(), story.detector());
}

}  // namespace
}  // namespace perdure
