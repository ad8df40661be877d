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

TEST(SbatchOptions, WhatCounts) {
  const auto counts = [](const Options& command_line, const char* variable, const Options& script) {
    return CountingValueOf(
        kPartitionOption, command_line,
        [&](std::string_view name) -> std::optional<std::string> {
          if (variable == nullptr || name != "SBATCH_PARTITION") return std::nullopt;
          return variable;
        },
        script);
  };
  EXPECT_EQ(counts({"-pa", "-p", "b"}, "c", {"--partition=d"}), "b");
  EXPECT_EQ(counts({"--qos=a"}, "c", {"--partition=d"}), "c");
  EXPECT_EQ(counts({}, nullptr, {"--partition=d", "--partition=e"}), "e");
  EXPECT_EQ(counts({}, nullptr, {}), std::nullopt);
}

TEST(SbatchOptions, NamesAreNotMixedUp) {
  const Options options = {"--qos=q",           "--quiet",           "--account=a",
                           "--acctg-freq=1",    "--gres=gpu:2",      "--gres-flags=enforce-binding",
                           "--gpus-per-node=3", "--gpus-per-task=4", "--cpus-per-task=5",
                           "--cpus-per-gpu=6"};
  EXPECT_EQ(ValueOf(kQosOption, options), "q");
  EXPECT_EQ(ValueOf(kAccountOption, options), "a");
  EXPECT_EQ(ValueOf(kGresOption, options), "gpu:2");
  EXPECT_EQ(ValueOf(kGpusPerNodeOption, options), "3");
  EXPECT_EQ(ValueOf(kCpusPerTaskOption, options), "5");
}

TEST(SbatchOptions, GpusOfANode) {
  for (const auto& [gres, gpus] : std::vector<std::pair<const char*, int64_t>>{{"", 0},
                                                                               {"gpu", 1},
                                                                               {"gpu:4", 4},
                                                                               {"gpu:h100", 1},
                                                                               {"gpu:h100:4", 4},
                                                                               {"nic:2", 0},
                                                                               {"nic:2,gpu:3", 3}})
    EXPECT_EQ(GpusOfGres(gres), gpus) << gres;
  EXPECT_EQ(GpusPerNode(""), 0);
  EXPECT_EQ(GpusPerNode("8"), 8);
  EXPECT_EQ(GpusPerNode("h100:4"), 4);
  EXPECT_EQ(GpusPerNode("volta:3,kepler:5"), 8);
}

}  // namespace
}  // namespace perdure
