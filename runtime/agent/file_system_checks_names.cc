// Checks of names: who gets one, what stands under it, what is listed.
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "runtime/agent/child_processes.h"
#include "runtime/agent/file_system_checks.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr int kRacers = 8;
constexpr int kSlots = 64;
constexpr size_t kRecordBytes = 300;  // About what a record of the run log has.
constexpr int kListed = 100;
// The log waits as long for a name that it knows to be there.
constexpr int kAbsentRetries = 20;
constexpr auto kAbsentPause = std::chrono::milliseconds(25);

constexpr const char* kOtherFileSystem =
    "take another file system for the run directory: local disks, Lustre, GPFS, BeeGFS and NFS "
    "have "
    "been seen to do it, some FUSE mounts (sshfs, object stores) have not";
constexpr const char* kForks =
    "two jobs could both believe that they own the run: the run log rests on one of them failing";

std::string Quoted(const std::string& text) { return "'" + text.substr(0, 40) + "'"; }

struct Entry {
  uid_t owner = 0;
  mode_t mode = 0;
  uint64_t links = 0;
};

absl::StatusOr<Entry> Look(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, "stat " + path);
  return Entry{info.st_uid, info.st_mode & 0777U, info.st_nlink};
}

bool IsUnsupported(int error) {
  return error == EPERM || error == EOPNOTSUPP || error == ENOSYS || error == EMLINK;
}

std::string ErrorText(int error) { return Message(ErrnoStatus(error, "link")); }

// Waits for the others of a race, so that all of them link at once.
struct RaceBoard {
  std::array<std::atomic<int>, kSlots> arrived;
  std::atomic<bool> failed;
  std::array<std::array<RaceView, kRacers>, kSlots> views;
};

void AwaitRacers(RaceBoard& board, size_t slot) {
  ++board.arrived[slot];
  while (board.arrived[slot] < kRacers && !board.failed) std::this_thread::yield();
}

}  // namespace

std::string RaceRecord(int slot, int racer) {
  std::string record = fmt::format("slot {:06} racer {:06} ", slot, racer);
  while (record.size() < kRecordBytes)
    record += static_cast<char>('a' + (record.size() * 7 + static_cast<size_t>(racer + slot)) % 26);
  return record;
}

absl::StatusOr<RaceView> RaceForSlot(const std::string& tmp, const std::string& log, int slot,
                                     int racer, int racers, const std::function<void()>& ready) {
  const std::string temporary = fmt::format("{}/race.{}.{}", tmp, slot, racer);
  const std::string name = fmt::format("{}/race.{:06}.rec", log, slot);
  RETURN_IF_ERROR(WriteProbeFile(temporary, RaceRecord(slot, racer), /*sync=*/false));
  ready();
  RaceView view;
  view.won = ::link(temporary.c_str(), name.c_str()) == 0;
  const int error = view.won ? 0 : errno;
  if (!view.won && error != EEXIST) {
    // Done, perhaps, and the answer was lost: the log looks in the same way.
    const absl::StatusOr<Entry> entry = Look(temporary);
    view.won = entry.ok() && entry->links == 2;
    if (!view.won) return ErrnoStatus(error, fmt::format("link {} to {}", temporary, name));
  }
  absl::StatusOr<std::string> there = ReadFile(name);
  for (int i = 0; absl::IsNotFound(there.status()) && i < kAbsentRetries; ++i) {
    std::this_thread::sleep_for(kAbsentPause);
    there = ReadFile(name);
  }
  ::unlink(temporary.c_str());
  if (absl::IsNotFound(there.status())) return view;
  RETURN_IF_ERROR(there.status());
  for (int i = 0; i < racers && view.winner < 0; ++i)
    if (*there == RaceRecord(slot, i)) view.winner = i;
  return view;
}

std::optional<std::string> JudgeSlot(int slot, std::span<const RaceView> views) {
  int won = 0;
  for (const RaceView& view : views) won += view.won ? 1 : 0;
  if (won != 1)
    return fmt::format("slot {}: {} of {} were told that they won", slot, won, views.size());
  for (size_t i = 0; i < views.size(); ++i) {
    if (views[i].winner < 0)
      return fmt::format("slot {}: racer {} found no whole record there", slot, i);
    if (!views[static_cast<size_t>(views[i].winner)].won)
      return fmt::format("slot {}: racer {} found the record of one that had lost", slot, i);
  }
  return std::nullopt;
}

absl::StatusOr<ProbeCheck> CheckOwner(const ProbeSite& site) {
  const std::string file = site.Tmp("owner"), folder = site.Tmp("owner.d");
  RETURN_IF_ERROR(WriteProbeFile(file, "mine", /*sync=*/false));
  if (::mkdir(folder.c_str(), 0700) != 0) return ErrnoStatus(errno, "mkdir " + folder);
  ASSIGN_OR_RETURN(const Entry of_file, Look(file));
  ASSIGN_OR_RETURN(const Entry of_folder, Look(folder));
  const uid_t me = ::geteuid();
  if (of_file.owner != me || of_folder.owner != me)
    return Refuse(
        fmt::format("files made by user {} belong to user {}", me, of_file.owner),
        "the run's secret would belong to somebody else",
        me == 0 ? "the server maps root to another user (root_squash): run as an ordinary user"
                : "the server maps users (all_squash, idmapd, a user namespace): ask for a mount "
                  "that keeps them");
  if (of_file.mode != 0600 || of_folder.mode != 0700)
    return Refuse(fmt::format("made with modes 0600 and 0700, they have {:04o} and {:04o}",
                              of_file.mode, of_folder.mode),
                  "control/run.key would not be private, and Perdure refuses such a key",
                  "take a file system with POSIX modes, or mount it so that they count (not with "
                  "fixed file_mode, umask)");
  return Good(fmt::format("user {}, modes 0600 and 0700 are kept", me));
}

absl::StatusOr<ProbeCheck> CheckExclusiveCreate(const ProbeSite& site) {
  const std::string path = site.Tmp("exclusive");
  RETURN_IF_ERROR(WriteProbeFile(path, "first", /*sync=*/false));
  const int second = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  const int error = second < 0 ? errno : 0;
  if (second >= 0) ::close(second);
  if (error == 0)
    return Refuse("open with O_EXCL opened a file that existed",
                  "files that must be new could be somebody else's", kOtherFileSystem);
  if (error != EEXIST) return ErrnoStatus(error, "create exclusively what exists, " + path);
  ASSIGN_OR_RETURN(const std::string there, ReadFile(path));
  if (there != "first")
    return Refuse(fmt::format("a refused O_EXCL left {} of 'first'", Quoted(there)),
                  "what exists is spoiled by who may not have it", kOtherFileSystem);
  return Good("an existing name is refused (EEXIST)");
}

absl::StatusOr<ProbeCheck> CheckLink(const ProbeSite& site) {
  // As the run log does: from one directory to another.
  const std::string first = site.Tmp("link.a"), second = site.Tmp("link.b");
  const std::string name = site.Log("link.rec");
  RETURN_IF_ERROR(WriteProbeFile(first, "first", /*sync=*/true));
  RETURN_IF_ERROR(WriteProbeFile(second, "second", /*sync=*/true));
  if (::link(first.c_str(), name.c_str()) != 0) {
    const int error = errno;
    if (!IsUnsupported(error) && error != EXDEV) return ErrnoStatus(error, "link to " + name);
    return Refuse(ErrorText(error),
                  error == EXDEV ? "no hard links from one directory to another: no run log"
                                 : "no hard links: the run log, which decides everything, is made "
                                   "of them",
                  kOtherFileSystem);
  }
  ASSIGN_OR_RETURN(const Entry linked, Look(first));
  const bool again = ::link(second.c_str(), name.c_str()) == 0;
  const int error = again ? 0 : errno;
  ASSIGN_OR_RETURN(const std::string there, ReadFile(name));
  ASSIGN_OR_RETURN(const Entry loser, Look(second));
  if (again || there != "first")
    return Refuse(fmt::format("link onto an existing name {}, and {} stands there of 'first'",
                              again ? "was done" : "failed", Quoted(there)),
                  kForks, kOtherFileSystem);
  if (error != EEXIST) return ErrnoStatus(error, "link onto an existing name, " + name);
  if (loser.links == 2)
    return Refuse("a file whose link was refused has two links (st_nlink)",
                  "the run log takes that for success whose answer was lost", kOtherFileSystem);
  if (linked.links != 2)
    return Warn(fmt::format("a linked file has st_nlink {} instead of 2", linked.links),
                "a link whose answer is lost is found by reading only",
                "nothing, if the mount is reliable");
  return Good("tmp/ to log/, two links, an existing name is refused (EEXIST)");
}

absl::StatusOr<ProbeCheck> CheckLinkRace(const ProbeSite& site) {
  const SharedMemory<RaceBoard> board;
  const absl::Status raced = RunInChildren(kRacers, [&](int racer) -> absl::Status {
    for (size_t slot = 0; slot < kSlots && !board->failed; ++slot) {
      const absl::StatusOr<RaceView> view =
          RaceForSlot(site.directory + "/tmp", site.directory + "/log", static_cast<int>(slot),
                      racer, kRacers, [&] { AwaitRacers(*board, slot); });
      if (!view.ok()) board->failed = true;
      RETURN_IF_ERROR(view.status());
      board->views[slot][static_cast<size_t>(racer)] = *view;
    }
    return absl::OkStatus();
  });
  RETURN_IF_ERROR(raced);
  std::array<int, kRacers> won = {};
  for (size_t slot = 0; slot < kSlots; ++slot) {
    if (const auto wrong = JudgeSlot(static_cast<int>(slot), board->views[slot]))
      return Refuse(*wrong, kForks, kOtherFileSystem);
    ++won[static_cast<size_t>(board->views[slot][0].winner)];
  }
  const auto winners = kRacers - std::count(won.begin(), won.end(), 0);
  return Good(fmt::format("{} processes, {} slots: one winner each ({} of them won some)", kRacers,
                          kSlots, winners));
}

namespace {

constexpr size_t kVersionBytes = 4096;
constexpr int kRenamesLeast = 100, kRenamesMost = 1000;
constexpr double kRenameSeconds = 0.3;

struct RenameBoard {
  std::atomic<bool> stop;
  std::atomic<int> reads, absent, torn, renames;
};

std::string Version(int number) {
  std::string text;
  while (text.size() < kVersionBytes) text += fmt::format("{:08}", number);
  return text;
}

absl::Status RenameOver(const std::string& path, RenameBoard& board) {
  const double begin = MonotonicSeconds();
  for (int i = 1; i <= kRenamesMost; ++i) {
    const absl::Status status = ReplaceFileFast(path, Version(i));
    if (!status.ok()) board.stop = true;
    RETURN_IF_ERROR(status);
    board.renames = i;
    const bool read_some = board.reads + board.absent > kRenamesLeast;
    if (i >= kRenamesLeast && read_some && MonotonicSeconds() - begin > kRenameSeconds) break;
  }
  board.stop = true;
  return absl::OkStatus();
}

absl::Status ReadWhileRenamed(const std::string& path, RenameBoard& board) {
  while (!board.stop) {
    const absl::StatusOr<std::string> read = ReadFile(path);
    if (absl::IsNotFound(read.status())) {
      ++board.absent;
      continue;
    }
    RETURN_IF_ERROR(read.status());
    ++board.reads;
    const bool whole = read->size() == kVersionBytes &&
                       std::memcmp(read->data(), read->data() + 8, kVersionBytes - 8) == 0;
    if (!whole) ++board.torn;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ProbeCheck> CheckRename(const ProbeSite& site) {
  const std::string path = site.Tmp("renamed");
  RETURN_IF_ERROR(WriteProbeFile(path, Version(0), /*sync=*/false));
  const SharedMemory<RenameBoard> board;
  RETURN_IF_ERROR(RunInChildren(2, [&](int i) {
    return i == 0 ? RenameOver(path, *board) : ReadWhileRenamed(path, *board);
  }));
  ASSIGN_OR_RETURN(const std::string last, ReadFile(path));
  if (board->absent > 0 || board->torn > 0 || last != Version(board->renames))
    return Refuse(
        fmt::format("{} of {} looks at a name that was being replaced found nothing, {} a mixture",
                    board->absent.load(), board->reads + board->absent, board->torn.load()),
        "run.toml, run.key and manifests could be seen absent or torn", kOtherFileSystem);
  return Good(fmt::format("{} replacements, {} reads by another process: never absent, never torn",
                          board->renames.load(), board->reads.load()));
}

absl::StatusOr<ProbeCheck> CheckListing(const ProbeSite& site) {
  const std::string source = site.Tmp("listed"), folder = site.Tmp("listed.d");
  RETURN_IF_ERROR(WriteProbeFile(source, "x", /*sync=*/false));
  if (::mkdir(folder.c_str(), 0700) != 0) return ErrnoStatus(errno, "mkdir " + folder);
  for (int i = 0; i < kListed; ++i) {
    const std::string name = fmt::format("{}/{:08}.rec", folder, i);
    RETURN_IF_ERROR(WriteProbeFile(name, "x", /*sync=*/false));
  }
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(::opendir(folder.c_str()), ::closedir);
  if (stream == nullptr) return ErrnoStatus(errno, "list " + folder);
  std::multiset<std::string> names;
  errno = 0;
  while (const dirent* entry = ::readdir(stream.get()))
    if (entry->d_name[0] != '.') names.insert(entry->d_name);
  if (errno != 0) return ErrnoStatus(errno, "list " + folder);
  int missing = 0;
  for (int i = 0; i < kListed; ++i)
    if (names.count(fmt::format("{:08}.rec", i)) != 1) ++missing;
  if (missing > 0 || names.size() != kListed)
    return Refuse(fmt::format("of {} new names a listing shows {}; {} are missing or there twice",
                              kListed, names.size(), missing),
                  "the end of the run log would be looked for in the wrong place",
                  "look at the mount's options for caching of directories");
  return Good(fmt::format("{} new names, all are listed at once", kListed));
}

absl::StatusOr<ProbeCheck> CheckSymlink(const ProbeSite& site) {
  const std::string target = site.Tmp("symlink.target"), path = site.Tmp("symlink");
  if (::symlink(target.c_str(), path.c_str()) != 0)
    return Good(Message(ErrnoStatus(errno, "no symbolic links here, none to follow: symlink")));
  const int through = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (through >= 0) ::close(through);
  if (through < 0) RETURN_IF_ERROR(WriteProbeFile(target, "elsewhere", /*sync=*/false));
  const int followed = ::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
  if (followed >= 0) ::close(followed);
  if (through >= 0 || followed >= 0)
    return Refuse(fmt::format("a symbolic link is followed {}",
                              through >= 0 ? "by O_CREAT with O_EXCL" : "in spite of O_NOFOLLOW"),
                  "somebody else's link could lead the run's files elsewhere", kOtherFileSystem);
  return Good("not followed where they must not be");
}

absl::StatusOr<ProbeCheck> CheckNames(const ProbeSite& site) {
  constexpr size_t kLongest = 255, kNeeded = 128;
  const auto fits = [&](size_t bytes) {
    return WriteProbeFile(site.Tmp(std::string(bytes, 'n')), "x", /*sync=*/false);
  };
  const absl::Status longest = fits(kLongest);
  if (!longest.ok())
    if (const absl::Status needed = fits(kNeeded); !needed.ok())
      return Refuse(fmt::format("no names of {} bytes: {}", kNeeded, Message(needed)),
                    "files of a run could not be made", kOtherFileSystem);
  RETURN_IF_ERROR(WriteProbeFile(site.Tmp("case"), "lower", /*sync=*/false));
  struct stat info {};
  if (::stat(site.Tmp("CASE").c_str(), &info) == 0)
    return Warn("names differ not by case: 'CASE' is 'case'",
                "Perdure's own names do not meet, those of exported tensors and data might",
                "a directory without case folding, if there is one");
  if (!longest.ok())
    return Warn(fmt::format("names of {} bytes, not of {}", kNeeded, kLongest),
                "Perdure's own are shorter; those of your data might not be",
                "nothing, if your data has short names");
  return Good("255 bytes, case counts");
}

}  // namespace perdure
