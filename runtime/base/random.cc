#include "runtime/base/random.h"

#include <bit>
#include <cmath>
#include <numbers>

#include "runtime/base/check.h"

namespace perdure {

std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<uint32_t>(product0)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

std::array<uint32_t, 4> RandomBits(uint64_t seed, RandomPurpose purpose, uint64_t stream,
                                   uint64_t element) {
  const uint32_t fold = static_cast<uint32_t>(purpose) * 0x9E3779B9U;
  return Philox({static_cast<uint32_t>(element), static_cast<uint32_t>(element >> 32),
                 static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)},
                {static_cast<uint32_t>(seed) ^ fold, static_cast<uint32_t>(seed >> 32)});
}

std::array<double, 2> RandomNormals(uint64_t seed, RandomPurpose purpose, uint64_t stream,
                                    uint64_t element) {
  const auto bits = RandomBits(seed, purpose, stream, element);
  // 53 bits each; u1 lies in (0, 1] so that its logarithm is finite.
  const auto unit = [](uint32_t high, uint32_t low) {
    return static_cast<double>((uint64_t{high} << 21) ^ (low >> 11)) * 0x1p-53;
  };
  const double u1 = 1.0 - unit(bits[0], bits[1]);
  const double u2 = unit(bits[2], bits[3]);
  const double radius = std::sqrt(-2.0 * std::log(u1));
  const double angle = 2.0 * std::numbers::pi * u2;
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

uint64_t PermuteIndex(uint64_t index, uint64_t size, uint64_t seed, uint64_t stream) {
  PERDURE_CHECK(index < size);
  if (size == 1) return 0;
  const int bits = (static_cast<int>(std::bit_width(size - 1)) + 1) / 2 * 2;
  const int half = bits / 2;
  const uint64_t mask = (uint64_t{1} << half) - 1;
  uint64_t value = index;
  do {
    uint64_t left = value >> half, right = value & mask;
    for (uint64_t round = 0; round < 4; ++round) {
      const auto random = RandomBits(seed, RandomPurpose::kShuffle, stream, (right << 2) | round);
      const uint64_t mixed = left ^ (((uint64_t{random[0]} << 32) | random[1]) & mask);
      left = right;
      right = mixed;
    }
    value = (left << half) | right;
  } while (value >= size);
  return value;
}

}  // namespace perdure
