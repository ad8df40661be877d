// XXH3-128 digests: of blocks, atoms, tensors, checkpoints, samples. Against corruption, not
// against a forger.
//
// A digest is written as 32 hex digits, most significant first (XXH128_canonical), everywhere:
// files, JSON, reports.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace perdure {

struct Digest {
  std::array<uint8_t, 16> bytes{};  // Canonical (big-endian) XXH3-128.

  std::string Hex() const;  // 32 lower-case hex digits.
  static absl::StatusOr<Digest> FromHex(std::string_view hex);
  friend auto operator<=>(const Digest&, const Digest&) = default;
};

Digest DigestOf(const void* data, size_t bytes);
inline Digest DigestOf(std::string_view text) { return DigestOf(text.data(), text.size()); }

// A digest over several pieces, equal to the digest of their concatenation.
class DigestStream {
 public:
  DigestStream();
  ~DigestStream();
  DigestStream(const DigestStream&) = delete;
  DigestStream& operator=(const DigestStream&) = delete;

  void Update(const void* data, size_t bytes);
  void Update(std::string_view text) { Update(text.data(), text.size()); }
  void Update(const Digest& digest) { Update(digest.bytes.data(), digest.bytes.size()); }
  void UpdateU64(uint64_t value);  // Little-endian.
  Digest Finish() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace perdure
