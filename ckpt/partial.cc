#include "ckpt/partial.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <vector>

#include "ckpt/stream.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

std::string MarkPath(const std::string& directory) { return directory + "/" + kPartialMark; }

std::string MarkText(const Digest& identity, const std::string& words) {
  return fmt::format("{}\n{}\n", identity.Hex(), words);
}

// Whether `directory` has a mark, which must be of this work.
absl::StatusOr<bool> IsMarked(const std::string& directory, const Digest& identity) {
  const absl::StatusOr<std::string> mark = ReadFile(MarkPath(directory));
  if (absl::IsNotFound(mark.status())) return false;
  RETURN_IF_ERROR(mark.status());
  if (mark->starts_with(identity.Hex() + "\n")) return true;
  const size_t line = std::min(mark->find('\n'), mark->size() - 1);
  return FailedPrecondition(
      "{} holds other work that was interrupted ({}): finish it with the arguments it was begun "
      "with, or delete it",
      directory, line + 1 < mark->size() ? mark->substr(line + 1, mark->size() - line - 2) : "?");
}

// What a maker that died before its mark leaves.
bool IsUntouched(const std::string& directory) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error))
    if (!entry.path().filename().string().starts_with(std::string(kPartialMark) + ".tmp."))
      return false;
  return !error;
}

absl::StatusOr<File> Lock(const std::string& directory) {
  const std::string path = MarkPath(directory);
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (descriptor < 0) return ErrnoStatus(errno, "open " + path);
  File file(descriptor, path);
  // Where a file system has no locks, it is the user who keeps two from working at once.
  if (::flock(descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    return FailedPrecondition("another process works in {}: wait until it has ended", directory);
  return file;
}

}  // namespace

absl::StatusOr<PartialDirectory> PartialDirectory::Open(const std::string& target,
                                                        const Digest& identity,
                                                        const std::string& words) {
  PartialDirectory made;
  made.target_ = target;
  std::error_code error;
  if (fs::exists(fs::symlink_status(target, error))) {
    const absl::StatusOr<bool> ours = IsMarked(target, identity);
    if (!ours.ok() || !*ours)
      return AlreadyExists("{} exists: name a target that does not, or delete it", target);
    made.path_ = target;
  } else {
    made.path_ = target + ".partial";
    if (::mkdir(made.path_.c_str(), 0700) != 0 && errno != EEXIST)
      return ErrnoStatus(errno, "create " + made.path_);
    ASSIGN_OR_RETURN(const bool ours, IsMarked(made.path_, identity));
    if (!ours && !IsUntouched(made.path_))
      return FailedPrecondition("{} is there already and not of this command: move it away",
                                made.path_);
    if (!ours) RETURN_IF_ERROR(ReplaceFile(MarkPath(made.path_), MarkText(identity, words)));
  }
  ASSIGN_OR_RETURN(made.lock_, Lock(made.path_));
  return made;
}

absl::Status PartialDirectory::Clear() {
  std::error_code error;
  std::vector<fs::path> scrap;
  for (const auto& entry : fs::directory_iterator(path_, error))
    if (entry.path().filename() != kPartialMark) scrap.push_back(entry.path());
  if (error) return ErrnoStatus(error.value(), "list " + path_);
  for (const fs::path& path : scrap) {
    fs::remove_all(path, error);
    if (error) return ErrnoStatus(error.value(), "delete " + path.string());
  }
  return absl::OkStatus();
}

absl::Status PartialDirectory::Publish() {
  std::error_code error;
  if (!published()) {
    RETURN_IF_ERROR(SyncDirectory(path_));
    // Nothing that came meanwhile is replaced: an empty directory would be.
    if (fs::exists(fs::symlink_status(target_, error)))
      return AlreadyExists("{} has come into being meanwhile; what was made stands in {}", target_,
                           path_);
    fs::rename(path_, target_, error);
    if (error) return ErrnoStatus(error.value(), fmt::format("rename {} to {}", path_, target_));
    path_ = target_;
    const std::string parent = fs::path(target_).parent_path().string();
    RETURN_IF_ERROR(SyncDirectory(parent.empty() ? "." : parent));
  }
  std::vector<fs::path> scrap;
  for (const auto& entry : fs::directory_iterator(path_, error)) {
    const std::string name = entry.path().filename().string();
    // Of ReplaceFile, when it was interrupted, too.
    if (name.ends_with(DoneName("")) || name.find(".tmp.") != std::string::npos)
      scrap.push_back(entry.path());
  }
  scrap.push_back(MarkPath(path_));  // Last: until then a call like this one finishes.
  for (const fs::path& file : scrap) {
    fs::remove(file, error);
    if (error) return ErrnoStatus(error.value(), "delete " + file.string());
  }
  return SyncDirectory(path_);
}

}  // namespace perdure
