#include "launch/node_book.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

const absl::Time kNow = absl::FromUnixSeconds(1'800'000'000);

EvidenceEntry Lost(const std::string& node, Generation generation, absl::Time time = kNow) {
  return {.node = node,
          .time = time,
          .kind = EvidenceKind::kNodeLost,
          .generation = generation,
          .job = "12"};
}

class NodeBookTest : public testing::Test {
 protected:
  NodeBookTest()
      : run_(fs::temp_directory_path() / ("perdure_node_book_" + std::to_string(::getpid()))),
        book_(run_) {
    fs::remove_all(run_);
    fs::create_directory(run_);
  }
  ~NodeBookTest() override { fs::remove_all(run_); }

  NodeBook::Contents Read(const EvidenceBook::Options& options = {}) const {
    absl::StatusOr<NodeBook::Contents> contents = book_.Read(options);
    EXPECT_TRUE(contents.ok()) << contents.status();
    return contents.ok() ? *std::move(contents) : NodeBook::Contents{EvidenceBook({}), -1};
  }
  std::vector<std::string> Excluded(absl::Time now = kNow) const {
    std::vector<std::string> names;
    for (const EvidenceBook::Verdict& verdict : Read().book.Excluded(now))
      names.push_back(verdict.node);
    return names;
  }
  void Write(const std::string& file, const std::string& text) const {
    fs::create_directories((fs::path(run_) / file).parent_path());
    std::ofstream(run_ + "/" + file, std::ios::binary) << text;
  }

  const std::string run_;
  const NodeBook book_;
};

TEST_F(NodeBookTest, ARunWithoutOneKnowsNothing) {
  const NodeBook::Contents contents = Read();
  EXPECT_THAT(contents.book.Entries(), testing::IsEmpty());
  EXPECT_EQ(contents.passed_over, 0);
  EXPECT_FALSE(fs::exists(run_ + "/nodes")) << "reading makes nothing";
}

TEST_F(NodeBookTest, WhatIsAppendedIsReadBack) {
  EvidenceEntry odd = Lost("n2", 7, kNow + absl::Milliseconds(123));
  odd.kind = EvidenceKind::kDeviceError;
  odd.number = -79;
  odd.detail = "Xid \"79\", \xC3\xBC";
  ASSERT_EQ(book_.Append("8-0", odd), absl::OkStatus());
  ASSERT_EQ(book_.Append("8-0", Lost("n1", 3)), absl::OkStatus());
  ASSERT_EQ(book_.Append("9-1", Lost("n1", 4)), absl::OkStatus());
  EXPECT_EQ(Read().book.Entries(), (std::vector<EvidenceEntry>{Lost("n1", 3), Lost("n1", 4), odd}));
  EXPECT_EQ(Read().passed_over, 0);
  EXPECT_EQ(Excluded(), std::vector<std::string>{"n1"}) << "lost in two generations";
}

TEST_F(NodeBookTest, ATornLineIsPassedOverAndSpoilsNoOther) {
  ASSERT_EQ(book_.Append("8-0", Lost("n1", 3)), absl::OkStatus());
  const std::string path = run_ + "/nodes/seen/8-0.jsonl";
  const std::string whole = ReadFile(path).value();
  // At every byte; with all but its end it is still torn.
  for (size_t length = 1; length < whole.size(); ++length) {
    Write("nodes/seen/8-0.jsonl", whole + whole.substr(0, length));
    EXPECT_EQ(Read().passed_over, 1) << length;
    EXPECT_EQ(Read().book.Entries().size(), 1U) << length;
    ASSERT_EQ(book_.Append("8-0", Lost("n2", 4)), absl::OkStatus());
    EXPECT_EQ(Read().book.Entries().back(), Lost("n2", 4)) << length;
  }
}

TEST_F(NodeBookTest, HostileLinesArePassedOverAndCounted) {
  const std::string good = EvidenceLine(Lost("n1", 3));
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string line = good;
    return line.replace(line.find(from), from.size(), to);
  };
  const std::vector<std::string> lines = {
      "no json",
      "[]",
      "{}",
      std::string(100000, '['),
      std::string("\0\0\0", 3),
      "\xFF\xFE",
      with("\"n1\"", "\"-n1\""),
      with("\"n1\"", "\"n1,n2\""),
      with("\"n1\"", "\"" + std::string(256, 'n') + "\""),
      with("\"n1\"", "7"),
      with("\"node-lost\"", "\"node-found\""),
      with("\"node-lost\"", "3"),
      with("\"generation\":3", "\"generation\":-3"),
      with("\"generation\":3", "\"generation\":1.5"),
      with("\"generation\":3", "\"generation\":1e400"),
      with("\"number\":0", "\"number\":18446744073709551615"),
      with("\"number\":0", "\"number\":null"),
      with("\"job\":\"12\"", "\"job\":12"),
      with("2027", "never"),
      with("\"time\":\"2027", "\"time\":\"infinite-future\",\"x\":\""),
      with("\"detail\":\"\"", "\"detail\":\"" + std::string(NodeBook::kLineBytesMax, 'x') + "\""),
  };
  std::string text = good + "\n\n";
  for (const std::string& line : lines) text += line + "\n";
  Write("nodes/seen/1-0.jsonl", text + good + "\n");
  const NodeBook::Contents contents = Read();
  EXPECT_EQ(contents.passed_over, std::ssize(lines));
  EXPECT_EQ(contents.book.Entries(), std::vector<EvidenceEntry>{Lost("n1", 3)});
  for (const std::string& line : lines) EXPECT_FALSE(ParseEvidenceLine(line).ok()) << line;
}

TEST_F(NodeBookTest, HostileFilesArePassedOverAndCounted) {
  ASSERT_EQ(book_.Append("8-0", Lost("n1", 3)), absl::OkStatus());
  Write("elsewhere", EvidenceLine(Lost("n2", 3)) + "\n");
  const std::string seen = run_ + "/nodes/seen/";
  fs::create_symlink(run_ + "/elsewhere", seen + "link.jsonl");
  fs::create_directory(seen + "folder.jsonl");
  ASSERT_EQ(::mkfifo((seen + "pipe.jsonl").c_str(), 0600), 0);
  Write("nodes/seen/8-1.jsonl.tmp.77.0", EvidenceLine(Lost("n3", 3)) + "\n");  // In the making.
  Write("nodes/pins/n5 n6", "");
  Write("nodes/pins/.n5", "");
  const NodeBook::Contents contents = Read();
  EXPECT_EQ(contents.passed_over, 5);
  EXPECT_EQ(contents.book.Entries(), std::vector<EvidenceEntry>{Lost("n1", 3)});
  EXPECT_THAT(contents.book.pins(), testing::IsEmpty());
}

TEST_F(NodeBookTest, AFileIsReadUpToItsBoundAndWrittenNoFurther) {
  const std::string line = EvidenceLine(Lost("n1", 3)) + "\n";
  std::string text;
  while (std::ssize(text) + std::ssize(line) <= NodeBook::kFileBytesMax) text += line;
  Write("nodes/seen/8-0.jsonl", text);
  const absl::Status full = book_.Append("8-0", Lost("n1", 4));
  EXPECT_TRUE(absl::IsResourceExhausted(full)) << full;
  EXPECT_THAT(Message(full), HasSubstr("node lost is not recorded"));
  EXPECT_EQ(ReadFile(run_ + "/nodes/seen/8-0.jsonl").value(), text);
  Write("nodes/seen/8-0.jsonl", text + line + line);
  EXPECT_EQ(Read().book.Entries(), std::vector<EvidenceEntry>{Lost("n1", 3)});
  EXPECT_EQ(Read().passed_over, 1) << "the line that the bound cuts";
}

TEST_F(NodeBookTest, ManyWriteAtATime) {
  constexpr int kWriters = 8, kEach = 20;
  std::vector<std::thread> writers;
  for (int w = 0; w < kWriters; ++w)
    writers.emplace_back([&, w] {
      for (int i = 0; i < kEach; ++i)
        EXPECT_EQ(book_.Append(fmt::format("{}-{}", 8 + w / 4, w),
                               Lost(fmt::format("n{}", w), static_cast<Generation>(i))),
                  absl::OkStatus());
    });
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(Read().book.Entries().size(), static_cast<size_t>(kWriters * kEach));
  EXPECT_EQ(Read().passed_over, 0);
}

TEST_F(NodeBookTest, EvidenceExpires) {
  ASSERT_EQ(book_.Append("8-0", Lost("n1", 3)), absl::OkStatus());
  ASSERT_EQ(book_.Append("8-0", Lost("n1", 4)), absl::OkStatus());
  const absl::Duration expiry = EvidenceBook::Options{}.likely.expiry;
  EXPECT_EQ(Excluded(kNow + expiry - absl::Seconds(1)), std::vector<std::string>{"n1"});
  EXPECT_THAT(Excluded(kNow + expiry), testing::IsEmpty());
}

TEST_F(NodeBookTest, PinsAreKept) {
  ASSERT_EQ(book_.Append("8-0", Lost("n1", 3)), absl::OkStatus());
  ASSERT_EQ(book_.Append("8-0", Lost("n1", 4)), absl::OkStatus());
  ASSERT_EQ(book_.Pin("n1"), absl::OkStatus());
  ASSERT_EQ(book_.Pin("n1"), absl::OkStatus()) << "again";
  EXPECT_THAT(Excluded(), testing::IsEmpty());
  EXPECT_EQ(Read().book.pins(), std::set<std::string>{"n1"});
  ASSERT_EQ(book_.Unpin("n1"), absl::OkStatus());
  EXPECT_EQ(Excluded(), std::vector<std::string>{"n1"});
  EXPECT_TRUE(absl::IsNotFound(book_.Unpin("n1")));
  for (const std::string name : {"", ".", "..", ".n1", "a/b", "-x"})
    EXPECT_TRUE(absl::IsInvalidArgument(book_.Pin(name))) << name;
  // More than the book takes.
  ASSERT_EQ(book_.Pin("n2"), absl::OkStatus());
  ASSERT_EQ(book_.Pin("n3"), absl::OkStatus());
  const NodeBook::Contents few = Read({.pins_max = 1});
  EXPECT_EQ(few.book.pins(), std::set<std::string>{"n2"});
  EXPECT_EQ(few.passed_over, 1);
}

TEST_F(NodeBookTest, ClearedIsWhatWasKnownThen) {
  EXPECT_TRUE(absl::IsNotFound(book_.Clear("n1", kNow)));
  // Of a clock that is ahead.
  const absl::Time later = kNow + absl::Minutes(5) + absl::Milliseconds(1);
  ASSERT_EQ(book_.Append("8-0", Lost("n1", 3)), absl::OkStatus());
  ASSERT_EQ(book_.Append("8-0", Lost("n1", 4, later)), absl::OkStatus());
  ASSERT_EQ(book_.Append("8-0", Lost("n2", 4)), absl::OkStatus());
  ASSERT_EQ(book_.Clear("n1", kNow), absl::OkStatus());
  EXPECT_THAT(Excluded(later), testing::IsEmpty());
  ASSERT_EQ(book_.Append("8-0", Lost("n1", 5, later + absl::Minutes(1))), absl::OkStatus());
  EXPECT_THAT(Excluded(later + absl::Minutes(2)), testing::IsEmpty());
  ASSERT_EQ(book_.Append("8-0", Lost("n1", 6, later + absl::Minutes(2))), absl::OkStatus());
  EXPECT_EQ(Excluded(later + absl::Minutes(2)), std::vector<std::string>{"n1"});
  ASSERT_EQ(book_.Clear("n1", later + absl::Minutes(2)), absl::OkStatus());
  EXPECT_THAT(Excluded(later + absl::Minutes(3)), testing::IsEmpty());
  EXPECT_EQ(Read().book.Judge(later).nodes.size(), 2U) << "it stays to be read";
}

TEST_F(NodeBookTest, WhatCannotBeWrittenIsSaid) {
  EXPECT_TRUE(absl::IsInvalidArgument(book_.Append("8-0", Lost("", 1))));
  Write("nodes", "no folder");
  EXPECT_THAT(Message(book_.Append("8-0", Lost("n1", 1))), HasSubstr("nodes"));
  EXPECT_FALSE(book_.Pin("n1").ok());
  EXPECT_FALSE(book_.Read({}).ok());
}

}  // namespace
}  // namespace perdure
