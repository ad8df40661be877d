#include "runtime/base/space.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/base/status.h"

namespace perdure {
namespace {

using testing::HasSubstr;

absl::Status Check(const SpaceNeed& need, const std::vector<SpaceLimit>& limits) {
  return CheckSpace("/run/ckpt", "a checkpoint", need, limits, "delete something");
}

TEST(CheckSpace, AtTheLimitItFits) {
  const SpaceNeed need{.bytes = 100, .files = 5};
  EXPECT_TRUE(Check(need, {}).ok());
  EXPECT_TRUE(Check(need, {{.of = "it", .bytes = 100, .files = 5}}).ok());
  EXPECT_TRUE(Check(need, {{.of = "it", .bytes = 100, .files = {}}}).ok()) << "counts no files";
  EXPECT_TRUE(Check(need, {{.of = "it", .bytes = {}, .files = 5}}).ok()) << "counts no bytes";
  for (const SpaceLimit& little : {SpaceLimit{.of = "it", .bytes = 99, .files = 5},
                                   {.of = "it", .bytes = 100, .files = 4},
                                   {.of = "it", .bytes = 0, .files = {}},
                                   {.of = "it", .bytes = {}, .files = 0}})
    EXPECT_EQ(Check(need, {{.of = "large", .bytes = 1000, .files = 1000}, little}).code(),
              absl::StatusCode::kResourceExhausted);
}

TEST(CheckSpace, SaysWhatWhereHowMuchAndWhatToDo) {
  const SpaceNeed need{.bytes = 25 << 20, .files = 5};
  EXPECT_EQ(Message(Check(need, {{.of = "the file system", .bytes = 3 << 19, .files = 77}})),
            "a checkpoint needs 25.0 MiB and 5 files in /run/ckpt, and the file system has 1.5 MiB "
            "and 77 files left: delete something");
  EXPECT_THAT(Message(Check(need, {{.of = "the quota of user 7", .bytes = {}, .files = 4}})),
              HasSubstr("the quota of user 7 has 4 files left"));
  EXPECT_THAT(Message(Check(need, {{.of = "the file system", .bytes = 1 << 20, .files = {}}})),
              HasSubstr("the file system has 1.0 MiB left"));
}

TEST(ReadSpace, KnowsTheFileSystem) {
  const std::vector<SpaceLimit> limits = ReadSpace(testing::TempDir());
  ASSERT_FALSE(limits.empty());
  EXPECT_EQ(limits[0].of, "the file system");
  EXPECT_TRUE(limits[0].bytes.has_value());
  EXPECT_TRUE(ReadSpace(testing::TempDir() + "/is/not/there").empty());
}

}  // namespace
}  // namespace perdure
