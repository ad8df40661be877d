#include "launch/data_command.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "runtime/data/indexed_dataset.h"
#include "tests/data/sample_text.h"
#include "tests/data/test_files.h"
#include "tests/launch/command_in_process.h"

namespace perdure {
namespace {

// As `perdure <arguments>`, in this process.
CommandOutput RunPerdure(std::vector<std::string> arguments) {
  return RunInProcess(AddDataCommand, std::move(arguments));
}

class DataCommandTest : public testing::Test {
 protected:
  void SetUp() override {
    for (size_t i = 0; i < SampleTexts().size(); ++i)
      folder_.Write(fmt::format("in/{}.txt", i), SampleTexts()[i]);
    folder_.Write("in/copyright", "GPL");
  }
  CommandOutput Build(const std::string& tokenizer, const std::string& name,
                      std::vector<std::string> more = {}) {
    std::vector<std::string> arguments{"data",        "build",   "--from", folder_ / "in",
                                       "--tokenizer", tokenizer, "-o",     folder_ / name};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return RunPerdure(arguments);
  }

  TestFolder folder_;
};

TEST_F(DataCommandTest, BuildPrintsASummary) {
  const CommandOutput output = Build("byte", "d");
  EXPECT_EQ(output.exit_code, 0) << output.err;
  for (const char* line : {"files      5\n", "skipped    1 (1 by_name)\n", "documents  5\n",
                           "tokenizer  byte, vocab 257\n", "1.00 bytes of text each, stored in 2"})
    EXPECT_NE(output.out.find(line), std::string::npos) << line << " is not in:\n" << output.out;
  EXPECT_EQ(output.err, "") << "a short build says nothing on the way";
  EXPECT_TRUE(IndexedDataset::Open(folder_ / "d").ok());
}

TEST_F(DataCommandTest, BuildPrintsJson) {
  const CommandOutput output = Build("sentencepiece:400", "d", {"--json"});
  EXPECT_EQ(output.exit_code, 0) << output.err;
  const auto json = nlohmann::json::parse(output.out);
  EXPECT_EQ(json["files"], 5);
  EXPECT_EQ(json["documents"], 5);
  EXPECT_EQ(json["skipped"]["by_name"], 1);
  EXPECT_EQ(json["skipped"]["duplicate"], 0);
  EXPECT_EQ(json["vocab"], 400);
  EXPECT_EQ(json["tokenizer"], folder_ / "d.model");
  EXPECT_EQ(json["outputs"].size(), 3u);
  EXPECT_EQ(json["training_bytes"], json["text_bytes"]);
  EXPECT_GT(json["tokens_per_second"], 0);
}

TEST_F(DataCommandTest, BuildsExitCodes) {
  EXPECT_EQ(Build("byte", "d").exit_code, 0);
  const CommandOutput again = Build("byte", "d");
  EXPECT_EQ(again.exit_code, 2);
  EXPECT_EQ(again.err.find("perdure data build: "), 0u) << again.err;
  EXPECT_NE(again.err.find("--force"), std::string::npos);
  EXPECT_EQ(Build("byte", "d", {"--force"}).exit_code, 0);
  EXPECT_EQ(Build("sentencepiece:3", "e").exit_code, 2);
  EXPECT_EQ(Build("none.model", "e").exit_code, 2);
  EXPECT_EQ(Build("byte", "in/0.txt/e").exit_code, 2) << "no folder";
  EXPECT_EQ(RunPerdure({"data", "build", "--from", folder_ / "none", "--tokenizer", "byte", "-o",
                        folder_ / "e"})
                .exit_code,
            2);
  EXPECT_EQ(RunPerdure({"data", "build"}).exit_code, 2);
  EXPECT_EQ(RunPerdure({"data", "build", "--from", folder_ / "in", "-o", folder_ / "e"}).exit_code,
            2);
  EXPECT_EQ(RunPerdure({"data"}).exit_code, 2);
  EXPECT_EQ(RunPerdure({"data", "frobnicate"}).exit_code, 2);
}

TEST_F(DataCommandTest, BuildTakesSeveralPaths) {
  const CommandOutput output =
      RunPerdure({"data", "build", "--from", folder_ / "in/0.txt", folder_ / "in/1.txt",
                  "--tokenizer", "byte", "-o", folder_ / "d", "--json"});
  EXPECT_EQ(nlohmann::json::parse(output.out)["documents"], 2);
}

TEST_F(DataCommandTest, InspectShowsCountsAndText) {
  ASSERT_EQ(Build("sentencepiece:400", "d").exit_code, 0);
  const CommandOutput output = RunPerdure({"data", "inspect", folder_ / "d"});
  EXPECT_EQ(output.exit_code, 0) << output.err;
  for (const std::string& line : {std::string("documents    5\n"), std::string("token_bytes  2\n"),
                                  "tokenizer    " + (folder_ / "d.model") + ", vocab 400\n",
                                  std::string("--- document 0, 96 tokens from 0\nThe quick brown"),
                                  std::string("--- document 3, ")})
    EXPECT_NE(output.out.find(line), std::string::npos) << line << " is not in:\n" << output.out;
}

TEST_F(DataCommandTest, InspectShowsADocumentAndASample) {
  ASSERT_EQ(Build("byte", "d").exit_code, 0);
  auto json = nlohmann::json::parse(
      RunPerdure({"data", "inspect", folder_ / "d", "--document", "1", "--json"}).out);
  EXPECT_EQ(json["documents"], 5);
  EXPECT_EQ(json["sequences"], 5);
  EXPECT_EQ(json["token_bytes"], 2);
  EXPECT_EQ(json["max_token"], 256);
  EXPECT_EQ(json["vocab"], 257);
  EXPECT_EQ(json["tokenizer"], "byte");
  ASSERT_EQ(json["excerpts"].size(), 1u);
  EXPECT_EQ(json["excerpts"][0]["text"], SampleTexts()[1] + "<end of document>\n");
  EXPECT_EQ(json["excerpts"][0]["first_token"], SampleTexts()[0].size() + 1);
  json = nlohmann::json::parse(
      RunPerdure({"data", "inspect", folder_ / "d", "--sample", "1", "--context", "4", "--json"})
          .out);
  EXPECT_EQ(json["excerpts"][0]["ids"], (std::vector<int>{'q', 'u', 'i', 'c', 'k'}));
  EXPECT_EQ(json["excerpts"][0]["text"], "quick");
}

TEST_F(DataCommandTest, InspectShowsIdsWithoutATokenizer) {
  auto writer = *IndexedDatasetWriter::Create(folder_ / "d", 5000);
  ASSERT_TRUE(writer->AddDocument(std::vector<int32_t>{1, 4999}).ok());
  ASSERT_TRUE(writer->Finish().ok());
  const CommandOutput output = RunPerdure({"data", "inspect", folder_ / "d"});
  EXPECT_EQ(output.exit_code, 0);
  EXPECT_NE(output.out.find("none found"), std::string::npos) << output.out;
  EXPECT_NE(output.out.find("[1,4999]"), std::string::npos) << output.out;
  const auto json =
      nlohmann::json::parse(RunPerdure({"data", "inspect", folder_ / "d", "--json"}).out);
  EXPECT_TRUE(json["tokenizer"].is_null());
  const CommandOutput wrong = RunPerdure({"data", "inspect", folder_ / "d", "--tokenizer", "byte"});
  EXPECT_EQ(wrong.exit_code, 2);
  EXPECT_NE(wrong.err.find("id 4999"), std::string::npos) << wrong.err;
}

TEST_F(DataCommandTest, InspectCannotBeMadeToWriteTerminalControls) {
  folder_.Write("controls/a.txt",
                "a long enough line of text, with \x1b[31mred and \xc2\x9b"
                "31m and \x7f and \t tab");
  ASSERT_EQ(RunPerdure({"data", "build", "--from", folder_ / "controls", "--tokenizer", "byte",
                        "-o", folder_ / "d"})
                .exit_code,
            0);
  const CommandOutput output = RunPerdure({"data", "inspect", folder_ / "d"});
  EXPECT_NE(output.out.find("\\x1b[31mred and \\x9b31m and \\x7f and \t tab"), std::string::npos)
      << output.out;
  EXPECT_EQ(output.out.find('\x1b'), std::string::npos);
  // Cut within a character, JSON stays UTF-8.
  folder_.Write("cut/a.txt", "é");
  ASSERT_EQ(RunPerdure({"data", "build", "--from", folder_ / "cut", "--tokenizer", "byte", "-o",
                        folder_ / "e"})
                .exit_code,
            0);
  const auto json = nlohmann::json::parse(
      RunPerdure({"data", "inspect", folder_ / "e", "--sample", "1", "--context", "1", "--json"})
          .out);
  EXPECT_EQ(json["excerpts"][0]["text"], "\uFFFD\n");
}

TEST_F(DataCommandTest, InspectsExitCodes) {
  ASSERT_EQ(Build("byte", "d").exit_code, 0);
  const CommandOutput missing = RunPerdure({"data", "inspect", folder_ / "none"});
  EXPECT_EQ(missing.exit_code, 2);
  EXPECT_EQ(missing.err.find("perdure data inspect: "), 0u) << missing.err;
  EXPECT_EQ(RunPerdure({"data", "inspect", folder_ / "d", "--document", "5"}).exit_code, 2);
  EXPECT_EQ(RunPerdure({"data", "inspect", folder_ / "d", "--document", "-1"}).exit_code, 2);
  EXPECT_EQ(RunPerdure({"data", "inspect", folder_ / "d", "--sample", "1000", "--context", "64"})
                .exit_code,
            2);
  EXPECT_EQ(RunPerdure({"data", "inspect", folder_ / "d", "--sample", "1"}).exit_code, 2);
  EXPECT_EQ(
      RunPerdure({"data", "inspect", folder_ / "d", "--sample", "1", "--context", "0"}).exit_code,
      2);
  EXPECT_EQ(RunPerdure({"data", "inspect", folder_ / "d", "--document", "1", "--sample", "1",
                        "--context", "4"})
                .exit_code,
            2);
  EXPECT_EQ(RunPerdure({"data", "inspect"}).exit_code, 2);
}

// Runs a build in a child whose standard error is a terminal; returns what it wrote there and its
// exit code.
std::pair<std::string, int> BuildOnATerminal(const std::vector<std::string>& arguments,
                                             int signal_number) {
  int master = -1;
  const pid_t child = ::forkpty(&master, nullptr, nullptr, nullptr);
  EXPECT_GE(child, 0);
  if (child == 0) {
    int exit_code = -1;
    CLI::App app("perdure");
    AddDataCommand(app, &exit_code);
    std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
    try {
      app.parse(reversed);
    } catch (const CLI::ParseError&) {
      exit_code = 99;
    }
    std::fflush(nullptr);
    ::_exit(exit_code);
  }
  std::string seen;
  char buffer[4096];
  for (ssize_t got = 0; (got = ::read(master, buffer, sizeof buffer)) > 0;) {
    seen.append(buffer, static_cast<size_t>(got));
    if (signal_number != 0 && seen.find("files,") != std::string::npos)
      ::kill(child, std::exchange(signal_number, 0));
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ::close(master);
  return {seen, WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status)};
}

TEST_F(DataCommandTest, ShowsALiveLineOnATerminal) {
  const auto [seen, exit_code] =
      BuildOnATerminal({"data", "build", "--from", folder_ / "in", "--tokenizer",
                        "sentencepiece:400", "-o", folder_ / "d"},
                       0);
  EXPECT_EQ(exit_code, 0) << seen;
  EXPECT_NE(seen.find("\r\033[Kread 0/5 files"), std::string::npos) << seen;
  EXPECT_NE(seen.find("\r\033[Ktrain a vocabulary on"), std::string::npos) << seen;
}

TEST_F(DataCommandTest, AnInterruptedBuildLeavesNothing) {
  // A pipe that nobody fills would hang; many files give the time.
  for (int i = 0; i < 3000; ++i)
    folder_.Write(fmt::format("many/{}.txt", i), fmt::format("{} ", i) + SampleTexts()[0]);
  const std::string model = folder_ / "m";
  ASSERT_EQ(Build("sentencepiece:400", "m").exit_code, 0);
  const auto [seen, exit_code] =
      BuildOnATerminal({"data", "build", "--from", folder_ / "many", "--tokenizer",
                        model + ".model", "-o", folder_ / "d"},
                       SIGINT);
  EXPECT_EQ(exit_code, 1) << seen;
  EXPECT_NE(seen.find("interrupted"), std::string::npos) << seen;
  for (const auto& entry : std::filesystem::directory_iterator(folder_.path()))
    EXPECT_FALSE(entry.path().filename().string().starts_with("d.")) << entry.path();
}

}  // namespace
}  // namespace perdure
