// The bytes of one record of the run log (docs/formats.md, "Run log"). Private to runtime/agent and
// its tests.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "runtime/agent/run_log.h"

namespace perdure {

inline constexpr size_t kHolderBytesMax = 4096;
inline constexpr size_t kBodyBytesMax = 16 << 20;
inline constexpr size_t kRecordHeadBytes = 120;
inline constexpr size_t kRecordTailBytes = 16 + 32;
inline constexpr size_t kRecordBytesMax =
    kRecordHeadBytes + kHolderBytesMax + kBodyBytesMax + kRecordTailBytes;

// Whose record it is, and what proves it.
struct RunIdentity {
  std::string run_id;  // 32 hex digits.
  std::string key;     // 32 bytes.
};

// `nonce` makes two records of equal content two records. `record.digest` is not looked at.
std::string EncodeRecord(const Record& record, const RunIdentity& identity,
                         const std::array<uint8_t, 16>& nonce);

// DataLoss says what is wrong: length, digest, signature, run. Slot and chain are the reader's to
// compare. Safe on hostile bytes.
absl::StatusOr<Record> DecodeRecord(std::string_view bytes, const RunIdentity& identity);

std::string_view RecordTypeName(RecordType type);

}  // namespace perdure
