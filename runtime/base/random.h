// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC'11). No state: a number is a
// function of its address.
//
// Nothing random in Perdure is a stream, so nothing has to be saved, and no layout can change what
// was drawn.
#pragma once

#include <array>
#include <cstdint>

namespace perdure {

// What a random number is for. A value is never reused; new purposes are appended.
enum class RandomPurpose : uint32_t {
  kInitialize = 1,
  kShuffle = 2,
  kDropout = 3,
  kTest = 4,
  kDrill = 5
};

// Ten rounds of Philox4x32 on `counter` under `key`.
std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// The 128 random bits at (seed, purpose, stream, element): key = seed folded with purpose, counter
// = (element, stream).
std::array<uint32_t, 4> RandomBits(uint64_t seed, RandomPurpose purpose, uint64_t stream,
                                   uint64_t element);

// Two independent standard normal values (Box-Muller in double) at that address.
std::array<double, 2> RandomNormals(uint64_t seed, RandomPurpose purpose, uint64_t stream,
                                    uint64_t element);

// A pseudo-random permutation of [0, size): where `index` goes. A balanced Feistel network of four
// rounds on the smallest even number of bits that holds `size`, walked until it falls inside (Black
// & Rogaway, "Ciphers with arbitrary finite domains", 2002). REQUIRES: index < size.
uint64_t PermuteIndex(uint64_t index, uint64_t size, uint64_t seed, uint64_t stream);

}  // namespace perdure
