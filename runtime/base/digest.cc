#include "runtime/base/digest.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstring>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

Digest FromHash(XXH128_hash_t hash) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  Digest digest;
  std::memcpy(digest.bytes.data(), canonical.digest, digest.bytes.size());
  return digest;
}

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

}  // namespace

std::string Digest::Hex() const {
  std::string hex;
  for (uint8_t byte : bytes) hex += fmt::format("{:02x}", byte);
  return hex;
}

absl::StatusOr<Digest> Digest::FromHex(std::string_view hex) {
  Digest digest;
  if (hex.size() != 2 * digest.bytes.size())
    return InvalidArgument("digest '{}' has {} characters; 32 hex digits expected", hex,
                           hex.size());
  for (size_t i = 0; i < digest.bytes.size(); ++i) {
    const int high = HexValue(hex[2 * i]), low = HexValue(hex[2 * i + 1]);
    if (high < 0 || low < 0) return InvalidArgument("digest '{}' is not lower-case hex", hex);
    digest.bytes[i] = static_cast<uint8_t>(high * 16 + low);
  }
  return digest;
}

Digest DigestOf(const void* data, size_t bytes) { return FromHash(XXH3_128bits(data, bytes)); }

struct DigestStream::State {
  XXH3_state_t* xxh = XXH3_createState();
  State() {
    PERDURE_CHECK(xxh != nullptr);
    XXH3_128bits_reset(xxh);
  }
  ~State() { XXH3_freeState(xxh); }
};

DigestStream::DigestStream() : state_(std::make_unique<State>()) {}
DigestStream::~DigestStream() = default;

void DigestStream::Update(const void* data, size_t bytes) {
  XXH3_128bits_update(state_->xxh, data, bytes);
}

void DigestStream::UpdateU64(uint64_t value) {
  uint8_t little[8];
  for (int i = 0; i < 8; ++i) little[i] = static_cast<uint8_t>(value >> (8 * i));
  Update(little, sizeof little);
}

Digest DigestStream::Finish() const { return FromHash(XXH3_128bits_digest(state_->xxh)); }

}  // namespace perdure
