// Small files: read whole, replace whole, make durable. Large payloads have their own paths (ckpt,
// runtime/data).
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace perdure {

// The whole file. NotFound names the path.
absl::StatusOr<std::string> ReadFile(const std::string& path);

// Replaces `path` by `content`: temporary file in the same directory, fsync, rename, fsync of the
// directory. Readers see the old content or the new one, never a mixture.
absl::Status ReplaceFile(const std::string& path, std::string_view content);

// As ReplaceFile without the two fsyncs: for files that are rewritten often and may be lost with
// the machine's power.
absl::Status ReplaceFileFast(const std::string& path, std::string_view content);

absl::Status SyncDirectory(const std::string& path);

// Creates `path` and its parents (mode 0700 for what is new). Existing directories are fine.
absl::Status MakeDirectories(const std::string& path);

}  // namespace perdure
