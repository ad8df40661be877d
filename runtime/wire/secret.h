// Bytes that nobody else may learn: wiped when they are no longer needed, never copied by accident,
// never printed (there is no operator<<, no formatter and no implicit conversion).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace perdure {

// Overwrites; the compiler may not leave it out.
void Wipe(void* bytes, size_t count);
// Cryptographically random.
void FillRandom(std::span<uint8_t> bytes);

template <size_t N>
class Secret {
 public:
  Secret() = default;
  explicit Secret(std::span<const uint8_t, N> bytes) { Set(bytes); }
  Secret(Secret&& other) noexcept : bytes_(other.bytes_) { other.Clear(); }
  Secret& operator=(Secret&& other) noexcept {
    if (this == &other) return *this;
    bytes_ = other.bytes_;
    other.Clear();
    return *this;
  }
  ~Secret() { Clear(); }

  static Secret Random() {
    Secret secret;
    FillRandom(secret.bytes_);
    return secret;
  }

  void Set(std::span<const uint8_t, N> bytes) {
    for (size_t i = 0; i < N; ++i) bytes_[i] = bytes[i];
  }
  void Clear() { Wipe(bytes_.data(), N); }
  // For primitives; whoever copies from here has to wipe.
  const uint8_t* data() const { return bytes_.data(); }
  uint8_t* data() { return bytes_.data(); }
  std::span<const uint8_t, N> span() const { return bytes_; }

 private:
  std::array<uint8_t, N> bytes_{};
};

}  // namespace perdure
