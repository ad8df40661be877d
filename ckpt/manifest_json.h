// The text of manifest.json, and what must hold of a manifest whoever made it. Private to ckpt/.
#pragma once

#include <string>
#include <string_view>

#include "ckpt/checkpoint.h"

namespace perdure {

inline constexpr const char* kManifestFile = "manifest.json";
inline constexpr int64_t kFormatVersion = 1;
inline constexpr uint64_t kPartBlocksMax = uint64_t{1} << 26;  // Of one file: 64 TiB.

// Deterministic. Its last member is the digest of all text before it. InvalidArgument: a string is
// not UTF-8.
absl::StatusOr<std::string> SerializeManifest(const Manifest& manifest);

// Strict: only what SerializeManifest writes, and only if ValidateManifest agrees. Safe on hostile
// bytes.
absl::StatusOr<Manifest> ParseManifest(std::string_view text);

// DataLoss names the field. After it an AtomTable can be built, every atom has one place, every
// byte range is inside its file, no file name leaves the directory.
absl::Status ValidateManifest(const Manifest& manifest);

// The checks of one part that need no table. `where` as "parts[3]".
absl::Status ValidatePart(const PartReport& part, const std::string& where);

// What needs the table: its atoms exist, their bytes lie inside the file. REQUIRES: ValidatePart.
absl::Status ValidateExtents(const PartReport& part, const AtomTable& table,
                             const std::string& where);

// Letters, digits, '.', '_', '-'; no leading '.'; ends in ".h5".
bool IsPartFileName(std::string_view name);

}  // namespace perdure
