#include "tests/launch/perdure_command.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <sstream>

#include "runtime/base/check.h"
#include "runtime/base/files.h"
#include "runtime/base/random.h"
#include "runtime/base/status.h"
#include "runtime/comm/transport.h"
#include "runtime/data/indexed_dataset.h"

namespace perdure {
namespace {

int Spawn(const std::vector<std::string>& arguments, const std::string& output,
          const std::string& errors) {
  std::vector<std::string> words = {PerdurePath()};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const int pid = ::fork();
  PERDURE_CHECK(pid >= 0);
  if (pid == 0) {
    ::dup2(::open(output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), STDOUT_FILENO);
    ::dup2(::open(errors.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), STDERR_FILENO);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  return pid;
}

std::string FirstBuilt(std::initializer_list<const char*> kinds) {
  for (const char* kind : kinds)
    if (!absl::IsUnimplemented(NewTransport(kind, {.rank = 0, .size = 1}).status())) return kind;
  return *kinds.begin();  // Whoever starts a job hears that this build has none.
}

}  // namespace

std::string PerdurePath() { return PERDURE_BINARY_DIR "/perdure"; }

std::string BuiltTransport() { return FirstBuilt({"ucx", "libfabric"}); }
std::string OtherTransport() { return FirstBuilt({"libfabric", "ucx"}); }

std::vector<std::string> RunOfTwoRanks(const std::string& run_directory,
                                       const std::string& data_directory,
                                       const std::vector<std::string>& more) {
  std::vector<std::string> words = {
      "run",          NanoToml(), "--run-dir", run_directory,      "--data-dir",
      data_directory, "--nodes",  "1",         "--ranks-per-node", "2"};
  for (const std::string& setting :
       {std::string("layout.tensor=1"), std::string("layout.pipeline=1"),
        "layout.transport=" + BuiltTransport()}) {
    words.push_back("--set");
    words.push_back(setting);
  }
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

int WaitFor(int pid) {
  int status = 0;
  PERDURE_CHECK(::waitpid(pid, &status, 0) == pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int StartPerdure(const std::vector<std::string>& arguments, const std::string& error_path) {
  return Spawn(arguments, "/dev/null", error_path);
}

CommandResult Perdure(const std::vector<std::string>& arguments) {
  static int count = 0;
  const std::string base =
      fmt::format("{}/perdure_command.{}.{}", testing::TempDir(), ::getpid(), count++);
  CommandResult result;
  result.exit_code = WaitFor(Spawn(arguments, base + ".out", base + ".err"));
  result.output = ReadFile(base + ".out").value_or("");
  result.errors = ReadFile(base + ".err").value_or("");
  ::unlink((base + ".out").c_str());
  ::unlink((base + ".err").c_str());
  return result;
}

std::string FreshFolder(const std::string& name) {
  const std::string folder = fmt::format("{}{}.{}", testing::TempDir(), name, ::getpid());
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  return folder;
}

void WriteNanoData(const std::string& folder, int vocab) {
  std::filesystem::create_directories(folder + "/data");
  uint64_t stream = 0;
  for (const char* name : {"en", "fr", "de", "es", "it"}) {
    auto writer = IndexedDatasetWriter::Create(folder + "/data/" + name, vocab);
    PERDURE_CHECK(writer.ok());
    ++stream;
    for (uint64_t document = 0; document < 60; ++document) {
      std::vector<int32_t> tokens;
      auto token = static_cast<int32_t>(document) % vocab;
      for (uint64_t i = 0; i < 700; ++i) {
        const auto random = RandomBits(stream, RandomPurpose::kTest, document, i);
        token = random[0] % 6 == 0 ? static_cast<int32_t>(random[1] % static_cast<uint32_t>(vocab))
                                   : (token * 5 + static_cast<int32_t>(17 * stream)) % vocab;
        tokens.push_back(token);
      }
      PERDURE_CHECK((*writer)->AddDocument(tokens).ok());
    }
    PERDURE_CHECK((*writer)->Finish().ok());
  }
}

std::string SourceDirectory() { return PERDURE_SOURCE_DIR; }

std::string ExecTrainer() { return PERDURE_SOURCE_DIR "/tests/launch/exec_trainer.py"; }

std::string NanoToml() { return PERDURE_SOURCE_DIR "/launch/recipes/nano.toml"; }

std::vector<std::string> LossColumn(const std::string& run_directory, const std::string& name) {
  std::istringstream file(ReadFile(run_directory + "/metrics/loss.csv").value_or(""));
  std::string line, cell;
  std::vector<std::string> header, column;
  while (std::getline(file, line)) {
    std::istringstream cells(line);
    std::vector<std::string> row;
    while (std::getline(cells, cell, ',')) row.push_back(cell);
    if (header.empty()) {
      header = row;
      continue;
    }
    const auto at =
        static_cast<size_t>(std::find(header.begin(), header.end(), name) - header.begin());
    column.push_back(at < row.size() ? row[at] : "?");
  }
  return column;
}

nlohmann::json ListedCheckpoints(const std::string& run_directory) {
  return nlohmann::json::parse(Perdure({"ckpt", "list", run_directory, "--json"}).output, nullptr,
                               false);
}

std::vector<nlohmann::json> JournalEvents(const std::string& run_directory,
                                          const std::string& name) {
  std::vector<nlohmann::json> events;
  std::istringstream lines(ReadFile(run_directory + "/journal.jsonl").value_or(""));
  for (std::string line; std::getline(lines, line);)
    if (nlohmann::json event = nlohmann::json::parse(line, nullptr, false);
        event.is_object() && event["event"] == name)
      events.push_back(std::move(event));
  return events;
}

nlohmann::json StatusOf(const std::string& run_directory) {
  return nlohmann::json::parse(Perdure({"status", run_directory, "--json"}).output, nullptr, false);
}

}  // namespace perdure
