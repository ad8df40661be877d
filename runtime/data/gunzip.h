// gzip (RFC 1952) in memory, several members one after another included.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace perdure {

bool IsGzip(std::string_view bytes);

// DataLoss when damaged or cut off; ResourceExhausted when more than `bytes_max` would come out.
absl::StatusOr<std::string> Gunzip(std::string_view bytes, size_t bytes_max);

}  // namespace perdure
