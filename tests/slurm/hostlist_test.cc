#include "launch/slurm/hostlist.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "runtime/base/status.h"
#include "tests/prng.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::vector<std::string> Expand(std::string_view list) {
  const absl::StatusOr<std::vector<std::string>> names = ExpandHostlist(list);
  EXPECT_TRUE(names.ok()) << list << ": " << names.status();
  return names.value_or(std::vector<std::string>());
}

std::string Compress(const std::vector<std::string>& names) { return CompressHostlist(names); }

TEST(Hostlist, Expands) {
  EXPECT_THAT(Expand("n1"), ElementsAre("n1"));
  EXPECT_THAT(Expand("n[1-3],x[08-10],a-b[001-002]"),
              ElementsAre("n1", "n2", "n3", "x08", "x09", "x10", "a-b001", "a-b002"));
  EXPECT_THAT(Expand("n[3,1,7-8]"), ElementsAre("n3", "n1", "n7", "n8"));
  EXPECT_THAT(Expand("n[1],n1"), ElementsAre("n1", "n1"));
  EXPECT_THAT(Expand("[1-2]"), ElementsAre("1", "2"));
  EXPECT_THAT(Expand("tc-intel[002-004]"),
              ElementsAre("tc-intel002", "tc-intel003", "tc-intel004"));
}

TEST(Hostlist, WidthIsThatOfTheFirstNumber) {
  EXPECT_THAT(Expand("n[8-10]"), ElementsAre("n8", "n9", "n10"));
  EXPECT_THAT(Expand("n[08-010]"), ElementsAre("n08", "n09", "n10"));
  EXPECT_THAT(Expand("n[098-101]"), ElementsAre("n098", "n099", "n100", "n101"));
  EXPECT_THAT(Expand("n[0-0]"), ElementsAre("n0"));
}

TEST(Hostlist, LaterBracketsVaryFaster) {
  EXPECT_THAT(Expand("r[1-2]n[01-02]"), ElementsAre("r1n01", "r1n02", "r2n01", "r2n02"));
  EXPECT_THAT(Expand("r[1,3]c[1-2]n[7]"), ElementsAre("r1c1n7", "r1c2n7", "r3c1n7", "r3c2n7"));
}

TEST(Hostlist, SeparatorsMayRepeat) {
  EXPECT_THAT(Expand(",,a,, b\tc,"), ElementsAre("a", "b", "c"));
  EXPECT_THAT(Expand(""), IsEmpty());
  EXPECT_THAT(Expand("(null)"), IsEmpty());
}

TEST(Hostlist, TextBehindBracketsIsOfLaterReleases) {
  const absl::Status status = ExpandHostlist("a-[1,3]b").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), HasSubstr("text behind the last bracket"));
  EXPECT_FALSE(ExpandHostlist("a[1]b").ok());
  const auto later = ExpandHostlist("node[09-10]-int,x", HostlistGrammar::k23_11);
  ASSERT_TRUE(later.ok()) << later.status();
  EXPECT_THAT(*later, ElementsAre("node09-int", "node10-int", "x"));
}

TEST(Hostlist, RefusesWithThePlace) {
  const std::pair<const char*, const char*> wrong[] = {
      {"n[1-", "character 4: a bracket is not closed"},
      {"n[1", "character 3: a bracket is not closed"},
      {"n[", "character 2: a bracket is not closed"},
      {"n[]", "character 2: a number was expected"},
      {"n[,1]", "character 2: a number was expected"},
      {"n[1,]", "character 4: a number was expected"},
      {"n[3-1]", "character 5: the range 3-1 goes down"},
      {"n[-1]", "character 2: a number was expected"},
      {"n[1--2]", "character 4: a number was expected"},
      {"n[1-2-3]", "character 5: in brackets stand numbers"},
      {"n[a]", "character 2: a number was expected"},
      {"n[1 ,2]", "character 3: in brackets stand numbers"},
      {"n[[1]]", "character 2: a number was expected"},
      {"n[0x1-2]", "character 3: in brackets stand numbers"},
      {"n]1", "character 1: this character"},
      {"a;b", "character 1: this character"},
      {"a\nb", "character 1: this character"},
      {"a/b", "character 1: this character"},
      {"$(x)", "character 0: this character"},
      {"n[1234567890123456789]", "character 21: a number is too long"},
  };
  for (const auto& [list, why] : wrong) {
    const absl::Status status = ExpandHostlist(list).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << list;
    EXPECT_THAT(Message(status), HasSubstr(why)) << list;
  }
  const absl::Status control = ExpandHostlist("a\x1b[2Jb").status();
  EXPECT_EQ(Message(control).find('\x1b'), std::string::npos);
}

TEST(Hostlist, IsBounded) {
  EXPECT_EQ(Expand("n[0-65535]").size(), kHostlistNamesMax);
  EXPECT_EQ(Expand("r[1-256]n[1-256]").size(), kHostlistNamesMax);
  for (const char* list :
       {"n[0-65536]", "n[0-999999999999]", "a[0-99999999].b[0-9]", "x,n[0-65535]",
        "r[1-257]n[1-256]", "r[1-1000]n[1-1000]q[1-1000]", "n[0-65535],x", "n[1,2,0-65535]"}) {
    const absl::Status status = ExpandHostlist(list).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << list;
    EXPECT_THAT(Message(status), HasSubstr("more than 65536 names")) << list;
  }
  EXPECT_TRUE(ExpandHostlist(std::string(255, 'n')).ok());
  EXPECT_THAT(Message(ExpandHostlist(std::string(256, 'n')).status()), HasSubstr("255 bytes"));
  EXPECT_THAT(
      Message(ExpandHostlist("[1-2]" + std::string(300, 'n'), HostlistGrammar::k23_11).status()),
      HasSubstr("255 bytes"));
}

TEST(Hostlist, Compresses) {
  EXPECT_EQ(Compress({}), "");
  EXPECT_EQ(Compress({"n1"}), "n1");
  EXPECT_EQ(Compress({"n3", "n1", "n2"}), "n[1-3]");
  EXPECT_EQ(Compress({"n1", "n1", "n2"}), "n[1-2]");
  EXPECT_EQ(Compress({"n1", "n2", "n4", "n07"}), "n[1-2,4,07]");
  EXPECT_EQ(Compress({"x08", "x09", "x10", "x11"}), "x[08-11]");
  EXPECT_EQ(Compress({"x8", "x9", "x10"}), "x[8-10]");
  EXPECT_EQ(Compress({"x099", "x100"}), "x[099-100]");
  EXPECT_EQ(Compress({"x8", "x9", "x08", "x09", "x10"}), "x[8-10,08-09]");
  EXPECT_EQ(Compress({"login", "n1", "a", "n2", "zz"}), "a,login,n[1-2],zz");
  EXPECT_EQ(Compress({"r1n1", "r1n2", "r2n1"}), "r1n[1-2],r2n1");
  EXPECT_EQ(Compress({"1", "2"}), "[1-2]");
  EXPECT_EQ(Compress({"n", "n0", "n00"}), "n,n[0,00]");
}

TEST(Hostlist, ComesBack) {
  Prng random(7);
  const char* const texts[] = {"n", "x-", "r1n", "", "a.b_"};
  for (int round = 0; round < 2000; ++round) {
    std::set<std::string> names;
    const uint64_t count = 1 + random.Below(30);
    for (uint64_t i = 0; i < count; ++i) {
      std::string digits = std::to_string(random.Below(random.Below(2) == 0 ? 12 : 1100));
      digits.insert(0, random.Below(3), '0');
      names.insert(texts[random.Below(5)] + digits);
    }
    if (random.Below(3) == 0) names.insert("login");
    const std::string list = Compress({names.begin(), names.end()});
    const std::vector<std::string> back = Expand(list);
    EXPECT_EQ(std::set<std::string>(back.begin(), back.end()), names) << list;
    EXPECT_EQ(back.size(), names.size()) << list;
    EXPECT_EQ(Compress(back), list);
  }
}

TEST(HostlistDeathTest, CompressWantsNames) {
  EXPECT_DEATH(Compress({"n[1-2]"}), "IsNodeName");
  EXPECT_DEATH(Compress({""}), "IsNodeName");
}

}  // namespace
}  // namespace perdure
