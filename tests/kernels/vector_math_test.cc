#include "kernels/cpu/vector_math.h"

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "tests/kernels/kernel_test_util.h"

namespace perdure::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

float ExpOf(float x) {
  float lanes[kLanes];
  Store(lanes, Exp(F16::Broadcast(x)));
  for (float lane : lanes) {
    EXPECT_EQ(std::bit_cast<uint32_t>(lane), std::bit_cast<uint32_t>(lanes[0]));
  }
  return lanes[0];
}

double UlpsOff(float got, double want) {
  int exponent;
  std::frexp(want, &exponent);
  return std::abs(got - want) / std::ldexp(1.0, exponent - 24);
}

TEST(VectorMathTest, ExpIsWithinOneAndAHalfUlp) {
  for (double x = -87.2; x < 88.2; x += 0.00173) {
    const auto rounded = static_cast<float>(x);
    ASSERT_LE(UlpsOff(ExpOf(rounded), std::exp(double{rounded})), 1.5) << x;
  }
}

TEST(VectorMathTest, ExpAtTheEdges) {
  EXPECT_EQ(ExpOf(0.0f), 1.0f);
  EXPECT_EQ(ExpOf(-0.0f), 1.0f);
  for (float x : {-kInfinity, -1e38f, -1000.0f, -88.0f, -87.31f}) EXPECT_EQ(ExpOf(x), 0.0f) << x;
  for (float x : {kInfinity, 1e38f, 1000.0f, 88.31f}) EXPECT_EQ(ExpOf(x), kInfinity) << x;
  EXPECT_TRUE(std::isnan(ExpOf(kNaN)));
  EXPECT_TRUE(std::isnan(ExpOf(std::bit_cast<float>(0xffc001ffu)))) << "NaN with a payload";
}

TEST(VectorMathTest, LogIsWithinTwoUlp) {
  for (float x = 1.2e-38f; x < 1e38f; x *= 1.00137f) {
    ASSERT_LE(UlpsOff(Log(x), std::log(double{x})), 2) << x;
  }
  EXPECT_EQ(Log(1.0f), 0.0f);
  EXPECT_EQ(Log(kInfinity), kInfinity);
  EXPECT_TRUE(std::isnan(Log(kNaN)));
}

// The conversion as IEEE 754 words it: the nearer neighbour, the even one of two as near.
float NearestBFloat16(float x) {
  const uint32_t below = std::bit_cast<uint32_t>(x) & 0xffff0000u;
  const auto low = std::bit_cast<uint32_t>(x) & 0xffffu;
  const bool up = low > 0x8000u || (low == 0x8000u && (below & 0x10000u) != 0);
  return std::bit_cast<float>(up ? below + 0x10000u : below);
}

TEST(VectorMathTest, BFloat16RoundsToNearestEvenAndKeepsNaN) {
  std::vector<float> values = {0.0f,
                               -0.0f,
                               1.0f,
                               kInfinity,
                               -kInfinity,
                               3.4e38f,
                               -3.4e38f,
                               1e-45f,
                               kNaN,
                               std::bit_cast<float>(0x7f800001u),
                               std::bit_cast<float>(0xffffffffu)};
  for (uint32_t high : {0x3f80u, 0x3f81u, 0x0001u, 0x7f7fu, 0xbf80u, 0xc0ffu}) {
    for (uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      values.push_back(std::bit_cast<float>(high << 16 | low));
    }
  }
  while (values.size() % kLanes != 0) values.push_back(1.5f);
  for (size_t i = 0; i < values.size(); i += kLanes) {
    BFloat16 vector[kLanes];
    Store(vector, Load(&values[i]));
    float back[kLanes];
    Store(back, Load(vector));
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const float value = values[i + lane];
      EXPECT_EQ(vector[lane].bits, ToBFloat16(value).bits) << value;
      if (std::isnan(value)) {
        EXPECT_TRUE(std::isnan(back[lane]));
        EXPECT_EQ(std::signbit(back[lane]), std::signbit(value));
      } else {
        EXPECT_EQ(std::bit_cast<uint32_t>(back[lane]),
                  std::bit_cast<uint32_t>(NearestBFloat16(value)))
            << value;
      }
    }
  }
}

TEST(VectorMathTest, FoldsGoByHalves) {
  float lanes[kLanes], copy[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) {
    copy[i] = lanes[i] = static_cast<float>(
        std::ldexp(1.0 + 0.01 * static_cast<double>(i), static_cast<int>(3 * i % 23)));
  }
  for (int half : {8, 4, 2, 1}) {
    for (int i = 0; i < half; ++i) copy[i] += copy[i + half];
  }
  EXPECT_EQ(SumHalves(Load(lanes)), copy[0]);
  for (int64_t i = 0; i < kLanes; ++i) {
    float peak[kLanes] = {};
    peak[i] = 7;
    EXPECT_EQ(MaxHalves(Load(peak)), 7) << i;
    EXPECT_EQ(SumHalves(Load(peak)), 7) << i;
  }
}

TEST(VectorMathTest, MulAddRoundsOnce) {
  const float a = 1.0f + 0x1p-12f;
  float lanes[kLanes];
  Store(lanes, MulAdd(F16::Broadcast(a), F16::Broadcast(a), F16::Broadcast(-1.0f - 0x1p-11f)));
  EXPECT_EQ(lanes[5], 0x1p-24f);  // Two roundings would leave 0.
}

TEST(VectorMathTest, PartsOfLanes) {
  for (int64_t count = 0; count <= kLanes; ++count) {
    float source[kLanes], full[kLanes], target[kLanes + 1];
    for (int64_t i = 0; i < kLanes; ++i) source[i] = static_cast<float>(i + 1);
    for (float& x : target) x = -1;
    Store(full, Load(source, count, 9.0f));
    Store(target, Load(source), count);
    float first[kLanes];
    Store(first, FirstLanes(Load(source), count, 9.0f));
    for (int64_t i = 0; i < kLanes; ++i) {
      EXPECT_EQ(full[i], i < count ? source[i] : 9.0f);
      EXPECT_EQ(first[i], full[i]);
      EXPECT_EQ(target[i], i < count ? source[i] : -1.0f);
    }
    EXPECT_EQ(target[kLanes], -1);
  }
}

}  // namespace
}  // namespace perdure::cpu
