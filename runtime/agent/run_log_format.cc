#include "runtime/agent/run_log_format.h"

#include <sodium.h>

#include <bit>
#include <cstring>

#include "runtime/agent/run_key.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

static_assert(std::endian::native == std::endian::little);  // Numbers are copied as they stand.

constexpr std::string_view kMagic = "PERDUREL";
constexpr uint32_t kVersion = 2;
constexpr size_t kMacBytes = 32;
constexpr size_t kJobAt = 80, kIncarnationAt = 88, kIdAt = 96, kNodeAt = 104, kHolderSizeAt = 108,
                 kBodySizeAt = 112, kReservedAt = 116;

template <typename T>
void Put(std::string& bytes, const T& value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
}

template <typename T>
T Get(std::string_view bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

Digest RunIdBytes(const std::string& run_id) {
  const absl::StatusOr<Digest> bytes = Digest::FromHex(run_id);  // The same 32 hex digits.
  PERDURE_CHECK(bytes.ok());
  return *bytes;
}

std::array<uint8_t, kMacBytes> Mac(std::string_view bytes, const std::string& key) {
  PERDURE_CHECK(key.size() == kRunKeyBytes && sodium_init() >= 0);
  std::array<uint8_t, kMacBytes> mac{};
  PERDURE_CHECK(crypto_generichash(mac.data(), mac.size(),
                                   reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(),
                                   reinterpret_cast<const uint8_t*>(key.data()), key.size()) == 0);
  return mac;
}

// Lengths first, so that nothing below reads past the end.
absl::Status CheckFrame(std::string_view bytes) {
  if (bytes.size() < kRecordHeadBytes + kRecordTailBytes)
    return DataLoss("torn: {} bytes are too few for a record", bytes.size());
  if (bytes.substr(0, kMagic.size()) != kMagic) return DataLoss("not a record: wrong magic");
  if (const uint32_t version = Get<uint32_t>(bytes, 8); version != kVersion)
    return DataLoss("format version {}; this program reads {}", version, kVersion);
  const uint64_t holder = Get<uint32_t>(bytes, kHolderSizeAt);
  const uint64_t body = Get<uint32_t>(bytes, kBodySizeAt);
  if (holder > kHolderBytesMax || body > kBodyBytesMax ||
      kRecordHeadBytes + holder + body + kRecordTailBytes != bytes.size())
    return DataLoss("torn: {} bytes, but its lengths ({} and {}) make {}", bytes.size(), holder,
                    body, kRecordHeadBytes + holder + body + kRecordTailBytes);
  return absl::OkStatus();
}

absl::Status CheckSeals(std::string_view bytes, const RunIdentity& identity) {
  const std::string_view sealed = bytes.substr(0, bytes.size() - kRecordTailBytes);
  if (DigestOf(sealed).bytes != Get<std::array<uint8_t, 16>>(bytes, sealed.size()))
    return DataLoss("torn or altered: its XXH3-128 does not match");
  const std::string_view signed_bytes = bytes.substr(0, bytes.size() - kMacBytes);
  const std::array<uint8_t, kMacBytes> mac = Mac(signed_bytes, identity.key);
  if (sodium_memcmp(mac.data(), bytes.data() + signed_bytes.size(), kMacBytes) != 0)
    return DataLoss("forged, or control/run.key is not the key of this run: BLAKE2b differs");
  if (const Digest run = Get<Digest>(bytes, 32); run.Hex() != identity.run_id)
    return DataLoss("of another run: {} instead of {}", run.Hex(), identity.run_id);
  return absl::OkStatus();
}

}  // namespace

std::string EncodeRecord(const Record& record, const RunIdentity& identity,
                         const std::array<uint8_t, 16>& nonce) {
  PERDURE_CHECK(record.holder.size() <= kHolderBytesMax && record.body.size() <= kBodyBytesMax);
  std::string bytes(kMagic);
  Put(bytes, kVersion);
  Put(bytes, static_cast<uint32_t>(record.type));
  Put(bytes, record.slot);
  Put(bytes, record.generation);
  Put(bytes, RunIdBytes(identity.run_id).bytes);
  Put(bytes, record.previous.bytes);
  Put(bytes, nonce);
  Put(bytes, record.author.at.job);
  Put(bytes, record.author.incarnation);
  Put(bytes, record.id);
  Put(bytes, record.author.at.node);
  Put(bytes, static_cast<uint32_t>(record.holder.size()));
  Put(bytes, static_cast<uint32_t>(record.body.size()));
  Put(bytes, uint32_t{0});
  PERDURE_CHECK(bytes.size() == kRecordHeadBytes);
  bytes += record.holder;
  bytes += record.body;
  Put(bytes, DigestOf(bytes).bytes);
  Put(bytes, Mac(bytes, identity.key));
  return bytes;
}

absl::StatusOr<Record> DecodeRecord(std::string_view bytes, const RunIdentity& identity) {
  RETURN_IF_ERROR(CheckFrame(bytes));
  RETURN_IF_ERROR(CheckSeals(bytes, identity));
  const uint32_t type = Get<uint32_t>(bytes, 12);
  if (type < static_cast<uint32_t>(RecordType::kStart) ||
      type > static_cast<uint32_t>(RecordType::kLead))
    return DataLoss("type {} is unknown: written by a newer version?", type);
  if (const uint32_t reserved = Get<uint32_t>(bytes, kReservedAt); reserved != 0)
    return DataLoss("its reserved bytes are {}: written by a newer version?", reserved);
  const size_t holder = Get<uint32_t>(bytes, kHolderSizeAt);
  const size_t body = Get<uint32_t>(bytes, kBodySizeAt);
  Record record;
  record.type = static_cast<RecordType>(type);
  record.slot = Get<uint64_t>(bytes, 16);
  record.generation = Get<uint64_t>(bytes, 24);
  record.previous = Get<Digest>(bytes, 48);
  record.author = {.at = {.job = Get<uint64_t>(bytes, kJobAt), .node = Get<NodeId>(bytes, kNodeAt)},
                   .incarnation = Get<uint64_t>(bytes, kIncarnationAt)};
  record.id = Get<uint64_t>(bytes, kIdAt);
  record.holder = bytes.substr(kRecordHeadBytes, holder);
  record.body = bytes.substr(kRecordHeadBytes + holder, body);
  record.digest = DigestOf(bytes);
  return record;
}

std::string_view RecordTypeName(RecordType type) {
  switch (type) {
    case RecordType::kLead:
      return "LEAD";
    case RecordType::kStart:
      return "START";
    case RecordType::kCommit:
      return "COMMIT";
    case RecordType::kAttempt:
      return "ATTEMPT";
    case RecordType::kVerified:
      return "VERIFIED";
    case RecordType::kRetire:
      return "RETIRE";
    case RecordType::kEnd:
      return "END";
  }
  return "UNKNOWN";
}

}  // namespace perdure
