// Checks of what lies around the files: mount, room, clocks, kernel.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <sstream>
#include <vector>

#include "ckpt/file_io.h"
#include "runtime/agent/child_processes.h"
#include "runtime/agent/file_system_checks.h"
#include "runtime/base/files.h"
#include "runtime/base/space.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr uint64_t kLittleBytes = 1ULL << 30;
constexpr uint64_t kFewFiles = 1000;
constexpr int kClockReaders = 4;
constexpr int kClockReads = 250'000;  // Of each.
constexpr double kClockOffsetSeconds = 1;
constexpr double kClockGrainSeconds = 0.05;  // Of a file's time; Linux counts ticks of 1 to 10 ms.

struct Mount {
  std::string point, type, source, options;
  bool Has(const std::string& option) const {
    return ("," + options + ",").find("," + option + ",") != std::string::npos;
  }
};

// Of mountinfo's escapes, "\040".
std::string Unescape(const std::string& text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\' || i + 3 >= text.size()) {
      plain += text[i];
      continue;
    }
    plain +=
        static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
    i += 3;
  }
  return plain;
}

// The mount of a path without links and dots. Format: proc(5), "/proc/pid/mountinfo".
Mount MountOf(const std::string& path, const std::string& mountinfo) {
  Mount found;
  std::istringstream lines(mountinfo);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string skipped, point, own_options, word;
    words >> skipped >> skipped >> skipped >> skipped >> point >> own_options;
    while (words >> word && word != "-") continue;
    Mount mount;
    std::string super_options;
    words >> mount.type >> mount.source >> super_options;
    mount.point = Unescape(point);
    mount.source = Unescape(mount.source);
    mount.options = own_options + "," + super_options;
    const bool holds =
        mount.point == "/" || path == mount.point || path.starts_with(mount.point + "/");
    // A later mount on the same point hides the earlier one.
    if (holds && mount.point.size() >= found.point.size()) found = mount;
  }
  return found;
}

absl::StatusOr<dev_t> DeviceOf(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, "stat " + path);
  return info.st_dev;
}

std::string Words(const Mount& mount) {
  // Each option once, though mount and file system both have "rw".
  std::vector<std::string> options;
  std::istringstream list(mount.options);
  for (std::string option; std::getline(list, option, ',');)
    if (std::find(options.begin(), options.end(), option) == options.end())
      options.push_back(option);
  return fmt::format("{} of {} at {} ({})", mount.type, mount.source, mount.point,
                     fmt::join(options, ","));
}

double Seconds(const timespec& time) {
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double WallSeconds() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return Seconds(now);
}

int64_t MonotonicNanoseconds() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

}  // namespace

ProbeCheck JudgeMount(const std::string& path, const std::string& mountinfo) {
  const Mount mount = MountOf(path, mountinfo);
  const std::string seen = Words(mount);
  if (mount.type == "tmpfs" || mount.type == "ramfs")
    return Warn(seen, "it is memory: it does not survive the machine, nor is another node there",
                "a file system on disks for a run that matters");
  if (mount.type == "overlay")
    return Warn(seen, "it lives as long as its container",
                "a directory from outside, mounted into the container");
  if (!mount.type.starts_with("nfs")) return Good(seen);
  if (mount.Has("soft") || mount.Has("softerr"))
    return Warn(seen,
                "a soft mount gives writes up when its server is slow; each such error voids a "
                "checkpoint",
                "mount it hard");
  if (!mount.Has("noac") && !mount.Has("lookupcache=none") && !mount.Has("lookupcache=pos"))
    return Warn(seen,
                "a name that a node looked for before it was made may stay unknown to it, usually "
                "for up to 60 s (acdirmax)",
                "mount with lookupcache=positive or noac; srun -N 2 perdure doctor measures it");
  return Good(seen);
}

double MonotonicSeconds() { return 1e-9 * static_cast<double>(MonotonicNanoseconds()); }

Spread SpreadOf(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  return {values[values.size() / 2], values.back()};
}

uint64_t ProbeBytes(const std::string& directory, uint64_t bytes_max) {
  for (const SpaceLimit& limit : ReadSpace(directory))
    if (limit.bytes) bytes_max = std::min(bytes_max, *limit.bytes / 100);
  return bytes_max;
}

absl::StatusOr<ProbeCheck> CheckFileSystem(const ProbeSite& site) {
  std::error_code error;
  const std::string run = std::filesystem::canonical(site.run_directory, error).string();
  if (error) return ErrnoStatus(error.value(), "resolve " + site.run_directory);
  ASSIGN_OR_RETURN(const std::string mountinfo, ReadFile("/proc/self/mountinfo"));
  ASSIGN_OR_RETURN(const dev_t device, DeviceOf(site.directory));
  for (const char* name : {"log", "control", "ckpt"}) {
    const absl::StatusOr<dev_t> there = DeviceOf(run + "/" + name);
    if (there.ok() && *there != device)
      return Refuse(fmt::format("{}/{} is on another file system than {}/tmp", run, name, run),
                    "records are linked from tmp/ to log/, which cannot cross file systems, and "
                    "what is seen here says nothing about the other one",
                    "keep all of a run directory on one file system; no links, no mounts in it");
  }
  return JudgeMount(run, mountinfo);
}

absl::StatusOr<ProbeCheck> CheckRoom(const ProbeSite& site) {
  constexpr size_t kSome = 65'536;
  RETURN_IF_ERROR(WriteProbeFile(site.Tmp("room"), std::string(kSome, 'r'), /*sync=*/true));
  std::string seen;
  bool little = false;
  ProbeCheck check = Good("");
  for (const SpaceLimit& limit : ReadSpace(site.directory)) {
    seen += fmt::format(
        "{}{} has {} left, {}", seen.empty() ? "" : "; ", limit.of,
        limit.bytes ? fmt::format("{:.1f} GiB", static_cast<double>(*limit.bytes) / (1 << 30))
                    : "any number of bytes",
        limit.files ? fmt::format("{} files", *limit.files) : "any number of files");
    little = little || limit.bytes.value_or(kLittleBytes) < kLittleBytes ||
             limit.files.value_or(kFewFiles) < kFewFiles;
    if (limit.of != "the file system") continue;
    if (limit.bytes) check.numbers["free_bytes"] = static_cast<double>(*limit.bytes);
    if (limit.files) check.numbers["free_files"] = static_cast<double>(*limit.files);
  }
  check.seen = seen;
  if (!little) return check;
  check.outcome = ProbeOutcome::kWarning;
  check.meaning = "a checkpoint takes 12 bytes a parameter and a few files for each node";
  check.advice = "perdure plan says how much that is; delete something, or ask for a larger quota";
  return check;
}

absl::StatusOr<ProbeCheck> CheckMonotonicClock(const ProbeSite&) {
  struct Board {
    std::atomic<int64_t> latest;
    std::atomic<int> back;
    std::array<int64_t, kClockReaders> least_step;
  };
  const SharedMemory<Board> board;
  const absl::Status read = RunInChildren(kClockReaders, [&](int reader) {
    int64_t least = INT64_MAX, before = 0;
    for (int i = 0; i < kClockReads; ++i) {
      // Whatever any reader has seen is past.
      int64_t latest = board->latest.load();
      const int64_t now = MonotonicNanoseconds();
      if (now < latest) ++board->back;
      while (latest < now && !board->latest.compare_exchange_weak(latest, now)) continue;
      if (before != 0 && now > before) least = std::min(least, now - before);
      before = now;
    }
    board->least_step[static_cast<size_t>(reader)] = least;
    return absl::OkStatus();
  });
  RETURN_IF_ERROR(read);
  if (board->back > 0)
    return Refuse(fmt::format("CLOCK_MONOTONIC went back {} times in {} reads", board->back.load(),
                              kClockReaders * kClockReads),
                  "leases are measured with it",
                  "another clock source (/sys/devices/system/clocksource/clocksource0), another "
                  "kernel; have the node looked at");
  timespec resolution{};
  ::clock_getres(CLOCK_MONOTONIC, &resolution);
  const int64_t least = *std::min_element(board->least_step.begin(), board->least_step.end());
  ProbeCheck check =
      Good(fmt::format("{} reads by {} processes, never back; resolution {} ns, least step {} ns",
                       kClockReaders * kClockReads, kClockReaders, resolution.tv_nsec, least));
  check.numbers = {{"resolution_seconds", Seconds(resolution)}};
  return check;
}

absl::StatusOr<ProbeCheck> CheckWallClock(const ProbeSite& site) {
  const std::string path = site.Tmp("clock");
  const double before = WallSeconds();
  RETURN_IF_ERROR(WriteProbeFile(path, "now", /*sync=*/true));
  const double after = WallSeconds();
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, "stat " + path);
  const double made = Seconds(info.st_mtim);
  double offset = 0;  // Within what it took to write the file, nobody can tell.
  if (made < before - kClockGrainSeconds) offset = made - before;
  if (made > after + kClockGrainSeconds) offset = made - after;
  timex state{};
  const bool synchronised = ::adjtimex(&state) >= 0 && (state.status & STA_UNSYNC) == 0;
  const std::string seen =
      fmt::format("files are dated {:+.3f} s from this clock, which the kernel calls {}", offset,
                  synchronised ? "synchronised" : "not synchronised (NTP)");
  ProbeCheck check =
      std::abs(offset) <= kClockOffsetSeconds
          ? Good(seen)
          : Warn(seen,
                 "times in the journal, in reports and of evidence about nodes will not agree; "
                 "leases and the order of records do not use them",
                 "run NTP (chronyd, ntpd) on the node and on the file server");
  check.numbers = {{"offset_seconds", offset}, {"synchronised", synchronised ? 1.0 : 0.0}};
  return check;
}

absl::StatusOr<ProbeCheck> CheckIoUring(const ProbeSite&) {
  alignas(8) std::array<char, 120> parameters = {};  // struct io_uring_params, all zero.
  const long ring = ::syscall(SYS_io_uring_setup, 1, parameters.data());
  if (ring >= 0) ::close(static_cast<int>(ring));
  ProbeCheck check = Good(ring >= 0 ? "available; Perdure does not use it"
                                    : Message(ErrnoStatus(errno, "not available, nor needed")));
  check.numbers = {{"available", ring >= 0 ? 1.0 : 0.0}};
  return check;
}

}  // namespace perdure
