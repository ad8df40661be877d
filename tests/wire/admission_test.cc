// Who may wait for a place before he is known, and which hellos have been there: without sockets.
#include "runtime/wire/admission.h"

#include <gtest/gtest.h>

#include "runtime/wire/wire_sockets.h"

namespace perdure {
namespace {

const absl::Time kStart = absl::UnixEpoch() + absl::Hours(1);

SourceKey Source(const std::string& ip) { return SourceOf(*ParseWireAddress(ip, 1)); }

AdmissionLimits Small() {
  return {.places = 4, .tokens = 6, .token_every = absl::Seconds(1), .sources = 3, .hellos = 2};
}

TEST(AdmissionTest, APlaceIsForTwoSeconds) {
  Admission admission(Small());
  const Admission::Place place = admission.Take(Source("10.0.0.1"), kStart);
  ASSERT_TRUE(place.place.has_value());
  EXPECT_EQ(admission.held(), 1U);
  EXPECT_EQ(admission.Overdue(kStart + absl::Seconds(2) - absl::Nanoseconds(1)), std::nullopt);
  EXPECT_EQ(admission.Overdue(kStart + absl::Seconds(2)), place.place);
  admission.Leave(*place.place, false);
  EXPECT_EQ(admission.held(), 0U);
  EXPECT_EQ(admission.Overdue(kStart + absl::Hours(1)), std::nullopt);
}

TEST(AdmissionTest, TheOldestOfTheHeaviestGivesWay) {
  Admission admission(Small());
  const auto take = [&](const char* ip) { return admission.Take(Source(ip), kStart); };
  const auto quiet = take("10.0.0.1"), first = take("10.0.0.2"), second = take("10.0.0.2"),
             third = take("10.0.0.2");
  for (const auto& place : {quiet, first, second, third}) EXPECT_FALSE(place.pushed_out);
  const auto fourth = take("10.0.0.2");  // Its own oldest, never the quiet one.
  EXPECT_TRUE(fourth.pushed_out);
  EXPECT_EQ(fourth.place, first.place);
  const auto other = take("10.0.0.3");
  EXPECT_TRUE(other.pushed_out);
  EXPECT_EQ(other.place, second.place);
  EXPECT_EQ(admission.held(), 4U);
}

TEST(AdmissionTest, AmongEqualsTheOldestOfAll) {
  Admission admission({.places = 3, .tokens = 100, .token_every = absl::Seconds(1), .sources = 8});
  const auto first = admission.Take(Source("10.0.0.1"), kStart);
  (void)admission.Take(Source("10.0.0.2"), kStart);
  (void)admission.Take(Source("10.0.0.3"), kStart);
  EXPECT_EQ(admission.Take(Source("10.0.0.4"), kStart).place, first.place);
}

TEST(AdmissionTest, TokensRunOutAndComeBack) {
  Admission admission(Small());
  const auto try_once = [&](absl::Duration after) {
    const auto place = admission.Take(Source("10.0.0.1"), kStart + after);
    if (place.place.has_value()) admission.Leave(*place.place, false);
    return place.place.has_value();
  };
  for (int i = 0; i < 6; ++i) EXPECT_TRUE(try_once(absl::ZeroDuration())) << i;
  EXPECT_FALSE(try_once(absl::ZeroDuration()));
  EXPECT_FALSE(try_once(absl::Milliseconds(999)));
  EXPECT_TRUE(try_once(absl::Seconds(1)));
  EXPECT_FALSE(try_once(absl::Seconds(1)));
  for (int i = 0; i < 6; ++i) EXPECT_TRUE(try_once(absl::Hours(1))) << i;  // No more than so many.
  EXPECT_FALSE(try_once(absl::Hours(1)));
}

TEST(AdmissionTest, WhoProvesRightPaysNothing) {
  Admission admission(Small());
  for (int i = 0; i < 1000; ++i) {
    const auto place = admission.Take(Source("10.0.0.1"), kStart);
    ASSERT_TRUE(place.place.has_value()) << i;
    admission.Leave(*place.place, /*proved=*/true);
  }
}

TEST(AdmissionTest, OneSourceCannotTakeAnothersTokens) {
  Admission admission(Small());
  while (admission.Take(Source("10.0.0.1"), kStart).place.has_value()) {
  }
  EXPECT_TRUE(admission.Take(Source("10.0.0.2"), kStart).place.has_value());
}

TEST(AdmissionTest, ManySourcesDoNotWashAwayADrainedOne) {
  Admission admission(Small());
  while (admission.Take(Source("10.0.0.1"), kStart).place.has_value()) {
  }
  for (int i = 0; i < 100; ++i)
    EXPECT_TRUE(admission.Take(Source("10.1.0." + std::to_string(i)), kStart).place.has_value());
  EXPECT_FALSE(admission.Take(Source("10.0.0.1"), kStart).place.has_value());
}

TEST(AdmissionTest, SourcesAreMachines) {
  EXPECT_NE(Source("10.0.0.1"), Source("10.0.0.2"));
  EXPECT_EQ(Source("10.0.0.1"), Source("::ffff:10.0.0.1"));
  EXPECT_EQ(Source("2001:db8::1"), Source("2001:db8::ffff:1"));
  EXPECT_NE(Source("2001:db8::1"), Source("2001:db8:0:1::1"));
}

std::array<uint8_t, 16> Tag(uint8_t first) {
  std::array<uint8_t, 16> tag{};
  tag[0] = first;
  return tag;
}

TEST(ReplayFilterTest, RemembersTheNewest) {
  ReplayFilter filter(2);
  EXPECT_FALSE(filter.Repeats(Tag(1)));
  EXPECT_TRUE(filter.Repeats(Tag(1)));
  EXPECT_FALSE(filter.Repeats(Tag(2)));
  EXPECT_TRUE(filter.Repeats(Tag(1)));  // Repeating pushes nothing out.
  EXPECT_TRUE(filter.Repeats(Tag(2)));
  EXPECT_FALSE(filter.Repeats(Tag(3)));
  EXPECT_FALSE(filter.Repeats(Tag(1)));
}

// ---- Addresses ----------------------------------------------------------------------------------

TEST(WireAddressTest, ParsesNumbersAndNothingElse) {
  EXPECT_EQ(WireAddressText(*ParseWireAddress("10.0.0.5", 40123)), "10.0.0.5:40123");
  EXPECT_EQ(WireAddressText(*ParseWireAddress("2001:db8::1", 7)), "[2001:db8::1]:7");
  EXPECT_EQ(*ParseWireAddress("10.0.0.5", 1), *ParseWireAddress("::ffff:10.0.0.5", 1));
  for (const char* text : {"", "localhost", "10.0.0", "10.0.0.5:7", "10.0.0.256", "::g"}) {
    const auto parsed = ParseWireAddress(text, 1);
    EXPECT_TRUE(absl::IsInvalidArgument(parsed.status())) << text;
  }
}

TEST(WireAddressTest, InterfacesByNameOrAddress) {
  EXPECT_EQ(*InterfaceAddress("lo"), *ParseWireAddress("127.0.0.1", 0));
  EXPECT_EQ(*InterfaceAddress("127.0.0.1"), *ParseWireAddress("127.0.0.1", 0));
  for (const char* text : {"0.0.0.0", "::", "no_such_interface", ""})
    EXPECT_TRUE(absl::IsInvalidArgument(InterfaceAddress(text).status())) << text;
}

TEST(WireAddressTest, APortIsOursAlone) {
  const auto first = ListenAt(*ParseWireAddress("127.0.0.1", 0));
  ASSERT_TRUE(first.ok());
  EXPECT_NE(first->address.port, 0);
  const auto second = ListenAt(first->address);
  ASSERT_FALSE(second.ok());
  EXPECT_NE(second.status().message().find("bind 127.0.0.1:"), std::string::npos);
}

TEST(WireAddress, IsPrintedAndParsed) {
  for (const char* text :
       {"10.0.0.5:4711", "127.0.0.1:0", "255.255.255.255:65535", "[fd00::5]:1", "[::1]:80"}) {
    const auto address = ParseWireAddressText(text);
    ASSERT_TRUE(address.ok()) << text;
    EXPECT_EQ(WireAddressText(*address), text);
  }
  for (const char* text :
       {"", ":", "10.0.0.5", "10.0.0.5:", "10.0.0.5:65536", "10.0.0.5:-1", "10.0.0.5:1 ",
        "fd00::5:1", "[10.0.0.5]:1", "[fd00::5:1", "host:1", "[fd00::5]1", "[]:1"})
    EXPECT_TRUE(absl::IsInvalidArgument(ParseWireAddressText(text).status())) << text;
}

}  // namespace
}  // namespace perdure
