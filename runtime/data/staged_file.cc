#include "runtime/data/staged_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <filesystem>

#include "runtime/base/check.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr size_t kBufferBytes = size_t{1} << 20;

}  // namespace

std::string ParentFolder(const std::string& path) {
  const std::string parent = std::filesystem::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

absl::StatusOr<std::unique_ptr<StagedFile>> StagedFile::Create(const std::string& path) {
  static std::atomic<uint64_t> counter{0};
  std::string temporary = fmt::format("{}.tmp.{}.{}", path, ::getpid(), counter++);
  // Data is shared with others as the umask says.
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return ErrnoStatus(errno, "create " + temporary);
  return std::unique_ptr<StagedFile>(new StagedFile(path, std::move(temporary), fd));
}

StagedFile::StagedFile(std::string path, std::string temporary, int fd)
    : path_(std::move(path)), temporary_(std::move(temporary)), fd_(fd) {
  buffer_.reserve(kBufferBytes);
}

StagedFile::~StagedFile() {
  ::close(fd_);
  if (!committed_) ::unlink(temporary_.c_str());
}

absl::Status StagedFile::Flush() {
  size_t done = 0;
  while (done < buffer_.size()) {
    const ssize_t written = ::write(fd_, buffer_.data() + done, buffer_.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return ErrnoStatus(errno, "write " + temporary_);
    done += static_cast<size_t>(written);
  }
  buffer_.clear();
  return absl::OkStatus();
}

absl::Status StagedFile::Append(const void* data, size_t bytes) {
  PERDURE_CHECK(!committed_);
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    if (buffer_.size() == kBufferBytes) RETURN_IF_ERROR(Flush());
    const size_t part = std::min(bytes, kBufferBytes - buffer_.size());
    buffer_.insert(buffer_.end(), from, from + part);
    from += part;
    bytes -= part;
  }
  return absl::OkStatus();
}

absl::Status StagedFile::Sync() {
  RETURN_IF_ERROR(Flush());
  if (::fsync(fd_) != 0) return ErrnoStatus(errno, "fsync " + temporary_);
  return absl::OkStatus();
}

absl::Status StagedFile::Commit() {
  PERDURE_CHECK(buffer_.empty() && !committed_);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0)
    return ErrnoStatus(errno, fmt::format("rename {} to {}", temporary_, path_));
  committed_ = true;
  return SyncDirectory(ParentFolder(path_));
}

}  // namespace perdure
