#include "runtime/data/tokenizer.h"

#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "runtime/base/random.h"
#include "runtime/data/utf8.h"
#include "tests/data/foreign_model.h"
#include "tests/data/sample_text.h"
#include "tests/data/test_files.h"

namespace perdure {
namespace {

using Code = absl::StatusCode;

constexpr int64_t kVocab = 400;

std::string AllTexts() {
  const auto& texts = SampleTexts();
  return std::accumulate(texts.begin(), texts.end(), std::string());
}

// What tokenizers lose: white space, marks of their own, bytes that are no text.
std::vector<std::string> Awkward() {
  std::vector<std::string> texts = SampleTexts();
  for (const char* text : {"",
                           " ",
                           "  lead and trail  ",
                           "\n",
                           "\n\n\t\n",
                           "a\r\nb",
                           "tab\there",
                           "x  y   z    w",
                           "🙂 👩‍👩‍👧 🇫🇷 é e\u0301",
                           "汉字 かな 한글 العربية עברית",
                           "▁",
                           "a▁b ▁c",
                           "▅",
                           "<s></s><unk><0x0A><0xFF>",
                           "\x01\x02\x7f",
                           "\xff\xfe",
                           "caf\xe9",
                           "\xe2\x96",
                           "\xed\xa0\x80",
                           "\xf4\x90\x80\x80",
                           "\xc0\xaf",
                           "end\xc3"})
    texts.emplace_back(text);
  texts.emplace_back("nul\0in\0side", 10);
  texts.push_back(std::string(70000, 'x') + "\n" + std::string(300, ' '));
  for (uint64_t i = 0; i < 200; ++i) {  // Any bytes.
    std::string bytes;
    for (uint64_t k = 0; k < i % 40; ++k)
      bytes.push_back(static_cast<char>(RandomBits(1, RandomPurpose::kTest, i, k)[0]));
    texts.push_back(bytes);
  }
  return texts;
}

std::unique_ptr<Tokenizer> OpenOrDie(const std::string& name) {
  auto tokenizer = Tokenizer::Open(name);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

TEST(ByteTokenizer, GivesBackEveryByte) {
  const auto tokenizer = OpenOrDie("byte");
  EXPECT_EQ(tokenizer->vocab(), 257);
  EXPECT_EQ(tokenizer->end_of_document(), 256);
  for (const std::string& text : Awkward())
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text)), text);
  EXPECT_EQ(tokenizer->Encode("a\xff"), (std::vector<int32_t>{97, 255}));
  EXPECT_EQ(tokenizer->Decode({104, 105, 256, 257, -1, 33}), "hi\uFFFD\uFFFD!");
}

TEST(Tokenizer, NamesWhatItCannotOpen) {
  const TestFolder folder;
  ExpectError(Tokenizer::Open(folder / "none.model").status(), Code::kNotFound,
              {"none.model", "\"byte\""});
  EXPECT_FALSE(Tokenizer::Open(folder.path()).ok());
  for (const char* bytes : {"", "not a model", "\x0a\x03\x0a"}) {
    const std::string path = folder.Write("bad.model", bytes);
    ExpectError(Tokenizer::Open(path).status(), Code::kInvalidArgument,
                {path, "SentencePiece model"});
  }
}

class SentencePieceTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TestFolder;
    model_ = *folder_ / "t.model";
    ASSERT_TRUE(TrainSentencePiece(SampleTexts(), kVocab, model_).ok());
  }
  static void TearDownTestSuite() { delete folder_; }

  static inline TestFolder* folder_ = nullptr;
  static inline std::string model_;
};

TEST_F(SentencePieceTest, GivesBackEveryText) {
  const auto tokenizer = OpenOrDie(model_);
  EXPECT_EQ(tokenizer->vocab(), kVocab);
  EXPECT_EQ(tokenizer->end_of_document(), 2);
  for (const std::string& text : Awkward()) {
    const std::vector<int32_t> ids = tokenizer->Encode(text);
    EXPECT_EQ(tokenizer->Decode(ids), text);
    for (const int32_t id : ids)
      EXPECT_TRUE(id >= 3 && id < kVocab) << id << ": no <unk>, <s>, </s> out of text";
  }
}

TEST_F(SentencePieceTest, SpendsOneIdOnANewlineAndFewOnWords) {
  const auto tokenizer = OpenOrDie(model_);
  EXPECT_EQ(tokenizer->Encode("\n\n\t").size(), 3u);
  const std::string text = AllTexts();
  EXPECT_LT(tokenizer->Encode(text).size(), text.size() * 2 / 3);
}

TEST_F(SentencePieceTest, DecodesIdsThatMeanNothing) {
  const auto tokenizer = OpenOrDie(model_);
  EXPECT_EQ(tokenizer->Decode({0, -5, static_cast<int32_t>(kVocab), 1, 2}), "\uFFFD\uFFFD\uFFFD");
}

TEST_F(SentencePieceTest, TrainingIsDeterministic) {
  const std::string again = *folder_ / "again.model";
  ASSERT_TRUE(TrainSentencePiece(SampleTexts(), kVocab, again).ok());
  EXPECT_EQ(Bytes(again), Bytes(model_));
}

TEST_F(SentencePieceTest, NamesTheLeastAndTheGreatestVocabulary) {
  const TestFolder folder;
  const std::string path = folder / "x.model";
  const auto train = [&](int64_t vocab) { return TrainSentencePiece(SampleTexts(), vocab, path); };
  const auto number_behind = [](const absl::Status& status, const std::string& words) {
    const size_t at = Message(status).find(words);
    return at == std::string::npos ? -1 : std::stoll(Message(status).substr(at + words.size()));
  };
  const int64_t least = number_behind(train(300), "this text need ");
  // 261 fixed ids; the distinct characters but newline and tab, a few of the rarest left out.
  std::set<std::string> characters;
  const std::string text = AllTexts();
  for (std::string_view rest = text; !rest.empty();) {
    const size_t length = Utf8Length(rest);
    ASSERT_GT(length, 0u);
    characters.emplace(rest.substr(0, length));
    rest.remove_prefix(length);
  }
  EXPECT_GT(least, 300);
  EXPECT_LE(least, 261 + std::ssize(characters) - 2);
  for (const int64_t vocab : {int64_t{-7}, int64_t{0}, int64_t{10}, int64_t{261}, least - 1})
    EXPECT_EQ(number_behind(train(vocab), "this text need "), least) << vocab;
  EXPECT_EQ(train(least - 1).code(), Code::kInvalidArgument);
  EXPECT_TRUE(train(least).ok());
  const absl::Status too_large = train(100000);
  EXPECT_EQ(too_large.code(), Code::kInvalidArgument);
  const int64_t most = number_behind(too_large, "give at most ");
  EXPECT_GT(most, kVocab);
  EXPECT_TRUE(train(most).ok());
  EXPECT_FALSE(train(most + 1).ok());
  ExpectError(train(int64_t{1} << 40), Code::kInvalidArgument, {"too large"});
}

TEST_F(SentencePieceTest, RefusesNoTextAndNoPlace) {
  ExpectError(TrainSentencePiece({}, kVocab, *folder_ / "x.model"), Code::kInvalidArgument,
              {"no text"});
  ExpectError(TrainSentencePiece({"", "\n\n"}, kVocab, *folder_ / "x.model"),
              Code::kInvalidArgument, {"no text"});
  ExpectError(TrainSentencePiece(SampleTexts(), kVocab, *folder_ / "none/x.model"), Code::kNotFound,
              {"none/x.model"});
}

TEST_F(SentencePieceTest, SurvivesDamagedModels) {
  const std::string good = Bytes(model_);
  for (uint64_t i = 0; i < 300; ++i) {
    std::string bytes = good;
    const auto random = RandomBits(2, RandomPurpose::kTest, 0, i);
    if (i % 3 == 0)
      bytes.resize(random[0] % bytes.size());
    else
      bytes[random[0] % bytes.size()] = static_cast<char>(random[1]);
    const std::string path = folder_->Write("damaged.model", bytes);
    const auto tokenizer = Tokenizer::Open(path);
    if (!tokenizer.ok()) continue;
    for (const int32_t id : (*tokenizer)->Encode("Zwölf 🙂\n")) {
      EXPECT_GE(id, 0);
      EXPECT_LT(id, (*tokenizer)->vocab());
    }
  }
}

TEST_F(SentencePieceTest, ReadsModelsThatNormalizeAndAddASpace) {
  std::vector<std::string> lines;
  for (const std::string& text : SampleTexts()) lines.push_back(text.substr(0, text.find('\n')));
  const std::string path = folder_->Write("llama.model", TrainNormalizingModel(lines));
  const auto tokenizer = OpenOrDie(path);
  for (const std::string& line : lines) EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(line)), line);
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode("汉字 🙂")), "汉字 🙂");
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode("ﬁn")), "fin") << "NFKC is that model's will";
}

TEST_F(SentencePieceTest, RefusesAModelWithoutAnEnd) {
  const std::string path =
      folder_->Write("endless.model", TrainModelWithoutEnd({"one line of text", "and another"}));
  ExpectError(Tokenizer::Open(path).status(), Code::kInvalidArgument, {path, "</s>"});
}

}  // namespace
}  // namespace perdure
