#include "launch/sbatch_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "runtime/base/status.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Options = std::vector<std::string>;

std::vector<std::string> Excluded(const Options& options) {
  const absl::StatusOr<std::vector<std::string>> names = ExcludedByOptions(options);
  EXPECT_TRUE(names.ok()) << names.status();
  return names.value_or(Options{"none"});
}

TEST(SbatchOptions, EverySpelling) {
  for (const Options& options : std::vector<Options>{{"-xn[1-2],m"},
                                                     {"-x", "n[1-2],m"},
                                                     {"--exclude=n[1-2],m"},
                                                     {"--exclude", "n[1-2],m"},
                                                     {"--exclud=n[1-2],m"},
                                                     {"--mem=0", "-x", "m,n2,n1,n2", "--exclusive"},
                                                     {"-x", "other", "--exclude=n[1-2],m"}})
    EXPECT_THAT(Excluded(options), ElementsAre("m", "n1", "n2")) << options.front();
}

TEST(SbatchOptions, OthersAreOthers) {
  EXPECT_THAT(Excluded({}), testing::IsEmpty());
  EXPECT_THAT(Excluded({"--exclusive", "--exclusive=user", "-X", "n1", "--excluded=n1", "-", "--",
                        "x", "--exclude"}),
              testing::IsEmpty());
  EXPECT_EQ(ValueOf(kPartitionOption, Options{"--parsable", "-p", "a,b"}), "a,b");
  EXPECT_EQ(ValueOf(kPartitionOption, Options{"--part=a"}), "a");
  EXPECT_EQ(ValueOf(kPartitionOption, Options{"--parsable", "--par=a"}), std::nullopt);
}

TEST(SbatchOptions, NamesInAFile) {
  const std::string path = std::filesystem::temp_directory_path() /
                           ("perdure_sbatch_options_" + std::to_string(::getpid()));
  std::ofstream(path) << "n[1,3]\nm\n\n k, l\n";
  EXPECT_THAT(Excluded({"--exclude=" + path}), ElementsAre("k", "l", "m", "n1", "n3"));
  std::filesystem::remove(path);
  EXPECT_TRUE(absl::IsNotFound(ExcludedByOptions(Options{"-x", path}).status()));
}

TEST(SbatchOptions, WhatIsNoListIsSaid) {
  const absl::Status wrong = ExcludedByOptions(Options{"-x", "n[1-"}).status();
  EXPECT_TRUE(absl::IsInvalidArgument(wrong));
  EXPECT_THAT(Message(wrong), HasSubstr("--exclude=n[1- among the options of sbatch"));
}

}  // namespace
}  // namespace perdure
