// safetensors: known bytes, every refusal of the reader, what the writer writes, shards.
#include "ckpt/convert/safetensors.h"

#include <gmock/gmock.h>
#include <sys/stat.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "ckpt/float_bits.h"
#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

using testing::HasSubstr;

// A file of that header and so many bytes of data.
std::string FileOf(const std::string& header, const std::string& data = "") {
  const uint64_t length = header.size();
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes + header + data;
}

class SafetensorsTest : public testing::Test {
 protected:
  std::string Path(const std::string& name) const { return directory_.path() + "/" + name; }

  absl::StatusOr<SafetensorsFile> Open(const std::string& bytes) {
    Spill(Path("a.safetensors"), bytes);
    return SafetensorsFile::Open(Path("a.safetensors"));
  }

  void ExpectRefused(const std::string& bytes, const std::string& words) {
    const absl::Status status = Open(bytes).status();
    EXPECT_TRUE(absl::IsDataLoss(status)) << status << " for " << words;
    EXPECT_THAT(Message(status), HasSubstr("a.safetensors"));
    EXPECT_THAT(Message(status), HasSubstr(words)) << bytes.substr(0, 300);
  }

  void Write(const std::string& name, std::vector<SafetensorsTensor> tensors) {
    auto writer = SafetensorsWriter::Create(Path(name), std::move(tensors));
    ASSERT_OK(writer.status());
    for (const SafetensorsTensor& tensor : writer->tensors()) {
      const uint64_t bytes = tensor.end - tensor.begin;
      ASSERT_OK(writer->Append(std::vector<float>(bytes / DTypeBytes(tensor.dtype), 1.5F)));
    }
    ASSERT_OK(writer->Finish());
  }

  TestDirectory directory_;
};

constexpr SafetensorsDType kF32 = SafetensorsDType::kF32, kBF16 = SafetensorsDType::kBF16;

// ---- The reader ---------------------------------------------------------------------------------

TEST_F(SafetensorsTest, KnownBytesOfAnEmptyFile) {
  const auto file = Open(std::string("\x08\0\0\0\0\0\0\0{}      ", 16));
  ASSERT_OK(file.status());
  EXPECT_TRUE(file->tensors().empty());
  EXPECT_TRUE(file->metadata().empty());
}

TEST_F(SafetensorsTest, ReadsTensorsInAnyOrderOfTheFile) {
  const float values[] = {1.5F, -2.0F, std::numeric_limits<float>::denorm_min()};
  std::string data(4, '\0');
  data.append(reinterpret_cast<const char*>(values), sizeof values);
  const auto file = Open(FileOf(
      R"({"b":{"shape":[3,1],"data_offsets":[4,16],"dtype":"F32"},"__metadata__":{"format":"pt"},)"
      R"( "a\u00e9":{"dtype":"U8","shape":[2,2],"data_offsets":[0,4]},)"
      R"( "none":{"dtype":"I64","shape":[5,0],"data_offsets":[4,4]},)"
      R"( "scalar":{"dtype":"F8_E4M3","shape":[],"data_offsets":[16,17]} }  )",
      data + "x"));
  ASSERT_OK(file.status());
  ASSERT_EQ(file->tensors().size(), 4U);
  EXPECT_EQ(file->tensors()[0].name, "a\xC3\xA9");
  EXPECT_EQ(file->metadata().at("format"), "pt");
  const SafetensorsTensor* b = file->Find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->shape, (std::vector<uint64_t>{3, 1}));
  EXPECT_EQ(file->Find("scalar")->elements(), 1U);
  EXPECT_EQ(file->Find("none")->elements(), 0U);
  EXPECT_EQ(file->Find("c"), nullptr);
  float out[2];
  ASSERT_OK(file->Read(*b, 1, out));
  EXPECT_EQ(out[0], values[1]);
  EXPECT_EQ(out[1], values[2]);
  const absl::Status wrong = file->Read(*file->Find("scalar"), 0, std::span(out, 1));
  EXPECT_TRUE(absl::IsInvalidArgument(wrong));
  EXPECT_THAT(Message(wrong), HasSubstr("scalar is of F8_E4M3"));
}

TEST_F(SafetensorsTest, LengthsAreChecked) {
  ExpectRefused("", "has 0 bytes");
  ExpectRefused(std::string(7, '\0'), "has 7 bytes");
  ExpectRefused(std::string(8, '\0'), "does not begin with {");
  ExpectRefused(std::string("\x09\0\0\0\0\0\0\0{}      ", 16), "truncated");
  ExpectRefused(std::string("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF{}", 10), "more than safetensors");
  ExpectRefused(std::string("\x01\xE1\xF5\x05\0\0\0\0{}", 10), "100000001 bytes, more than");
  ExpectRefused(std::string("\x00\xE1\xF5\x05\0\0\0\0{}", 10), "truncated");
}

TEST_F(SafetensorsTest, TensorsCoverTheDataExactly) {
  const auto two = [](int a, int b, int c, int d) {
    return fmt::format(R"({{"x":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}},)"
                       R"("y":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}}}})",
                       b - a, a, b, d - c, c, d);
  };
  ASSERT_OK(Open(FileOf(two(0, 4, 4, 8), "12345678")).status());
  ASSERT_OK(Open(FileOf(two(4, 8, 0, 4), "12345678")).status());
  ExpectRefused(FileOf(two(0, 4, 5, 8), "12345678"), "\"y\" begins at byte 5 of the data, behind");
  ExpectRefused(FileOf(two(1, 4, 4, 8), "12345678"), "\"x\" begins at byte 1 of the data, behind");
  ExpectRefused(FileOf(two(0, 5, 4, 8), "12345678"), "\"y\" begins at byte 4 of the data, inside");
  ExpectRefused(FileOf(two(0, 8, 0, 8), "12345678"), "inside");
  ExpectRefused(FileOf(two(0, 8, 4, 4), "12345678"), "inside");
  ExpectRefused(FileOf(two(0, 4, 4, 8), "1234567"), "truncated");
  ExpectRefused(FileOf(two(0, 4, 4, 8), "123456789"), "something was added");
  ExpectRefused(FileOf("{}", "1"), "something was added");
}

TEST_F(SafetensorsTest, BytesFollowFromShapes) {
  const auto one = [](const char* dtype, const char* shape, const char* offsets) {
    return FileOf(fmt::format(R"({{"x":{{"dtype":"{}","shape":{},"data_offsets":{}}}}})", dtype,
                              shape, offsets),
                  "12345678");
  };
  ASSERT_OK(Open(one("F32", "[2]", "[0,8]")).status());
  ExpectRefused(one("F32", "[3]", "[0,8]"), "has 12 bytes by its shape [3] of F32");
  ExpectRefused(one("F32", "[2]", "[8,0]"), "stands at [8, 0)");
  // 2^62 floats are 2^64 bytes, that is none.
  ExpectRefused(one("F32", "[4611686018427387904]", "[0,0]"), "more than 64 bits");
  ExpectRefused(one("U8", "[4294967296,4294967296]", "[0,0]"), "more than 64 bits");
  ExpectRefused(one("U8", "[18446744073709551616]", "[0,0]"), "has a fraction");
  ExpectRefused(one("U8", "[18446744073709551615]", "[0,18446744073709551615]"), "truncated");
  ExpectRefused(one("F32", "[-2]", "[0,8]"), "has a negative number");
  ExpectRefused(one("F32", "[2.0]", "[0,8]"), "has a fraction");
  ExpectRefused(one("F32", "[[2]]", "[0,8]"), "has an array");
  ExpectRefused(one("F32", "2", "[0,8]"), "has a number");
  ExpectRefused(one("F32", "[2]", "[0,8,8]"), "are more than two");
  ExpectRefused(one("F32", "[2]", "[0]"), "are not two");
  ExpectRefused(one("F4", "[2]", "[0,8]"), "dtype is \"F4\", which is not known");
  ExpectRefused(one("f32", "[2]", "[0,8]"), "not known");
  std::string many = "[1";
  for (int i = 0; i < 64; ++i) many += ",1";
  ExpectRefused(one("F64", (many + "]").c_str(), "[0,8]"), "more than 64 dimensions");
}

TEST_F(SafetensorsTest, TheHeaderIsStrictJson) {
  const std::string entry = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  ASSERT_OK(Open(FileOf("{\"x\":" + entry + "}")).status());
  ExpectRefused(FileOf("{\"x\":" + entry + ",\"x\":" + entry + "}"), "\"x\" is there twice");
  ExpectRefused(FileOf(" {\"x\":" + entry + "}"), "does not begin with {");
  ExpectRefused(FileOf("{\"x\":" + entry + "} {}"), "is not valid JSON");
  ExpectRefused(FileOf("{\"x\":" + entry + "}" + std::string(1, '\0')), "a zero byte");
  ExpectRefused(FileOf("{\"x\":" + entry), "is not valid JSON");
  ExpectRefused(FileOf("{\"\xFF\":" + entry + "}"), "is not valid JSON");
  ExpectRefused(FileOf("{\"x\":[]}"), "has an array");
  ExpectRefused(FileOf("{\"x\":1}"), "has a number");
  ExpectRefused(FileOf("{\"x\":\"U8\"}"), "has a string");
  ExpectRefused(FileOf("{\"x\":null}"), "has null");
  ExpectRefused(FileOf("{\"x\":{}}"), "has no dtype");
  ExpectRefused(FileOf(R"({"x":{"dtype":"U8","shape":[0]}})"), "has no data_offsets");
  ExpectRefused(FileOf(R"({"x":{"dtype":"U8","dtype":"U8"}})"), "has dtype twice");
  ExpectRefused(FileOf(R"({"x":{"offsets":[0,0]}})"), "unknown key \"offsets\"");
  ExpectRefused(FileOf(R"({"x":{"shape":{}}})"), "has an object");
  ExpectRefused(FileOf(R"({"x":{"dtype":["U8"]}})"), "has an array");
  ExpectRefused(FileOf(R"({"__metadata__":{"a":1}})"), "__metadata__ has a number");
  ExpectRefused(FileOf(R"({"__metadata__":{"a":{}}})"), "__metadata__ has an object");
  ExpectRefused(FileOf(R"({"__metadata__":{"a":"b","a":"c"}})"), "has \"a\" twice");
  ExpectRefused(FileOf(R"({"__metadata__":{},"__metadata__":{}})"), "is there twice");
  ExpectRefused(FileOf("{\"x\":" + std::string(100000, '[')), "has an array");
}

// Whatever one byte of the header becomes: refused, or a file whose tensors still cover the data.
TEST_F(SafetensorsTest, NoFlippedByteIsDangerous) {
  Write("good.safetensors", {{.name = "a", .dtype = kF32, .shape = {2, 3}},
                             {.name = "b", .dtype = kBF16, .shape = {5}}});
  const std::string good = Slurp(Path("good.safetensors"));
  size_t refused = 0;
  for (size_t i = 0; i < good.size() - 34; ++i)
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ (1 << bit));
      const auto file = Open(bad);
      if (!file.ok()) {
        ++refused;
        continue;
      }
      uint64_t bytes = 0;
      for (const SafetensorsTensor& tensor : file->tensors()) {
        bytes += tensor.end - tensor.begin;
        std::vector<float> out(tensor.elements());
        EXPECT_TRUE(tensor.dtype < SafetensorsDType::kF16 || file->Read(tensor, 0, out).ok() ||
                    tensor.dtype > kBF16);
      }
      EXPECT_EQ(bytes, 34U);
    }
  EXPECT_GT(refused, good.size() * 4);
  for (size_t length = 0; length < good.size(); ++length)
    EXPECT_FALSE(Open(good.substr(0, length)).ok()) << length;
}

TEST_F(SafetensorsTest, WhatIsNoFileIsRefused) {
  EXPECT_TRUE(absl::IsNotFound(SafetensorsFile::Open(Path("none")).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(SafetensorsFile::Open(directory_.path()).status()));
  ASSERT_EQ(::mkfifo(Path("fifo").c_str(), 0600), 0);
  EXPECT_TRUE(absl::IsInvalidArgument(SafetensorsFile::Open(Path("fifo")).status()));
}

// ---- Floats -------------------------------------------------------------------------------------

TEST(FloatBits, HalvesAreExact) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = FloatOfF16(static_cast<uint16_t>(bits));
    const int exponent = static_cast<int>(bits >> 10 & 31);
    const double fraction = bits & 1023;
    EXPECT_EQ(std::signbit(value), (bits & 0x8000) != 0) << bits;
    if (exponent == 31) {
      EXPECT_EQ(std::isnan(value), fraction != 0) << bits;
      continue;
    }
    const double expected =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    EXPECT_EQ(std::fabs(value), expected) << bits;
  }
}

TEST(FloatBits, BF16IsNearestEven) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = FloatOfBF16(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(FloatOfBF16(BF16OfFloat(value))));
      continue;
    }
    EXPECT_EQ(BF16OfFloat(value), half);
    const uint32_t whole = bits << 16;
    const auto next = static_cast<uint16_t>(bits + 1);  // Away from zero.
    if (std::isinf(value)) continue;
    EXPECT_EQ(BF16OfFloat(std::bit_cast<float>(whole | 0x7FFFU)), half);
    EXPECT_EQ(BF16OfFloat(std::bit_cast<float>(whole | 0x8000U)), bits % 2 == 0 ? half : next);
    EXPECT_EQ(BF16OfFloat(std::bit_cast<float>(whole | 0x8001U)), next);
  }
  // A payload only in the bits that are lost must not turn a NaN into an infinity.
  EXPECT_TRUE(std::isnan(FloatOfBF16(BF16OfFloat(std::bit_cast<float>(0x7F800001U)))));
  EXPECT_TRUE(std::isnan(FloatOfBF16(BF16OfFloat(std::bit_cast<float>(0xFFFFFFFFU)))));
}

// ---- The writer ---------------------------------------------------------------------------------

TEST_F(SafetensorsTest, WriterWritesTheseBytes) {
  auto writer =
      SafetensorsWriter::Create(Path("w"), {{.name = "z", .dtype = kBF16, .shape = {1, 2}},
                                            {.name = "b", .dtype = kF32, .shape = {1}},
                                            {.name = "a", .dtype = kBF16, .shape = {3}},
                                            {.name = "e", .dtype = kF32, .shape = {0}}});
  ASSERT_OK(writer.status());
  std::string order;
  for (const SafetensorsTensor& tensor : writer->tensors()) order += tensor.name;
  EXPECT_EQ(order, "beaz");
  ASSERT_OK(writer->Append(std::vector{1.0F}));
  ASSERT_OK(writer->Append(std::vector{-1.0F, 1.00390625F}));  // The second is half-way.
  ASSERT_OK(writer->Append(std::vector{3.0F}));
  ASSERT_OK(writer->Append(std::vector{0.5F, 1.01171875F}));
  ASSERT_OK(writer->Finish());
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
      R"("e":{"dtype":"F32","shape":[0],"data_offsets":[4,4]},)"
      R"("a":{"dtype":"BF16","shape":[3],"data_offsets":[4,10]},)"
      R"("z":{"dtype":"BF16","shape":[1,2],"data_offsets":[10,14]}})";
  const std::string padding(7 - (header.size() + 7) % 8, ' ');
  EXPECT_EQ(Slurp(Path("w")),
            FileOf(header + padding,
                   std::string("\0\0\x80\x3F\x80\xBF\x80\x3F\x40\x40\0\x3F\x82\x3F", 14)));
  const auto file = SafetensorsFile::Open(Path("w"));
  ASSERT_OK(file.status());
  float out[2];
  ASSERT_OK(file->Read(*file->Find("z"), 0, out));
  EXPECT_EQ(out[1], 1.015625F);
  EXPECT_TRUE(absl::IsAlreadyExists(SafetensorsWriter::Create(Path("w"), {}).status()));
}

TEST_F(SafetensorsTest, WriterOfNothing) {
  Write("w", {});
  EXPECT_EQ(Slurp(Path("w")), FileOf(R"({"__metadata__":{"format":"pt"}})"));  // 32 bytes.
}

TEST_F(SafetensorsTest, ShardsAreFilledInOrder) {
  const auto tensor = [](const char* name, uint64_t bytes) {
    return SafetensorsTensor{.name = name, .dtype = kF32, .shape = {bytes / 4}};
  };
  const auto names = [&](uint64_t most) {
    std::string result;
    for (const auto& shard :
         PlanShards({tensor("c", 40), tensor("a", 60), tensor("b", 200), tensor("d", 4)}, most)) {
      for (const SafetensorsTensor& one : shard) result += one.name;
      result += '|';
    }
    return result;
  };
  EXPECT_EQ(names(1000), "cabd|");
  EXPECT_EQ(names(100), "ca|b|d|");
  EXPECT_EQ(names(99), "c|a|b|d|");
  EXPECT_EQ(names(1), "c|a|b|d|");
  EXPECT_EQ(ShardName(0, 1), "model.safetensors");
  EXPECT_EQ(ShardName(1, 12), "model-00002-of-00012.safetensors");
  EXPECT_EQ(ShardIndex({{tensor("c", 40)}, {tensor("a", 60)}}),
            "{\n  \"metadata\": {\n    \"total_size\": 100\n  },\n  \"weight_map\": {\n"
            "    \"a\": \"model-00002-of-00002.safetensors\",\n"
            "    \"c\": \"model-00001-of-00002.safetensors\"\n  }\n}\n");
}

// ---- Directories --------------------------------------------------------------------------------

class ModelDirectoryTest : public SafetensorsTest {
 protected:
  void SetUp() override {
    Write("one.safetensors", {{.name = "a", .shape = {2}}, {.name = "b", .shape = {1}}});
    Write("two.safetensors", {{.name = "c", .shape = {3}}});
  }

  absl::Status OpenIndexed(const std::string& index) {
    Spill(Path("model.safetensors.index.json"), index);
    return SafetensorsModel::Open(directory_.path()).status();
  }
  void ExpectIndexRefused(const std::string& index, const std::string& words) {
    const absl::Status status = OpenIndexed(index);
    EXPECT_TRUE(absl::IsDataLoss(status) || absl::IsNotFound(status)) << status;
    EXPECT_THAT(Message(status), HasSubstr("model.safetensors.index.json"));
    EXPECT_THAT(Message(status), HasSubstr(words));
  }
  void ExpectMapRefused(const std::string& map, const std::string& words) {
    ExpectIndexRefused("{\"weight_map\":{" + map + "}}", words);
  }
};

TEST_F(ModelDirectoryTest, OneFileOrShards) {
  const absl::Status none = SafetensorsModel::Open(directory_.path()).status();
  EXPECT_TRUE(absl::IsNotFound(none));
  EXPECT_THAT(Message(none), HasSubstr("has neither"));
  Spill(Path("model.safetensors.index.json"),
        R"({"metadata":{"total_size":24,"x":null,"y":"z"},"weight_map":{"a":"one.safetensors",)"
        R"("b":"one.safetensors","c":"two.safetensors"}})");
  const auto model = SafetensorsModel::Open(directory_.path());
  ASSERT_OK(model.status());
  ASSERT_EQ(model->tensors().size(), 3U);
  const SafetensorsModel::Place& c = model->tensors().at("c");
  float out[3];
  ASSERT_OK(c.file->Read(*c.tensor, 0, out));
  EXPECT_EQ(out[2], 1.5F);
  Write("model.safetensors", {{.name = "a", .shape = {2}}});
  EXPECT_THAT(Message(SafetensorsModel::Open(directory_.path()).status()), HasSubstr("has both"));
  ASSERT_EQ(::unlink(Path("model.safetensors.index.json").c_str()), 0);
  const auto single = SafetensorsModel::Open(directory_.path());
  ASSERT_OK(single.status());
  EXPECT_EQ(single->tensors().size(), 1U);
}

TEST_F(ModelDirectoryTest, NamesDoNotLeaveTheDirectory) {
  for (const char* name :
       {"../one.safetensors", "/etc/passwd", "sub/one.safetensors", "..", "..safetensors",
        "one.bin", "", ".safetensors", "one.safetensors\\u0000.safetensors", "a\\\\b.safetensors"})
    ExpectMapRefused(fmt::format(R"("a":"{}")", name), "files *.safetensors of the same directory");
}

TEST_F(ModelDirectoryTest, IndexAndShardsAgree) {
  const std::string a = R"("a":"one.safetensors")", b = R"("b":"one.safetensors")",
                    c = R"("c":"two.safetensors")";
  ASSERT_OK(OpenIndexed("{\"weight_map\":{" + a + "," + b + "," + c + "}}"));
  ExpectMapRefused(a + "," + c, "does not name tensor b");
  ExpectMapRefused(a + "," + b + "," + c + R"(,"d":"two.safetensors")", "tensor d is not in two");
  ExpectMapRefused(a + R"(,"b":"two.safetensors",)" + c, "tensor b is not in two");
  ExpectMapRefused(a + "," + b + R"(,"c":"three.safetensors")", "three.safetensors");
  ExpectMapRefused(a + "," + a, "has \"a\" twice");
  ExpectMapRefused(R"("a":1)", "has a number");
  ExpectMapRefused(R"("a":{})", "has an object");
  ExpectIndexRefused("{}", "has no weight_map");
  ExpectIndexRefused("[]", "has an array");
  ExpectIndexRefused("\"weight_map\"", "has a string");
  ExpectIndexRefused(R"({"weight_map":"x"})", "has a string");
  ExpectIndexRefused(R"({"weight_map":{},"weight_map":{}})", "is there twice");
  ExpectIndexRefused("{", "is not valid JSON");
  ExpectIndexRefused(std::string("{}\0", 3), "a zero byte");
  Write("three.safetensors", {{.name = "a", .shape = {2}}});
  EXPECT_THAT(
      Message(OpenIndexed("{\"weight_map\":{" + a + "," + b + R"(,"a2":"three.safetensors"}})")),
      HasSubstr("tensor a is in"));
}

}  // namespace
}  // namespace perdure
