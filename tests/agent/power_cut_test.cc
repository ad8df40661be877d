// The power of a machine fails: ext4 on a loop device is shut down without a flush of its journal
// at random points of jobs, mounted again and looked at. Needs root and ext4; skipped elsewhere.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/loop.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>

#include "runtime/agent/records.h"
#include "runtime/base/status.h"
#include "tests/agent/run_cycle.h"
#include "tests/ckpt/fault_hooks.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

// EXT4_IOC_SHUTDOWN and its flag, which no header of the C library has.
constexpr unsigned long kShutdown = _IOR('X', 125, uint32_t);
constexpr uint32_t kNoLogFlush = 2;

// A file system of its own, in a mount namespace of this process: gone with it.
class Disk {
 public:
  explicit Disk(const std::string& directory)
      : image_(directory + "/image"), mount_(directory + "/mount") {
    fs::create_directory(mount_);
  }
  ~Disk() { Unmount(); }

  // Empty: it works. Otherwise what is missing here.
  std::string Make() {
    const int fd = ::open(image_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ::ftruncate(fd, 48 << 20) != 0) return "no room for an image";
    ::close(fd);
    if (std::system(("mkfs.ext4 -q -F " + image_ + " 2>/dev/null").c_str()) != 0)
      return "no mkfs.ext4";
    return Mount();
  }
  std::string Mount() {
    const int control = ::open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    if (control < 0) return "no loop devices";
    const int number = ::ioctl(control, LOOP_CTL_GET_FREE);
    ::close(control);
    const std::string device = "/dev/loop" + std::to_string(number);
    const int loop = number < 0 ? -1 : ::open(device.c_str(), O_RDWR | O_CLOEXEC);
    if (loop < 0) return "no free loop device";
    const int file = ::open(image_.c_str(), O_RDWR | O_CLOEXEC);
    loop_config config{};
    config.fd = static_cast<uint32_t>(file);
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
    const bool set = ::ioctl(loop, LOOP_CONFIGURE, &config) == 0;
    mounted_ = set && ::mount(device.c_str(), mount_.c_str(), "ext4", 0, nullptr) == 0;
    ::close(file);
    ::close(loop);
    return mounted_ ? "" : "cannot mount ext4";
  }
  // What was not synced is lost.
  bool Cut() {
    const int fd = ::open(mount_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const uint32_t flags = kNoLogFlush;
    const bool done = ::ioctl(fd, kShutdown, &flags) == 0;
    ::close(fd);
    return done;
  }
  bool Unmount() {
    if (!mounted_) return true;
    mounted_ = ::umount2(mount_.c_str(), 0) != 0;
    return !mounted_;
  }
  std::string run() const { return mount_ + "/run"; }

 private:
  const std::string image_, mount_;
  bool mounted_ = false;
};

class PowerCut : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root, to mount a file system";
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0)
      GTEST_SKIP() << "no mount namespaces here";
    acknowledged_ = static_cast<std::atomic<int64_t>*>(::mmap(nullptr, sizeof(*acknowledged_),
                                                              PROT_READ | PROT_WRITE,
                                                              MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(acknowledged_, MAP_FAILED);
  }

  std::unique_ptr<Disk> NewDisk(const TestDirectory& directory, std::string* missing) {
    auto disk = std::make_unique<Disk>(directory.path());
    *missing = disk->Make();
    if (missing->empty()) {
      MakeCycleRun(disk->run());
      *acknowledged_ = 4;
      if (!disk->Cut() || !disk->Unmount() || !disk->Mount().empty())
        *missing = "no EXT4_IOC_SHUTDOWN";
    }
    return disk;
  }

  // A job that saves one checkpoint after the other until the power goes.
  [[noreturn]] void Job(const std::string& run, const FaultPlan& plan) {
    SetFaults(plan);
    RunCycle cycle(run);
    if (!cycle.Start().ok() || !cycle.Ran().ok()) ::_exit(1);
    for (int64_t step = *acknowledged_ + 1; cycle.Save(step).ok(); ++step) *acknowledged_ = step;
    ::_exit(1);
  }

  // Some milliseconds after `step` was acknowledged.
  void AwaitMoment(int64_t step) {
    for (int i = 0; i < 2000 && *acknowledged_ < step; ++i) ::usleep(1000);
    ::usleep(static_cast<useconds_t>(random_.Below(25'000)));
  }

  // Cuts the power while a job runs, either at a call or at a moment.
  void CutAJob(Disk& disk, bool sync) {
    FaultPlan plan{.nth = 1 << 30, .under = disk.run()};
    const bool at_a_call = sync && random_.Below(2) == 0;
    if (at_a_call) {
      plan.nth = 1 + static_cast<int>(random_.Below(600));
      plan.exit = true;
    }
    if (!sync) plan = {.call = Call::kSync, .times = 1 << 30, .pretend = true, .under = {}};
    const int64_t before = *acknowledged_;
    const pid_t child = ::fork();
    if (child == 0) Job(disk.run(), plan);
    int status = 0;
    if (at_a_call)
      ASSERT_EQ(::waitpid(child, &status, 0), child);
    else
      AwaitMoment(before + (sync ? static_cast<int64_t>(random_.Below(3)) : 2));
    ASSERT_TRUE(disk.Cut());
    if (!at_a_call) {
      ::kill(child, SIGKILL);
      ASSERT_EQ(::waitpid(child, &status, 0), child);
    }
    ASSERT_TRUE(disk.Unmount());
    ASSERT_EQ(disk.Mount(), "");
  }

  std::atomic<int64_t>* acknowledged_ = nullptr;
  TestRandom random_{31};
};

TEST_F(PowerCut, power_cut) {
  constexpr int kCuts = 400, kCutsPerDisk = 40;
  int64_t saved = 0, unspoken = 0;
  for (int cut = 0; cut < kCuts;) {
    const TestDirectory directory(MemoryDirectory());
    std::string missing;
    const auto disk = NewDisk(directory, &missing);
    if (!missing.empty()) GTEST_SKIP() << missing;
    for (int i = 0; i < kCutsPerDisk; ++i, ++cut) {
      SCOPED_TRACE(cut);
      const int64_t before = *acknowledged_;
      ASSERT_NO_FATAL_FAILURE(CutAJob(*disk, /*sync=*/true));
      const int64_t newest = CheckRun(disk->run());
      ASSERT_GE(newest, *acknowledged_) << "an acknowledged checkpoint is lost";
      ASSERT_FALSE(HasFailure());
      saved += *acknowledged_ - before;
      unspoken += newest - *acknowledged_;
      *acknowledged_ = newest;
    }
    RunCycle last(disk->run());
    ASSERT_OK(last.Start());
    ASSERT_OK(last.Save(*acknowledged_ + 1));
  }
  EXPECT_GT(saved, kCuts / 4);
  std::printf("%d cuts, %ld acknowledged, %ld committed and not yet acknowledged, 0 lost\n", kCuts,
              saved, unspoken);
}

// The same with fsync that does nothing: the test has teeth.
TEST_F(PowerCut, power_cut_without_sync_is_noticed) {
  int losses = 0, jobs = 0;
  for (; jobs < 20; ++jobs) {
    const TestDirectory directory(MemoryDirectory());
    std::string missing;
    const auto disk = NewDisk(directory, &missing);
    if (!missing.empty()) GTEST_SKIP() << missing;
    ASSERT_NO_FATAL_FAILURE(CutAJob(*disk, /*sync=*/false));
    RunCycle next(disk->run());
    losses += !next.Start().ok() || next.step() < *acknowledged_;
  }
  EXPECT_GT(losses, jobs / 4);
}

}  // namespace
}  // namespace perdure
