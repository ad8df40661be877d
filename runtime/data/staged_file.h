// A file that appears under its name only when it is complete: written beside it under a temporary
// name, renamed at Commit(), removed when dropped before. Appends are buffered; one owner, one
// thread.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace perdure {

class StagedFile {
 public:
  // Creates the temporary file; its folder must exist.
  static absl::StatusOr<std::unique_ptr<StagedFile>> Create(const std::string& path);
  ~StagedFile();
  StagedFile(const StagedFile&) = delete;
  StagedFile& operator=(const StagedFile&) = delete;

  absl::Status Append(const void* data, size_t bytes);
  // Everything appended is on the disk. To be called before Commit, so that of several files none
  // is renamed before all are safe.
  absl::Status Sync();
  // The file has its name, for good.
  absl::Status Commit();

  const std::string& path() const { return path_; }

 private:
  StagedFile(std::string path, std::string temporary, int fd);
  absl::Status Flush();

  std::string path_;
  std::string temporary_;
  int fd_;
  bool committed_ = false;
  std::vector<char> buffer_;
};

// The folder that holds `path` ("." for a bare name).
std::string ParentFolder(const std::string& path);

}  // namespace perdure
