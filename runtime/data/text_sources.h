// The files of a build, in an order that depends on their names alone. Private to runtime/data.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/data/text_extract.h"

namespace perdure {

using SkipCounts = std::array<int64_t, kSkipReasons>;  // By SkipReason.

struct TextSources {
  std::vector<std::string> files;
  SkipCounts skipped{};  // kByName, kNotRegular, kUnreadable: a skipped folder counts as one.
};

// Folders are read recursively, each sorted by path in bytes; symbolic links inside them are not
// followed. NotFound or InvalidArgument for a path that is absent or neither file nor folder.
absl::StatusOr<TextSources> ListTextSources(const std::vector<std::string>& paths);

}  // namespace perdure
