// The book is a value of bounded size, and the order of recording is no part of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <utility>

#include "tests/control/evidence_diary.h"
#include "tests/prng.h"

namespace perdure {
namespace {

using testing::ElementsAre;

// ---- A value ------------------------------------------------------------------------------------

std::vector<EvidenceEntry> AnyEntries(Prng& dice, int count, uint64_t nodes) {
  std::vector<EvidenceEntry> entries;
  for (int i = 0; i < count; ++i) {
    const auto kind = static_cast<Kind>(dice.Below(kEvidenceKinds));
    const bool number = kind == Kind::kDeviceError || kind == Kind::kWorked;
    entries.push_back({.node = Numbered(static_cast<int>(dice.Below(nodes))),
                       .time = Hour(0) + absl::Seconds(dice.Below(10 * 24 * 3600)),
                       .kind = kind,
                       .number = number ? static_cast<int64_t>(dice.Below(130)) : 0,
                       .generation = dice.Below(Generation{5}),
                       .job = std::to_string(dice.Below(3)),
                       .detail = {}});
  }
  return entries;
}

TEST(EvidenceBook, TheOrderOfRecordingDoesNotMatter) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    Prng dice(seed);
    EvidenceBook::Options options = Nodes(20);
    options.entries_per_node_max = static_cast<int>(3 + dice.Below(20));  // Some are dropped.
    std::vector<EvidenceEntry> entries = AnyEntries(dice, 200, 20);
    const EvidenceBook book = *EvidenceBook::Restore(options, entries, {"n003"});
    dice.Shuffle(entries);
    const EvidenceBook other = *EvidenceBook::Restore(options, entries, {"n003"});
    ASSERT_EQ(book.Entries(), other.Entries()) << seed;
    ASSERT_EQ(book, other);
    for (int day = 0; day < 12; ++day) ASSERT_EQ(book.List(Day(day)), other.List(Day(day)));
    // What it knows makes it, and knowing it twice changes nothing.
    const std::vector<EvidenceEntry> known = book.Entries();
    ASSERT_EQ(*EvidenceBook::Restore(options, known, book.pins()), book);
    EvidenceBook twice = book;
    for (const EvidenceEntry& entry : known) ASSERT_TRUE(twice.Record(entry).ok());
    ASSERT_EQ(twice, book);
  }
}

TEST(EvidenceBook, EveryViewSaysTheSame) {
  size_t drained = 0, excluded = 0;
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    Prng dice(seed);
    const EvidenceBook book =
        *EvidenceBook::Restore(Nodes(40), AnyEntries(dice, 150, 40), {"n001", "n002", "x"});
    for (int day = 0; day < 40; day += 3) {
      const std::vector<EvidenceBook::Verdict> list = book.List(Day(day));
      EXPECT_TRUE(std::is_sorted(list.begin(), list.end(),
                                 [](const auto& a, const auto& b) { return a.node < b.node; }));
      std::vector<std::string> names;
      for (const EvidenceBook::Verdict& one : list) {
        ASSERT_EQ(book.Drained(one.node, Day(day)), one.drained);
        ASSERT_FALSE(one.pinned && (one.drained || one.excluded));
        ASSERT_TRUE(!one.excluded || (one.drained && one.points >= 100));
        ASSERT_TRUE(one.reason.starts_with(one.node + ": "));
        if (one.excluded) names.push_back(one.node);
        drained += one.drained ? 1 : 0;
      }
      ASSERT_EQ(Names(book.Excluded(Day(day))), names);
      ASSERT_LE(names.size(), 4U);
      excluded += names.size();
    }
  }
  EXPECT_GT(drained, excluded);
  EXPECT_GT(excluded, 500U);
}

// ---- Bounds -------------------------------------------------------------------------------------

TEST(EvidenceBook, WhatWouldExpireFirstIsDroppedFirst) {
  EvidenceBook::Options options = Nodes(100);
  options.entries_per_node_max = 3;
  EvidenceBook book(options);
  See(book, Hour(0), "n1", Kind::kSilentCorruption);
  See(book, Hour(1), "n1", Kind::kHung);
  for (int hour = 2; hour < 50; ++hour) See(book, Hour(hour), "n1", Kind::kRankCrashed);
  std::vector<std::string> kept;
  for (const EvidenceEntry& entry : book.Entries()) kept.push_back(std::string(NameOf(entry.kind)));
  EXPECT_THAT(kept, ElementsAre("rank-crashed", "hung", "silent-corruption"));
  EXPECT_EQ(book.Entries()[0].time, Hour(49));
}

TEST(EvidenceBook, WhatForgivesOutlivesWhatItForgives) {
  EvidenceBook::Options options = Nodes(100);
  options.entries_per_node_max = 3;
  EvidenceBook book(options);
  See(book, Hour(1), "cleared", Kind::kSilentCorruption);
  EXPECT_TRUE(book.Clear("cleared", Hour(2)).ok());
  for (const int hour : {1, 2}) See(book, Hour(hour), "worked", Kind::kNodeLost);
  See(book, Day(2), "worked", Kind::kWorked, 24 * 3600);
  // Soft entries are dropped before what forgives, and that not before what it forgives.
  for (int hour = 49; hour < 60; ++hour)
    for (const char* node : {"cleared", "worked"}) See(book, Hour(hour), node, Kind::kRankCrashed);
  EXPECT_EQ(Of(book, "cleared", Hour(60)).points, 25);
  EXPECT_EQ(Of(book, "worked", Hour(60)).points, 0);
  EXPECT_EQ(Of(book, "worked", Hour(60)).entries, 3);
}

TEST(EvidenceBook, OfTooManyNodesTheLeastBurdenedAreDropped) {
  EvidenceBook::Options options = Nodes(100);
  options.nodes_known_max = 3;
  EvidenceBook book(options);
  See(book, Hour(9), "worked", Kind::kWorked, 3600);
  See(book, Hour(1), "certain", Kind::kSilentCorruption);
  See(book, Hour(2), "likely", Kind::kHung);
  EXPECT_TRUE(book.Knows("worked"));
  See(book, Hour(3), "soft", Kind::kRankCrashed);
  EXPECT_FALSE(book.Knows("worked"));
  See(book, Hour(1), "soft-earlier", Kind::kRankCrashed);
  EXPECT_FALSE(book.Knows("soft-earlier"));
  See(book, Hour(4), "likely-later", Kind::kHung);
  EXPECT_THAT(Names(book.List(Hour(5))), ElementsAre("certain", "likely", "likely-later"));
}

TEST(EvidenceBook, NothingGrowsWithoutBound) {
  EvidenceBook::Options options = Nodes(100);
  options.nodes_known_max = 50;
  options.entries_per_node_max = 8;
  EvidenceBook book(options);
  Prng dice(1);
  for (const EvidenceEntry& entry : AnyEntries(dice, 10000, 900)) {
    ASSERT_TRUE(book.Record(entry).ok());
    ASSERT_LE(book.Entries().size(), 50U * 8U);
  }
  EXPECT_EQ(book.List(kMonday).size(), 50U);
}

// Printed, not asserted: it depends on the machine.
TEST(EvidenceBook, SpeedWithManyNodes) {
  EvidenceBook book(Nodes(12500));
  const auto begin = std::chrono::steady_clock::now();
  for (int node = 0; node < 12500; ++node) {
    See(book, Hour(0) + absl::Seconds(node), Numbered(node), Kind::kRankCrashed);
    See(book, Hour(0) + absl::Seconds(node), Numbered(node), Kind::kHung);
  }
  const auto recorded = std::chrono::steady_clock::now();
  EXPECT_EQ(book.Judge(Hour(1)).programs.size(), 2U);
  const auto judged = std::chrono::steady_clock::now();
  const auto ms = [](auto time) { return std::chrono::duration<double, std::milli>(time).count(); };
  std::printf("25000 entries of 12500 nodes: %.1f us to record each, %.1f ms to judge all\n",
              ms(recorded - begin) / 25, ms(judged - recorded));
}

TEST(EvidenceBook, TooManyPinsAreRefused) {
  EvidenceBook::Options options;
  options.pins_max = 2;
  EvidenceBook book(options);
  EXPECT_TRUE(book.Pin("n1").ok());
  EXPECT_TRUE(book.Pin("n2").ok());
  EXPECT_TRUE(book.Pin("n2").ok());
  EXPECT_EQ(book.Pin("n3"),
            absl::ResourceExhaustedError("node n3 cannot be pinned: 2 nodes are; unpin some"));
  EXPECT_EQ(book.Pin("").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(EvidenceBook::Restore(options, {}, {"a", "b", "c"}).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(EvidenceBook, OptionsOutOfRangeAreNamed) {
  EXPECT_TRUE(EvidenceBook::Validate({}).ok());
  using Change = std::function<void(EvidenceBook::Options&)>;
  const std::vector<std::pair<std::string, Change>> wrong = {
      {"points_min is 0; it must be 1 to 1000000", [](auto& o) { o.points_min = 0; }},
      {"soft.points is 100; it must be 0 to 99", [](auto& o) { o.soft.points = 100; }},
      {"likely.points is -1; it must be 0 to 1000000", [](auto& o) { o.likely.points = -1; }},
      {"certain.points is -1; it must be 0 to 1000000", [](auto& o) { o.certain.points = -1; }},
      {"soft.expiry is 0; it must be 1s to 87600h",
       [](auto& o) { o.soft.expiry = absl::ZeroDuration(); }},
      {"likely.expiry is inf; it must be 1s to 87600h",
       [](auto& o) { o.likely.expiry = absl::InfiniteDuration(); }},
      {"certain.expiry is -1s; it must be 1s to 87600h",
       [](auto& o) { o.certain.expiry = -absl::Seconds(1); }},
      {"drain_expiry is 0; it must be 1s to 87600h",
       [](auto& o) { o.drain_expiry = absl::ZeroDuration(); }},
      {"good_time is 0; it must be 1s to 87600h",
       [](auto& o) { o.good_time = absl::ZeroDuration(); }},
      {"future_max is -1s; it must be 0 to 87600h",
       [](auto& o) { o.future_max = -absl::Seconds(1); }},
      {"nodes is 0; it must be 1 to 1048576", [](auto& o) { o.nodes = 0; }},
      {"program_nodes_min is 1; it must be 2 to 1048576", [](auto& o) { o.program_nodes_min = 1; }},
      {"program_percent_min is 101; it must be 0 to 100",
       [](auto& o) { o.program_percent_min = 101; }},
      {"program_window is 0; it must be 1s to 87600h",
       [](auto& o) { o.program_window = absl::ZeroDuration(); }},
      {"lone_factor is 0; it must be 1 to 1000", [](auto& o) { o.lone_factor = 0; }},
      {"excluded_max is -1; it must be 0 to 1048576", [](auto& o) { o.excluded_max = -1; }},
      {"excluded_percent_max is 101; it must be 0 to 100",
       [](auto& o) { o.excluded_percent_max = 101; }},
      {"entries_per_node_max is 0; it must be 1 to 1024",
       [](auto& o) { o.entries_per_node_max = 0; }},
      {"nodes_known_max is 0; it must be 1 to 1048576", [](auto& o) { o.nodes_known_max = 0; }},
      {"pins_max is -1; it must be 0 to 1048576", [](auto& o) { o.pins_max = -1; }},
  };
  for (const auto& [words, change] : wrong) {
    EvidenceBook::Options options;
    change(options);
    EXPECT_EQ(EvidenceBook::Validate(options), absl::InvalidArgumentError("evidence: " + words));
    EXPECT_EQ(EvidenceBook::Restore(options, {}, {}).status(), EvidenceBook::Validate(options));
  }
}

}  // namespace
}  // namespace perdure
