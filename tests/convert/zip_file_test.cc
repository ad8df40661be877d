#include "ckpt/convert/zip_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ckpt/convert/crc32.h"
#include "ckpt/convert/foreign_file.h"
#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"
#include "tests/convert/torch_fixtures.h"

namespace perdure {
namespace {

using testing::HasSubstr;

class ZipFileTest : public testing::Test {
 protected:
  absl::StatusOr<ZipFile> Open(const std::string& bytes, uint64_t before = 0) {
    const std::string path = directory_.path() + "/" + std::to_string(count_++) + ".zip";
    Spill(path, std::string(before, 'x') + bytes + std::string(before, 'y'));
    auto file = OpenForeignFile(path);
    EXPECT_TRUE(file.ok()) << file.status();
    file_ = std::move(*file);
    return ZipFile::Open(file_, before, bytes.size(), "z");
  }
  std::string Error(const std::string& bytes) {
    const auto zip = Open(bytes);
    if (zip.ok()) return "none";
    EXPECT_EQ(zip.status().code(), absl::StatusCode::kDataLoss);
    return Message(zip.status());
  }
  // The archive with `value` written at `offset` behind the place of `mark`.
  std::string Patched(const std::string& mark, size_t offset, std::string_view value) const {
    std::string bytes = bytes_;
    const size_t at = bytes.rfind(mark);
    EXPECT_NE(at, bytes.npos);
    return bytes.replace(at + offset, value.size(), value);
  }
  // Likewise, in the directory's entry of a record.
  std::string Entry(const std::string& name, int offset, std::string_view value) const {
    return Patched("types/" + name, static_cast<size_t>(offset - 46), value);
  }
  // Likewise, in its local header.
  std::string Local(const std::string& name, int offset, std::string_view value) const {
    std::string bytes = bytes_;
    const size_t at = bytes.find("types/" + name);
    EXPECT_NE(at, bytes.npos);
    return bytes.replace(at + static_cast<size_t>(offset - 30), value.size(), value);
  }

  TestDirectory directory_;
  int count_ = 0;
  File file_;
  const std::string bytes_ = Slurp(TorchFixture("types.pt"));
};

TEST(Crc32Test, KnownAnswers) {
  EXPECT_EQ(UpdateCrc32(0, "", 0), 0U);
  EXPECT_EQ(UpdateCrc32(0, "123456789", 9), 0xCBF43926U);
  EXPECT_EQ(UpdateCrc32(UpdateCrc32(0, "1234", 4), "56789", 5), 0xCBF43926U);
  const std::string text(1000, 'a');
  uint32_t crc = 0;
  for (size_t i = 0; i < text.size(); ++i) crc = UpdateCrc32(crc, &text[i], 1);
  EXPECT_EQ(UpdateCrc32(0, text.data(), text.size()), crc);
}

TEST_F(ZipFileTest, RecordsOfTorch) {
  for (const uint64_t before : {uint64_t{0}, uint64_t{100}}) {
    const auto zip = Open(bytes_, before);
    ASSERT_TRUE(zip.ok()) << zip.status();
    ASSERT_NE(zip->Find("data.pkl"), nullptr);
    EXPECT_EQ(zip->Find("data/99"), nullptr);
    for (const ZipRecord& record : zip->records()) {
      EXPECT_EQ((record.offset - before) % 64, 0U) << record.name;
      EXPECT_OK(VerifyZipRecord(file_, record, "z"));
    }
    const auto order = ReadZipRecord(file_, *zip->Find("byteorder"), 10, "z");
    ASSERT_TRUE(order.ok()) << order.status();
    EXPECT_EQ(*order, "little");
    EXPECT_THAT(Message(ReadZipRecord(file_, *zip->Find("byteorder"), 5, "z").status()),
                HasSubstr("byteorder has 6 bytes; more than 5 are refused"));
  }
}

TEST_F(ZipFileTest, EveryTruncationIsAnError) {
  for (size_t length = 0; length < bytes_.size(); length += length < bytes_.size() - 400 ? 37 : 1)
    ASSERT_NE(Error(bytes_.substr(0, length)), "none") << length;
  EXPECT_THAT(Error(bytes_ + "x"), HasSubstr("no zip file ends here"));
}

TEST_F(ZipFileTest, EntriesThatAreRefused) {
  const auto two = [](int a, int b) {
    return std::string{static_cast<char>(a), static_cast<char>(b)};
  };
  EXPECT_EQ(Error(bytes_), "none");
  EXPECT_THAT(Error(Entry("version", 10, two(8, 0))), HasSubstr("types/version is compressed"));
  EXPECT_THAT(Error(Entry("version", 8, two(9, 8))), HasSubstr("flags 0x0809: encrypted"));
  EXPECT_THAT(Error(Entry("version", 20, two(3, 0))), HasSubstr("has 2 bytes, stored in 3"));
  EXPECT_THAT(Error(Entry("version", 34, two(1, 0))), HasSubstr("is on another disk"));
  EXPECT_THAT(Error(Entry("version", 0, "QK")), HasSubstr("of its directory is damaged"));
  EXPECT_THAT(Error(Entry("version", 30, two(0xff, 0xff))), HasSubstr("truncated"));
  EXPECT_THAT(Error(Entry("version", 24, std::string(4, '\xff'))),
              HasSubstr("lacks a 64-bit size"));
  EXPECT_THAT(Error(Entry("version", 42, two(1, 0))), HasSubstr("must end before"));
  EXPECT_THAT(Error(Entry("version", 42, std::string(3, '\x70'))), HasSubstr("must end before"));
  EXPECT_THAT(Error(Entry("data.pkl", 24, std::string(3, '\x70'))), HasSubstr("stored in"));
}

TEST_F(ZipFileTest, NamesThatAreRefused) {
  for (const std::string name : {"types//ersion", "types/../sion", "types/./rsion", "/ypes/version",
                                 "types\\version", "types/versio\n", "types/versio/"})
    EXPECT_THAT(Error(Patched("types/version", 0, name)), HasSubstr("a name that is refused"))
        << name;
  EXPECT_THAT(Error(Patched("types/version", 0, "other/version")), HasSubstr("says otherwise"));
  EXPECT_THAT(Error(Patched("types/data/1", 0, "types/data/2")),
              HasSubstr("two records are named"));
}

TEST_F(ZipFileTest, HeadersThatContradictTheDirectory) {
  EXPECT_THAT(Error(Local("version", 30, "typos")), HasSubstr("says otherwise"));
  EXPECT_THAT(Error(Local("version", 0, "QK")), HasSubstr("says otherwise"));
  EXPECT_THAT(Error(Local("version", 8, "\x08")), HasSubstr("says otherwise"));
  EXPECT_THAT(Error(Local("version", 28, "\xff\xff")), HasSubstr("must end before"));
}

TEST_F(ZipFileTest, EndsThatAreRefused) {
  const size_t end = bytes_.size() - 22;
  const auto at = [&](size_t place, std::string_view value) {
    return std::string(bytes_).replace(place, value.size(), value);
  };
  EXPECT_THAT(Error(at(end + 20, "\x01")), HasSubstr("no zip file ends here"));
  EXPECT_THAT(Error(at(end + 4, "\x01")), HasSubstr("several disks"));
  EXPECT_THAT(Error(at(end - 20 + 8, "\x01")), HasSubstr("points elsewhere"));
  EXPECT_THAT(Error(at(end - 76 + 4, "\x2d")), HasSubstr("not one of torch's"));
  EXPECT_THAT(Error(at(end - 76 + 40, "\x01")), HasSubstr("should end at"));
  EXPECT_THAT(Error(at(end - 76 + 24, "\xff\xff\xff\x7f")), HasSubstr("several disks"));
  EXPECT_THAT(Error(at(end - 76 + 24, "\x01\x00")), HasSubstr("several disks"));
}

TEST_F(ZipFileTest, DamageShowsInTheCrc) {
  const auto zip = Open(Local("byteorder", -1000, ""));
  ASSERT_TRUE(zip.ok()) << zip.status();
  const ZipRecord record = *zip->Find("byteorder");
  std::string bytes = bytes_;
  bytes[record.offset] = 'L';
  const auto damaged = Open(bytes);
  ASSERT_TRUE(damaged.ok()) << damaged.status();
  EXPECT_THAT(Message(ReadZipRecord(file_, record, 10, "z").status()),
              HasSubstr("differs from its CRC"));
  EXPECT_THAT(Message(VerifyZipRecord(file_, record, "z")), HasSubstr("differs from its CRC"));
}

TEST_F(ZipFileTest, MutationsEndInAnAnswer) {
  TestRandom random(3);
  int refused = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string bytes = bytes_;
    const size_t directory = bytes.size() - 2200;
    bytes[directory + random.Below(2200)] = static_cast<char>(random.Next());
    refused += Error(bytes) == "none" ? 0 : 1;
  }
  EXPECT_GT(refused, 500);
}

}  // namespace
}  // namespace perdure
