// What evidence excludes whom, and for how long.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>

#include "tests/control/evidence_diary.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// ---- Weight and expiry --------------------------------------------------------------------------

TEST(EvidenceBook, CertainEvidenceIsEnoughAndLastsThirtyDays) {
  for (const auto& [kind, number] : {std::pair<Kind, int64_t>(Kind::kSilentCorruption, 0),
                                     {Kind::kHealthCheckFailed, 0},
                                     {Kind::kUnkillable, 0},
                                     {Kind::kDeviceError, 79}}) {
    EvidenceBook book(Nodes(100));
    See(book, Hour(1), "n1", kind, number);
    for (const absl::Time now :
         {Hour(1), Day(29), Hour(1) + absl::Hours(720) - absl::Nanoseconds(1)}) {
      EXPECT_THAT(Names(book.Excluded(now)), ElementsAre("n1"));
      EXPECT_TRUE(book.Drained("n1", now));
    }
    EXPECT_THAT(book.Excluded(Hour(1) + absl::Hours(720)), IsEmpty());
    EXPECT_FALSE(book.Drained("n1", Hour(1) + absl::Hours(720)));
  }
}

TEST(EvidenceBook, SoftEvidenceCountsOnlyTogether) {
  EvidenceBook book(Nodes(100));
  const Kind soft[] = {Kind::kRankCrashed, Kind::kRankKilled, Kind::kOutOfMemory, Kind::kSlow};
  for (int i = 0; i < 3; ++i) {
    See(book, Hour(i), "n1", soft[i]);
    EXPECT_EQ(Of(book, "n1", Hour(i)).points, 25 * (i + 1));
    EXPECT_THAT(book.Excluded(Hour(i)), IsEmpty());
  }
  See(book, Hour(3), "n1", soft[3]);
  EXPECT_THAT(Names(book.Excluded(Hour(3))), ElementsAre("n1"));
  EXPECT_THAT(Names(book.Excluded(Hour(24) - absl::Nanoseconds(1))), ElementsAre("n1"));
  EXPECT_THAT(book.Excluded(Hour(24)), IsEmpty());  // The first is a day old.
}

// A checkpoint that is bad and a run whose training fails are bad wherever they are met.
TEST(EvidenceBook, WhatIsNoNodesFaultIsNotHeldAgainstIt) {
  EvidenceBook book(Nodes(8));
  for (int hour = 0; hour < 10; ++hour) {
    See(book, Hour(hour), "n1", Kind::kBadCheckpoint);
    See(book, Hour(hour), "n1", Kind::kTrainingFailed);
  }
  EXPECT_EQ(Of(book, "n1", Hour(10)).points, 0);
  EXPECT_FALSE(Of(book, "n1", Hour(10)).drained);
  EXPECT_EQ(Of(book, "n1", Hour(10)).entries, 20) << "to be read";
  See(book, Hour(10), "n1", Kind::kBadSnapshot);
  EXPECT_EQ(Of(book, "n1", Hour(10)).points, 25);
}

TEST(EvidenceBook, LikelyEvidenceCountsTwice) {
  EvidenceBook book(Nodes(100));
  See(book, Day(0), "n1", Kind::kNodeLost);
  EXPECT_THAT(book.Excluded(Day(0)), IsEmpty());
  See(book, Day(5), "n1", Kind::kHung);
  EXPECT_THAT(Names(book.Excluded(Day(5))), ElementsAre("n1"));
  EXPECT_THAT(book.Excluded(Day(7)), IsEmpty());
}

TEST(EvidenceBook, AllOfOneFailureIsOneIncidentOfItsWeightiestEntry) {
  EvidenceBook book(Nodes(100));
  for (int rank = 0; rank < 8; ++rank)
    EXPECT_TRUE(book.Record({"n1", Hour(1) + absl::Milliseconds(rank), Kind::kRankKilled, 11, 4,
                             "7", fmt::format("rank {}", rank)})
                    .ok());
  EXPECT_EQ(Of(book, "n1", Hour(2)).points, 25);
  EXPECT_TRUE(book.Record({"n1", Hour(1), Kind::kHung, 0, 4, "7", ""}).ok());
  EXPECT_EQ(Of(book, "n1", Hour(2)).points, 50);
  EXPECT_TRUE(book.Record({"n1", Hour(1), Kind::kHung, 0, 5, "7", ""}).ok());
  EXPECT_EQ(Of(book, "n1", Hour(2)).points, 100);
  EXPECT_TRUE(book.Record({"n1", Hour(1), Kind::kHung, 0, 5, "8", ""}).ok());  // Another job.
  EXPECT_EQ(Of(book, "n1", Hour(2)).points, 150);
  // Outside of generations each time is one.
  EXPECT_TRUE(book.Record({"n1", Hour(1), Kind::kStartFailed, 0, 0, "8", ""}).ok());
  EXPECT_TRUE(book.Record({"n1", Hour(2), Kind::kStartFailed, 0, 0, "8", ""}).ok());
  EXPECT_EQ(Of(book, "n1", Hour(2)).points, 250);
  EXPECT_EQ(
      Of(book, "n1", Hour(2)).reason,
      "n1: 3 x hung, 2 x start failed, 1 x rank killed by a signal; last 2026-03-02 02:00 UTC "
      "in job 8");
}

TEST(EvidenceBook, TheWeightiestEntryCountsWhicheverExpiresFirst) {
  EvidenceBook::Options options = Nodes(100);
  options.likely.expiry = absl::Hours(2);
  EvidenceBook book(options);
  See(book, Hour(1), "n1", Kind::kHung);
  See(book, Hour(1), "n1", Kind::kRankCrashed);
  EXPECT_EQ(Of(book, "n1", Hour(2)).points, 50);
  EXPECT_EQ(Of(book, "n1", Hour(3)).points, 25);
}

TEST(EvidenceBook, AWrongClockSaysNothingYet) {
  EvidenceBook book(Nodes(100));
  See(book, Day(100), "n1", Kind::kSilentCorruption);
  EXPECT_THAT(book.Excluded(Day(99) - absl::Nanoseconds(1)), IsEmpty());
  EXPECT_THAT(Names(book.Excluded(Day(99))), ElementsAre("n1"));
}

// ---- Forgiveness, pins, clears ------------------------------------------------------------------

TEST(EvidenceBook, GoodWorkForgivesWhatIsNotCertain) {
  EvidenceBook book(Nodes(100));
  See(book, Hour(10), "n1", Kind::kNodeLost);
  See(book, Hour(11), "n1", Kind::kNetworkError);
  See(book, Hour(10), "n2", Kind::kSilentCorruption);
  See(book, Hour(24), "n1", Kind::kWorked, 14 * 3600);  // From before the second on.
  EXPECT_EQ(Of(book, "n1", Hour(24)).points, 100);
  See(book, Hour(31), "n1", Kind::kWorked, 20 * 3600);
  EXPECT_EQ(Of(book, "n1", Hour(31)).points, 50);  // 34 hours since the first, 20 since the other.
  See(book, Hour(36), "n1", Kind::kWorked, 4 * 3600 - 1);
  EXPECT_EQ(Of(book, "n1", Hour(36)).points, 50);
  See(book, Hour(37), "n1", Kind::kWorked, 1);
  EXPECT_EQ(Of(book, "n1", Hour(37)).points, 0);
  for (int day = 2; day < 9; ++day) See(book, Day(day), "n2", Kind::kWorked, 24 * 3600);
  EXPECT_EQ(Of(book, "n2", Day(9)).points, 100);
}

TEST(EvidenceBook, WorkAndClearsOfAWrongClockForgiveNothingYet) {
  EvidenceBook book(Nodes(100));
  for (const char* node : {"n1", "n2"}) {
    See(book, Hour(1), node, Kind::kNodeLost);
    See(book, Hour(2), node, Kind::kNodeLost);
  }
  See(book, Day(4), "n1", Kind::kWorked, 48 * 3600);
  See(book, Day(4), "n2", Kind::kCleared);
  EXPECT_THAT(Names(book.Excluded(Day(2))), ElementsAre("n1", "n2"));
  EXPECT_THAT(book.Excluded(Day(3)), IsEmpty());
}

TEST(EvidenceBook, PinsWin) {
  EvidenceBook book(Nodes(100));
  See(book, Hour(1), "n1", Kind::kSilentCorruption);
  See(book, Hour(1), "n1", Kind::kDrained);
  EXPECT_EQ(book.Pin("n1"), absl::OkStatus());
  EXPECT_EQ(book.Pin("n9"), absl::OkStatus());
  EXPECT_THAT(book.Excluded(Hour(1)), IsEmpty());
  EXPECT_FALSE(book.Drained("n1", Hour(1)));
  const EvidenceBook::Verdict verdict = Of(book, "n1", Hour(1));
  EXPECT_TRUE(verdict.pinned);
  EXPECT_FALSE(verdict.drained);
  EXPECT_EQ(verdict.points, 100);
  EXPECT_THAT(verdict.reason, testing::EndsWith("; pinned"));
  EXPECT_THAT(Names(book.List(Hour(1))), ElementsAre("n1", "n9"));
  EXPECT_EQ(Of(book, "n9", Hour(1)).reason, "n9: nothing counts against it; pinned");
  book.Unpin("n1");
  EXPECT_THAT(Names(book.Excluded(Hour(1))), ElementsAre("n1"));
}

TEST(EvidenceBook, APinTakesNoPlaceUnderTheCap) {
  EvidenceBook book(Nodes(10));
  See(book, Hour(2), "n1", Kind::kSilentCorruption);
  See(book, Hour(1), "n2", Kind::kSilentCorruption);
  EXPECT_THAT(Names(book.Excluded(Hour(3))), ElementsAre("n1"));
  EXPECT_TRUE(book.Pin("n1").ok());
  EXPECT_THAT(Names(book.Excluded(Hour(3))), ElementsAre("n2"));
}

TEST(EvidenceBook, AClearedNodeBeginsAnew) {
  EvidenceBook book(Nodes(100));
  See(book, Hour(1), "n1", Kind::kSilentCorruption);
  See(book, Hour(2), "n1", Kind::kDrained);
  See(book, Hour(9), "n1", Kind::kUnkillable);  // Of a clock that is ahead.
  EXPECT_TRUE(book.Drained("n1", Hour(3)));
  EXPECT_EQ(book.Clear("n1", Hour(3)), absl::OkStatus());
  EXPECT_THAT(book.Excluded(Hour(3)), IsEmpty());
  EXPECT_FALSE(book.Drained("n1", Hour(3)));
  EXPECT_EQ(Of(book, "n1", Hour(3)).reason, "n1: nothing counts against it");
  EXPECT_EQ(Of(book, "n1", Hour(3)).entries, 4);
  See(book, Hour(10), "n1", Kind::kSilentCorruption);
  EXPECT_THAT(Names(book.Excluded(Hour(10))), ElementsAre("n1"));
  EXPECT_EQ(Of(book, "n1", Hour(10)).points, 100);

  EXPECT_EQ(
      book.Clear("n2", Hour(3)),
      absl::NotFoundError("nothing is known against node n2; `perdure nodes` lists those that "
                          "are known"));
}

// Nor is it counted as one of many nodes that the program has hurt.
TEST(EvidenceBook, WhatADrillDidIsHeldAgainstNobody) {
  EvidenceBook book(Nodes(100));
  for (const char* node : {"n1", "n2", "n3", "n4"}) {
    See(book, Hour(1), node, Kind::kNodeLost);
    if (*(node + 1) != '4') See(book, Hour(1), node, Kind::kDrilled);
  }
  EXPECT_EQ(Of(book, "n1", Hour(1)).points, 0);
  EXPECT_EQ(Of(book, "n1", Hour(1)).entries, 2) << "to be read";
  EXPECT_EQ(Of(book, "n4", Hour(1)).points, 50) << "one node is not many";
  EXPECT_THAT(book.Judge(Hour(1)).programs, IsEmpty());
  // As long as the evidence itself would count; and that incident alone.
  See(book, Hour(2), "n5", Kind::kDrilled);
  See(book, Hour(2), "n5", Kind::kSilentCorruption);
  EXPECT_EQ(Of(book, "n5", Day(29)).points, 0);
  See(book, Hour(3), "n5", Kind::kSilentCorruption);
  EXPECT_THAT(Names(book.Excluded(Hour(3))), ElementsAre("n5"));
}

TEST(EvidenceBook, WhatTheSchedulerDrainsIsNotPlannedWithNorExcluded) {
  EvidenceBook book(Nodes(100));
  See(book, Hour(1), "n1", Kind::kDrained);
  EXPECT_TRUE(book.Drained("n1", Hour(2)));
  EXPECT_THAT(book.Excluded(Hour(2)), IsEmpty());
  EXPECT_EQ(Of(book, "n1", Hour(2)).reason,
            "n1: nothing counts against it; drained by the scheduler");
  EXPECT_FALSE(book.Drained("n1", Hour(13)));  // Not said again for twelve hours.
  See(book, Hour(3), "n1", Kind::kReturned);
  EXPECT_FALSE(book.Drained("n1", Hour(4)));
  See(book, Hour(5), "n1", Kind::kDrained);
  EXPECT_TRUE(book.Drained("n1", Hour(6)));
  EXPECT_FALSE(book.Drained("n2", Hour(6)));
  See(book, Hour(7), "n1", Kind::kHung);
  See(book, Hour(8), "n1", Kind::kReturned);  // By itself it forgives nothing.
  EXPECT_EQ(Of(book, "n1", Hour(8)).points, 50);
}

// ---- The cap ------------------------------------------------------------------------------------

TEST(EvidenceBook, UnderTheCapTheMostCertainComeFirst) {
  EvidenceBook::Options options = Nodes(30);  // A tenth: three.
  EvidenceBook book(options);
  for (int hour = 1; hour <= 8; ++hour) See(book, Hour(hour), "soft", Kind::kRankCrashed);
  for (const int hour : {1, 2}) See(book, Hour(hour), "likely-early", Kind::kNodeLost);
  for (const int hour : {3, 4}) See(book, Hour(hour), "likely-late", Kind::kNodeLost);
  See(book, Hour(1), "certain-early", Kind::kSilentCorruption);
  See(book, Hour(2), "certain-late", Kind::kSilentCorruption);
  for (const int hour : {1, 2}) See(book, Hour(hour), "certain-twice", Kind::kSilentCorruption);
  const auto excluded = [&](int excluded_max) {
    options.excluded_max = excluded_max;
    return Names(EvidenceBook::Restore(options, book.Entries(), {})->Excluded(Hour(9)));
  };
  EXPECT_THAT(excluded(0), IsEmpty());
  EXPECT_THAT(excluded(1), ElementsAre("certain-twice"));
  EXPECT_THAT(excluded(2), ElementsAre("certain-late", "certain-twice"));
  EXPECT_THAT(excluded(3), ElementsAre("certain-early", "certain-late", "certain-twice"));
  EXPECT_THAT(excluded(9), ElementsAre("certain-early", "certain-late", "certain-twice"));
  options.excluded_percent_max = 20;
  EXPECT_THAT(excluded(4), testing::Contains("soft"));
  EXPECT_THAT(excluded(5), testing::Contains("likely-late"));
  EXPECT_EQ(excluded(6).size(), 6U);
  EXPECT_THAT(Of(book, "soft", Hour(9)).reason,
              HasSubstr("8 x rank crashed; last 2026-03-02 08:00 UTC in job 7; not excluded: 3 of "
                        "30 nodes are, which is the most"));
  EXPECT_TRUE(book.Drained("soft", Hour(9)));
}

TEST(EvidenceBook, OneNodeMayAlwaysBeExcluded) {
  EvidenceBook book(Nodes(2));
  See(book, Hour(1), "n1", Kind::kSilentCorruption);
  See(book, Hour(1), "n2", Kind::kSilentCorruption);
  EXPECT_THAT(Names(book.Excluded(Hour(1))), ElementsAre("n1"));
}

// ---- The program --------------------------------------------------------------------------------

TEST(EvidenceBook, ABugThatKillsARankOnEveryNodeExcludesNobody) {
  for (const int nodes : {2, 3, 4, 16, 128, 1000}) {
    EvidenceBook book(Nodes(nodes));
    // Every few minutes one crashes, each of them five times.
    const absl::Duration pause = absl::Minutes(5);
    absl::Time now = Hour(0);
    for (int i = 0; i < 5 * nodes; ++i)
      See(book, now += pause, Numbered(i % nodes), Kind::kRankKilled, 11);
    for (const absl::Time later : {now, now + absl::Hours(12), now + absl::Hours(23)})
      EXPECT_THAT(book.Excluded(later), IsEmpty()) << nodes;
    EXPECT_FALSE(book.Drained(Numbered(1), now));
    const std::vector<EvidenceBook::SuspectProgram> programs = book.Judge(now).programs;
    ASSERT_EQ(programs.size(), 1U) << nodes;
    EXPECT_EQ(programs[0].kind, Kind::kRankKilled);
    EXPECT_EQ(programs[0].nodes, nodes);
    EXPECT_EQ(programs[0].from, Hour(0) + pause);
    EXPECT_EQ(programs[0].until, now);
    EXPECT_THAT(book.Judge(now + absl::Hours(24)).programs, IsEmpty());
  }
}

TEST(EvidenceBook, TheSuspectProgramIsToldInWords) {
  EvidenceBook book(Nodes(16));
  for (int node = 1; node <= 5; ++node) See(book, Hour(node), Numbered(node), Kind::kHung);
  See(book, Hour(2), "n002", Kind::kSilentCorruption);
  const EvidenceBook::Judgement judgement = book.Judge(Hour(6));
  ASSERT_EQ(judgement.programs.size(), 1U);
  EXPECT_EQ(
      judgement.programs[0].reason,
      "hung on 5 nodes from 2026-03-02 01:00 UTC to 2026-03-02 05:00 UTC: suspect the program, "
      "or what these nodes share, and not the nodes");
  EXPECT_EQ(Of(book, "n001", Hour(6)).reason,
            "n001: nothing counts against it; not held against it, seen on many nodes: 1 x hung");
  EXPECT_EQ(Of(book, "n002", Hour(6)).reason,
            "n002: 1 x silent corruption; last 2026-03-02 02:00 UTC in job 7; not held against it, "
            "seen on many nodes: 1 x hung");
  EXPECT_THAT(Names(book.Excluded(Hour(6))), ElementsAre("n002"));
}

TEST(EvidenceBook, ManyNodesAreManyWithinTheWindow) {
  const auto suspected = [](int nodes, absl::Duration apart, int allocation) {
    EvidenceBook book(Nodes(allocation));
    for (int node = 0; node < nodes; ++node)
      See(book, Hour(1) + node * apart, Numbered(node), Kind::kRankCrashed);
    return !book.Judge(Hour(20)).programs.empty();
  };
  EXPECT_TRUE(suspected(4, absl::Hours(2), 100));
  EXPECT_FALSE(suspected(4, absl::Hours(2) + absl::Seconds(1), 100));
  EXPECT_FALSE(suspected(3, absl::Minutes(1), 100));
  EXPECT_FALSE(suspected(125, absl::Seconds(1), 12501));  // One in a hundred, rounded up.
  EXPECT_TRUE(suspected(126, absl::Seconds(1), 12501));
  EXPECT_TRUE(suspected(3, absl::Minutes(1), 3));
  EXPECT_FALSE(suspected(2, absl::Minutes(1), 3));
  EXPECT_TRUE(suspected(2, absl::Minutes(1), 1));  // A job after the other.
  EXPECT_FALSE(suspected(1, absl::Minutes(1), 1));
}

TEST(EvidenceBook, OfTheSameNodeAgainAndAgainIsNotTheProgram) {
  EvidenceBook book(Nodes(100));
  for (int hour = 1; hour <= 6; ++hour) See(book, Hour(hour), "n1", Kind::kRankCrashed);
  EXPECT_THAT(book.Judge(Hour(7)).programs, IsEmpty());
  EXPECT_THAT(Names(book.Excluded(Hour(7))), ElementsAre("n1"));
}

TEST(EvidenceBook, AnotherKindOrXidIsAnotherCause) {
  EvidenceBook book(Nodes(100));
  See(book, Hour(1), "n1", Kind::kDeviceError, 31);
  See(book, Hour(1), "n2", Kind::kDeviceError, 13);
  See(book, Hour(1), "n3", Kind::kRankCrashed);
  See(book, Hour(1), "n4", Kind::kRankKilled);
  EXPECT_THAT(book.Judge(Hour(2)).programs, IsEmpty());
  for (int node = 2; node <= 4; ++node) See(book, Hour(2), Numbered(node), Kind::kDeviceError, 31);
  ASSERT_EQ(book.Judge(Hour(2)).programs.size(), 1U);
  EXPECT_EQ(book.Judge(Hour(2)).programs[0].number, 31);
}

TEST(EvidenceBook, CertainEvidenceIsNeverTheProgram) {
  EvidenceBook book(Nodes(100));
  for (int node = 0; node < 20; ++node) See(book, Hour(1), Numbered(node), Kind::kDeviceError, 79);
  EXPECT_THAT(book.Judge(Hour(2)).programs, IsEmpty());
  EXPECT_EQ(book.Excluded(Hour(2)).size(), 10U);
}

TEST(EvidenceBook, ANodeThatFailsFarMoreOftenIsBlamedNevertheless) {
  for (const int times : {3, 4}) {
    EvidenceBook book(Nodes(100));
    for (int node = 1; node <= 9; ++node) See(book, Hour(1), Numbered(node), Kind::kHung);
    for (int i = 0; i < times; ++i) See(book, Hour(1) + absl::Minutes(i), "lemon", Kind::kHung);
    EXPECT_EQ(book.Judge(Hour(3)).programs.size(), 1U);
    EXPECT_EQ(Of(book, "lemon", Hour(3)).points, times == 3 ? 0 : 200);
    EXPECT_EQ(Of(book, "n001", Hour(3)).points, 0);
  }
}

TEST(EvidenceBook, FarMoreOftenIsMoreThanTheMedianOfTheNodes) {
  for (const int times : {6, 7}) {
    EvidenceBook book(Nodes(100));
    See(book, Hour(1), "once", Kind::kHung);
    for (int node = 1; node <= 9; ++node)
      for (int i = 0; i < 2; ++i)
        See(book, Hour(1) + absl::Minutes(i), Numbered(node), Kind::kHung);
    for (int i = 0; i < times; ++i) See(book, Hour(1) + absl::Minutes(i), "lemon", Kind::kHung);
    EXPECT_EQ(Of(book, "lemon", Hour(3)).points, times == 6 ? 0 : 350);
  }
}

TEST(EvidenceBook, TwoBugsAreTwoAndWhatHappenedBetweenThemCounts) {
  EvidenceBook book(Nodes(100));
  for (const int hour : {0, 40})
    for (int node = 1; node <= 9; ++node)
      See(book, Hour(hour) + absl::Minutes(node), Numbered(node), Kind::kNodeLost);
  See(book, Hour(20), "n001", Kind::kNodeLost);
  EXPECT_EQ(book.Judge(Hour(41)).programs.size(), 2U);
  EXPECT_EQ(Of(book, "n001", Hour(41)).points, 50);
  EXPECT_EQ(Of(book, "n002", Hour(41)).points, 0);
}

TEST(EvidenceBook, WhatHappenedBeforeAndAfterTheBugCounts) {
  EvidenceBook book(Nodes(100));
  See(book, Hour(0), "n001", Kind::kNodeLost);
  for (int node = 1; node <= 9; ++node)
    See(book, Hour(20) + absl::Minutes(node), Numbered(node), Kind::kNodeLost);
  See(book, Hour(40), "n001", Kind::kNodeLost);
  EXPECT_THAT(Names(book.Excluded(Hour(41))), ElementsAre("n001"));
  EXPECT_EQ(Of(book, "n001", Hour(41)).points, 100);
}

}  // namespace
}  // namespace perdure
