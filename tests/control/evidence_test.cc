#include "runtime/control/evidence.h"

#include <gtest/gtest.h>

#include <set>

#include "runtime/control/evidence_book.h"

namespace perdure {
namespace {

using Kind = EvidenceKind;

TEST(Evidence, EveryKindHasItsOwnNameAndWords) {
  std::set<std::string_view> names;
  std::set<std::string> words;
  for (int i = 0; i < kEvidenceKinds; ++i) {
    const auto kind = static_cast<Kind>(i);
    EXPECT_TRUE(names.insert(NameOf(kind)).second);
    EXPECT_TRUE(words.insert(WordsOf(kind, 0)).second);
    EXPECT_EQ(KindOf(NameOf(kind)), kind);
  }
  EXPECT_EQ(KindOf("rank-crash"), std::nullopt);
  EXPECT_EQ(KindOf(""), std::nullopt);
  EXPECT_EQ(WordsOf(Kind::kDeviceError, 79), "device error (Xid 79)");
  EXPECT_EQ(WordsOf(Kind::kDeviceError, 0), "device error");
  EXPECT_EQ(WordsOf(Kind::kRankCrashed, 1), "rank crashed");
}

TEST(Evidence, XidsAreClassedByWhatTheCatalogueTellsToDo) {
  for (const int xid : {48, 64, 79, 95, 119, 120})
    EXPECT_EQ(ClassOf(Kind::kDeviceError, xid), EvidenceClass::kCertain) << xid;
  for (const int xid : {13, 31, 43, 45})
    EXPECT_EQ(ClassOf(Kind::kDeviceError, xid), EvidenceClass::kSoft) << xid;
  for (const int xid : {0, 63, 74, 92, 94, 999, -1})
    EXPECT_EQ(ClassOf(Kind::kDeviceError, xid), EvidenceClass::kLikely) << xid;
  EXPECT_EQ(ClassOf(Kind::kRankCrashed, 79), EvidenceClass::kSoft);
}

// A name ends up in a scheduler's command line.
TEST(Evidence, WhatIsNoNameIsRefused) {
  for (const char* name : {"n1", "jean-zay_4.example.org", "0", "_"})
    EXPECT_EQ(CheckNodeName(name), absl::OkStatus());
  EXPECT_EQ(CheckNodeName(std::string(255, 'n')), absl::OkStatus());
  EXPECT_EQ(CheckNodeName(""), absl::InvalidArgumentError("a node's name is empty"));
  EXPECT_EQ(CheckNodeName(std::string(256, 'n')),
            absl::InvalidArgumentError(
                "a node's name has 256 bytes, more than 255: " + std::string(32, 'n') + "..."));
  for (const std::string name :
       {"-n1", "n1,n2", "n[1-4]", "n 1", "n1\n", "n1;rm", "$n", "n\xC3\xA9", "n/1"}) {
    const absl::Status status = CheckNodeName(name);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_TRUE(std::string(status.message()).starts_with("\"" + name.substr(0, 1))) << status;
    EXPECT_EQ(std::string(status.message()).find('\n'), std::string::npos);
  }
}

TEST(Evidence, WhatIsNoEvidenceIsRefused) {
  const EvidenceEntry good = {.node = "n1", .time = absl::UnixEpoch()};
  EvidenceBook book{EvidenceBook::Options()};
  const auto refused = [&](const EvidenceEntry& entry) {
    const absl::Status status = book.Record(entry);
    EXPECT_EQ(status, CheckEvidence(entry));
    EXPECT_EQ(status.code() == absl::StatusCode::kInvalidArgument, !status.ok());
    EXPECT_EQ(EvidenceBook::Restore({}, {entry}, {}).status(), status);
    return std::string(status.message());
  };
  EXPECT_EQ(refused(good), "");
  EvidenceEntry bad = good;
  bad.node = "n,1";
  EXPECT_EQ(refused(bad), std::string(CheckNodeName("n,1").message()));
  bad = good;
  bad.kind = static_cast<Kind>(kEvidenceKinds);
  EXPECT_EQ(refused(bad), "evidence of node n1 has kind 21; there are 21");
  for (const absl::Time time : {absl::InfiniteFuture(), absl::InfinitePast()}) {
    bad = good;
    bad.time = time;
    EXPECT_EQ(refused(bad), "evidence of node n1 (rank-crashed) has no time");
  }
  bad = good;
  bad.kind = Kind::kWorked;
  bad.number = -1;
  EXPECT_EQ(refused(bad), "node n1 cannot have worked for -1 seconds");
  EXPECT_EQ(book.Entries().size(), 1U);
}

TEST(Evidence, TextsAreCutBetweenCharactersAndPrintable) {
  const EvidenceEntry bounded = Bounded({.node = "n1",
                                         .time = absl::UnixEpoch(),
                                         .job = std::string(63, 'j') + "\xC3\xA9",
                                         .detail = "a\tb\x1B[2J\n\x7F\xC3\xA9"});
  EXPECT_EQ(bounded.job, std::string(63, 'j'));
  EXPECT_EQ(bounded.detail, "a b [2J  \xC3\xA9");
  EXPECT_EQ(Bounded({.detail = std::string(255, 'd') + "x"}).detail.size(), 256U);
  EXPECT_EQ(Bounded({.detail = std::string(255, 'd') + "\xC3\xA9"}).detail.size(), 255U);
  EXPECT_EQ(Bounded({.detail = std::string(300, '\x80')}).detail, "");
  EvidenceBook book{EvidenceBook::Options()};
  EXPECT_TRUE(book.Record({.node = "n1", .detail = std::string(1000, '\n')}).ok());
  EXPECT_EQ(book.Entries()[0].detail, std::string(256, ' '));
}

}  // namespace
}  // namespace perdure
