// The run directory: what others can do with it, and what an agent does when its owner has left
// something open.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "runtime/agent/run_log_format.h"
#include "runtime/base/files.h"
#include "tests/security/security_test.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using testing::AnyOf;
using testing::HasSubstr;

class FileAttack : public SecurityTest {
 protected:
  // An agent is started on `run` and says `text` instead of running; nobody waits for long.
  static void ExpectNoStart(const std::string& run, const testing::Matcher<std::string>& text) {
    job().StartNodeIn(run, kLateNode);
    const int status = job().WaitFor(kLateNode);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 1) << status;
    EXPECT_THAT(job().Log(kLateNode), text);
    EXPECT_EQ(job().at(kLateNode).port, 0u);
  }
  // With `path` under the run directory of another mode than it should have.
  static void ExpectNoStartWithMode(const std::string& path, mode_t mode) {
    const std::string whole = job().run() + path;
    struct stat before {};
    ASSERT_EQ(::stat(whole.c_str(), &before), 0);
    ASSERT_EQ(::chmod(whole.c_str(), mode), 0);
    ExpectNoStart(job().run(), HasSubstr(fmt::format("{} has mode {:04o}", whole, mode)));
    ASSERT_EQ(::chmod(whole.c_str(), before.st_mode & 07777), 0);
  }
  // The job's, copied: a run that nobody works on.
  std::string Copy() {
    const std::string copy = job().directory() + "/copy";
    fs::remove_all(copy);
    fs::copy(job().run(), copy, fs::copy_options::recursive);
    EXPECT_EQ(::chown(copy.c_str(), kJobUser, kJobUser), 0);
    for (const auto& entry : fs::recursive_directory_iterator(copy))
      EXPECT_EQ(::chown(entry.path().c_str(), kJobUser, kJobUser), 0);
    return copy;
  }
  // `attack` may change log/ of a copy while it is open to all; afterwards it is closed again, and
  // no agent starts on it.
  void ChangeTheLog(const std::function<std::string(const std::string& log)>& attack,
                    const testing::Matcher<std::string>& text) {
    const std::string copy = Copy(), log = copy + "/log";
    ASSERT_EQ(::chmod(log.c_str(), 0777), 0);
    ASSERT_EQ(Attack([&] { return attack(log); }), "");
    ExpectNoStart(copy, HasSubstr("others may change"));
    ASSERT_EQ(::chmod(log.c_str(), 0700), 0);
    ExpectNoStart(copy, text);
  }
};

// ---- A directory as it should be

TEST_F(FileAttack, TheKeyIsReadOrMoved) {
  EXPECT_EQ(Attack([control = job().run() + "/control", out = job().directory()] {
              const std::string key = control + "/run.key", to = "/tmp/perdure-stolen";
              return FirstOf({Denied("open", ::open(key.c_str(), O_RDONLY)),
                              Denied("path", ::open(key.c_str(), O_PATH)),
                              Denied("list", ::open(control.c_str(), O_RDONLY | O_DIRECTORY)),
                              Denied("link", ::link(key.c_str(), to.c_str())),
                              Denied("rename", ::rename(key.c_str(), to.c_str())),
                              Denied("unlink", ::unlink(key.c_str())),
                              Denied("chmod", ::chmod(control.c_str(), 0777)),
                              Denied("chown", ::chown(control.c_str(), kAttackerUser, 0)),
                              Denied("away", ::rename(control.c_str(), to.c_str())),
                              Denied("symlink", ::symlink("/tmp", (control + "/x").c_str()))});
            }),
            "");
}

TEST_F(FileAttack, RecordsAreReadOrChanged) {
  EXPECT_EQ(Attack([run = job().run()] {
              const std::string record = run + "/log/00000000.rec";
              return FirstOf({Denied("open", ::open(record.c_str(), O_RDONLY)),
                              Denied("write", ::open(record.c_str(), O_WRONLY)),
                              Denied("truncate", ::truncate(record.c_str(), 0)),
                              Denied("unlink", ::unlink(record.c_str()))});
            }),
            "");
}

TEST_F(FileAttack, TheNextSlotIsSquatted) {
  EXPECT_EQ(
      Attack([run = job().run()] {
        const std::string next = run + "/log/00000002.rec", log = run + "/log";
        return FirstOf({Denied("create", ::open(next.c_str(), O_WRONLY | O_CREAT | O_EXCL, 0666)),
                        Denied("symlink", ::symlink("/dev/zero", next.c_str())),
                        Denied("mkfifo", ::mkfifo(next.c_str(), 0666)),
                        Denied("mkdir", ::mkdir(next.c_str(), 0777)),
                        Denied("tmp", ::open((run + "/tmp/x").c_str(), O_WRONLY | O_CREAT, 0666)),
                        Denied("list tmp", ::open((run + "/tmp").c_str(), O_RDONLY)),
                        Denied("away", ::rename(log.c_str(), (run + "/old").c_str())),
                        Denied("beside", ::mkdir((run + "/new").c_str(), 0777))});
      }),
      "");
}

// Records that their owner has let others read.
TEST_F(FileAttack, LocksOnWhatMayBeRead) {
  const auto make_records = [](mode_t mode) {
    for (const auto& entry : fs::directory_iterator(job().run() + "/log"))
      EXPECT_EQ(::chmod(entry.path().c_str(), mode), 0);
  };
  make_records(0644);
  Attacker attacker([run = job().run()](Talk& talk) -> std::string {
    const std::string record = run + "/log/00000001.rec", log = run + "/log";
    const int file = ::open(record.c_str(), O_RDONLY), folder = ::open(log.c_str(), O_RDONLY);
    if (file < 0 || folder < 0) return "they could not be read";
    if (::flock(file, LOCK_EX) != 0 || ::flock(folder, LOCK_EX) != 0) return "no lock was given";
    struct flock region {};
    region.l_type = F_RDLCK;
    if (::fcntl(file, F_OFD_SETLK, &region) != 0) return "no lock of a region was given";
    if (std::string what = Denied("lease", ::fcntl(file, F_SETLEASE, F_RDLCK)); !what.empty())
      return what;
    talk.Tell(1);
    (void)talk.Hear();
    return "";
  });
  EXPECT_EQ(attacker.Hear(), 1u);
  // Longer than the coordinator may go without having read the log.
  std::this_thread::sleep_for(std::chrono::milliseconds(4500));
  EXPECT_TRUE(LateNodeJoins());
  attacker.Tell(0);
  EXPECT_EQ(attacker.Wait(), "");
  make_records(0600);
}

// The job was started with umask 0.
TEST_F(FileAttack, NothingOfARunIsOpenToOthers) {
  Job fresh({.listable = false});
  ASSERT_TRUE(fresh.Start());
  int files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(fresh.run())) {
    struct stat info {};
    ASSERT_EQ(::lstat(entry.path().c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 077, 0u) << entry.path();
    EXPECT_EQ(info.st_uid, kJobUser) << entry.path();
    ++files;
  }
  EXPECT_GE(files, 6);  // Three directories, key, two records.
  EXPECT_EQ(Attack([run = fresh.run()] {
              return Denied("list", ::open(run.c_str(), O_RDONLY | O_DIRECTORY));
            }),
            "");
}

// Whoever can guess a name there can be first.
TEST_F(FileAttack, NoNamesInPlacesThatAllShare) {
  for (const char* place : {"/tmp", "/dev/shm", "/dev/mqueue", "/var/tmp", "/run/lock"}) {
    std::error_code none;
    for (const auto& entry : fs::directory_iterator(place, none)) {
      struct stat info {};
      if (::lstat(entry.path().c_str(), &info) != 0 || info.st_uid != kJobUser) continue;
      // The directories of these tests themselves.
      EXPECT_THAT(entry.path().filename().string(), testing::StartsWith("perdure-test-"));
    }
  }
  for (const char* table : {"/proc/sysvipc/shm", "/proc/sysvipc/sem", "/proc/sysvipc/msg"}) {
    std::ifstream lines(table);
    std::string line;
    while (std::getline(lines, line))
      EXPECT_EQ(line.find(std::to_string(kJobUser)), std::string::npos) << line;
  }
}

// ---- What its owner has left open

TEST_F(FileAttack, AKeyThatTheWorldMayRead) { ExpectNoStartWithMode("/control/run.key", 0644); }
TEST_F(FileAttack, AKeyThatTheGroupMayRead) { ExpectNoStartWithMode("/control/run.key", 0640); }
TEST_F(FileAttack, AControlDirectoryThatTheWorldMayList) {
  ExpectNoStartWithMode("/control", 0755);
}
TEST_F(FileAttack, AControlDirectoryThatTheWorldMayChange) {
  ExpectNoStartWithMode("/control", 0777);
}
TEST_F(FileAttack, ALogThatTheWorldMayChange) { ExpectNoStartWithMode("/log", 0777); }
TEST_F(FileAttack, ALogThatTheGroupMayChange) { ExpectNoStartWithMode("/log", 0770); }
TEST_F(FileAttack, ATmpThatTheWorldMayList) { ExpectNoStartWithMode("/tmp", 0755); }
TEST_F(FileAttack, ARunDirectoryThatTheWorldMayChange) { ExpectNoStartWithMode("", 0777); }

TEST_F(FileAttack, AKeyOfSomebodyElse) {
  const std::string copy = Copy();
  ASSERT_EQ(::chown((copy + "/control/run.key").c_str(), kAttackerUser, kAttackerUser), 0);
  // Where it is his, ours may not even open it.
  ExpectNoStart(copy, AnyOf(HasSubstr("belongs to uid 54322"), HasSubstr("Permission denied")));
}

TEST_F(FileAttack, AControlDirectoryOfSomebodyElse) {
  const std::string copy = Copy();
  fs::rename(copy + "/control", copy + "/ours");
  fs::create_directory(copy + "/control");
  Spill(copy + "/control/run.key", std::string(32, 'x'));
  ASSERT_EQ(::chmod((copy + "/control/run.key").c_str(), 0644), 0);
  ASSERT_EQ(::chown((copy + "/control").c_str(), kAttackerUser, kAttackerUser), 0);
  ExpectNoStart(copy, HasSubstr("belongs to uid 54322"));
}

TEST_F(FileAttack, AKeyThatIsALink) {
  const std::string copy = Copy(), key = copy + "/control/run.key";
  fs::rename(key, copy + "/elsewhere");
  fs::create_symlink(copy + "/elsewhere", key);
  ExpectNoStart(copy, HasSubstr("run.key"));
}

TEST_F(FileAttack, AKeyThatIsAFifo) {
  const std::string copy = Copy(), key = copy + "/control/run.key";
  fs::remove(key);
  ASSERT_EQ(::mkfifo(key.c_str(), 0600), 0);
  ASSERT_EQ(::chown(key.c_str(), kJobUser, kJobUser), 0);
  ExpectNoStart(copy, HasSubstr("is not a regular file"));
}

TEST_F(FileAttack, DirectoriesThatAreLinks) {
  for (const char* name : {"control", "log", "tmp"}) {
    const std::string copy = Copy(), path = copy + "/" + name;
    fs::rename(path, copy + "/elsewhere");
    fs::create_directory_symlink(copy + "/elsewhere", path);
    ExpectNoStart(copy, HasSubstr(path));
  }
}

TEST_F(FileAttack, AKeyThatIsGone) {
  const std::string copy = Copy();
  fs::remove(copy + "/control/run.key");
  ExpectNoStart(copy, HasSubstr("run.key is missing"));
}

// ---- What others did while it was open

TEST_F(FileAttack, ARecordSignedWithAnotherKey) {
  const Record record{.slot = 2,
                      .type = RecordType::kEnd,
                      .generation = 1,
                      .author = {},
                      .id = 1,
                      .holder = "somebody",
                      .body = R"({"reason":"done","exit_code":0,"step":9})",
                      .previous = DigestOf(*ReadFile(job().run() + "/log/00000001.rec")),
                      .digest = {}};
  const std::string bytes =
      EncodeRecord(record, {.run_id = job().RunId(), .key = std::string(32, 'k')}, {});
  ChangeTheLog(
      [bytes](const std::string& log) {
        std::ofstream(log + "/00000002.rec") << bytes;
        ::chmod((log + "/00000002.rec").c_str(), 0644);
        return "";
      },
      HasSubstr("forged"));
}

TEST_F(FileAttack, ARecordThatIsTakenAway) {
  ChangeTheLog(
      [](const std::string& log) {
        return ::unlink((log + "/00000000.rec").c_str()) == 0 ? "" : "it could not";
      },
      HasSubstr("(slot 0) is missing"));
}

TEST_F(FileAttack, ARecordThatIsAFifo) {
  ChangeTheLog(
      [](const std::string& log) {
        return ::mkfifo((log + "/00000002.rec").c_str(), 0666) == 0 ? "" : "it could not";
      },
      AnyOf(HasSubstr("is not a record"), HasSubstr("Permission denied")));
}

TEST_F(FileAttack, ARecordThatIsALink) {
  ChangeTheLog(
      [](const std::string& log) {
        return ::symlink("/dev/zero", (log + "/00000002.rec").c_str()) == 0 ? "" : "it could not";
      },
      HasSubstr("00000002.rec"));
}

TEST_F(FileAttack, ARecordOfATebibyte) {
  ChangeTheLog(
      [](const std::string& log) {
        const std::string path = log + "/00000002.rec";
        const int file = ::open(path.c_str(), O_WRONLY | O_CREAT, 0644);
        return ::fchmod(file, 0644) == 0 && ::ftruncate(file, off_t{1} << 40) == 0 ? ""
                                                                                   : "it could not";
      },
      HasSubstr("is not a record: 1099511627776 bytes"));
}

}  // namespace
}  // namespace perdure
