#include "runtime/agent/retention.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr int64_t kNewestKept = 2;
constexpr int64_t kVerifiedKept = 2;
constexpr const char* kManifest = "manifest.json";
// Of a job that died while it wrote view.h5.
constexpr const char* kViewTemporary = "view.h5.tmp.";

class Folder {
 public:
  explicit Folder(const std::string& path) : path_(path) {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (descriptor >= 0 && (stream_ = ::fdopendir(descriptor)) == nullptr) ::close(descriptor);
  }
  ~Folder() {
    if (stream_ != nullptr) ::closedir(stream_);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  bool ok() const { return stream_ != nullptr; }
  int descriptor() const { return ::dirfd(stream_); }

  // FailedPrecondition: something that no checkpoint holds.
  absl::StatusOr<std::vector<std::string>> FileNames() {
    std::vector<std::string> names;
    errno = 0;
    while (const dirent* entry = ::readdir(stream_)) {
      const std::string name = entry->d_name;
      if (name == "." || name == "..") continue;
      struct stat info {};
      if (::fstatat(descriptor(), name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0)
        return ErrnoStatus(errno, "stat " + path_ + "/" + name);
      if (!S_ISREG(info.st_mode) ||
          (name != kManifest && !name.ends_with(".h5") && !name.starts_with(kViewTemporary)))
        return FailedPrecondition("{}/{} is not of a checkpoint: move it away first", path_, name);
      names.push_back(name);
      errno = 0;
    }
    if (errno != 0) return ErrnoStatus(errno, "list " + path_);
    return names;
  }

 private:
  std::string path_;
  DIR* stream_ = nullptr;
};

absl::Status CheckName(const std::string& name) {
  if (IsCheckpointName(name)) return absl::OkStatus();
  return InvalidArgument("'{}' is not the name of a checkpoint (s000000120.g3.9f3c21aa)", name);
}

std::string PinFolder(const std::string& run_directory) {
  return (std::filesystem::path(run_directory) / "control" / "pins").string();
}

absl::Status CheckRetired(const std::string& run_directory, const std::string& name) {
  ASSIGN_OR_RETURN(const RunLog log, RunLog::Open(run_directory));
  for (const Record& record : log.records()) {
    if (record.type != RecordType::kRetire) continue;
    ASSIGN_OR_RETURN(const RetireRecord retire, ParseRetire(record.body));
    if (std::find(retire.names.begin(), retire.names.end(), name) != retire.names.end())
      return absl::OkStatus();
  }
  return FailedPrecondition("{}: no RETIRE record names {}: it stays", run_directory, name);
}

}  // namespace

namespace {

// A bad step comes behind the newest checkpoint, and is at most the one after those that are taken
// again: the newest from which those can be reached; else the oldest, where the run may have begun.
const CheckpointEntry* Reaches(std::span<const CheckpointEntry> entries, int64_t rollback_steps) {
  const CheckpointEntry *newest = nullptr, *oldest = nullptr;
  if (rollback_steps == 0) return nullptr;
  for (const CheckpointEntry& entry : entries) {
    if (entry.retired || entry.quarantined || entry.left) continue;
    if (newest == nullptr) newest = &entry;
    oldest = &entry;
    if (entry.commit.step <= newest->commit.step - rollback_steps && entry.verified &&
        entry.failed_attempts < kLoadAttemptsMax)
      return &entry;
  }
  return oldest;
}

}  // namespace

std::vector<std::string> ChooseRetired(std::span<const CheckpointEntry> entries, int64_t keep_last,
                                       int64_t keep_every_steps,
                                       std::span<const int64_t> phase_end_steps,
                                       std::span<const std::string> pinned,
                                       int64_t rollback_steps) {
  const CheckpointEntry* const reaches = Reaches(entries, rollback_steps);
  std::vector<std::string> retired;
  int64_t seen = 0, verified_kept = 0;
  for (const CheckpointEntry& entry : entries) {
    if (entry.retired || entry.quarantined) continue;
    const int64_t step = entry.commit.step;
    const bool is_pinned =
        std::find(pinned.begin(), pinned.end(), entry.commit.checkpoint) != pinned.end();
    if (entry.left) {
      if (!is_pinned) retired.push_back(entry.commit.checkpoint);
      continue;
    }
    const bool keep =
        seen++ < std::max(keep_last, kNewestKept) || verified_kept < kVerifiedKept || is_pinned ||
        &entry == reaches || (keep_every_steps > 0 && step % keep_every_steps == 0) ||
        std::find(phase_end_steps.begin(), phase_end_steps.end(), step) != phase_end_steps.end();
    if (!keep)
      retired.push_back(entry.commit.checkpoint);
    else if (entry.verified && entry.failed_attempts < kLoadAttemptsMax)
      ++verified_kept;
  }
  return retired;
}

absl::Status PinCheckpoint(const std::string& run_directory, const std::string& name) {
  RETURN_IF_ERROR(CheckName(name));
  ASSIGN_OR_RETURN(const RunLog log, RunLog::Open(run_directory));
  for (const CheckpointEntry& entry : ListCheckpoints(log, run_directory)) {
    if (entry.commit.checkpoint != name) continue;
    if (entry.retired)
      return FailedPrecondition("{} was retired: it is gone, or about to be", entry.path);
    RETURN_IF_ERROR(MakeDirectories(PinFolder(run_directory)));
    return ReplaceFile(PinFolder(run_directory) + "/" + name, "");
  }
  return NotFound("{} has no committed checkpoint {}: perdure ckpt list shows them", run_directory,
                  name);
}

absl::Status UnpinCheckpoint(const std::string& run_directory, const std::string& name) {
  RETURN_IF_ERROR(CheckName(name));
  const std::string path = PinFolder(run_directory) + "/" + name;
  if (::unlink(path.c_str()) != 0)
    return errno == ENOENT ? NotFound("{} is not pinned", name)
                           : ErrnoStatus(errno, "delete " + path);
  return SyncDirectory(PinFolder(run_directory));
}

absl::StatusOr<std::vector<std::string>> PinnedCheckpoints(const std::string& run_directory) {
  std::vector<std::string> names;
  std::error_code error;
  const std::filesystem::directory_iterator files(PinFolder(run_directory), error);
  if (error == std::errc::no_such_file_or_directory) return names;
  if (error) return ErrnoStatus(error.value(), "list " + PinFolder(run_directory));
  for (const auto& entry : files)
    if (const std::string name = entry.path().filename(); IsCheckpointName(name))
      names.push_back(name);
  std::sort(names.begin(), names.end());
  return names;
}

absl::Status DeleteCheckpoint(const std::string& run_directory, const std::string& name) {
  RETURN_IF_ERROR(CheckName(name));
  const std::string parent = (std::filesystem::path(run_directory) / "ckpt").string();
  const std::string path = parent + "/" + name;
  Folder folder(path);
  if (!folder.ok()) return errno == ENOENT ? absl::OkStatus() : ErrnoStatus(errno, "open " + path);
  RETURN_IF_ERROR(CheckRetired(run_directory, name));
  ASSIGN_OR_RETURN(std::vector<std::string> names, folder.FileNames());
  // The manifest first: what is half deleted must not look like a checkpoint.
  std::stable_partition(names.begin(), names.end(),
                        [](const std::string& file) { return file == kManifest; });
  for (const std::string& file : names)
    if (::unlinkat(folder.descriptor(), file.c_str(), 0) != 0 && errno != ENOENT)
      return ErrnoStatus(errno, "delete " + path + "/" + file);
  if (::rmdir(path.c_str()) != 0 && errno != ENOENT) return ErrnoStatus(errno, "rmdir " + path);
  return SyncDirectory(parent);
}

}  // namespace perdure
