#include "ckpt/file_io.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr size_t kHugePage = 2 << 20;
constexpr size_t kPiecesPerCall = 1024;  // IOV_MAX of Linux.

// Drops the first `done` bytes, and empty pieces in front.
void Advance(std::span<iovec>& pieces, size_t done) {
  while (!pieces.empty() && done >= pieces.front().iov_len) {
    done -= pieces.front().iov_len;
    pieces = pieces.subspan(1);
  }
  PERDURE_CHECK(done == 0 || !pieces.empty());
  if (done == 0) return;
  pieces.front().iov_base = static_cast<char*>(pieces.front().iov_base) + done;
  pieces.front().iov_len -= done;
}

absl::Status WriteError(int error, const std::string& path) {
  if (error == EFBIG)
    return ResourceExhausted("write {}: larger than this process may write (ulimit -f)", path);
  return ErrnoStatus(error, "write " + path);
}

}  // namespace

File::~File() {
  if (is_open()) ::close(descriptor_);
}

File& File::operator=(File&& other) noexcept {
  if (this == &other) return *this;
  if (is_open()) ::close(descriptor_);
  descriptor_ = std::exchange(other.descriptor_, -1);
  path_ = std::move(other.path_);
  return *this;
}

absl::StatusOr<uint64_t> File::Size() const {
  struct stat info {};
  if (::fstat(descriptor_, &info) != 0) return ErrnoStatus(errno, "stat " + path_);
  return static_cast<uint64_t>(info.st_size);
}

absl::Status File::ReadAt(uint64_t offset, std::span<iovec> pieces) const {
  Advance(pieces, 0);
  while (!pieces.empty()) {
    const int count = static_cast<int>(std::min(pieces.size(), kPiecesPerCall));
    const ssize_t got = ::preadv(descriptor_, pieces.data(), count, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, fmt::format("read {} at byte {}", path_, offset));
    if (got == 0) return DataLoss("{} ends at byte {}, before what it should hold", path_, offset);
    offset += static_cast<uint64_t>(got);
    Advance(pieces, static_cast<size_t>(got));
  }
  return absl::OkStatus();
}

absl::Status File::WriteAt(uint64_t offset, std::span<iovec> pieces) {
  Advance(pieces, 0);
  while (!pieces.empty()) {
    const int count = static_cast<int>(std::min(pieces.size(), kPiecesPerCall));
    const ssize_t put = ::pwritev(descriptor_, pieces.data(), count, static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return WriteError(errno, path_);
    if (put == 0) return WriteError(ENOSPC, path_);  // POSIX allows it; looping would never end.
    offset += static_cast<uint64_t>(put);
    Advance(pieces, static_cast<size_t>(put));
  }
  return absl::OkStatus();
}

absl::StatusOr<size_t> File::ReadSome(uint64_t offset, char* data, size_t bytes) const {
  const iovec piece{data, bytes};
  for (;;) {
    const ssize_t got = ::preadv(descriptor_, &piece, 1, static_cast<off_t>(offset));
    if (got >= 0) return static_cast<size_t>(got);
    if (errno != EINTR) return ErrnoStatus(errno, fmt::format("read {} at byte {}", path_, offset));
  }
}

absl::Status File::Sync() {
  if (::fsync(descriptor_) != 0)
    return ErrnoStatus(errno,
                       fmt::format("fsync {} (final: write it again under a new name)", path_));
  return absl::OkStatus();
}

absl::Status File::Truncate(uint64_t bytes) {
  if (::ftruncate(descriptor_, static_cast<off_t>(bytes)) != 0) return WriteError(errno, path_);
  return absl::OkStatus();
}

absl::Status File::Reserve(uint64_t bytes) {
  if (bytes == 0) return absl::OkStatus();
  while (::fallocate(descriptor_, 0, 0, static_cast<off_t>(bytes)) != 0) {
    if (errno == EINTR) continue;
    if (errno == EOPNOTSUPP || errno == ENOSYS) return absl::OkStatus();
    return WriteError(errno, path_);
  }
  return absl::OkStatus();
}

absl::Status File::Close() {
  const int descriptor = std::exchange(descriptor_, -1);
  if (::close(descriptor) != 0) return ErrnoStatus(errno, "close " + path_);
  return absl::OkStatus();
}

AlignedBuffer DirectReader::NewBuffer() { return AlignedBuffer(kReadBytes); }

DirectReader::DirectReader(const File& file, const AlignedBuffer& buffer)
    : file_(file), direct_(OpenDirect(file, O_RDONLY)), buffer_(buffer) {}

absl::Status DirectReader::ReadAt(uint64_t offset, std::span<iovec> pieces) {
  uint64_t left = 0;
  for (const iovec& piece : pieces) left += piece.iov_len;
  Advance(pieces, 0);
  while (left > 0) {
    const uint64_t skip = offset % kDirectBytes;
    const uint64_t wanted = (skip + left + kDirectBytes - 1) / kDirectBytes * kDirectBytes;
    const absl::StatusOr<size_t> got =
        direct_.is_open()
            ? direct_.ReadSome(offset - skip, buffer_.data(), std::min(wanted, kReadBytes))
            : absl::StatusOr<size_t>(0);
    // Alignment that this file system wants otherwise, or the last bytes of the file.
    if (absl::IsInvalidArgument(got.status()) || (got.ok() && *got <= skip))
      return file_.ReadAt(offset, pieces);
    RETURN_IF_ERROR(got.status());
    const uint64_t taken = std::min(*got - skip, left);
    for (uint64_t copied = 0; copied < taken;) {
      const uint64_t bytes = std::min<uint64_t>(pieces.front().iov_len, taken - copied);
      std::memcpy(pieces.front().iov_base, buffer_.data() + skip + copied, bytes);
      copied += bytes;
      Advance(pieces, bytes);
    }
    offset += taken;
    left -= taken;
  }
  return absl::OkStatus();
}

AlignedBuffer::AlignedBuffer(size_t bytes) {
  // A direct transfer is cut wherever memory is not contiguous: huge pages make it a few pieces.
  const size_t alignment = bytes >= kHugePage ? kHugePage : kDirectBytes;
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  data_ = static_cast<char*>(std::aligned_alloc(alignment, rounded));
  PERDURE_CHECK(data_ != nullptr);
  if (alignment == kHugePage) (void)::madvise(data_, rounded, MADV_HUGEPAGE);  // Where it can.
}

AlignedBuffer::~AlignedBuffer() { std::free(data_); }

absl::StatusOr<File> OpenPartFile(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (descriptor >= 0) return File(descriptor, path);
  if (errno == ENOENT) return DataLoss("{} is missing: the manifest names it", path);
  if (errno == ELOOP) return DataLoss("{} is a symbolic link: part files are plain files", path);
  return ErrnoStatus(errno, "open " + path);
}

absl::StatusOr<File> CreateNewFile(const std::string& path) {
  const int descriptor =
      ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (descriptor >= 0) return File(descriptor, path);
  if (errno == EEXIST)
    return AlreadyExists("{} exists: names of checkpoints are used once, take a new nonce", path);
  return ErrnoStatus(errno, "create " + path);
}

absl::StatusOr<File> CreateOrJoinFile(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (descriptor >= 0) return File(descriptor, path);
  return ErrnoStatus(errno, "create " + path);
}

File OpenDirect(const File& file, int flags) {
  const int descriptor = ::open(file.path().c_str(), flags | O_DIRECT | O_CLOEXEC | O_NOFOLLOW);
  return descriptor >= 0 ? File(descriptor, file.path()) : File();
}

}  // namespace perdure
