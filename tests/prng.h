// Random numbers of tests: SplitMix64 (Steele, Lea, Flood, OOPSLA'14), whole numbers only, the same
// on every compiler. One stream per concern, split from the seed, so that a new fault of the
// simulator does not shift what the others draw.
#pragma once

#include <concepts>
#include <cstdint>
#include <utility>
#include <vector>

namespace perdure {

class Prng {
 public:
  explicit Prng(uint64_t seed, uint64_t stream = 0)
      : state_(seed * 0x9E3779B97F4A7C15u + stream * 0xD1342543DE82EF95u) {
    Next();
    state_ ^= Next();
  }
  uint64_t Next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  // Below `bound`, which is positive.
  template <std::integral T>
  T Below(T bound) {
    return static_cast<T>((static_cast<unsigned __int128>(Next()) * static_cast<uint64_t>(bound)) >>
                          64);
  }
  int64_t Between(int64_t low, int64_t high) {  // Both included.
    return low + static_cast<int64_t>(Below(static_cast<uint64_t>(high - low + 1)));
  }
  bool PerMille(int64_t chance) { return static_cast<int64_t>(Below(1000)) < chance; }
  bool OneIn(int64_t n) { return Below(n) == 0; }
  template <typename T>
  void Shuffle(std::vector<T>& things) {
    for (size_t i = things.size(); i > 1; --i) std::swap(things[i - 1], things[Below(i)]);
  }

 private:
  uint64_t state_;
};

inline uint64_t Mix(uint64_t a, uint64_t b) {
  uint64_t z = a ^ (b + 0x9E3779B97F4A7C15u + (a << 6) + (a >> 2));
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

}  // namespace perdure
