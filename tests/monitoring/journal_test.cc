#include "monitoring/journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using Json = nlohmann::json;

constexpr char kTimeForm[] =
    "[0-9][0-9][0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]\\.[0-9][0-9][0-9]Z";

class JournalTest : public testing::Test {
 protected:
  JournalTest() : directory_(fmt::format("{}/journal_test.{}", testing::TempDir(), ::getpid())) {
    std::filesystem::create_directories(directory_);
  }
  ~JournalTest() override { std::filesystem::remove_all(directory_); }

  std::vector<std::string> Lines() {
    std::vector<std::string> lines;
    std::ifstream file(path_);
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    return lines;
  }
  std::unique_ptr<Journal> Open() {
    auto journal = Journal::Open(path_);
    EXPECT_TRUE(journal.ok()) << journal.status();
    return *std::move(journal);
  }

  std::string directory_;
  std::string path_ = directory_ + "/journal.jsonl";
};

TEST_F(JournalTest, IsOneObjectALine) {
  ASSERT_TRUE(Open()->Append("start", {{"ranks", 4}, {"why", "new\nline \"quoted\""}}).ok());
  const auto journal = Open();  // A later job goes on.
  ASSERT_TRUE(journal->Append("stop", Json::object()).ok());
  const std::vector<std::string> lines = Lines();
  ASSERT_EQ(lines.size(), 2);
  const Json first = Json::parse(lines[0]), second = Json::parse(lines[1]);
  EXPECT_EQ(first["event"], "start");
  EXPECT_EQ(first["ranks"], 4);
  EXPECT_EQ(first["why"], "new\nline \"quoted\"");
  EXPECT_THAT(first["time"].get<std::string>(), MatchesRegex(kTimeForm));
  EXPECT_EQ(second["event"], "stop");
  EXPECT_EQ(second.size(), 2);
}

// Time and event come first, for people who read the lines.
TEST_F(JournalTest, TimeAndEventComeFirst) {
  ASSERT_TRUE(Open()->Append("commit", {{"a", 1}, {"step", 7}}).ok());
  ASSERT_EQ(Lines().size(), 1);
  EXPECT_THAT(Lines()[0], MatchesRegex(std::string("\\{\"time\":\"") + kTimeForm +
                                       "\",\"event\":\"commit\",\"a\":1,\"step\":7\\}"));
}

// A path or a message of another program may hold any bytes.
TEST_F(JournalTest, InvalidUtf8IsReplaced) {
  ASSERT_TRUE(Open()
                  ->Append("lost", {{"what",
                                     "a\xff\xfe"
                                     "b\xc3"},
                                    {"k\xf0", "v"}})
                  .ok());
  const std::vector<std::string> lines = Lines();
  ASSERT_EQ(lines.size(), 1);
  const Json line = Json::parse(lines[0], nullptr, /*allow_exceptions=*/false);
  ASSERT_TRUE(line.is_object()) << lines[0];
  EXPECT_THAT(line["what"].get<std::string>(), HasSubstr("\xef\xbf\xbd"));  // U+FFFD
  EXPECT_THAT(line["what"].get<std::string>(), HasSubstr("b"));
}

// A crash may tear the last line; what is written afterwards must not be lost with it.
TEST_F(JournalTest, ATornLineDoesNotSpoilTheNext) {
  ASSERT_TRUE(ReplaceFile(path_, "{\"time\":\"x\",\"event\":\"one\"}\n{\"time\":\"2026").ok());
  ASSERT_TRUE(Open()->Append("two", Json::object()).ok());
  const std::vector<std::string> lines = Lines();
  ASSERT_GE(lines.size(), 2);
  EXPECT_EQ(Json::parse(lines.front())["event"], "one");
  const Json last = Json::parse(lines.back(), nullptr, /*allow_exceptions=*/false);
  ASSERT_TRUE(last.is_object()) << lines.back();
  EXPECT_EQ(last["event"], "two");
}

TEST_F(JournalTest, LinesOfSeveralWritersStayWhole) {
  std::vector<std::thread> writers;
  for (int w = 0; w < 3; ++w)
    writers.emplace_back([this, w] {
      const auto journal = Open();
      for (int i = 0; i < 50; ++i)
        EXPECT_TRUE(journal->Append("e", {{"w", w}, {"i", i}, {"x", std::string(300, 'x')}}).ok());
    });
  for (std::thread& writer : writers) writer.join();
  const std::vector<std::string> lines = Lines();
  EXPECT_EQ(lines.size(), 150);
  for (const std::string& line : lines)
    EXPECT_TRUE(Json::parse(line, nullptr, /*allow_exceptions=*/false).is_object()) << line;
}

TEST_F(JournalTest, ErrorsNameThePath) {
  path_ = directory_ + "/missing/journal.jsonl";
  EXPECT_THAT(Message(Journal::Open(path_).status()), HasSubstr(path_));
}

TEST_F(JournalTest, AFullDiskIsAnError) {
  const auto journal = Open();
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit limited{.rlim_cur = 10, .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limited), 0);
  errno = 0;
  const absl::Status torn = journal->Append("a", Json::object());
  const absl::Status refused = journal->Append("b", Json::object());
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_FALSE(refused.ok());
  EXPECT_FALSE(torn.ok());
  EXPECT_THAT(Message(torn), HasSubstr(path_));
  EXPECT_THAT(Message(torn), testing::Not(HasSubstr("Success")));
}

TEST(TimeNow, IsNowInUtc) {
  const absl::Time before = absl::Now() - absl::Milliseconds(1);
  const std::string text = TimeNow();
  const absl::Time after = absl::Now();
  EXPECT_THAT(text, MatchesRegex(kTimeForm));
  absl::Time time;
  std::string error;
  ASSERT_TRUE(absl::ParseTime(absl::RFC3339_full, text, &time, &error)) << error;
  EXPECT_GE(time, before);
  EXPECT_LE(time, after);
}

}  // namespace
}  // namespace perdure
