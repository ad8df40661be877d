#include "runtime/agent/pulse_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

class PulseFileTest : public testing::Test {
 protected:
  PulseFileTest() { std::filesystem::create_directory(directory_.path() + "/control"); }
  void Write(const std::string& text) { std::ofstream(path_, std::ios::binary) << text; }

  const TestDirectory directory_;
  const std::string path_ = directory_.path() + "/control/pulse";
  const PulseFile file_{directory_.path()};
};

TEST_F(PulseFileTest, TheNewestIsFound) {
  EXPECT_FALSE(file_.Find().has_value());
  constexpr uint64_t kMost = std::numeric_limits<uint64_t>::max();
  for (const Pulse& pulse : {Pulse{0, 1}, Pulse{kMost, kMost}, Pulse{7, 12}}) {
    ASSERT_OK(file_.Leave(pulse));
    EXPECT_EQ(file_.Find(), pulse);
  }
  const std::string line = *ReadFile(path_);
  EXPECT_EQ(line.size(), 81u);
  EXPECT_EQ(line.substr(0, 48), "pulse 00000000000000000007 00000000000000000012 ");
  struct stat about {};
  ASSERT_EQ(::stat(path_.c_str(), &about), 0);
  EXPECT_EQ(about.st_mode & 0777, 0600u);
}

TEST_F(PulseFileTest, WhatIsNotWholeIsNone) {
  ASSERT_OK(file_.Leave({3, 199}));
  const std::string before = *ReadFile(path_);
  ASSERT_OK(file_.Leave({3, 200}));
  const std::string line = *ReadFile(path_);
  for (size_t at = 1; at < line.size(); ++at) {
    Write(line.substr(0, at));
    EXPECT_FALSE(file_.Find().has_value()) << "cut at " << at;
    const std::string torn = line.substr(0, at) + before.substr(at);
    Write(torn);
    if (torn != line && torn != before) {
      EXPECT_FALSE(file_.Find().has_value()) << "torn at " << at;
    }
  }
  for (const std::string& text :
       {std::string(81, 'x'), std::string(81, '\0'), std::string("pulse 1 2\n"),
        "pulse -0000000000000000007 00000000000000000012 " + line.substr(48)}) {
    Write(text);
    EXPECT_FALSE(file_.Find().has_value()) << text;
  }
}

TEST_F(PulseFileTest, NoLinkIsFollowed) {
  const std::string other = directory_.path() + "/other";
  std::ofstream(other) << "mine";
  std::filesystem::create_symlink(other, path_);
  EXPECT_THAT(Message(file_.Leave({1, 1})), testing::HasSubstr(path_));
  EXPECT_FALSE(file_.Find().has_value());
  EXPECT_EQ(*ReadFile(other), "mine");
}

TEST_F(PulseFileTest, WhereThereIsNoPlaceItIsSaid) {
  std::filesystem::remove(directory_.path() + "/control");
  EXPECT_THAT(Message(file_.Leave({1, 1})), testing::HasSubstr(path_));
}

}  // namespace
}  // namespace perdure
