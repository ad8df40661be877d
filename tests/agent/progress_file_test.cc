// What trainers leave in PERDURE_PROGRESS, torn and hostile lines included.
#include "runtime/agent/progress_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "runtime/base/status.h"

namespace perdure {
namespace {

class ProgressFileTest : public testing::Test {
 protected:
  ProgressFileTest() : path_(fmt::format("{}progress.{}", testing::TempDir(), ::getpid())) {}
  ~ProgressFileTest() override { std::filesystem::remove(path_); }
  void Append(const std::string& text) const {
    std::ofstream(path_, std::ios::app | std::ios::binary) << text;
  }
  static int64_t StepOf(const std::optional<nlohmann::json>& line) {
    return line.has_value() ? (*line)["step"].get<int64_t>() : -1;
  }
  const std::string path_;
};

TEST_F(ProgressFileTest, TheNewestLineCounts) {
  ProgressFile file(path_);
  EXPECT_EQ(StepOf(file.Poll()), -1) << "there is no file";
  EXPECT_EQ(StepOf(ProgressFile::Last(path_)), -1);
  Append("{\"step\": 1}\n{\"step\": 2, \"loss\": 0.5}\n");
  const std::optional<nlohmann::json> line = file.Poll();
  EXPECT_EQ(StepOf(line), 2);
  EXPECT_EQ((*line)["loss"], 0.5);
  EXPECT_EQ(StepOf(file.Poll()), -1) << "nothing new";
  EXPECT_EQ(StepOf(ProgressFile::Last(path_)), 2);
  file.SkipToEnd();
  Append("{\"step\": 3}\n");
  EXPECT_EQ(StepOf(file.Poll()), 3);
}

TEST_F(ProgressFileTest, ALineCountsWhenItIsWhole) {
  ProgressFile file(path_);
  Append("{\"step\": 1}\n{\"ste");
  EXPECT_EQ(StepOf(file.Poll()), 1);
  EXPECT_EQ(StepOf(file.Poll()), -1);
  Append("p\": 2}");
  EXPECT_EQ(StepOf(file.Poll()), -1);
  EXPECT_EQ(StepOf(ProgressFile::Last(path_)), 1);
  Append("\n");
  EXPECT_EQ(StepOf(file.Poll()), 2);
}

TEST_F(ProgressFileTest, WhatIsNoLineIsPassedOver) {
  Append("{\"step\": 7}\nepoch 3\n{\"step\": -1}\n{\"step\": \"8\"}\n{\"step\": 1.5}\n[9]\n\n");
  Append(std::string("\0\xff\n", 3));
  EXPECT_EQ(StepOf(ProgressFile::Last(path_)), 7);
  // A line that is longer than a look reads.
  Append("{\"step\": 8, \"text\": \"" + std::string(200000, 'x') + "\"}\n");
  EXPECT_EQ(StepOf(ProgressFile::Last(path_)), -1);
  Append("{\"step\": 9}\n");
  EXPECT_EQ(StepOf(ProgressFile::Last(path_)), 9);
}

TEST_F(ProgressFileTest, AFileThatIsBegunAnewIsReadAnew) {
  ProgressFile file(path_);
  Append("{\"step\": 100}\n{\"step\": 101}\n");
  EXPECT_EQ(StepOf(file.Poll()), 101);
  std::filesystem::remove(path_);
  Append("{\"step\": 1}\n");
  EXPECT_EQ(StepOf(file.Poll()), -1);
  EXPECT_EQ(StepOf(file.Poll()), 1);
}

}  // namespace
}  // namespace perdure
