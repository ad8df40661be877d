#include "ckpt/convert/foreign_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <utility>

#include "ckpt/partial.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr size_t kFilesOpenMax = 64;

}  // namespace

absl::StatusOr<File> OpenForeignFile(const std::string& path) {
  // Without O_NONBLOCK a named pipe would make us wait for a writer.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) {
    if (errno == ENOENT) return NotFound("{} is not there", path);
    return ErrnoStatus(errno, "open " + path);
  }
  File file(descriptor, path);
  struct stat info {};
  if (::fstat(descriptor, &info) != 0) return ErrnoStatus(errno, "stat " + path);
  if (!S_ISREG(info.st_mode)) return InvalidArgument("{} is not a regular file", path);
  return file;
}

absl::StatusOr<File> CreateExportFile(const std::string& path) {
  const int descriptor =
      ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (descriptor >= 0) return File(descriptor, path);
  if (errno == EEXIST)
    return AlreadyExists("{} exists: an export writes over nothing; choose another directory",
                         path);
  return ErrnoStatus(errno, "create " + path);
}

absl::Status MakeExportDirectory(const std::string& path) {
  std::error_code error;
  bool empty = true;
  if (std::filesystem::exists(path, error)) {
    for (const auto& entry : std::filesystem::directory_iterator(path, error))
      empty &= entry.path().filename() == kPartialMark;
    if (error || !empty)
      return AlreadyExists(
          "{} exists and is not an empty directory: an export writes over nothing; choose another",
          path);
  }
  return MakeDirectories(path);
}

absl::Status ReadBytes(const File& file, uint64_t offset, void* to, size_t bytes) {
  iovec piece{to, bytes};
  return file.ReadAt(offset, {&piece, 1});
}

absl::Status WriteBytes(File& file, uint64_t offset, const void* from, size_t bytes) {
  iovec piece{const_cast<void*>(from), bytes};
  return file.WriteAt(offset, {&piece, 1});
}

absl::StatusOr<std::shared_ptr<const File>> FileCache::Get(const std::string& path) {
  const auto found = std::find_if(files_.begin(), files_.end(),
                                  [&](const auto& file) { return file->path() == path; });
  if (found != files_.end()) {
    files_.splice(files_.begin(), files_, found);
    return files_.front();
  }
  ASSIGN_OR_RETURN(File file, OpenForeignFile(path));
  files_.push_front(std::make_shared<const File>(std::move(file)));
  if (files_.size() > kFilesOpenMax) files_.pop_back();
  return files_.front();
}

}  // namespace perdure
