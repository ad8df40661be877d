#include "runtime/wire/secret.h"

#include <sodium.h>

#include "runtime/base/check.h"

namespace perdure {

void Wipe(void* bytes, size_t count) { sodium_memzero(bytes, count); }

void FillRandom(std::span<uint8_t> bytes) {
  PERDURE_CHECK(sodium_init() >= 0);
  randombytes_buf(bytes.data(), bytes.size());
}

}  // namespace perdure
