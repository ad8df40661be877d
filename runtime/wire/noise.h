// The symmetric half of the Noise protocol framework (revision 34, section 5.2), with the
// primitives of `25519_ChaChaPoly_BLAKE2b`:
//
//   HASH(x)           BLAKE2b-512 of x, without key
//   HMAC(k, x)        RFC 2104 over HASH, blocks of 128 bytes
//   HKDF(ck, x)[1..n] t = HMAC(ck, x); o1 = HMAC(t, 0x01); oi = HMAC(t, o(i-1) | i)
//   AEAD(k, n, ad)    ChaCha20-Poly1305 of RFC 8439, nonce = 4 zero bytes | n, 64 bits,
//                     little-endian
//
// Each value that a party puts in changes the chaining key (secrets, so that later keys depend on
// all of them) or the hash (what was said, so that two parties who disagree about a single bit
// cannot open each other's messages). Pure. One handshake owns it.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "runtime/wire/secret.h"

namespace perdure {

inline constexpr size_t kAeadTagBytes = 16;
inline constexpr size_t kNoiseHashBytes = 64;

using SecretKey = Secret<32>;
using PublicKey = std::array<uint8_t, 32>;

// `sealed` is as long as `plain` and the tag; they may begin at the same byte.
void AeadSeal(const SecretKey& key, uint64_t counter, std::span<const uint8_t> associated,
              std::span<const uint8_t> plain, std::span<uint8_t> sealed);
// False: not what was sealed under this key, counter and associated bytes; `plain` is worthless.
[[nodiscard]] bool AeadOpen(const SecretKey& key, uint64_t counter,
                            std::span<const uint8_t> associated, std::span<const uint8_t> sealed,
                            std::span<uint8_t> plain);

PublicKey PublicKeyOf(const SecretKey& secret);
// X25519. False: `theirs` is of low order, the shared secret would be zero.
[[nodiscard]] bool SharedSecret(const SecretKey& ours, const PublicKey& theirs, SecretKey* shared);

class NoiseState {
 public:
  explicit NoiseState(std::string_view protocol_name);
  NoiseState(NoiseState&&) noexcept = default;

  void MixHash(std::span<const uint8_t> bytes);
  void MixKey(std::span<const uint8_t> bytes);
  void MixKeyAndHash(std::span<const uint8_t> bytes);
  // `sealed` is as long as `plain` and the tag.
  void EncryptAndHash(std::span<const uint8_t> plain, std::span<uint8_t> sealed);
  [[nodiscard]] bool DecryptAndHash(std::span<const uint8_t> sealed, std::span<uint8_t> plain);

  struct Keys {
    SecretKey from_initiator, from_responder;
  };
  Keys Split() const;

 private:
  void SetKey(std::span<const uint8_t, kNoiseHashBytes> output);

  Secret<kNoiseHashBytes> chaining_key_;
  std::array<uint8_t, kNoiseHashBytes> hash_{};
  SecretKey key_;
  uint64_t counter_ = 0;
};

}  // namespace perdure
