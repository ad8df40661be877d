// Directories that can carry a run, and file systems that lie: each lie is caught, by the check
// that is there for it.
#include "runtime/agent/file_system_probe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <functional>
#include <thread>
#include <vector>

#include "runtime/agent/file_system_checks.h"
#include "runtime/agent/file_system_prober.h"
#include "runtime/base/check.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/agent/lying_file_system.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using testing::ContainsRegex;
using testing::HasSubstr;

constexpr uint64_t kMiB = 1 << 20;

std::string FreshPath(const std::string& parent) {
  static int count = 0;
  return fmt::format("{}/probe.{}.{}", parent, ::getpid(), count++);
}

class ProbeTest : public testing::Test {
 protected:
  ~ProbeTest() override {
    TellTheTruth();
    fs::remove_all(run_);
  }
  ProbeOptions Options() const {
    return {.run_directory = run_, .bytes_max = 16 * kMiB, .token = "test"};
  }
  static ProbeReport Probe(const ProbeOptions& options) {
    return ProbeFileSystem(options, [](const std::string&) {});
  }
  static const ProbeCheck& Find(const ProbeReport& report, const std::string& name) {
    const auto found = std::find_if(report.checks.begin(), report.checks.end(),
                                    [&](const ProbeCheck& check) { return check.name == name; });
    PERDURE_CHECK(found != report.checks.end());
    return *found;
  }
  void ExpectNothingLeft(const ProbeReport& report) const {
    EXPECT_EQ(report.left_behind, "");
    EXPECT_FALSE(fs::exists(run_));
  }
  // Every task but 0 in a process of its own, with a lie of its own; task 0 here. The others' exit
  // codes: 0, handed over.
  ProbeReport ProbeWith(int tasks, const ProbeOptions& common,
                        const std::function<void(int)>& prepare, std::vector<int>* codes) const {
    std::vector<pid_t> children;
    for (int task = 1; task < tasks; ++task) {
      const pid_t child = ::fork();
      PERDURE_CHECK(child >= 0);
      if (child == 0) {
        ProbeOptions options = common;
        options.tasks = tasks;
        options.task = task;
        prepare(task);
        ::_exit(Probe(options).handed_over ? 0 : 1);
      }
      children.push_back(child);
    }
    ProbeOptions options = common;
    options.tasks = tasks;
    prepare(0);
    ProbeReport report = Probe(options);
    for (const pid_t child : children) {
      int status = 0;
      EXPECT_EQ(::waitpid(child, &status, 0), child);
      codes->push_back(WIFEXITED(status) ? WEXITSTATUS(status) : -1);
    }
    return report;
  }

  const std::string run_ = FreshPath(testing::TempDir());
};

void ExpectAllWell(const ProbeReport& report, bool together) {
  for (const ProbeCheck& check : report.checks) {
    if (check.name.starts_with("task") && !together) {
      EXPECT_EQ(check.outcome, ProbeOutcome::kNotTested) << check.name;
      EXPECT_THAT(check.seen, HasSubstr("one task only: srun -N 2 perdure doctor"));
      continue;
    }
    // Of these the machine decides, not the file system.
    if (check.name == "tasks" || check.name == "file_system" || check.name == "reserve" ||
        check.name == "direct_io" || check.name == "bandwidth" || check.name == "room")
      EXPECT_NE(check.outcome, ProbeOutcome::kRefused) << check.name << ": " << check.seen;
    else
      EXPECT_EQ(check.outcome, ProbeOutcome::kOk) << check.name << ": " << check.seen;
  }
  EXPECT_TRUE(report.may_live());
}

TEST_F(ProbeTest, ADirectoryOfThisMachineIsGood) {
  std::vector<std::string> begun;
  const ProbeReport report =
      ProbeFileSystem(Options(), [&](const std::string& check) { begun.push_back(check); });
  ExpectAllWell(report, /*together=*/false);
  EXPECT_EQ(begun.front(), "directory");
  EXPECT_THAT(begun, testing::Contains("link_race"));
  const ProbeCheck& record = Find(report, "record_time");
  EXPECT_GT(record.numbers.at("record_p50_seconds"), 0);
  EXPECT_GE(record.numbers.at("record_max_seconds"), record.numbers.at("record_p50_seconds"));
  EXPECT_GT(Find(report, "bandwidth").numbers.at("cached_write_bytes_per_second"), 0);
  ExpectNothingLeft(report);
}

TEST_F(ProbeTest, MemoryIsGoodButDoesNotLast) {
  if (!fs::is_directory("/dev/shm")) GTEST_SKIP() << "no /dev/shm here";
  ProbeOptions options = Options();
  options.run_directory = FreshPath("/dev/shm");
  const ProbeReport report = Probe(options);
  ExpectAllWell(report, /*together=*/false);
  EXPECT_THAT(Find(report, "file_system").meaning, HasSubstr("does not survive the machine"));
  EXPECT_FALSE(fs::exists(options.run_directory));
}

TEST_F(ProbeTest, WhatWasThereStaysAndNothingElse) {
  fs::create_directories(run_ + "/tmp");
  fs::create_directories(run_ + "/log");
  ASSERT_TRUE(ReplaceFile(run_ + "/log/00000000.rec", "a record").ok());
  EXPECT_TRUE(Probe(Options()).may_live());
  EXPECT_EQ(ReadFile(run_ + "/log/00000000.rec").value_or(""), "a record");
  EXPECT_TRUE(fs::is_empty(run_ + "/tmp"));
}

TEST_F(ProbeTest, ParentsAreMadeAndRemoved) {
  ProbeOptions options = Options();
  options.run_directory = run_ + "/a/b";
  EXPECT_TRUE(Probe(options).may_live());
  EXPECT_FALSE(fs::exists(run_));
}

TEST_F(ProbeTest, AnEarlierProbeIsLeftAlone) {
  fs::create_directories(run_ + "/tmp/doctor.test/task.0");
  const ProbeReport report = Probe(Options());
  EXPECT_EQ(Find(report, "directory").outcome, ProbeOutcome::kRefused);
  EXPECT_THAT(Find(report, "directory").seen, HasSubstr("remove that directory when nobody is"));
  EXPECT_TRUE(fs::exists(run_ + "/tmp/doctor.test/task.0"));
  EXPECT_FALSE(report.may_live());
}

TEST_F(ProbeTest, AFileIsNoRunDirectory) {
  ASSERT_TRUE(ReplaceFile(run_, "").ok());
  const ProbeReport report = Probe(Options());
  EXPECT_THAT(Find(report, "directory").seen, HasSubstr("Not a directory"));
  EXPECT_EQ(report.Count(ProbeOutcome::kRefused), 1);
  EXPECT_EQ(report.Count(ProbeOutcome::kOk), 0);
  EXPECT_EQ(report.left_behind, "");
}

TEST_F(ProbeTest, ALogOnAnotherFileSystemIsRefused) {
  struct stat here {
  }, there{};
  fs::create_directories(run_);
  if (::stat("/dev/shm", &there) != 0 || ::stat(run_.c_str(), &here) != 0 ||
      here.st_dev == there.st_dev)
    GTEST_SKIP() << "one file system only";
  fs::create_directory_symlink("/dev/shm", run_ + "/log");
  const ProbeReport report = Probe(Options());
  EXPECT_EQ(Find(report, "file_system").outcome, ProbeOutcome::kRefused);
  EXPECT_THAT(Find(report, "file_system").seen, HasSubstr("/log is on another file system than"));
}

TEST_F(ProbeTest, FewBytesAreRespected) {
  ProbeOptions options = Options();
  options.bytes_max = 100'000;
  const ProbeReport report = Probe(options);
  EXPECT_EQ(Find(report, "bandwidth").outcome, ProbeOutcome::kNotTested);
  EXPECT_THAT(Find(report, "bandwidth").seen, HasSubstr("100000 may be used (--bytes"));
  EXPECT_EQ(Find(report, "sparse").outcome, ProbeOutcome::kNotTested);
  EXPECT_TRUE(report.may_live());
}

TEST_F(ProbeTest, AFullDiskIsRefusedByItsName) {
  fs::create_directories(run_);
  if (::mount("perdure-test", run_.c_str(), "tmpfs", 0, "size=256k") != 0)
    GTEST_SKIP() << "needs root";
  EXPECT_FALSE(ReplaceFile(run_ + "/fill", std::string(kMiB, 'f')).ok());
  (void)WriteProbeFile(run_ + "/fill", std::string(240'000, 'f'), /*sync=*/false);
  const ProbeReport report = Probe(Options());
  EXPECT_EQ(Find(report, "room").outcome, ProbeOutcome::kRefused) << Find(report, "room").seen;
  EXPECT_THAT(Find(report, "room").seen, HasSubstr("No space left"));
  EXPECT_EQ(report.Count(ProbeOutcome::kRefused), 1) << "one cause, one refusal";
  EXPECT_FALSE(fs::exists(run_ + "/tmp"));
  ::umount2(run_.c_str(), MNT_DETACH);
}

TEST_F(ProbeTest, AStalledFileSystemIsNamedAndLeft) {
  LieWith({.lie = Lie::kSlow, .part = "/synced", .seconds = 3600});
  ProbeOptions options = Options();
  options.stall_after = absl::Seconds(3);
  const ProbeReport report = Probe(options);
  EXPECT_EQ(Find(report, "sync").outcome, ProbeOutcome::kRefused);
  EXPECT_EQ(Find(report, "sync").seen, "no answer for 3 s");
  EXPECT_EQ(Find(report, "link").outcome, ProbeOutcome::kOk) << "what came before stands";
  EXPECT_EQ(Find(report, "bandwidth").outcome, ProbeOutcome::kNotTested);
  EXPECT_THAT(Find(report, "bandwidth").seen, HasSubstr("did not answer before"));
  EXPECT_FALSE(report.may_live());
  ExpectNothingLeft(report);
}

TEST_F(ProbeTest, ASignalEndsItAndNothingIsLeft) {
  const ProbeReport report = ProbeFileSystem(Options(), [](const std::string& check) {
    if (check == "record_time") ::kill(::getpid(), SIGTERM);
  });
  EXPECT_EQ(report.signal, SIGTERM);
  EXPECT_FALSE(report.may_live());
  EXPECT_EQ(Find(report, "bandwidth").seen, "stopped by a signal");
  ExpectNothingLeft(report);
}

TEST_F(ProbeTest, WhatCannotBeRemovedIsSaid) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  const std::string mounted = run_ + "/tmp/doctor.test";
  const ProbeReport report = ProbeFileSystem(Options(), [&](const std::string& check) {
    if (check != "rename") return;
    fs::create_directories(mounted + "/mounted");
    ::mount("perdure-test", (mounted + "/mounted").c_str(), "tmpfs", 0, "size=64k");
  });
  EXPECT_THAT(report.left_behind, HasSubstr(mounted + ": it could not be removed"));
  ::umount2((mounted + "/mounted").c_str(), MNT_DETACH);
}

// ---- Lies ---------------------------------------------------------------------------------------

struct LieCase {
  std::string name;
  LyingPlan plan;
  std::string check;
  ProbeOutcome outcome;
  std::string words;  // In what was seen.
};

void PrintTo(const LieCase& lie, std::ostream* out) { *out << lie.name; }

std::vector<LieCase> LieCases() {
  using enum ProbeOutcome;
  const auto error = [](const char* call, const char* part, int number) {
    return LyingPlan{.lie = Lie::kError, .part = part, .call = call, .error = number};
  };
  const auto lie = [](Lie what, const char* part) { return LyingPlan{.lie = what, .part = part}; };
  return {
      {"ReadOnly", error("mkdir", "probe.", EROFS), "directory", kRefused, "Read-only file system"},
      {"NotAllowed", error("mkdir", "probe.", EACCES), "directory", kRefused, "Permission denied"},
      {"NoSpace", error("write", "", ENOSPC), "room", kRefused, "No space left"},
      {"Quota", error("write", "/room", EDQUOT), "room", kRefused, "quota exceeded"},
      {"Owner", lie(Lie::kOwnerChanged, "/owner"), "owner", kRefused, "belong to user"},
      {"Modes", lie(Lie::kModesIgnored, "/owner"), "owner", kRefused, "they have 0755 and 0755"},
      {"Exclusive", lie(Lie::kExclusiveIgnored, "/exclusive"), "exclusive_create", kRefused,
       "O_EXCL opened a file that existed"},
      {"LinkOverwrites", lie(Lie::kLinkOverwrites, "/link.rec"), "link", kRefused,
       "link onto an existing name was done"},
      {"LinkNotPermitted", error("link", "", EPERM), "link", kRefused, "not permitted"},
      {"LinkUnsupported", error("link", "", EOPNOTSUPP), "link", kRefused, "not supported"},
      {"LinkAcross", error("link", "", EXDEV), "link", kRefused, "cross-device link"},
      {"LinkAlwaysTwo", lie(Lie::kLinkAlwaysTwo, "/link."), "link", kRefused, "has two links"},
      {"LinkAlwaysOne", lie(Lie::kLinkAlwaysOne, "/link."), "link", kWarning, "st_nlink 1"},
      {"LinkRaces", lie(Lie::kLinkRaces, "/race."), "link_race", kRefused,
       "of 8 were told that they won"},
      {"LinkFailsInRace", error("link", "/race.", EIO), "link_race", kRefused, "Input/output"},
      {"RenameUnlinks", lie(Lie::kRenameUnlinksFirst, "/renamed"), "rename", kRefused,
       "found nothing"},
      {"RenameTears", lie(Lie::kRenameCopies, "/renamed"), "rename", kRefused, "a mixture"},
      {"Listing", lie(Lie::kListingShort, "/listed.d"), "listing", kRefused, "are missing"},
      {"Symlink", lie(Lie::kSymlinkFollowed, "/symlink"), "symlink", kRefused, "in spite of"},
      {"Case", lie(Lie::kCaseFolded, "/CASE"), "names", kWarning, "'CASE' is 'case'"},
      {"ShortNames", lie(Lie::kNamesShort, "/nnn"), "names", kWarning, "128 bytes, not of 255"},
      {"NoNames", error("open", "/nnn", ENAMETOOLONG), "names", kRefused, "no names of 128 bytes"},
      {"StaleSize", lie(Lie::kSizeShort, "/read_back"), "read_back", kRefused, "bytes of"},
      {"StaleBytes", lie(Lie::kContentTorn, "/read_back"), "read_back", kRefused,
       "reads other bytes"},
      {"UnlinkedGone", lie(Lie::kUnlinkedGone, "/unlinked"), "unlinked_open", kWarning, "Stale"},
      {"FsyncFails", error("fsync", "/synced", EIO), "sync", kRefused, "Input/output error"},
      {"NoDirectoryFsync", error("fsync directory", "/log", EINVAL), "sync", kRefused,
       "fsync directory"},
      {"SlowSync",
       {.lie = Lie::kSlow, .part = "/timed", .seconds = 0.25},
       "record_time",
       kWarning,
       "ms each (p50)"},
      {"NoReserve", error("reserve", "", EOPNOTSUPP), "reserve", kWarning, "cannot be reserved"},
      {"Holes", lie(Lie::kHolesFilled, "/sparse"), "sparse", kWarning, "a hole of"},
      {"SmallFiles", error("write", "/sparse", EFBIG), "sparse", kRefused, "no file of more than"},
      {"NoDirect", error("direct", "", EINVAL), "direct_io", kWarning, "O_DIRECT is not supported"},
      {"Flipped", lie(Lie::kBytesFlipped, "/rate."), "bandwidth", kRefused,
       "other bytes are read than were written"},
      {"ClockBack", lie(Lie::kClockBack, ""), "monotonic_clock", kRefused, "went back"},
      {"ServerClock",
       {.lie = Lie::kServerClock, .part = "/clock", .seconds = 90},
       "wall_clock",
       kWarning,
       "+8"},
  };
}

class LyingFileSystem : public ProbeTest, public testing::WithParamInterface<LieCase> {};

TEST_P(LyingFileSystem, IsCaught) {
  const LieCase& lie = GetParam();
  LieWith(lie.plan);
  const ProbeReport report = Probe(Options());
  TellTheTruth();
  const ProbeCheck& check = Find(report, lie.check);
  EXPECT_EQ(check.outcome, lie.outcome) << check.seen;
  EXPECT_THAT(check.seen, HasSubstr(lie.words));
  EXPECT_NE(check.meaning, "");
  EXPECT_NE(check.advice, "");
  EXPECT_EQ(report.may_live(), lie.outcome == ProbeOutcome::kWarning);
  // By that check alone: a person who reads two causes looks for two faults.
  for (const ProbeCheck& other : report.checks)
    if (other.name != lie.check)
      EXPECT_NE(other.outcome, ProbeOutcome::kRefused) << other.name << ": " << other.seen;
  ExpectNothingLeft(report);
}

INSTANTIATE_TEST_SUITE_P(All, LyingFileSystem, testing::ValuesIn(LieCases()),
                         [](const auto& instance) { return instance.param.name; });

// ---- Several tasks ------------------------------------------------------------------------------

constexpr const char* kNames = "/meeting/names/";

TEST_F(ProbeTest, TwoAndFourTasksAgree) {
  for (const int tasks : {2, 4}) {
    std::vector<int> codes;
    const ProbeReport report = ProbeWith(
        tasks, Options(), [](int) {}, &codes);
    ExpectAllWell(report, /*together=*/true);
    EXPECT_THAT(codes, testing::Each(0));
    EXPECT_THAT(Find(report, "tasks").seen, HasSubstr(fmt::format("{} tasks on ", tasks)));
    EXPECT_EQ(Find(report, "tasks").outcome, ProbeOutcome::kWarning) << "one host only";
    EXPECT_LT(Find(report, "task_names").numbers.at("seen_max_seconds"), 0.5);
    EXPECT_THAT(Find(report, "task_race").seen, HasSubstr("one winner each"));
    ExpectNothingLeft(report);
  }
}

TEST_F(ProbeTest, ATaskThatDoesNotComeIsNamed) {
  ProbeOptions options = Options();
  options.tasks = 3;
  options.wait = absl::Milliseconds(300);
  const ProbeReport report = Probe(options);
  const ProbeCheck& tasks = Find(report, "tasks");
  EXPECT_EQ(tasks.outcome, ProbeOutcome::kRefused);
  EXPECT_THAT(tasks.seen, HasSubstr("of 3 tasks number 1, 2 did not show up within"));
  EXPECT_THAT(tasks.seen, HasSubstr("the same directory on every node?"));
  EXPECT_EQ(Find(report, "task_race").seen, "not all tasks came");
  EXPECT_EQ(Find(report, "link").outcome, ProbeOutcome::kOk) << "this node was looked at";
  EXPECT_FALSE(report.may_live());
  ExpectNothingLeft(report);
}

TEST_F(ProbeTest, OthersLeaveWhenOneIsMissing) {
  ProbeOptions options = Options();
  options.wait = absl::Seconds(1);
  std::vector<int> codes;
  const ProbeReport report = ProbeWith(
      3, options,
      [](int task) {
        if (task == 2) ::_exit(7);
      },
      &codes);
  EXPECT_EQ(codes, (std::vector<int>{1, 7}));
  EXPECT_THAT(Find(report, "tasks").seen, HasSubstr("number 2 did not show up"));
  ExpectNothingLeft(report);
}

TEST_F(ProbeTest, WithoutTask0TheOthersGiveUp) {
  ProbeOptions options = Options();
  options.tasks = 2;
  options.task = 1;
  options.wait = absl::Milliseconds(200);
  const ProbeReport report = Probe(options);
  EXPECT_FALSE(report.handed_over);
  EXPECT_FALSE(report.may_live());
  EXPECT_EQ(Find(report, "tasks").outcome, ProbeOutcome::kRefused);
  ExpectNothingLeft(report);
}

// It comes, and then is never heard of again; the other does not wait for ever.
TEST_F(ProbeTest, ATaskThatStallsIsMissed) {
  ProbeOptions options = Options();
  options.tasks = 2;
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    options.task = 1;
    LieWith({.lie = Lie::kSlow, .part = "/task.1/tmp/synced", .seconds = 3600});
    ::_exit(Probe(options).handed_over ? 0 : 1);
  }
  const std::string self = ProbeDirectory(options) + "/meeting/self.1";
  for (int i = 0; i < 6000 && !fs::exists(self); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  options.wait = absl::Seconds(2);
  const ProbeReport report = Probe(options);
  ::kill(child, SIGTERM);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 1) << status;
  EXPECT_EQ(Find(report, "tasks").outcome, ProbeOutcome::kRefused);
  EXPECT_THAT(Find(report, "tasks").seen, HasSubstr("task 1 (host"));
  EXPECT_FALSE(report.may_live());
  ExpectNothingLeft(report);
}

struct TaskLieCase {
  std::string name;
  LyingPlan plan;  // Of task 1.
  std::string check;
  ProbeOutcome outcome;
  std::string words;  // A regular expression.
};

void PrintTo(const TaskLieCase& lie, std::ostream* out) { *out << lie.name; }

std::vector<TaskLieCase> TaskLieCases() {
  using enum ProbeOutcome;
  return {
      {"LateNames",
       {.lie = Lie::kNamesLate, .part = kNames, .seconds = 0.9},
       "task_names",
       kWarning,
       "ms at most"},
      {"NamesTooLate",
       {.lie = Lie::kNamesLate, .part = kNames, .seconds = 20},
       "task_names",
       kRefused,
       "unknown to it for 5 s"},
      {"TornContent",
       {.lie = Lie::kContentTorn, .part = kNames},
       "task_content",
       kRefused,
       "before size and bytes were right"},
      {"Race",
       {.lie = Lie::kLinkOverwrites, .part = "/meeting/race/"},
       "task_race",
       kRefused,
       "2 of 2 were told that they won"},
      {"Owner",
       {.lie = Lie::kOwnerChanged, .part = "/meeting/self.0"},
       "task_owner",
       kRefused,
       "it sees files of task 0"},
      {"Clock",
       {.lie = Lie::kServerClock, .part = "/clock", .seconds = -7},
       "task_clocks",
       kWarning,
       "-(7|6)[.]"},  // Less than 7 by how long the write waited, on a busy machine.
      {"WorseOnOneNode",
       {.lie = Lie::kModesIgnored, .part = "/owner"},
       "owner",
       kRefused,
       "task 1 .host"},
  };
}

class LyingNode : public ProbeTest, public testing::WithParamInterface<TaskLieCase> {};

TEST_P(LyingNode, IsCaught) {
  const TaskLieCase& lie = GetParam();
  std::vector<int> codes;
  const ProbeReport report = ProbeWith(
      2, Options(),
      [&](int task) {
        if (task == 1) LieWith(lie.plan);
      },
      &codes);
  EXPECT_EQ(codes, std::vector<int>{0});
  const ProbeCheck& check = Find(report, lie.check);
  EXPECT_EQ(check.outcome, lie.outcome) << check.seen;
  EXPECT_THAT(check.seen, ContainsRegex(lie.words));
  EXPECT_NE(check.advice, "");
  EXPECT_EQ(report.may_live(), lie.outcome == ProbeOutcome::kWarning);
  ExpectNothingLeft(report);
}

INSTANTIATE_TEST_SUITE_P(All, LyingNode, testing::ValuesIn(TaskLieCases()),
                         [](const auto& instance) { return instance.param.name; });

// ---- Decisions ----------------------------------------------------------------------------------

TEST(JudgeSlot, OneWinnerAndAllAgree) {
  const std::vector<RaceView> good = {{true, 0}, {false, 0}};
  EXPECT_EQ(JudgeSlot(3, good), std::nullopt);
  for (const std::vector<RaceView>& bad : {std::vector<RaceView>{{true, 0}, {true, 1}},
                                           {{false, 0}, {false, 0}},
                                           {{true, 0}, {false, 1}},
                                           {{true, 0}, {false, -1}}})
    EXPECT_THAT(JudgeSlot(3, bad).value_or(""), HasSubstr("slot 3: "));
}

std::string MountLine(const std::string& point, const std::string& type,
                      const std::string& options) {
  return fmt::format("31 23 0:26 / {} rw,relatime shared:1 - {} server:/x {}\n", point, type,
                     options);
}

TEST(JudgeMount, NamesTheMountAndItsRisks) {
  const std::string root = MountLine("/", "ext4", "rw");
  const auto judge = [&](const std::string& type, const std::string& options) {
    return JudgeMount("/data/run", root + MountLine("/data", type, options));
  };
  EXPECT_EQ(JudgeMount("/data/run", root).outcome, ProbeOutcome::kOk);
  EXPECT_EQ(JudgeMount("/database/run", root + MountLine("/data", "tmpfs", "rw")).outcome,
            ProbeOutcome::kOk);
  EXPECT_EQ(judge("lustre", "rw,flock").seen, "lustre of server:/x at /data (rw,relatime,flock)");
  EXPECT_EQ(judge("lustre", "rw,flock").outcome, ProbeOutcome::kOk);
  EXPECT_THAT(judge("tmpfs", "rw").meaning, HasSubstr("does not survive the machine"));
  EXPECT_THAT(judge("overlay", "rw").meaning, HasSubstr("as long as its container"));
  EXPECT_THAT(judge("nfs4", "rw,hard").meaning, HasSubstr("may stay unknown"));
  EXPECT_EQ(judge("nfs4", "rw,hard,lookupcache=pos").outcome, ProbeOutcome::kOk);
  EXPECT_EQ(judge("nfs", "rw,noac").outcome, ProbeOutcome::kOk);
  EXPECT_THAT(judge("nfs", "rw,soft,noac").meaning, HasSubstr("gives writes up"));
}

TEST(JudgeMount, LaterMountsHideAndNamesAreUnescaped) {
  const std::string table = MountLine("/", "ext4", "rw") + MountLine("/a\\040b", "lustre", "rw") +
                            MountLine("/a\\040b", "tmpfs", "rw");
  EXPECT_THAT(JudgeMount("/a b/run", table).seen, HasSubstr("tmpfs of server:/x at /a b "));
}

}  // namespace
}  // namespace perdure
