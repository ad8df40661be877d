// A directory that takes long to make: TARGET.partial until it is complete, then TARGET. An
// interrupted maker continues where it stood; nobody else's work is touched.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/file_io.h"
#include "runtime/base/digest.h"

namespace perdure {

// The file that says what is being made; no maker writes one.
inline constexpr const char* kPartialMark = "perdure.partial";

class PartialDirectory {
 public:
  // What is being made: `identity` tells one work from another, `words` are for people ("step 60 in
  // 5 files"). AlreadyExists: the target does. FailedPrecondition names TARGET.partial when it
  // holds another work, or another process is at it. Its parent must exist.
  static absl::StatusOr<PartialDirectory> Open(const std::string& target, const Digest& identity,
                                               const std::string& words);

  // Where to work. The target's own name when only the end of Publish is missing.
  const std::string& path() const { return path_; }
  bool published() const { return path_ == target_; }
  // Deletes what an interrupted maker wrote, for one that cannot go on from it.
  absl::Status Clear();
  // Gives it its name, then deletes the mark and all <file>.done. REQUIRES: every file is durable.
  absl::Status Publish();

 private:
  PartialDirectory() = default;

  std::string target_;
  std::string path_;
  File lock_;  // Held by one process as long as it lives.
};

}  // namespace perdure
