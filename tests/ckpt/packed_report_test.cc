// Reports between agents: what is written comes back, and nothing else is accepted.
#include "ckpt/packed_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr int64_t kMost = std::numeric_limits<int64_t>::max();

std::vector<Digest> DigestsOf(const std::vector<int64_t>& of) {
  std::vector<Digest> digests;
  for (const int64_t number : of) digests.push_back(DigestOf(fmt::format("{}", number)));
  return digests;
}

RunReport OneRun() {
  RunReport run{.file = "part-00003.h5",
                .run = 1,
                .runs = {4, 5, 1},
                .bytes = 5 * (uint64_t{1} << 20) + 7,
                .offsets = {4096, uint64_t{1} << 40, 3},
                .atoms = {7, 8, 9, 3, 1},
                .atom_digests = {},
                .blocks = {0, 1, 5},
                .block_digests = {}};
  run.atom_digests = DigestsOf(run.atoms);
  run.block_digests = DigestsOf({100, 101, 105});
  return run;
}

PartReport OnePart() {
  PartReport part{.file = "part-00003.h5",
                  .bytes = 2 * (uint64_t{1} << 20) + 7,
                  .blocks = DigestsOf({1, 2, 3}),
                  .runs = {4, 1},
                  .atoms = {7, 8, 9, 3, 1},
                  .atom_digests = DigestsOf({7, 8, 9, 3, 1}),
                  .offsets = {4096, 5000, 6000}};
  return part;
}

std::string Packed(const std::vector<int64_t>& numbers) {
  std::string packed;
  PackWriter(&packed).Numbers(numbers);
  return packed;
}

TEST(PackReader, NumbersComeBack) {
  for (const uint64_t number :
       {uint64_t{0}, uint64_t{1}, uint64_t{127}, uint64_t{128}, uint64_t{16383}, uint64_t{16384},
        uint64_t{1} << 62, uint64_t{1} << 63, std::numeric_limits<uint64_t>::max()}) {
    std::string packed;
    PackWriter(&packed).Number(number);
    PackReader from(packed, "it");
    EXPECT_EQ(from.Number(), number);
    EXPECT_OK(from.Done());
    // No second way to write it, and no part of it.
    PackReader cut(std::string_view(packed).substr(0, packed.size() - 1), "it");
    (void)cut.Number();
    EXPECT_FALSE(cut.Done().ok());
    std::string padded = packed;
    padded.back() = static_cast<char>(padded.back() | 0x80);
    padded.push_back('\0');
    PackReader odd(padded, "it");
    (void)odd.Number();
    EXPECT_FALSE(odd.Done().ok()) << number;
  }
  // Of 70 bits.
  PackReader wide("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "it");
  EXPECT_EQ(wide.Number(), 0u);
  EXPECT_THAT(Message(wide.Done()), HasSubstr("it: a number is not written as it should be"));
}

TEST(PackReader, ListsComeBackAndAreShort) {
  std::vector<int64_t> all;
  for (int64_t i = 0; i < 100'000; ++i) all.push_back(i + 5);
  EXPECT_LT(Packed(all).size(), 6u);
  for (const std::vector<int64_t>& numbers : {std::vector<int64_t>{},
                                              {0},
                                              {kMost},
                                              {kMost, 0},
                                              {0, kMost},
                                              {3, 3, 3},
                                              {9, 8, 7},
                                              {1, 2, 3, 7, 8, 2, 3},
                                              {kMost - 1, kMost},
                                              all}) {
    const std::string packed = Packed(numbers);
    PackReader from(packed, "it");
    EXPECT_EQ(from.Numbers(numbers.size()), numbers);
    EXPECT_OK(from.Done());
  }
}

TEST(PackReader, ListsThatAreNone) {
  const auto bad = [](std::string_view packed, size_t count) {
    PackReader from(packed, "it");
    EXPECT_THAT(from.Numbers(count), IsEmpty());
    EXPECT_TRUE(absl::IsDataLoss(from.Done()));
  };
  bad(Packed({1, 2, 3}), 2);                   // Longer,
  bad(Packed({1, 2, 3}), 4);                   // shorter,
  bad(std::string("\x02\x00", 2), 1);          // of nothing,
  bad(std::string("\x01\x01", 2), 1);          // below zero,
  bad(std::string("\x02\x01\x02\x01", 4), 2);  // one stretch as two,
  std::string beyond = Packed({kMost});
  beyond.back() = 2;  // beyond the highest.
  bad(beyond, 2);
  const std::string more = Packed({1}) + "x";
  PackReader from(more, "it");
  EXPECT_THAT(from.Numbers(1), ElementsAre(1));
  EXPECT_THAT(Message(from.Done()), HasSubstr("1 bytes too many"));
}

TEST(PackedReport, RunComesBack) {
  std::string packed;
  PackWriter to(&packed);
  PackRun(OneRun(), to);
  PackReader from(packed, "it");
  const RunReport back = UnpackRun(from);
  ASSERT_OK(from.Done());
  EXPECT_EQ(SerializeRun(back), SerializeRun(OneRun()));
  for (size_t length = 0; length < packed.size(); ++length) {
    PackReader cut(std::string_view(packed).substr(0, length), "it");
    (void)UnpackRun(cut);
    EXPECT_TRUE(absl::IsDataLoss(cut.Done())) << length;
  }
}

TEST(PackedReport, PartComesBack) {
  const std::string packed = PackPart(OnePart());
  const auto back = UnpackPart(packed);
  ASSERT_OK(back.status());
  EXPECT_EQ(SerializePart(*back), SerializePart(OnePart()));
  EXPECT_LT(packed.size(), SerializePart(OnePart()).size() / 2);
  for (size_t length = 0; length < packed.size(); ++length)
    EXPECT_TRUE(absl::IsDataLoss(UnpackPart(packed.substr(0, length)).status())) << length;
  EXPECT_TRUE(absl::IsDataLoss(UnpackPart(packed + '\0').status()));
}

// What a flipped byte leaves is refused, or is a part that can be read back.
TEST(PackedReport, EveryFlippedByte) {
  const std::string packed = PackPart(OnePart());
  int refused = 0;
  for (size_t at = 0; at < packed.size(); ++at)
    for (const int flip : {1, 0x40, 0x80, 0xff}) {
      std::string bad = packed;
      bad[at] = static_cast<char>(bad[at] ^ flip);
      const auto part = UnpackPart(bad);
      refused += part.ok() ? 0 : 1;
      if (part.ok()) EXPECT_OK(ParsePart(SerializePart(*part)).status());
    }
  EXPECT_GT(refused, 50);
}

TEST(PackedReport, FileNamesStayInTheDirectory) {
  for (const char* name :
       {"", "../part-00000.h5", "/etc/passwd", ".h5", "part\n.h5", "part-00000"}) {
    PartReport part = OnePart();
    part.file = name;
    EXPECT_THAT(Message(UnpackPart(PackPart(part)).status()), HasSubstr("name"));
  }
}

}  // namespace
}  // namespace perdure
