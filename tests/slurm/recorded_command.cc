#include "tests/slurm/recorded_command.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>

#include "runtime/base/status.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

const fs::path kFolder = fs::path(PERDURE_SOURCE_DIR) / "tests/slurm/recorded";

// "<word> N" on a line of its own.
size_t Take(std::istream& in, const std::string& word) {
  std::string found;
  size_t number = 0;
  in >> found >> number;
  EXPECT_EQ(found, word);
  in.ignore(1);
  return number;
}

std::string TakeBytes(std::istream& in, size_t count) {
  std::string bytes(count, '\0');
  in.read(bytes.data(), static_cast<std::streamsize>(count));
  EXPECT_TRUE(in.good());
  in.ignore(1);
  return bytes;
}

}  // namespace

RecordedCommand ReadRecord(const std::string& name) {
  std::ifstream in(kFolder / name, std::ios::binary);
  EXPECT_TRUE(in.good()) << name;
  RecordedCommand record;
  record.argv.resize(Take(in, "argv"));
  for (std::string& word : record.argv) std::getline(in, word);
  record.result.exit_code = static_cast<int>(Take(in, "exit"));
  record.result.output = TakeBytes(in, Take(in, "output"));
  record.result.errors = TakeBytes(in, Take(in, "errors"));
  return record;
}

std::vector<std::string> RecordNames(const std::string& release) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(kFolder / release))
    names.push_back(release + "/" + entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

CommandRunner Replay(std::vector<std::string> names) {
  const auto left = std::make_shared<std::vector<std::string>>(std::move(names));
  return [left](const Invocation& command) -> absl::StatusOr<InvocationResult> {
    if (left->empty()) {
      ADD_FAILURE() << "asked for more: " << CommandLine(command.argv);
      return Internal("no record is left");
    }
    const RecordedCommand record = ReadRecord("22.05/" + left->front());
    EXPECT_EQ(command.argv, record.argv) << left->front();
    left->erase(left->begin());
    return record.result;
  };
}

CommandRunner Always(InvocationResult result) {
  return [result](const Invocation&) -> absl::StatusOr<InvocationResult> { return result; };
}

}  // namespace perdure
