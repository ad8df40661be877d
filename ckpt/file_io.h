// Positioned I/O on the large files of a checkpoint: whole transfers or an error, whatever the
// system call returned.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace perdure {

inline constexpr uint64_t kBlockBytes = uint64_t{1} << 20;  // What one block digest covers.
// Direct transfers begin, end and lie in memory at multiples of this.
inline constexpr uint64_t kDirectBytes = 4096;
inline constexpr uint64_t kReadBytes = 8 * kBlockBytes;  // Of one transfer, at most.

// Memory for direct transfers, not initialised.
class AlignedBuffer {
 public:
  explicit AlignedBuffer(size_t bytes);
  ~AlignedBuffer();
  AlignedBuffer(AlignedBuffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  AlignedBuffer& operator=(AlignedBuffer&&) = delete;
  char* data() const { return data_; }

 private:
  char* data_ = nullptr;
};

// Owns a descriptor.
class File {
 public:
  File() = default;
  File(int descriptor, std::string path) : descriptor_(descriptor), path_(std::move(path)) {}
  ~File();
  File(File&& other) noexcept { *this = std::move(other); }
  File& operator=(File&& other) noexcept;

  bool is_open() const { return descriptor_ >= 0; }
  const std::string& path() const { return path_; }

  absl::StatusOr<uint64_t> Size() const;
  // Fills (writes) all pieces from `offset` on; the pieces are consumed. DataLoss: the file ends
  // before.
  absl::Status ReadAt(uint64_t offset, std::span<iovec> pieces) const;
  absl::Status WriteAt(uint64_t offset, std::span<iovec> pieces);
  // As many bytes as one call gives; 0 at the end of the file.
  absl::StatusOr<size_t> ReadSome(uint64_t offset, char* data, size_t bytes) const;
  // A failure is final for this file: the kernel has dropped the pages, and a second call may well
  // say "fine".
  absl::Status Sync();
  absl::Status Truncate(uint64_t bytes);
  // Takes the space of the first `bytes` bytes now, where the file system can; nothing is written.
  absl::Status Reserve(uint64_t bytes);
  absl::Status Close();

 private:
  int descriptor_ = -1;
  std::string path_;
};

// Reads ranges of one file past the page cache where its file system allows it: through a buffer,
// so that neither ranges nor memory need be aligned. One thread.
class DirectReader {
 public:
  static AlignedBuffer NewBuffer();  // As large as a reader's.
  // `file`, and `buffer` from NewBuffer, outlive this.
  DirectReader(const File& file, const AlignedBuffer& buffer);
  // As File::ReadAt.
  absl::Status ReadAt(uint64_t offset, std::span<iovec> pieces);

 private:
  const File& file_;
  File direct_;
  const AlignedBuffer& buffer_;
};

// A file that is not there is DataLoss: whoever asks has a manifest that names it.
absl::StatusOr<File> OpenPartFile(const std::string& path);
// AlreadyExists: names are used once.
absl::StatusOr<File> CreateNewFile(const std::string& path);
// For one of several writers of a new file: whoever comes first creates it.
absl::StatusOr<File> CreateOrJoinFile(const std::string& path);
// The same file past the page cache; a File that is not open where its file system has no such way.
File OpenDirect(const File& file, int flags);

}  // namespace perdure
