// Runs and commands on a file system that is nearly full. Mounts one in memory, so it needs root.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class LittleRoom : public testing::Test {
 protected:
  LittleRoom() : folder_(FreshFolder("little_room")), disk_(folder_ + "/disk") {
    fs::create_directories(disk_);
    WriteNanoData(folder_);
  }
  ~LittleRoom() override {
    ::umount2(disk_.c_str(), MNT_DETACH);
    fs::remove_all(folder_);
  }
  // False: not allowed to.
  bool Mount(const std::string& options) const {
    return ::mount("perdure-test", disk_.c_str(), "tmpfs", 0, options.c_str()) == 0;
  }
  CommandResult Run(const std::string& run, const std::string& until) const {
    return Perdure(
        RunOfTwoRanks(run, folder_, {"--set", "checkpoint.every_steps=1", "--until-step", until}));
  }
  // The run trained all steps, though the last ones could not be saved, and nothing half written is
  // left of them.
  void ExpectTrainedOn(const CommandResult& result, const std::string& words) const {
    const std::string run = disk_ + "/run";
    EXPECT_EQ(result.exit_code, 1) << "the end of a job needs its checkpoint";
    EXPECT_THAT(result.errors,
                HasSubstr("warning: keeping 3 checkpoints and writing one (4 more)"));
    EXPECT_THAT(result.errors, HasSubstr("warning: no checkpoint of step 4: a checkpoint needs "));
    EXPECT_THAT(result.errors, HasSubstr("in " + run + "/ckpt, and the file system has "));
    EXPECT_THAT(result.errors, HasSubstr(words));
    EXPECT_THAT(result.errors, HasSubstr("lower checkpoint.keep_last; training goes on"));
    EXPECT_EQ(LossColumn(run, "step"), (std::vector<std::string>{"1", "2", "3", "4"}));
    EXPECT_EQ(JournalEvents(run, "little_room").size(), 1U);
    const auto saved = JournalEvents(run, "checkpoint"),
               failed = JournalEvents(run, "checkpoint_failed");
    EXPECT_EQ(saved.size() + failed.size(), 4U);
    ASSERT_FALSE(saved.empty() || failed.empty());
    EXPECT_EQ(failed.back()["step"], 4);
    EXPECT_EQ(std::distance(fs::directory_iterator(run + "/ckpt"), {}),
              static_cast<std::ptrdiff_t>(saved.size()));
  }

  const std::string folder_, disk_;
};

TEST_F(LittleRoom, ARunTrainsOnAndSaysSo) {
  if (!Mount("size=40m")) GTEST_SKIP() << "mounting needs root";
  ExpectTrainedOn(Run(disk_ + "/run", "4"), " MiB");
  // With room again it goes on where the newest checkpoint stands.
  ASSERT_EQ(::mount("perdure-test", disk_.c_str(), "tmpfs", MS_REMOUNT, "size=400m"), 0);
  const CommandResult resumed = Run(disk_ + "/run", "4");
  EXPECT_EQ(resumed.exit_code, 75) << resumed.errors;
  EXPECT_EQ(JournalEvents(disk_ + "/run", "little_room").size(), 1U);
}

TEST_F(LittleRoom, ARunWithoutFilesLeftTrainsOnAndSaysSo) {
  if (!Mount("size=400m,nr_inodes=42")) GTEST_SKIP() << "mounting needs root";
  ExpectTrainedOn(Run(disk_ + "/run", "4"), " files left");
}

TEST_F(LittleRoom, CommandsRefuseAndLeaveNothing) {
  if (!Mount("size=3m")) GTEST_SKIP() << "mounting needs root";
  const std::string run = folder_ + "/run", target = disk_ + "/target";
  ASSERT_EQ(Run(run, "1").exit_code, 75);
  for (const char* format : {"hf", "dcp"})
    ASSERT_EQ(
        Perdure({"ckpt", "export", run, "-o", folder_ + "/" + format, "--to", format}).exit_code,
        0);
  for (const std::vector<std::string>& words : std::vector<std::vector<std::string>>{
           {"ckpt", "reshard", run, "-o", target, "--files", "2"},
           {"ckpt", "reshard", run, "-o", target, "--params-only"},
           {"ckpt", "export", run, "-o", target, "--to", "hf", "--dtype", "fp32"},
           {"ckpt", "export", run, "-o", target, "--to", "universal"},
           {"ckpt", "export", run, "-o", target, "--to", "dcp"},
           {"ckpt", "import", NanoToml(), "--from", "dcp", folder_ + "/dcp", "--run-dir",
            target}}) {
    const CommandResult refused = Perdure(words);
    EXPECT_EQ(refused.exit_code, 1) << refused.errors;
    EXPECT_THAT(refused.errors, HasSubstr("/disk, and the file system has 3.0 MiB"));
    EXPECT_THAT(refused.errors, HasSubstr("name a target elsewhere"));
    EXPECT_TRUE(fs::is_empty(disk_)) << refused.errors;
  }
}

}  // namespace
}  // namespace perdure
