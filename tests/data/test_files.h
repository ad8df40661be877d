// Folders and files of the tests of runtime/data.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "runtime/base/status.h"

namespace perdure {

// A folder of its own, removed at the end.
class TestFolder {
 public:
  TestFolder() {
    static std::atomic<int> counter{0};
    path_ = fmt::format("{}/perdure_data_{}_{}", testing::TempDir(), ::getpid(), counter++);
    std::filesystem::create_directories(path_);
  }
  ~TestFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;

  std::string operator/(std::string_view name) const { return path_ + "/" + std::string(name); }
  const std::string& path() const { return path_; }

  std::string Write(std::string_view name, std::string_view bytes) const {
    const std::string path = *this / name;
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  size_t entries() const {
    return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(path_), {}));
  }

 private:
  std::string path_;
};

inline std::string Bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Expects an error of this code whose message holds every fragment.
inline void ExpectError(const absl::Status& status, absl::StatusCode code,
                        std::initializer_list<std::string_view> fragments) {
  EXPECT_EQ(status.code(), code) << status;
  for (const std::string_view fragment : fragments)
    EXPECT_NE(Message(status).find(fragment), std::string::npos)
        << "'" << fragment << "' is not in: " << Message(status);
}

}  // namespace perdure
