#include "runtime/base/digest.h"

#include <gtest/gtest.h>

namespace perdure {
namespace {

TEST(DigestTest, KnownValues) {
  // XXH3-128 of nothing and of "a" with seed 0 (test vectors of the xxHash project).
  EXPECT_EQ(DigestOf("").Hex(), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(DigestOf("a").Hex(), "a96faf705af16834e6c632b61e964e1f");
}

TEST(DigestTest, StreamEqualsWhole) {
  const std::string text(100000, 'x');
  DigestStream stream;
  stream.Update(text.substr(0, 1));
  stream.Update(text.substr(1, 70000));
  stream.Update(text.substr(70001));
  EXPECT_EQ(stream.Finish(), DigestOf(text));
}

TEST(DigestTest, NumbersAreLittleEndian) {
  DigestStream stream;
  stream.UpdateU64(0x0102030405060708ULL);
  EXPECT_EQ(stream.Finish(), DigestOf("\x08\x07\x06\x05\x04\x03\x02\x01"));
}

TEST(DigestTest, HexRoundTripAndRefusals) {
  const Digest digest = DigestOf("perdure");
  const auto back = Digest::FromHex(digest.Hex());
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(*back, digest);
  EXPECT_FALSE(Digest::FromHex("00").ok());
  EXPECT_FALSE(Digest::FromHex(std::string(32, 'G')).ok());
  EXPECT_FALSE(Digest::FromHex(std::string(32, 'A')).ok());
}

}  // namespace
}  // namespace perdure
