#include "runtime/data/build.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/data/indexed_dataset.h"
#include "runtime/data/tokenizer.h"
#include "tests/data/sample_text.h"
#include "tests/data/test_files.h"

namespace perdure {
namespace {

using Code = absl::StatusCode;

int64_t Skipped(const BuildSummary& summary, SkipReason reason) {
  return summary.skipped[static_cast<size_t>(reason)];
}

class BuildTest : public testing::Test {
 protected:
  // Text in files whose names are not in the order of their making.
  void WriteTexts(const std::string& folder) {
    const auto& texts = SampleTexts();
    for (size_t i = texts.size(); i-- > 0;)
      folder_.Write(fmt::format("{}/sub{}/t{}.txt", folder, i % 2, i), texts[i]);
  }
  absl::StatusOr<BuildSummary> Build(BuildOptions options) {
    return BuildDataset(options, nullptr);
  }
  std::string Document(const std::string& prefix, const std::string& tokenizer_name,
                       int64_t index) {
    auto dataset = *IndexedDataset::Open(prefix);
    auto tokenizer = *Tokenizer::Open(tokenizer_name);
    const auto [first, last] = dataset->Document(index);
    std::vector<int32_t> ids(
        static_cast<size_t>(dataset->SequenceBegin(last) - dataset->SequenceBegin(first)));
    dataset->Read(dataset->SequenceBegin(first), ids);
    EXPECT_EQ(ids.back(), tokenizer->end_of_document());
    return tokenizer->Decode(ids);
  }

  TestFolder folder_;
};

TEST_F(BuildTest, WritesDocumentsInTheOrderOfTheirPaths) {
  folder_.Write("in/b.txt", "second");
  folder_.Write("in/a/z.html", "<html><p>first</p></html>");
  folder_.Write("in/c.1", ".TH C 1\nthird\n");
  const auto summary =
      Build({.from = {folder_ / "in"}, .tokenizer = "byte", .output = folder_ / "out/d"});
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->files, 3);
  EXPECT_EQ(summary->documents, 3);
  EXPECT_EQ(summary->text_bytes, 6 + 7 + 12);
  EXPECT_EQ(summary->tokens, summary->text_bytes + 3);
  EXPECT_EQ(summary->vocab, 257);
  EXPECT_EQ(summary->token_bytes, 2);
  EXPECT_EQ(summary->outputs,
            (std::vector<std::string>{folder_ / "out/d.bin", folder_ / "out/d.idx"}));
  EXPECT_EQ(Document(folder_ / "out/d", "byte", 0), "first\n");
  EXPECT_EQ(Document(folder_ / "out/d", "byte", 1), "second\n");
  EXPECT_EQ(Document(folder_ / "out/d", "byte", 2), "C(1)\n\nthird\n");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_ / "out"), {}), 2);
}

TEST_F(BuildTest, CountsWhatItSkips) {
  folder_.Write("in/good.txt", "text");
  folder_.Write("in/same.txt", "text\n");
  folder_.Write("in/copyright", "GPL");
  folder_.Write("in/.hidden/inside.txt", "never seen");
  folder_.Write("in/empty", "");
  folder_.Write("in/latin", "caf\xe9");
  folder_.Write("in/nul", std::string("a\0b", 3));
  folder_.Write("in/bad.gz",
                "\x1f\x8b"
                "bad");
  std::filesystem::create_symlink("good.txt", folder_ / "in/link.txt");
  std::filesystem::create_directory_symlink("..", folder_ / "in/loop");
  ASSERT_EQ(::mkfifo((folder_ / "in/fifo").c_str(), 0600), 0);
  const auto summary =
      Build({.from = {folder_ / "in"}, .tokenizer = "byte", .output = folder_ / "d"});
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->documents, 1);
  EXPECT_EQ(summary->files, 6);
  EXPECT_EQ(Skipped(*summary, SkipReason::kByName), 2);
  EXPECT_EQ(Skipped(*summary, SkipReason::kNotRegular), 3);
  EXPECT_EQ(Skipped(*summary, SkipReason::kDuplicate), 1);
  EXPECT_EQ(Skipped(*summary, SkipReason::kEmpty), 1);
  EXPECT_EQ(Skipped(*summary, SkipReason::kNotUtf8), 1);
  EXPECT_EQ(Skipped(*summary, SkipReason::kBinary), 1);
  EXPECT_EQ(Skipped(*summary, SkipReason::kDamagedGzip), 1);
}

TEST_F(BuildTest, CountsWhatItMayNotRead) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may read everything";
  folder_.Write("in/good.txt", "text");
  ::chmod(folder_.Write("in/secret.txt", "text").c_str(), 0);
  folder_.Write("in/closed/x.txt", "text");
  ::chmod((folder_ / "in/closed").c_str(), 0);
  const auto summary =
      Build({.from = {folder_ / "in"}, .tokenizer = "byte", .output = folder_ / "d"});
  ::chmod((folder_ / "in/closed").c_str(), 0700);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(Skipped(*summary, SkipReason::kUnreadable), 2);
}

TEST_F(BuildTest, SkipsAFileThatGrewTooLarge) {
  folder_.Write("in/good.txt", "text");
  const std::string large = folder_.Write("in/large.txt", "");
  ASSERT_EQ(::truncate(large.c_str(), static_cast<off_t>(kDocumentBytesMax) + 1), 0);  // Sparse.
  const auto summary =
      Build({.from = {folder_ / "in"}, .tokenizer = "byte", .output = folder_ / "d"});
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(Skipped(*summary, SkipReason::kTooLarge), 1);
}

TEST_F(BuildTest, TrainsATokenizerThatALaterBuildUses) {
  WriteTexts("in");
  const auto trained =
      Build({.from = {folder_ / "in"}, .tokenizer = "sentencepiece:400", .output = folder_ / "d"});
  ASSERT_TRUE(trained.ok()) << trained.status();
  EXPECT_EQ(trained->vocab, 400);
  EXPECT_EQ(trained->model, folder_ / "d.model");
  EXPECT_EQ(trained->training_bytes, trained->text_bytes);
  EXPECT_EQ(trained->documents, 5);
  EXPECT_LT(trained->tokens, trained->text_bytes);
  EXPECT_EQ(Document(folder_ / "d", folder_ / "d.model", 0), SampleTexts()[0])
      << "sub0/t0.txt comes first";
  EXPECT_EQ(Document(folder_ / "d", folder_ / "d.model", 3), SampleTexts()[1])
      << "sub1/t1.txt comes fourth";
  const auto given =
      Build({.from = {folder_ / "in"}, .tokenizer = folder_ / "d.model", .output = folder_ / "e"});
  ASSERT_TRUE(given.ok()) << given.status();
  EXPECT_EQ(given->model, "");
  EXPECT_EQ(Bytes(folder_ / "e.bin"), Bytes(folder_ / "d.bin"));
  EXPECT_EQ(Bytes(folder_ / "e.idx"), Bytes(folder_ / "d.idx"));
}

TEST_F(BuildTest, IsDeterministicWhereverTheTextLies) {
  WriteTexts("one");
  WriteTexts("elsewhere/two");
  ASSERT_TRUE(
      Build({.from = {folder_ / "one"}, .tokenizer = "sentencepiece:400", .output = folder_ / "d"})
          .ok());
  ASSERT_TRUE(Build({.from = {folder_ / "elsewhere/two"},
                     .tokenizer = "sentencepiece:400",
                     .output = folder_ / "e"})
                  .ok());
  for (const char* ending : {".bin", ".idx", ".model"})
    EXPECT_EQ(Bytes(folder_ / "d" + ending), Bytes(folder_ / "e" + ending));
}

TEST_F(BuildTest, TrainsOnABoundedSample) {
  // A document counts with its first megabyte, and ten megabytes are enough.
  for (size_t i = 0; i < 12; ++i) {
    std::string text = fmt::format("document {}\n", i);
    while (text.size() < 1'100'000) text += SampleTexts()[i % 5];
    folder_.Write(fmt::format("in/{}.txt", i), text);
  }
  const auto summary =
      Build({.from = {folder_ / "in"}, .tokenizer = "sentencepiece:400", .output = folder_ / "d"});
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_GE(summary->training_bytes, 10'000'000);
  EXPECT_LE(summary->training_bytes, 11'000'000);
  EXPECT_GT(summary->text_bytes, 12 * 1'100'000);
}

TEST_F(BuildTest, ReplacesOnlyWhenForced) {
  folder_.Write("in/a.txt", "text");
  const BuildOptions options{
      .from = {folder_ / "in"}, .tokenizer = "byte", .output = folder_ / "d"};
  folder_.Write("d.idx", "something of mine");
  ExpectError(Build(options).status(), Code::kAlreadyExists, {"d.idx", "--force"});
  EXPECT_EQ(Bytes(folder_ / "d.idx"), "something of mine");
  BuildOptions forced = options;
  forced.force = true;
  EXPECT_TRUE(Build(forced).ok());
  EXPECT_TRUE(IndexedDataset::Open(folder_ / "d").ok());
  ExpectError(Build(options).status(), Code::kAlreadyExists, {"d.bin"});
  std::filesystem::create_directories(folder_ / "f.bin");
  forced.output = folder_ / "f";
  ExpectError(Build(forced).status(), Code::kInvalidArgument, {"f.bin", "folder"});
}

TEST_F(BuildTest, LeavesNothingWhenInterrupted) {
  WriteTexts("in");
  for (const char* tokenizer : {"byte", "sentencepiece:400"}) {
    for (int calls = 0; calls < 11; ++calls) {
      int left = calls;
      const auto summary =
          BuildDataset({.from = {folder_ / "in"}, .tokenizer = tokenizer, .output = folder_ / "d"},
                       [&](const BuildProgress& progress) {
                         EXPECT_EQ(progress.files, 5);
                         return left-- > 0;
                       });
      if (summary.ok()) {
        EXPECT_EQ(calls, std::string(tokenizer) == "byte" ? 5 : 99);
        for (const std::string& path : summary->outputs) std::filesystem::remove(path);
        break;
      }
      ExpectError(summary.status(), Code::kAborted, {"of 5 files"});
      EXPECT_EQ(folder_.entries(), 1u) << "only the text";
    }
  }
}

TEST_F(BuildTest, NamesWhatIsWrong) {
  folder_.Write("in/a.txt", "too little text");
  folder_.Write("nothing/copyright", "GPL");
  const auto status = [&](std::vector<std::string> from, const std::string& tokenizer,
                          const std::string& output) {
    return Build({.from = std::move(from), .tokenizer = tokenizer, .output = output}).status();
  };
  const std::string in = folder_ / "in", out = folder_ / "d";
  ExpectError(status({}, "byte", out), Code::kInvalidArgument, {"--from"});
  ExpectError(status({in, folder_ / "none"}, "byte", out), Code::kNotFound,
              {"none", "does not exist"});
  ExpectError(status({"/dev/null"}, "byte", out), Code::kInvalidArgument, {"/dev/null", "neither"});
  ExpectError(status({folder_ / "nothing"}, "byte", out), Code::kInvalidArgument,
              {"no text", "1 by_name"});
  for (const char* bad :
       {"sentencepiece:", "sentencepiece:x", "sentencepiece:12x", "sentencepiece:0",
        "sentencepiece:-5", "sentencepiece:99999999999999999999"})
    ExpectError(status({in}, bad, out), Code::kInvalidArgument, {bad, "sentencepiece:1024"});
  ExpectError(status({in}, "sentencepiece:1024", out), Code::kInvalidArgument,
              {"too large for this text"});
  ExpectError(status({in}, "sentencepiece:200", out), Code::kInvalidArgument, {"too small"});
  ExpectError(status({folder_ / "nothing"}, "sentencepiece:300", out), Code::kInvalidArgument,
              {"no text"});
  ExpectError(status({in}, folder_ / "none.model", out), Code::kNotFound, {"none.model"});
  ExpectError(status({in}, "byte", folder_ / "in/a.txt/d"), Code::kInvalidArgument,
              {"a.txt", "not a directory"});
  ExpectError(status({in}, "byte", ""), Code::kInvalidArgument, {"prefix"});
  EXPECT_EQ(folder_.entries(), 2u) << "only the text";
}

}  // namespace
}  // namespace perdure
