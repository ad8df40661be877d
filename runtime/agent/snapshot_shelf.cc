#include "runtime/agent/snapshot_shelf.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "runtime/base/status.h"
#include "runtime/train/snapshot_file.h"

namespace perdure {
namespace {

constexpr char kLock[] = "/lock";
constexpr char kFetched[] = "/fetched";
// Somebody who removes a directory and somebody who makes it may meet so often.
constexpr int kTries = 100;

std::vector<std::string> NamesIn(const std::string& directory) {
  std::vector<std::string> names;
  DIR* const open = ::opendir(directory.c_str());
  if (open == nullptr) return names;
  while (const dirent* entry = ::readdir(open)) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  ::closedir(open);
  std::sort(names.begin(), names.end());
  return names;
}

// Ours alone: whoever else could change it could make ranks load anything.
absl::Status CheckOwn(const std::string& path) {
  struct stat facts {};
  if (::lstat(path.c_str(), &facts) != 0) return ErrnoStatus(errno, "look at " + path);
  if (!S_ISDIR(facts.st_mode) || facts.st_uid != ::geteuid() || (facts.st_mode & 077) != 0)
    return FailedPrecondition(
        "{} is not a directory of this user alone; delete it, or set snapshot.directory to another "
        "place in memory",
        path);
  return absl::OkStatus();
}

// The lock of the directory, if nobody else has it. FailedPrecondition: somebody has. NotFound: the
// directory was removed meanwhile.
absl::StatusOr<UniqueFd> Lock(const std::string& path) {
  const std::string name = path + kLock;
  UniqueFd lock(::open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock.open()) return ErrnoStatus(errno, "open " + name);
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoStatus(errno, "lock " + name);
    return FailedPrecondition("another agent holds {}: this node has one already", name);
  }
  // Whoever had it before may have removed it after we had opened it.
  struct stat held {
  }, there{};
  if (::fstat(lock.get(), &held) != 0 || ::lstat(name.c_str(), &there) != 0 ||
      held.st_ino != there.st_ino || held.st_dev != there.st_dev)
    return NotFound("{} was removed", name);
  return lock;
}

// REQUIRES: its lock is held; it goes last, so that nobody takes over what is half deleted.
void RemoveAll(const std::string& path) {
  for (const std::string& name : NamesIn(path + kFetched))
    (void)::unlink((path + kFetched + "/" + name).c_str());
  (void)::rmdir((path + kFetched).c_str());
  for (const std::string& name : NamesIn(path))
    if ("/" + name != kLock) (void)::unlink((path + "/" + name).c_str());
  (void)::unlink((path + kLock).c_str());
  (void)::rmdir(path.c_str());
}

std::string RunPrefix(const std::string& run_id) {
  return fmt::format("perdure-{}-", run_id.substr(0, 12));
}

// Of jobs of this run that are over.
void Sweep(const SnapshotShelf::Options& options) {
  const std::string run = RunPrefix(options.run_id);
  const std::string own = fmt::format("{}{}-", run, options.job);
  for (const std::string& name : NamesIn(options.directory)) {
    if (!name.starts_with(run) || name.starts_with(own)) continue;
    const std::string path = options.directory + "/" + name;
    if (!CheckOwn(path).ok()) continue;
    if (const absl::StatusOr<UniqueFd> lock = Lock(path); lock.ok()) RemoveAll(path);
  }
}

}  // namespace

SnapshotShelf::SnapshotShelf(std::string path, std::string run_id, UniqueFd lock)
    : path_(std::move(path)), run_id_(std::move(run_id)), lock_(std::move(lock)) {}

SnapshotShelf::~SnapshotShelf() = default;

absl::StatusOr<std::unique_ptr<SnapshotShelf>> SnapshotShelf::Open(const Options& options) {
  if (options.run_id.size() != 32)
    return InvalidArgument("'{}' is no id of a run: 32 hex digits", options.run_id);
  Sweep(options);
  const std::string path = fmt::format("{}/{}{}-n{}", options.directory, RunPrefix(options.run_id),
                                       options.job, options.node);
  for (int i = 0; i < kTries; ++i) {
    if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST)
      return ErrnoStatus(errno, "make " + path + ", for snapshots");
    const absl::Status own = CheckOwn(path);
    if (absl::IsNotFound(own)) continue;
    RETURN_IF_ERROR(own);
    absl::StatusOr<UniqueFd> lock = Lock(path);
    if (absl::IsNotFound(lock.status())) continue;
    RETURN_IF_ERROR(lock.status());
    if (::mkdir((path + kFetched).c_str(), 0700) != 0 && errno != EEXIST)
      return ErrnoStatus(errno, "make " + path + kFetched);
    std::unique_ptr<SnapshotShelf> shelf(new SnapshotShelf(path, options.run_id, *std::move(lock)));
    shelf->DropFetched();
    return shelf;
  }
  return Unavailable("{} is made and removed again and again", path);
}

std::vector<Holding> SnapshotShelf::Holdings() const {
  std::vector<Holding> holdings;
  for (const std::string& name : NamesIn(path_)) {
    if (!ParseSnapshotFileName(name).has_value()) continue;
    const absl::StatusOr<SnapshotStamp> stamp = ReadSnapshotStamp(path_ + "/" + name);
    if (stamp.ok() && stamp->run_id == run_id_)
      holdings.push_back(
          {.generation = stamp->generation, .step = stamp->step, .rank = stamp->rank});
  }
  std::sort(holdings.begin(), holdings.end());
  return holdings;
}

absl::StatusOr<std::string> SnapshotShelf::PathOf(const Holding& holding) const {
  for (const int buffer : {0, 1}) {
    const std::string path =
        fmt::format("{}/{}", path_, SnapshotFileName(holding.generation, holding.rank, buffer));
    const absl::StatusOr<SnapshotStamp> stamp = ReadSnapshotStamp(path);
    if (stamp.ok() && stamp->run_id == run_id_ && stamp->generation == holding.generation &&
        stamp->step == holding.step && stamp->rank == holding.rank)
      return path;
  }
  return NotFound("{} holds no snapshot of rank {} at step {} of generation {}", path_,
                  holding.rank, holding.step, holding.generation);
}

std::string SnapshotShelf::FetchedPath(const Holding& holding, int32_t local_rank) const {
  return fmt::format("{}{}/g{}-r{}-s{}-for-{}", path_, kFetched, holding.generation, holding.rank,
                     holding.step, local_rank);
}

void SnapshotShelf::DropFetched() {
  for (const std::string& name : NamesIn(path_ + kFetched))
    (void)::unlink((path_ + kFetched + "/" + name).c_str());
}

void SnapshotShelf::DropOlder(Generation generation) {
  for (const std::string& name : NamesIn(path_))
    if (const auto parsed = ParseSnapshotFileName(name);
        parsed.has_value() && parsed->generation < generation)
      (void)::unlink((path_ + "/" + name).c_str());
}

void SnapshotShelf::Remove() { RemoveAll(path_); }

}  // namespace perdure
