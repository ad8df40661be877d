// The bytes of Megatron's .idx, version 1 (docs/formats.md). All integers little-endian; nothing is
// aligned after byte 34.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace perdure {

static_assert(std::endian::native == std::endian::little, "datasets are read in place");

inline constexpr std::string_view kIndexMagic("MMIDIDX\0\0", 9);
inline constexpr std::string_view kLegacyIndexMagic("TNTIDX\0\0", 8);
inline constexpr uint64_t kIndexVersion = 1;
inline constexpr size_t kIndexHeaderBytes = 34;

enum class IndexDtype : uint8_t { kU8 = 1, kI8, kI16, kI32, kI64, kF64, kF32, kU16 };

// Token width in bytes; 0 for what holds no tokens.
constexpr int TokenBytes(uint8_t dtype) {
  switch (IndexDtype{dtype}) {
    case IndexDtype::kU8:
    case IndexDtype::kI8:
      return 1;
    case IndexDtype::kI16:
    case IndexDtype::kU16:
      return 2;
    case IndexDtype::kI32:
      return 4;
    case IndexDtype::kI64:
      return 8;
    case IndexDtype::kF64:
    case IndexDtype::kF32:
      return 0;
  }
  return 0;
}

template <typename T>
T LoadAt(const char* base, size_t offset) {
  T value;
  std::memcpy(&value, base + offset, sizeof value);
  return value;
}

}  // namespace perdure
