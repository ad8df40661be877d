#include "runtime/base/random.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace perdure {
namespace {

TEST(PhiloxTest, KnownAnswers) {
  // Random123's kat_vectors for philox4x32-10.
  EXPECT_EQ(Philox({0, 0, 0, 0}, {0, 0}),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(RandomTest, NormalsHaveTheirMoments) {
  double sum = 0, squares = 0, fourth = 0;
  const int64_t pairs = 50000;
  for (int64_t i = 0; i < pairs; ++i)
    for (double x : RandomNormals(7, RandomPurpose::kTest, 3, static_cast<uint64_t>(i))) {
      sum += x;
      squares += x * x;
      fourth += x * x * x * x;
    }
  const double n = 2.0 * pairs;
  EXPECT_NEAR(sum / n, 0, 0.02);
  EXPECT_NEAR(squares / n, 1, 0.02);
  EXPECT_NEAR(fourth / n, 3, 0.15);
}

TEST(RandomTest, AddressesAreIndependent) {
  const auto base = RandomBits(1, RandomPurpose::kTest, 2, 3);
  EXPECT_EQ(base, RandomBits(1, RandomPurpose::kTest, 2, 3));
  EXPECT_NE(base, RandomBits(2, RandomPurpose::kTest, 2, 3));
  EXPECT_NE(base, RandomBits(1, RandomPurpose::kShuffle, 2, 3));
  EXPECT_NE(base, RandomBits(1, RandomPurpose::kTest, 3, 3));
  EXPECT_NE(base, RandomBits(1, RandomPurpose::kTest, 2, 4));
}

TEST(PermuteIndexTest, IsABijectionForEverySize) {
  for (uint64_t size : {1ULL, 2ULL, 3ULL, 5ULL, 16ULL, 17ULL, 100ULL, 1000ULL, 4097ULL}) {
    std::vector<bool> hit(size, false);
    for (uint64_t i = 0; i < size; ++i) {
      const uint64_t to = PermuteIndex(i, size, 11, 5);
      ASSERT_LT(to, size);
      EXPECT_FALSE(hit[to]);
      hit[to] = true;
    }
  }
}

TEST(PermuteIndexTest, SeedsAndStreamsDiffer) {
  int same_seed = 0, same_stream = 0;
  for (uint64_t i = 0; i < 1000; ++i) {
    same_seed += PermuteIndex(i, 1000, 1, 0) == PermuteIndex(i, 1000, 2, 0);
    same_stream += PermuteIndex(i, 1000, 1, 0) == PermuteIndex(i, 1000, 1, 1);
  }
  EXPECT_LT(same_seed, 20);
  EXPECT_LT(same_stream, 20);
}

}  // namespace
}  // namespace perdure
