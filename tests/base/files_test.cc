#include "runtime/base/files.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "runtime/base/status.h"

namespace perdure {
namespace {

class FilesTest : public testing::Test {
 protected:
  FilesTest() : directory_(fmt::format("{}/files_test.{}", testing::TempDir(), ::getpid())) {
    std::filesystem::create_directories(directory_);
  }
  ~FilesTest() override { std::filesystem::remove_all(directory_); }
  std::string directory_;
};

TEST_F(FilesTest, ReplacesWholeFilesAndLeavesNothingElse) {
  const std::string path = directory_ + "/a";
  ASSERT_TRUE(ReplaceFile(path, "one").ok());
  ASSERT_TRUE(ReplaceFileFast(path, "two").ok());
  EXPECT_EQ(ReadFile(path).value(), "two");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory_), {}), 1);
}

TEST_F(FilesTest, ErrorsNameThePath) {
  const auto absent = ReadFile(directory_ + "/absent");
  EXPECT_EQ(absent.status().code(), absl::StatusCode::kNotFound);
  EXPECT_NE(Message(absent.status()).find("absent"), std::string::npos);
  EXPECT_EQ(ReplaceFile(directory_ + "/no/such/file", "x").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(SyncDirectory(directory_ + "/absent").code(), absl::StatusCode::kNotFound);
}

TEST_F(FilesTest, MakesDirectoriesAndRefusesAFileInTheWay) {
  ASSERT_TRUE(MakeDirectories(directory_ + "/x/y/z").ok());
  EXPECT_TRUE(std::filesystem::is_directory(directory_ + "/x/y/z"));
  ASSERT_TRUE(MakeDirectories(directory_ + "/x/y/z").ok());
  ASSERT_TRUE(ReplaceFile(directory_ + "/file", "").ok());
  EXPECT_FALSE(MakeDirectories(directory_ + "/file").ok());
  EXPECT_FALSE(MakeDirectories(directory_ + "/file/below").ok());
}

}  // namespace
}  // namespace perdure
