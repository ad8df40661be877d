#include "runtime/wire/noise.h"

#include <sodium.h>

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <utility>

#include "runtime/base/check.h"

namespace perdure {
namespace {

constexpr size_t kBlockBytes = 128;
using HashSecret = Secret<kNoiseHashBytes>;
using Bytes = std::span<const uint8_t>;

void Hash(std::initializer_list<Bytes> parts, uint8_t* result) {
  crypto_generichash_state state;
  crypto_generichash_init(&state, nullptr, 0, kNoiseHashBytes);
  for (const Bytes part : parts) crypto_generichash_update(&state, part.data(), part.size());
  crypto_generichash_final(&state, result, kNoiseHashBytes);
  sodium_memzero(&state, sizeof state);
}

void Hmac(const HashSecret& key, std::initializer_list<Bytes> parts, HashSecret* result) {
  Secret<kBlockBytes> pad;
  std::memcpy(pad.data(), key.data(), kNoiseHashBytes);
  for (size_t i = 0; i < kBlockBytes; ++i) pad.data()[i] ^= 0x36;
  HashSecret inner;
  crypto_generichash_state state;
  crypto_generichash_init(&state, nullptr, 0, kNoiseHashBytes);
  crypto_generichash_update(&state, pad.data(), kBlockBytes);
  for (const Bytes part : parts) crypto_generichash_update(&state, part.data(), part.size());
  crypto_generichash_final(&state, inner.data(), kNoiseHashBytes);
  sodium_memzero(&state, sizeof state);
  for (size_t i = 0; i < kBlockBytes; ++i) pad.data()[i] ^= 0x36 ^ 0x5c;
  Hash({pad.span(), inner.span()}, result->data());
}

template <size_t N>
std::array<HashSecret, N> Hkdf(const HashSecret& chaining_key, Bytes input) {
  HashSecret temporary;
  Hmac(chaining_key, {input}, &temporary);
  std::array<HashSecret, N> outputs;
  for (size_t i = 0; i < N; ++i) {
    const auto number = static_cast<uint8_t>(i + 1);
    const Bytes previous = i == 0 ? Bytes() : Bytes(outputs[i - 1].span());
    Hmac(temporary, {previous, Bytes(&number, 1)}, &outputs[i]);
  }
  return outputs;
}

std::array<uint8_t, crypto_aead_chacha20poly1305_ietf_NPUBBYTES> Nonce(uint64_t counter) {
  std::array<uint8_t, crypto_aead_chacha20poly1305_ietf_NPUBBYTES> nonce{};
  for (size_t i = 0; i < 8; ++i) nonce[4 + i] = static_cast<uint8_t>(counter >> (8 * i));
  return nonce;
}

}  // namespace

void AeadSeal(const SecretKey& key, uint64_t counter, Bytes associated, Bytes plain,
              std::span<uint8_t> sealed) {
  PERDURE_CHECK(sealed.size() == plain.size() + kAeadTagBytes);
  PERDURE_CHECK(crypto_aead_chacha20poly1305_ietf_encrypt(
                    sealed.data(), nullptr, plain.data(), plain.size(), associated.data(),
                    associated.size(), nullptr, Nonce(counter).data(), key.data()) == 0);
}

bool AeadOpen(const SecretKey& key, uint64_t counter, Bytes associated, Bytes sealed,
              std::span<uint8_t> plain) {
  PERDURE_CHECK(sealed.size() == plain.size() + kAeadTagBytes);
  return crypto_aead_chacha20poly1305_ietf_decrypt(
             plain.data(), nullptr, nullptr, sealed.data(), sealed.size(), associated.data(),
             associated.size(), Nonce(counter).data(), key.data()) == 0;
}

PublicKey PublicKeyOf(const SecretKey& secret) {
  PublicKey key{};
  PERDURE_CHECK(crypto_scalarmult_base(key.data(), secret.data()) == 0);
  return key;
}

bool SharedSecret(const SecretKey& ours, const PublicKey& theirs, SecretKey* shared) {
  return crypto_scalarmult(shared->data(), ours.data(), theirs.data()) == 0;
}

NoiseState::NoiseState(std::string_view protocol_name) {
  PERDURE_CHECK(sodium_init() >= 0 && protocol_name.size() <= kNoiseHashBytes);
  std::copy(protocol_name.begin(), protocol_name.end(), hash_.begin());
  chaining_key_.Set(hash_);
}

void NoiseState::MixHash(Bytes bytes) { Hash({Bytes(hash_), bytes}, hash_.data()); }

void NoiseState::SetKey(std::span<const uint8_t, kNoiseHashBytes> output) {
  key_.Set(output.first<32>());
  counter_ = 0;
}

void NoiseState::MixKey(Bytes bytes) {
  std::array<HashSecret, 2> outputs = Hkdf<2>(chaining_key_, bytes);
  chaining_key_ = std::move(outputs[0]);
  SetKey(outputs[1].span());
}

void NoiseState::MixKeyAndHash(Bytes bytes) {
  std::array<HashSecret, 3> outputs = Hkdf<3>(chaining_key_, bytes);
  chaining_key_ = std::move(outputs[0]);
  MixHash(outputs[1].span());
  SetKey(outputs[2].span());
}

void NoiseState::EncryptAndHash(Bytes plain, std::span<uint8_t> sealed) {
  AeadSeal(key_, counter_++, hash_, plain, sealed);
  MixHash(sealed);
}

bool NoiseState::DecryptAndHash(Bytes sealed, std::span<uint8_t> plain) {
  if (!AeadOpen(key_, counter_++, hash_, sealed, plain)) return false;
  MixHash(sealed);
  return true;
}

NoiseState::Keys NoiseState::Split() const {
  const std::array<HashSecret, 2> outputs = Hkdf<2>(chaining_key_, {});
  return {.from_initiator = SecretKey(outputs[0].span().first<32>()),
          .from_responder = SecretKey(outputs[1].span().first<32>())};
}

}  // namespace perdure
