// CRC-32 of zip files (polynomial 0xEDB88320), eight bytes at a time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace perdure {

// The CRC of what `crc` covers followed by these bytes; start with 0.
uint32_t UpdateCrc32(uint32_t crc, const void* data, size_t bytes);

}  // namespace perdure
