#include "ckpt/convert/torch_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <bit>
#include <cmath>
#include <filesystem>
#include <limits>

#include "ckpt/convert/foreign_file.h"
#include "ckpt/convert/torch_writer.h"
#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"
#include "tests/convert/torch_fixtures.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class TypesTest : public testing::Test {
 protected:
  void SetUp() override {
    auto file = TorchFile::Open(TorchFixture("types.pt"));
    ASSERT_TRUE(file.ok()) << file.status();
    file_ = std::make_unique<TorchFile>(std::move(*file));
  }
  PickleView Get(const char* key) {
    const auto value = file_->root().Get(key);
    EXPECT_TRUE(value.ok()) << value.status();
    return *value;
  }
  std::vector<float> Floats(const char* key) {
    const auto tensor = file_->Tensor(Get(key));
    EXPECT_TRUE(tensor.ok()) << tensor.status();
    std::vector<float> values(static_cast<size_t>(tensor->size()));
    EXPECT_OK(ReadTorchFloats(file_->file(), *tensor, 0, values));
    // The same by single elements.
    for (size_t i = 0; i < values.size(); ++i) {
      float value = 0;
      EXPECT_OK(ReadTorchFloats(file_->file(), *tensor, static_cast<int64_t>(i), {&value, 1}));
      EXPECT_EQ(std::bit_cast<uint32_t>(value), std::bit_cast<uint32_t>(values[i]));
    }
    return values;
  }
  std::unique_ptr<TorchFile> file_;
};

TEST_F(TypesTest, Scalars) {
  EXPECT_TRUE(Get("none").IsNone());
  EXPECT_TRUE(*Get("true").Bool());
  EXPECT_FALSE(*Get("false").Bool());
  EXPECT_THAT(*Get("ints").Ints(),
              ElementsAre(0, 255, 256, 65535, 65536, -1, -2147483648LL, 2147483648LL,
                          4611686018427387904LL, std::numeric_limits<int64_t>::min()));
  EXPECT_EQ(*Get("float").Number(), -2.5);
  EXPECT_EQ(*Get("text").String(), "h\xc3\xa9llo");
  EXPECT_EQ(Get("tuples").Items()->size(), 4U);
  EXPECT_EQ(*(*Get("ordered").Get("b")).Int(), 2);
  EXPECT_THAT(*Get("size").Ints(), ElementsAre(2, 3));
  EXPECT_TRUE(Get("dtype").IsGlobal("torch", "bfloat16"));
  EXPECT_EQ(*Get("namespace").Fields("argparse", "Namespace")->Get("x")->Int(), 1);
  // Names of what would be called are all that is left of it.
  EXPECT_EQ(DescribePickle(Get("set").value()), "a call of __builtin__.set");
  EXPECT_EQ(DescribePickle(Get("bytes").value()), "a call of _codecs.encode");
}

TEST_F(TypesTest, TensorsBecomeFp32Exactly) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const std::vector<float> f32 = Floats("f32");
  EXPECT_THAT(f32, ElementsAre(1.5F, 0.0F, kInf, 1e-45F));
  EXPECT_TRUE(std::signbit(f32[1]));
  EXPECT_THAT(Floats("bf16"), ElementsAre(1.5F, std::bit_cast<float>(0xFF620000U),
                                          std::bit_cast<float>(0x00010000U)));
  EXPECT_THAT(Floats("f16"), ElementsAre(1.5F, -65504.0F, 0x1p-24F, -kInf));
  EXPECT_THAT(Floats("scalar"), ElementsAre(120.0F));
  EXPECT_THAT(Floats("empty"), ElementsAre());
  EXPECT_THAT(Floats("parameter"), ElementsAre(1.0F, 1.0F));
}

TEST_F(TypesTest, Views) {
  EXPECT_THAT(Floats("part"), ElementsAre(5, 6, 7, 8));
  EXPECT_THAT(Floats("columns"), ElementsAre(1, 3, 7, 9, 13, 15, 19, 21));
  EXPECT_THAT(Floats("expanded"), ElementsAre(3, 3, 3, 3, 3));
  const std::vector<float> transposed = Floats("transposed");
  for (size_t i = 0; i < 24; ++i) EXPECT_EQ(transposed[i], static_cast<float>(i % 4 * 6 + i / 4));
}

TEST_F(TypesTest, Integers) {
  EXPECT_EQ(*file_->Integer(Get("i64")), 7);
  EXPECT_EQ(*file_->Integer(Get("scalar")), 120);
  EXPECT_THAT(Message(file_->Integer(Get("part")).status()), HasSubstr("one element was expected"));
  EXPECT_THAT(Message(file_->Integer(Get("text")).status()), HasSubstr("types.pt.text is the str"));
  const auto f64 = file_->Tensor(Get("f64"));
  float value = 0;
  EXPECT_THAT(Message(ReadTorchFloats(file_->file(), *f64, 0, {&value, 1})),
              HasSubstr("a tensor of float64; float32, bfloat16 and float16 are read"));
}

// Strides so large that a row is read in several pieces.
TEST(StridedTest, LargeTransposedMatrix) {
  const TestDirectory directory;
  const std::string path = directory.path() + "/f";
  const int64_t rows = 3000, cols = 1500;
  std::vector<float> values(static_cast<size_t>(rows * cols));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  Spill(path, std::string(reinterpret_cast<char*>(values.data()), values.size() * sizeof(float)));
  const auto file = OpenForeignFile(path);
  ASSERT_TRUE(file.ok());
  const TorchTensor tensor{.shape = {cols, rows}, .stride = {1, cols}};
  std::vector<float> got(static_cast<size_t>(2 * rows + 7));
  ASSERT_OK(ReadTorchFloats(*file, tensor, rows - 3, got));
  for (size_t i = 0; i < got.size(); ++i) {
    const int64_t position = rows - 3 + static_cast<int64_t>(i);
    ASSERT_EQ(got[i], values[static_cast<size_t>(position % rows * cols + position / rows)]) << i;
  }
}

class TorchWriterTest : public testing::Test {
 protected:
  TestDirectory directory_;
  std::string path_ = directory_.path() + "/x.pt";
};

TEST_F(TorchWriterTest, WhatIsWrittenIsRead) {
  auto file = CreateExportFile(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  const TorchDict root = {{{std::string("a")}, {TorchFloats{{2, 3}}}},
                          {{std::string("n")}, {int64_t{-5}}},
                          {{std::string("l")}, {TorchList{{2.5}, {true}, {}, {std::string("s")}}}},
                          {{std::string("b")}, {TorchFloats{{}}}}};
  auto writer = TorchWriter::Begin(*file, 0, {root});
  ASSERT_TRUE(writer.ok()) << writer.status();
  const float values[] = {1, 2, 3, 4, 5, 6}, scalar = 7;
  ASSERT_OK(writer->Write(0, 4, {values + 4, 2}));  // Not in order: the CRC is made at the end.
  ASSERT_OK(writer->Write(0, 0, {values, 4}));
  ASSERT_OK(writer->Write(1, 0, {&scalar, 1}));
  const auto bytes = writer->Finish();
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_EQ(*bytes, std::filesystem::file_size(path_));

  const auto torch = TorchFile::Open(path_);
  ASSERT_TRUE(torch.ok()) << torch.status();
  for (const ZipRecord& record : torch->zip().records()) {
    EXPECT_OK(VerifyZipRecord(torch->file(), record, "x"));
    EXPECT_EQ(record.offset % 64, 0U);
  }
  const auto tensor = torch->Tensor(*torch->root().Get("a"));
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  EXPECT_THAT(tensor->shape, ElementsAre(2, 3));
  float got[6] = {};
  ASSERT_OK(ReadTorchFloats(torch->file(), *tensor, 0, got));
  EXPECT_THAT(got, ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_EQ(*torch->root().Get("n")->Int(), -5);
  EXPECT_EQ(torch->root().Get("l")->Items()->size(), 4U);
  EXPECT_EQ(*torch->Integer(*torch->root().Get("b")), 7);
}

TEST_F(TorchWriterTest, NothingIsWrittenOver) {
  Spill(path_, "mine");
  EXPECT_EQ(WriteTorchFile(path_, {int64_t{1}}).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(MakeExportDirectory(directory_.path()).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_OK(MakeExportDirectory(directory_.path() + "/new/er"));
  EXPECT_OK(MakeExportDirectory(directory_.path() + "/new/er"));
}

class BadFileTest : public testing::Test {
 protected:
  std::string Error(const std::string& bytes) {
    const std::string path = directory_.path() + "/" + std::to_string(count_++) + ".pt";
    Spill(path, bytes);
    const auto file = TorchFile::Open(path);
    return file.ok() ? "none" : Message(file.status());
  }
  TestDirectory directory_;
  int count_ = 0;
  const std::string bytes_ = Slurp(TorchFixture("types.pt"));
};

TEST_F(BadFileTest, WhatIsNoFileOfTorch) {
  EXPECT_THAT(Error(""), HasSubstr("has 0 bytes: truncated"));
  EXPECT_THAT(Error("\x80\x02\x8a\x0al\xfc\x9c"), HasSubstr("before torch 1.6"));
  EXPECT_THAT(Error("\x93NUMPY"), HasSubstr("is not a file of torch.save"));
  EXPECT_EQ(TorchFile::Open(directory_.path() + "/none").status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(TorchFile::Open(directory_.path()).status().code(), absl::StatusCode::kInvalidArgument);
  const std::string pipe = directory_.path() + "/pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(TorchFile::Open(pipe).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(BadFileTest, DamagedPickleShowsInItsCrc) {
  std::string bytes = bytes_;
  const size_t at = bytes.find("namespace");
  ASSERT_NE(at, bytes.npos);
  bytes[at] = 'N';
  EXPECT_THAT(Error(bytes), HasSubstr("data.pkl differs from its CRC"));
}

// Files whose tensors are not what they say.
class BadTensorTest : public testing::Test {
 protected:
  // Of a file whose pickle is a tensor with these parts, over a storage of 24 bytes.
  std::string Error(const std::string& id, const std::string& view) {
    const std::string code =
        "\x80\x02"
        "ctorch._utils\n_rebuild_tensor_v2\n((" +
        id + "tQ" + view + "tR.";
    const std::string path = directory_.path() + "/" + std::to_string(count_++) + ".pt";
    Spill(path, MakeZip({{"a/data.pkl", code}, {"a/data/0", std::string(24, '\1')}}));
    const auto file = TorchFile::Open(path);
    if (!file.ok()) return Message(file.status());
    const auto tensor = file->Tensor(file->root());
    return tensor.ok() ? "none" : Message(tensor.status());
  }
  static std::string Text(const std::string& text) {
    return std::string("\x8c") + static_cast<char>(text.size()) + text;
  }
  static std::string Storage(const std::string& type, const std::string& key, char count) {
    return Text("storage") + "ctorch\n" + type + "\n" + Text(key) + Text("cpu") + "K" + count;
  }
  const std::string id_ = Storage("FloatStorage", "0", 6);
  const std::string offset_ = std::string("K\0", 2);

  TestDirectory directory_;
  int count_ = 0;
};

TEST_F(BadTensorTest, StoragesThatAreRefused) {
  const std::string view = offset_ + "K\6\x85K\1\x85";
  EXPECT_EQ(Error(id_, view), "none");
  EXPECT_THAT(Error(Storage("FloatStorage", "1", 6), view), HasSubstr("no record data/1"));
  EXPECT_THAT(Error(Storage("FloatStorage", "0", 5), view),
              HasSubstr("data/0 has 24 bytes; 5 elements of float32"));
  EXPECT_THAT(Error(Storage("DoubleStorage", "0", 6), view), HasSubstr("6 elements of float64"));
  EXPECT_THAT(Error(Storage("UntypedStorage", "0", 6), view),
              HasSubstr("torch.UntypedStorage: no type of storage"));
  EXPECT_THAT(Error(Text("module") + id_.substr(9), view), HasSubstr("\"storage\" was expected"));
  EXPECT_THAT(Error(Text("storage"), view), HasSubstr("a storage's id has five parts"));
}

TEST_F(BadTensorTest, ViewsThatLeaveTheStorage) {
  for (const std::string& view :
       {offset_ + "K\7\x85K\1\x85", std::string("K\1") + "K\6\x85K\1\x85",
        offset_ + "K\3\x85K\3\x85", offset_ + "J\xff\xff\xff\xff\x85K\1\x85",
        offset_ + "K\2\x85J\xff\xff\xff\xff\x85",
        std::string("J\xff\xff\xff\xff") + "K\6\x85K\1\x85", offset_ + "K\7K\1\x86K\1K\1\x86",
        offset_ + "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85K\1\x85",
        offset_ + "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85\x8a\x08\xff\xff\xff\xff\xff\xff\xff"
                  "\x7f\x85"})
    EXPECT_THAT(Error(id_, view), HasSubstr("leave a storage of 6"));
  EXPECT_THAT(Error(id_, offset_ + "K\6\x85K\1K\1\x86"), HasSubstr("1 extents and 2 strides"));
  EXPECT_THAT(Error(id_, offset_ + "NK\1\x85"), HasSubstr("is None: a tuple or a list"));
  EXPECT_EQ(Error(id_, offset_ + std::string("K\0\x85", 3) + "K\1\x85"), "none");
}

TEST_F(BadTensorTest, RecordsBesideThePickle) {
  const std::string pickle = "\x80\x02N.";
  const auto error = [&](const std::vector<std::pair<std::string, std::string>>& records) {
    const std::string path = directory_.path() + "/" + std::to_string(count_++) + ".pt";
    Spill(path, MakeZip(records));
    const auto file = TorchFile::Open(path);
    return file.ok() ? "none" : Message(file.status());
  };
  EXPECT_EQ(error({{"a/data.pkl", pickle}, {"a/version", "3\n"}, {"a/byteorder", "little"}}),
            "none");
  EXPECT_THAT(error({{"a/data.pkl", pickle}, {"a/byteorder", "big"}}),
              HasSubstr("byteorder says \"big\""));
  EXPECT_THAT(error({{"a/data.pkl", pickle}, {"a/version", "9\n"}}),
              HasSubstr("version says \"9\""));
  EXPECT_THAT(error({{"a/version", "3\n"}}), HasSubstr("has no data.pkl"));
  EXPECT_THAT(error({{"a/data.pkl", pickle}, {"b/version", "3\n"}}),
              HasSubstr("not in one folder"));
  EXPECT_THAT(error({{"data.pkl", pickle}}), HasSubstr("not in one folder"));
}

}  // namespace
}  // namespace perdure
