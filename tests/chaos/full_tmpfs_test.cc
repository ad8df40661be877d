// Snapshots' memory that is too small, or that somebody else fills: it costs steps, not the job.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "runtime/base/status.h"
#include "tests/chaos/chaos_job.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

class FullTmpfs : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(memory_);
    WriteNanoData(folder_);
  }
  ~FullTmpfs() override {
    (void)::umount2(memory_.c_str(), MNT_DETACH);
    std::filesystem::remove_all(folder_);
  }
  // False: the machine does not let us.
  bool Mount(int64_t kib) {
    const std::string size = "size=" + std::to_string(kib) + "k";
    return ::mount("tmpfs", memory_.c_str(), "tmpfs", 0, size.c_str()) == 0;
  }
  // Takes all that is left of it.
  void Fill() {
    struct statvfs facts {};
    ASSERT_EQ(::statvfs(memory_.c_str(), &facts), 0);
    const int fd = ::open((memory_ + "/others").c_str(), O_WRONLY | O_CREAT, 0600);
    ASSERT_GE(fd, 0);
    const auto left = static_cast<off_t>(facts.f_bavail * facts.f_frsize);
    EXPECT_EQ(::posix_fallocate(fd, 0, left), 0);
    ::close(fd);
  }
  std::vector<std::string> Arguments() const {
    return {"--nodes", "4", "--no-agent-restart", "--set", "snapshot.directory=" + memory_};
  }
  void ExpectTheSame(const ChaosJob& job, const ChaosEnd& end) const {
    const ChaosEnd undisturbed = Undisturbed(folder_);
    EXPECT_EQ(end.exit_code, 75) << job.Errors();
    EXPECT_EQ(end.certificate, undisturbed.certificate) << job.Errors();
    EXPECT_EQ(end.loss_bits, undisturbed.loss_bits) << job.Errors();
  }

  const std::string folder_ = FreshFolder("full_tmpfs"), memory_ = folder_ + "/memory";
};

TEST_F(FullTmpfs, FromTheBeginning) {
  if (!Mount(2048)) GTEST_SKIP() << "mounting a tmpfs is not allowed here: it needs root";
  ChaosJob job(folder_, Arguments());
  ASSERT_TRUE(job.AwaitStep(6)) << job.Errors();
  ::kill(job.Ranks(1)[0], SIGKILL);  // Back to the beginning: there is no checkpoint either.
  const ChaosEnd end = job.Wait();
  EXPECT_NE(job.Errors().find("goes on without snapshots"), std::string::npos) << job.Errors();
  EXPECT_NE(job.Errors().find("a larger tmpfs"), std::string::npos) << job.Errors();
  ExpectTheSame(job, end);
}

TEST_F(FullTmpfs, WhenANodeIsLost) {
  if (!Mount(32 * 1024)) GTEST_SKIP() << "mounting a tmpfs is not allowed here: it needs root";
  ChaosJob job(folder_, Arguments());
  ASSERT_TRUE(job.AwaitStep(6)) << job.Errors();
  EXPECT_EQ(job.Errors().find("goes on without snapshots"), std::string::npos) << job.Errors();
  Fill();
  job.SignalNode(job.Behind(1), SIGKILL);
  const ChaosEnd end = job.Wait();
  ExpectTheSame(job, end);
}

}  // namespace
}  // namespace perdure
