// WordSum against its formula, and Ops::WordSums against WordSum on every backend.
#include "kernels/word_sum.h"

#include <cstring>
#include <vector>

#include "tests/kernels/kernel_test_util.h"
#include "tests/prng.h"

namespace perdure {
namespace {

// As the header says it, word by word; `volatile` keeps it from being made into anything else.
uint64_t Plain(const std::vector<uint8_t>& bytes, int64_t first = 0) {
  volatile uint64_t sum = 0;
  for (size_t i = 0; i < bytes.size(); ++i) {
    const uint64_t weight = 2 * (static_cast<uint64_t>(first) + i / 4) + 1;
    sum = sum + (uint64_t{bytes[i]} << (8 * (i % 4))) * weight;
  }
  return sum;
}

std::vector<uint8_t> Random(size_t bytes, uint64_t seed) {
  Prng prng(seed);
  std::vector<uint8_t> random(bytes);
  for (uint8_t& byte : random) byte = static_cast<uint8_t>(prng.Below(256));
  return random;
}

uint64_t SumOf(const std::vector<uint8_t>& bytes, int64_t first = 0) {
  return WordSum(bytes.data(), bytes.size(), first);
}

TEST(WordSum, IsItsFormulaAtEveryLengthAndAddress) {
  for (size_t bytes = 0; bytes < 200; ++bytes) {
    const std::vector<uint8_t> x = Random(bytes, bytes);
    EXPECT_EQ(SumOf(x), Plain(x)) << bytes;
    EXPECT_EQ(SumOf(x, 12345), Plain(x, 12345)) << bytes;
    for (size_t shift = 1; shift < 9; ++shift) {
      std::vector<uint8_t> moved(bytes + shift);
      std::copy(x.begin(), x.end(), moved.begin() + static_cast<int64_t>(shift));
      EXPECT_EQ(WordSum(moved.data() + shift, bytes), Plain(x)) << bytes << " at " << shift;
    }
  }
  // Where nothing cancels: the largest words, and more of them than 32 bits of a sum hold.
  const std::vector<uint8_t> ones(size_t{1} << 20, 0xff);
  EXPECT_EQ(SumOf(ones), Plain(ones));
  const std::vector<uint8_t> x = Random((size_t{1} << 20) + 6, 7);
  EXPECT_EQ(SumOf(x), Plain(x));
}

TEST(WordSum, PiecesAddUp) {
  const std::vector<uint8_t> x = Random(4 * 1001, 3);
  for (const size_t words : {1, 7, 8, 500, 1000}) {
    const uint64_t left = WordSum(x.data(), 4 * words);
    const uint64_t right =
        WordSum(x.data() + 4 * words, x.size() - 4 * words, static_cast<int64_t>(words));
    EXPECT_EQ(left + right, SumOf(x));
  }
}

TEST(WordSum, EveryBitAndEveryTwoBitsShow) {
  std::vector<uint8_t> x = Random(96, 5);
  const uint64_t before = SumOf(x);
  const auto flip = [&](size_t bit) { x[bit / 8] ^= static_cast<uint8_t>(1U << (bit % 8)); };
  for (size_t one = 0; one < 8 * x.size(); ++one) {
    flip(one);
    ASSERT_NE(SumOf(x), before) << one;
    for (size_t other = one + 1; other < 8 * x.size(); ++other) {
      flip(other);
      ASSERT_NE(SumOf(x), before) << one << ", " << other;
      flip(other);
    }
    flip(one);
  }
  ASSERT_EQ(SumOf(x), before);
}

TEST(WordSum, ExchangedWordsShow) {
  std::vector<uint8_t> x = Random(4 * 64, 6);
  // The sign alone, where a weaker sum would not see it.
  std::memcpy(&x[4 * 33], &x[4 * 1], 4);
  x[4 * 33 + 3] ^= 0x80;
  const uint64_t before = SumOf(x);
  const auto exchange = [&](size_t i, size_t j) {
    std::swap_ranges(x.begin() + static_cast<int64_t>(4 * i),
                     x.begin() + static_cast<int64_t>(4 * i + 4),
                     x.begin() + static_cast<int64_t>(4 * j));
  };
  for (size_t i = 0; i < 64; ++i)
    for (size_t j = i + 1; j < 64; ++j) {
      exchange(i, j);
      ASSERT_NE(SumOf(x), before) << i << ", " << j;
      exchange(i, j);
    }
}

class WordSumsTest : public OpsTest {};
INSTANTIATE_TEST_SUITE_P(Ops, WordSumsTest, EveryBackend(), BackendName);

TEST_P(WordSumsTest, AddTheSumsOfRuns) {
  constexpr int64_t kElements = 300001;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const auto width = static_cast<int64_t>(SizeOf(dtype));
    Tensor x(dtype, 1, kElements);
    x.Randomize(1);
    const auto bits = x.Bits();
    // Odd places and lengths, none, one that many blocks share, two of one sum.
    const std::vector<WordRun> runs = {
        {.begin = 0, .bytes = kElements * width, .first = 0, .sum = 0},
        {.begin = 3 * width, .bytes = 5 * width, .first = 0, .sum = 1},
        {.begin = 7 * width, .bytes = 0, .first = 0, .sum = 1},
        {.begin = 101 * width, .bytes = 77777 * width, .first = 9, .sum = 2},
        {.begin = 4 * width, .bytes = width, .first = 1, .sum = 3},
        {.begin = 0, .bytes = 1000 * width, .first = 0, .sum = 4},
        {.begin = 1000 * width,
         .bytes = (kElements - 1000) * width,
         .first = 1000 * width / 4,
         .sum = 4}};
    // As doubles, which are as wide.
    Tensor sums(DType::kF32, 1, 10);
    ops_->Zero(sums);
    ops_->WordSums(x.view().data, runs, static_cast<uint64_t*>(sums.view().data));
    ASSERT_TRUE(ops_->Sync().ok());
    const auto got_bits = sums.Bits();
    std::vector<uint64_t> got(5), want(5);
    ASSERT_EQ(got_bits.size(), sizeof(uint64_t) * got.size());
    std::memcpy(got.data(), got_bits.data(), got_bits.size());
    for (const WordRun& run : runs)
      want[static_cast<size_t>(run.sum)] +=
          WordSum(bits.data() + run.begin, static_cast<size_t>(run.bytes), run.first);
    EXPECT_EQ(got, want);
    EXPECT_EQ(got[4], got[0]);
  }
}

}  // namespace
}  // namespace perdure
