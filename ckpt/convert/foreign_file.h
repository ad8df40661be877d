// Files that Perdure did not write, and files that it writes for others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/file_io.h"

namespace perdure {

// NotFound names the path; what is no regular file is InvalidArgument. Symbolic links are followed:
// download caches are made of them.
absl::StatusOr<File> OpenForeignFile(const std::string& path);

// AlreadyExists: an export never writes over anything.
absl::StatusOr<File> CreateExportFile(const std::string& path);

// Makes `path` for an export: AlreadyExists when it is there and is not an empty directory
// (a PartialDirectory's mark does not count).
absl::Status MakeExportDirectory(const std::string& path);

absl::Status ReadBytes(const File& file, uint64_t offset, void* to, size_t bytes);
absl::Status WriteBytes(File& file, uint64_t offset, const void* from, size_t bytes);

// Keeps a bounded number of files open, those used last.
class FileCache {
 public:
  absl::StatusOr<std::shared_ptr<const File>> Get(const std::string& path);

 private:
  std::list<std::shared_ptr<const File>> files_;  // The one used last is in front.
};

}  // namespace perdure
