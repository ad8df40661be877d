#include "runtime/data/indexed_dataset.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <limits>

#include "tests/data/test_files.h"

namespace perdure {
namespace {

using Code = absl::StatusCode;

std::string FromHex(std::string_view hex) {
  std::string bytes;
  std::string digits;
  for (const char c : hex) {
    if (c == ' ' || c == '\n') continue;
    digits.push_back(c);
    if (digits.size() < 2) continue;
    bytes.push_back(static_cast<char>(std::stoi(digits, nullptr, 16)));
    digits.clear();
  }
  return bytes;
}

// Two documents, {1, 2, 3} and {258}, as u16: written by hand from the format's table.
constexpr std::string_view kGoldenIdx = R"(
  4d4d49444944580000
  0100000000000000 08
  0200000000000000 0300000000000000
  03000000 01000000
  0000000000000000 0600000000000000
  0000000000000000 0100000000000000 0200000000000000)";
constexpr std::string_view kGoldenBin = "0100 0200 0300 0201";

std::vector<int32_t> ReadAll(const IndexedDataset& dataset) {
  std::vector<int32_t> tokens(static_cast<size_t>(dataset.tokens()));
  dataset.Read(0, tokens);
  return tokens;
}

TEST(IndexedDatasetWriter, WritesTheFormatByteForByte) {
  const TestFolder folder;
  auto writer = *IndexedDatasetWriter::Create(folder / "new/d", 1024);
  ASSERT_TRUE(writer->AddDocument(std::vector<int32_t>{1, 2, 3}).ok());
  ASSERT_TRUE(writer->AddDocument(std::vector<int32_t>{258}).ok());
  EXPECT_FALSE(std::filesystem::exists(folder / "new/d.bin")) << "before Finish()";
  ASSERT_TRUE(writer->Finish().ok());
  EXPECT_EQ(Bytes(folder / "new/d.idx"), FromHex(kGoldenIdx));
  EXPECT_EQ(Bytes(folder / "new/d.bin"), FromHex(kGoldenBin));
}

TEST(IndexedDatasetWriter, ChoosesTheWidthByMegatronsRule) {
  const TestFolder folder;
  for (const auto& [vocab, width] :
       {std::pair<int64_t, int>{1, 2}, {65499, 2}, {65500, 4}, {100000, 4}}) {
    const std::string prefix = folder / fmt::format("v{}", vocab);
    auto writer = *IndexedDatasetWriter::Create(prefix, vocab);
    const std::vector<int32_t> tokens{0, static_cast<int32_t>(vocab) - 1};
    ASSERT_TRUE(writer->AddDocument(tokens).ok());
    ASSERT_TRUE(writer->Finish().ok());
    auto dataset = *IndexedDataset::Open(prefix);
    EXPECT_EQ(dataset->token_bytes(), width) << vocab;
    EXPECT_EQ(ReadAll(*dataset), tokens);
    EXPECT_EQ(dataset->MaxToken(), vocab - 1);
  }
}

TEST(IndexedDatasetWriter, LeavesNothingWhenDropped) {
  const TestFolder folder;
  {
    auto writer = *IndexedDatasetWriter::Create(folder / "d", 10);
    ASSERT_TRUE(writer->AddDocument(std::vector<int32_t>{1}).ok());
    EXPECT_EQ(folder.entries(), 1u);
  }
  EXPECT_EQ(folder.entries(), 0u);
}

TEST(IndexedDatasetWriter, LeavesNothingWhenANameIsTaken) {
  const TestFolder folder;
  std::filesystem::create_directories(folder / "d.idx/full");
  {
    auto writer = *IndexedDatasetWriter::Create(folder / "d", 10);
    ASSERT_TRUE(writer->AddDocument(std::vector<int32_t>{1}).ok());
    ExpectError(writer->Finish(), Code::kInternal, {"rename", "d.idx"});
  }
  EXPECT_EQ(folder.entries(), 1u);
}

TEST(IndexedDatasetWriter, RefusesWhatItCannotWrite) {
  const TestFolder folder;
  ExpectError(IndexedDatasetWriter::Create("", 10).status(), Code::kInvalidArgument, {"prefix"});
  ExpectError(IndexedDatasetWriter::Create(folder.path() + "/", 10).status(),
              Code::kInvalidArgument, {"prefix"});
  ExpectError(IndexedDatasetWriter::Create(folder / "d", 0).status(), Code::kInvalidArgument,
              {"vocabulary of 0"});
  const std::string file = folder.Write("file", "x");
  EXPECT_FALSE(IndexedDatasetWriter::Create(file + "/d", 10).ok());
  auto writer = *IndexedDatasetWriter::Create(folder / "d", 10);
  ExpectError(writer->AddDocument({}), Code::kInvalidArgument, {"document 0", "empty"});
  ExpectError(writer->AddDocument(std::vector<int32_t>{1, 10}), Code::kInvalidArgument,
              {"id 10", "has 10"});
  ExpectError(writer->AddDocument(std::vector<int32_t>{-1}), Code::kInvalidArgument, {"id -1"});
}

TEST(IndexedDataset, ReadsTheGoldenBytes) {
  const TestFolder folder;
  folder.Write("d.idx", FromHex(kGoldenIdx));
  folder.Write("d.bin", FromHex(kGoldenBin));
  auto dataset = *IndexedDataset::Open(folder / "d");
  EXPECT_EQ(dataset->prefix(), folder / "d");
  EXPECT_EQ(dataset->sequences(), 2);
  EXPECT_EQ(dataset->documents(), 2);
  EXPECT_EQ(dataset->tokens(), 4);
  EXPECT_EQ(dataset->Document(1), (std::pair<int64_t, int64_t>{1, 2}));
  EXPECT_EQ(dataset->SequenceBegin(1), 3);
  EXPECT_EQ(dataset->SequenceBegin(2), 4);
  EXPECT_EQ(dataset->SequenceTokens(0), 3);
  EXPECT_EQ(ReadAll(*dataset), (std::vector<int32_t>{1, 2, 3, 258}));
  std::vector<int32_t> part(2);
  dataset->Read(2, part);
  EXPECT_EQ(part, (std::vector<int32_t>{3, 258}));
  dataset->Read(4, {});
  EXPECT_EQ(dataset->MaxToken(), 258);
}

// An index in pieces, to be spoilt.
struct Parts {
  std::string magic{"MMIDIDX\0\0", 9};
  uint64_t version = 1;
  uint8_t dtype = 8;
  std::vector<int32_t> lengths{3, 1};
  std::vector<int64_t> offsets{0, 6};
  std::vector<int64_t> documents{0, 1, 2};
  std::optional<uint64_t> sequences, entries;  // What the header says, when it lies.
  std::string modes;
  std::string bin = FromHex(kGoldenBin);

  template <typename T>
  static void Put(std::string* out, T value) {
    out->append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  std::string Idx() const {
    std::string out = magic;
    Put(&out, version);
    Put(&out, dtype);
    Put(&out, sequences.value_or(lengths.size()));
    Put(&out, entries.value_or(documents.size()));
    for (const int32_t length : lengths) Put(&out, length);
    for (const int64_t offset : offsets) Put(&out, offset);
    for (const int64_t document : documents) Put(&out, document);
    return out + modes;
  }
  absl::StatusOr<std::unique_ptr<IndexedDataset>> Open(const TestFolder& folder) const {
    folder.Write("d.idx", Idx());
    folder.Write("d.bin", bin);
    return IndexedDataset::Open(folder / "d");
  }
};

TEST(IndexedDataset, ReadsEveryWidth) {
  const TestFolder folder;
  const auto check = [&](uint8_t dtype, auto sample, std::vector<int64_t> values,
                         std::vector<int32_t> expected) {
    Parts parts;
    parts.dtype = dtype;
    parts.lengths = {static_cast<int32_t>(values.size())};
    parts.offsets = {0};
    parts.documents = {0, 1};
    parts.bin.clear();
    for (const int64_t value : values) Parts::Put(&parts.bin, static_cast<decltype(sample)>(value));
    auto dataset = *parts.Open(folder);
    EXPECT_EQ(dataset->token_bytes(), static_cast<int>(sizeof sample));
    EXPECT_EQ(ReadAll(*dataset), expected) << "dtype " << int{dtype};
  };
  check(1, uint8_t{}, {0, 200, 255}, {0, 200, 255});
  check(2, int8_t{}, {0, 127, -1}, {0, 127, -1});
  check(3, int16_t{}, {0, 32767, -5}, {0, 32767, -5});
  check(4, int32_t{}, {0, 2147483647, -7}, {0, 2147483647, -7});
  check(5, int64_t{}, {9, int64_t{1} << 40, -(int64_t{1} << 40)},
        {9, std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::min()});
  check(8, uint16_t{}, {0, 65535}, {0, 65535});
}

TEST(IndexedDataset, ReadsDocumentsOfSeveralSequencesAndOfNone) {
  const TestFolder folder;
  Parts parts;
  parts.lengths = {1, 0, 3};
  parts.offsets = {0, 2, 2};
  parts.documents = {0, 2, 2, 3};
  auto dataset = *parts.Open(folder);
  EXPECT_EQ(dataset->documents(), 3);
  EXPECT_EQ(dataset->Document(0), (std::pair<int64_t, int64_t>{0, 2}));
  EXPECT_EQ(dataset->Document(1), (std::pair<int64_t, int64_t>{2, 2}));
  EXPECT_EQ(dataset->SequenceTokens(1), 0);
  parts.lengths.clear();
  parts.offsets.clear();
  parts.documents = {0};
  parts.bin.clear();
  dataset = *parts.Open(folder);
  EXPECT_EQ(dataset->tokens(), 0);
  EXPECT_EQ(dataset->documents(), 0);
  EXPECT_EQ(dataset->MaxToken(), -1);
}

TEST(IndexedDataset, RefusesASpoiltIndex) {
  struct Case {
    std::string name;
    std::function<void(Parts&)> spoil;
    Code code;
    std::vector<std::string> fragments;
  };
  const std::vector<Case> cases{
      {"magic", [](Parts& p) { p.magic[0] = 'X'; }, Code::kInvalidArgument, {"d.idx", "MMIDIDX"}},
      {"magic's zeros", [](Parts& p) { p.magic[8] = 1; }, Code::kInvalidArgument, {"MMIDIDX"}},
      {"legacy",
       [](Parts& p) { p.magic.assign("TNTIDX\0\0\1", 9); },
       Code::kInvalidArgument,
       {"legacy", "convert"}},
      {"version", [](Parts& p) { p.version = 2; }, Code::kInvalidArgument, {"version 2"}},
      {"dtype 0", [](Parts& p) { p.dtype = 0; }, Code::kInvalidArgument, {"dtype code 0"}},
      {"dtype f64", [](Parts& p) { p.dtype = 6; }, Code::kInvalidArgument, {"dtype code 6"}},
      {"dtype f32", [](Parts& p) { p.dtype = 7; }, Code::kInvalidArgument, {"dtype code 7"}},
      {"dtype 9", [](Parts& p) { p.dtype = 9; }, Code::kInvalidArgument, {"dtype code 9"}},
      {"dtype 255", [](Parts& p) { p.dtype = 255; }, Code::kInvalidArgument, {"dtype code 255"}},
      {"sequences beyond the file",
       [](Parts& p) { p.sequences = 1000; },
       Code::kDataLoss,
       {"1000 sequences"}},
      {"sequences that overflow",
       [](Parts& p) { p.sequences = ~uint64_t{0} / 12 + 2; },
       Code::kDataLoss,
       {"sequences"}},
      {"sequences of all ones",
       [](Parts& p) { p.sequences = ~uint64_t{0}; },
       Code::kDataLoss,
       {"sequences"}},
      {"entries that overflow",
       [](Parts& p) { p.entries = (uint64_t{1} << 61) + 3; },
       Code::kDataLoss,
       {"entries"}},
      {"entries too few", [](Parts& p) { p.entries = 1; }, Code::kDataLoss, {"bytes"}},
      {"no entries", [](Parts& p) { p.entries = 0; }, Code::kDataLoss, {"empty document index"}},
      {"modes",
       [](Parts& p) { p.modes.assign("\0\1", 2); },
       Code::kInvalidArgument,
       {"multimodal"}},
      {"bytes behind", [](Parts& p) { p.modes = "x"; }, Code::kDataLoss, {"83 bytes", "need 82"}},
      {"negative length",
       [](Parts& p) {
         p.lengths = {-1, 5};
       },
       Code::kDataLoss,
       {"sequence 0", "-1"}},
      {"length beyond .bin",
       [](Parts& p) { p.lengths[1] = 2; },
       Code::kDataLoss,
       {"d.bin", "sequence 1"}},
      {"greatest length",
       [](Parts& p) { p.lengths[0] = 2147483647; },
       Code::kDataLoss,
       {"d.bin", "sequence 0"}},
      {"first offset",
       [](Parts& p) {
         p.offsets = {2, 8};
       },
       Code::kDataLoss,
       {"sequence 0", "byte 2"}},
      {"offset decreases",
       [](Parts& p) { p.offsets[1] = 4; },
       Code::kDataLoss,
       {"sequence 1", "byte 4"}},
      {"offset leaves a hole",
       [](Parts& p) { p.offsets[1] = 8; },
       Code::kDataLoss,
       {"sequence 1", "byte 8"}},
      {"offset negative", [](Parts& p) { p.offsets[1] = -6; }, Code::kDataLoss, {"sequence 1"}},
      {"offset is huge",
       [](Parts& p) { p.offsets[1] = int64_t{1} << 62; },
       Code::kDataLoss,
       {"sequence 1"}},
      {".bin is cut", [](Parts& p) { p.bin.resize(7); }, Code::kDataLoss, {"d.bin has 7 bytes"}},
      {".bin is empty", [](Parts& p) { p.bin.clear(); }, Code::kDataLoss, {"d.bin has 0 bytes"}},
      {".bin is longer",
       [](Parts& p) { p.bin += "xx"; },
       Code::kDataLoss,
       {"d.bin has 10 bytes", "byte 8"}},
      {"documents begin late",
       [](Parts& p) {
         p.documents = {1, 1, 2};
       },
       Code::kDataLoss,
       {"entry 0", "is 1"}},
      {"documents decrease",
       [](Parts& p) {
         p.documents = {0, 2, 1};
       },
       Code::kDataLoss,
       {"entry 2", "is 1"}},
      {"documents are negative",
       [](Parts& p) {
         p.documents = {0, -1, 2};
       },
       Code::kDataLoss,
       {"entry 1", "is -1"}},
      {"documents beyond",
       [](Parts& p) {
         p.documents = {0, 1, 3};
       },
       Code::kDataLoss,
       {"entry 2", "is 3"}},
      {"documents end early",
       [](Parts& p) {
         p.documents = {0, 1, 1};
       },
       Code::kDataLoss,
       {"sequence 1 of 2"}},
  };
  const TestFolder folder;
  ASSERT_TRUE(Parts().Open(folder).ok());
  for (const Case& spoilt : cases) {
    SCOPED_TRACE(spoilt.name);
    Parts parts;
    spoilt.spoil(parts);
    const absl::Status status = parts.Open(folder).status();
    EXPECT_EQ(status.code(), spoilt.code) << status;
    for (const std::string& fragment : spoilt.fragments)
      EXPECT_NE(Message(status).find(fragment), std::string::npos)
          << fragment << " is not in: " << Message(status);
  }
}

TEST(IndexedDataset, RefusesAnIndexThatIsCutAnywhere) {
  const TestFolder folder;
  folder.Write("d.bin", FromHex(kGoldenBin));
  const std::string whole = FromHex(kGoldenIdx);
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
    folder.Write("d.idx", whole.substr(0, bytes));
    const absl::Status status = IndexedDataset::Open(folder / "d").status();
    EXPECT_EQ(status.code(), bytes < 9 ? Code::kInvalidArgument : Code::kDataLoss)
        << bytes << ": " << status;
    EXPECT_NE(Message(status).find("d.idx"), std::string::npos);
  }
}

TEST(IndexedDataset, NamesWhatIsMissing) {
  const TestFolder folder;
  ExpectError(IndexedDataset::Open(folder / "none").status(), Code::kNotFound,
              {"none.idx", "perdure data build"});
  folder.Write("d.idx", FromHex(kGoldenIdx));
  ExpectError(IndexedDataset::Open(folder / "d").status(), Code::kNotFound, {"d.bin"});
  ExpectError(IndexedDataset::Open(folder / "d.idx").status(), Code::kNotFound,
              {"without .bin or .idx"});
  std::filesystem::create_directories(folder / "f.idx");
  folder.Write("f.bin", "");
  ExpectError(IndexedDataset::Open(folder / "f").status(), Code::kInvalidArgument,
              {"f.idx", "regular file"});
}

using IndexedDatasetDeathTest = testing::Test;
TEST(IndexedDatasetDeathTest, ReadingBeyondTheEndIsAProgrammersError) {
  const TestFolder folder;
  auto dataset = *Parts().Open(folder);
  std::vector<int32_t> tokens(2);
  EXPECT_DEATH(dataset->Read(3, tokens), "tokens_");
  EXPECT_DEATH(dataset->Document(2), "documents");
}

}  // namespace
}  // namespace perdure
