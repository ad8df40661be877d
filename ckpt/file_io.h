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
  // A failure is final for this file: the kernel has dropped the pages, and a second call may well
  // say "fine".
  absl::Status Sync();
  absl::Status Truncate(uint64_t bytes);
  absl::Status Close();

 private:
  int descriptor_ = -1;
  std::string path_;
};

// A file that is not there is DataLoss: whoever asks has a manifest that names it.
absl::StatusOr<File> OpenPartFile(const std::string& path);
// AlreadyExists: names are used once.
absl::StatusOr<File> CreateNewFile(const std::string& path);

}  // namespace perdure
