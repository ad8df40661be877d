#include "runtime/wire/job_key.h"

#include <sodium.h>

#include <array>
#include <string_view>

#include "runtime/base/check.h"

namespace perdure {
namespace {

constexpr std::string_view kContext = "perdure job key 1";

class Hasher {
 public:
  explicit Hasher(std::span<const uint8_t> key) {
    PERDURE_CHECK(crypto_generichash_init(&state_, key.data(), key.size(), kSecretBytes) == 0);
  }
  ~Hasher() { sodium_memzero(&state_, sizeof state_); }
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;

  void AddBytes(std::span<const uint8_t> bytes) {
    PERDURE_CHECK(bytes.size() <= 255);
    const auto length = static_cast<uint8_t>(bytes.size());
    crypto_generichash_update(&state_, &length, 1);
    crypto_generichash_update(&state_, bytes.data(), bytes.size());
  }
  void AddText(std::string_view text) {
    AddBytes(std::span(reinterpret_cast<const uint8_t*>(text.data()), text.size()));
  }
  void AddNumber(uint64_t number) {
    std::array<uint8_t, 8> bytes{};
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(number >> (8 * i));
    crypto_generichash_update(&state_, bytes.data(), bytes.size());
  }
  void Finish(uint8_t* result) { crypto_generichash_final(&state_, result, kSecretBytes); }

 private:
  crypto_generichash_state state_;
};

}  // namespace

JobKey JobKey::Derive(const JobKeyInput& input) {
  PERDURE_CHECK(sodium_init() >= 0);
  PERDURE_CHECK(input.file_key.size() == kSecretBytes);
  PERDURE_CHECK(input.second_leg.empty() || input.second_leg.size() == kSecretBytes);
  auto* bytes = static_cast<uint8_t*>(sodium_malloc(kSecretBytes));
  PERDURE_CHECK(bytes != nullptr);
  Hasher hasher(input.file_key);
  hasher.AddText(kContext);
  hasher.AddBytes(input.second_leg);
  hasher.AddText(input.run_id);
  hasher.AddNumber(input.job);
  hasher.AddNumber(input.restart);
  hasher.Finish(bytes);
  (void)sodium_mprotect_readonly(bytes);  // A guard against ourselves; absent on some systems.
  return JobKey(std::shared_ptr<const uint8_t[]>(
      bytes, [](const uint8_t* wiped) { sodium_free(const_cast<uint8_t*>(wiped)); }));
}

}  // namespace perdure
