#include "runtime/agent/kept_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "runtime/agent/records.h"
#include "runtime/agent/start_checkpoint.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

// Reads before it sets the time: the byte is an access on file systems that keep no such time.
absl::Status Refresh(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
  if (descriptor < 0)
    return errno == ENOENT || errno == ELOOP ? absl::OkStatus()
                                             : ErrnoStatus(errno, "open " + path);
  char byte = 0;
  absl::Status status;
  if (::pread(descriptor, &byte, 1, 0) < 0) status = ErrnoStatus(errno, "read " + path);
  const timespec times[2] = {{.tv_sec = 0, .tv_nsec = UTIME_NOW},
                             {.tv_sec = 0, .tv_nsec = UTIME_OMIT}};
  // Data may be another user's: then reading has to do.
  if (status.ok() && ::futimens(descriptor, times) != 0 && errno != EPERM && errno != EROFS)
    status = ErrnoStatus(errno, "set the access time of " + path);
  ::close(descriptor);
  return status;
}

class Refresher {
 public:
  void File(const std::string& path) {
    const absl::Status status = Refresh(path);
    if (status.ok()) return;
    if (failed_++ == 0) first_ = status;
  }
  void Folder(const std::string& path) {
    std::error_code error;
    for (fs::recursive_directory_iterator it(path, error), end; it != end; it.increment(error))
      if (it->is_regular_file(error)) File(it->path().string());
  }
  std::vector<std::string> Lines() const {
    if (failed_ == 0) return {};
    return {fmt::format("{} kept files could not be accessed, a purge may take them: {}", failed_,
                        Message(first_))};
  }

 private:
  int64_t failed_ = 0;
  absl::Status first_;
};

}  // namespace

std::vector<std::string> TendKeptFiles(const RunLog& log, const KeptFilesOptions& options) {
  std::vector<std::string> lines;
  Refresher refresher;
  int64_t kept = 0, whole = 0;
  for (const CheckpointEntry& entry : ListCheckpoints(log, options.run_directory)) {
    if (entry.retired || entry.quarantined) continue;
    ++kept;
    const absl::Status status = InspectCheckpoint(entry).status();
    if (status.ok()) {
      whole += entry.verified && entry.failed_attempts < kLoadAttemptsMax ? 1 : 0;
      if (options.refresh) refresher.Folder(entry.path);
    } else if (entry.gone) {
      lines.push_back(
          fmt::format("checkpoint {} is gone (a purge of files that nobody touched?)", entry.path));
    } else if (absl::IsDataLoss(status) || absl::IsNotFound(status)) {
      const absl::Status moved =
          QuarantineCheckpoint(options.run_directory, entry.commit.checkpoint, Message(status));
      lines.push_back(fmt::format("checkpoint {} is bad ({}) and goes to quarantine/{}", entry.path,
                                  Message(status), moved.ok() ? "" : ": " + Message(moved)));
    } else {
      lines.push_back(
          fmt::format("checkpoint {} cannot be looked at: {}", entry.path, Message(status)));
    }
  }
  if (kept > 0 && whole == 0)
    lines.push_back(fmt::format(
        "of {} kept checkpoints none is whole and was read back: until the next one is committed "
        "the run has nothing to fall back to; restore one from a copy",
        kept));
  if (options.refresh) {
    for (const char* name : {"log", "control", "metrics"})
      refresher.Folder(options.run_directory + "/" + name);
    for (const char* name : {"run.toml", "journal.jsonl"})
      refresher.File(options.run_directory + "/" + name);
    for (const std::string& path : options.data_files) refresher.File(path);
  }
  for (std::string& line : refresher.Lines()) lines.push_back(std::move(line));
  return lines;
}

}  // namespace perdure
