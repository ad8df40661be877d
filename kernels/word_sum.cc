#include "kernels/word_sum.h"

#include <cstring>

namespace perdure {
namespace {

// A vector holds kWords words. Even and odd ones are summed apart, each in 64 bits: `sum` of the
// words of one place in all vectors, `prefixes` the sum of `sum` behind each vector. From these two
// follow the weighted sums, with additions alone in the loop.
constexpr size_t kPlaces = 4;
constexpr size_t kVectorBytes = kPlaces * sizeof(uint64_t);
constexpr uint64_t kWords = 2 * kPlaces;
using Vector = uint64_t __attribute__((vector_size(kVectorBytes)));

struct Place {
  Vector sum = {}, prefixes = {};
  void Add(Vector words) {
    sum += words;
    prefixes += sum;
  }
};

// Of the words of one parity in `vectors` vectors, which begin with word `first`: word p of vector
// v has the weight 2 (first + kWords v + p) + 1, and the prefixes count vector v (vectors - v)
// times.
uint64_t Weighted(const Place& place, uint64_t vectors, uint64_t first, uint64_t parity) {
  uint64_t total = 0;
  for (size_t l = 0; l < kPlaces; ++l) {
    const uint64_t by_vector = vectors * place.sum[l] - place.prefixes[l];
    total += (2 * (first + 2 * l + parity) + 1) * place.sum[l] + 2 * kWords * by_vector;
  }
  return total;
}

}  // namespace

uint64_t WordSum(const void* data, size_t bytes, int64_t first) {
  const auto* at = static_cast<const char*>(data);
  auto word = static_cast<uint64_t>(first);
  const uint64_t vectors = bytes / kVectorBytes;
  uint64_t total = 0;
  if (vectors > 0) {
    Place even, odd;
    for (uint64_t v = 0; v < vectors; ++v) {
      Vector words;
      std::memcpy(&words, at + v * kVectorBytes, sizeof words);
      even.Add(words & 0xffffffff);
      odd.Add(words >> 32);
    }
    total = Weighted(even, vectors, word, 0) + Weighted(odd, vectors, word, 1);
    at += vectors * kVectorBytes;
    word += vectors * kWords;
  }
  for (size_t left = bytes % kVectorBytes; left > 0; ++word) {
    uint32_t x = 0;
    const size_t taken = left < sizeof x ? left : sizeof x;
    std::memcpy(&x, at, taken);
    total += x * (2 * word + 1);
    at += taken;
    left -= taken;
  }
  return total;
}

}  // namespace perdure
