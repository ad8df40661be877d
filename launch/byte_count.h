// Numbers of bytes as people write and read them.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace perdure {

// "80GiB", "80GB", "512 MiB", "1048576". InvalidArgument names the flag.
absl::StatusOr<int64_t> ParseBytes(const std::string& flag, const std::string& text);

// "80.0 GiB".
std::string HumanBytes(uint64_t bytes);

}  // namespace perdure
