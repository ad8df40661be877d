// A job on a machine that computes wrong results: it refuses to train, and what it would have
// resumed is not blamed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

using ::testing::HasSubstr;

class BadDevice : public testing::Test {
 protected:
  BadDevice() : folder_(FreshFolder("bad_device")), run_(folder_ + "/run") {
    WriteNanoData(folder_);
  }
  ~BadDevice() override { std::filesystem::remove_all(folder_); }

  CommandResult Run(int until, bool wrong, const std::string& setting = "layout.tensor=1") const {
    if (wrong) ::setenv("LD_PRELOAD", PERDURE_BINARY_DIR "/tests/libwrong_matmul.so", 1);
    CommandResult result = Perdure(
        RunOfTwoRanks(run_, folder_, {"--set", setting, "--until-step", std::to_string(until)}));
    ::unsetenv("LD_PRELOAD");
    return result;
  }
  std::vector<nlohmann::json> Events(const std::string& name) const {
    return JournalEvents(run_, name);
  }

  const std::string folder_, run_;
};

TEST_F(BadDevice, DoesNotTrainAndTheCheckpointIsNotBlamed) {
  ASSERT_EQ(Run(2, false).exit_code, 75);
  ASSERT_EQ(Events("health").size(), 2);
  EXPECT_EQ(Events("health")[0]["checked"], true);
  EXPECT_FALSE(Events("health")[0].contains("error"));
  // Oftener than a checkpoint may be loaded without a good step.
  for (int i = 0; i < 3; ++i) {
    const CommandResult refused = Run(4, true);
    EXPECT_EQ(refused.exit_code, 93) << refused.errors;
    EXPECT_THAT(refused.errors, HasSubstr("the CPU of host "));
    EXPECT_THAT(refused.errors, HasSubstr("element (0, 0) of a bf16 product of 128 x 128 is "));
    EXPECT_THAT(refused.errors, HasSubstr("exclude its node"));
  }
  EXPECT_TRUE(Events("health").back().contains("error"));
  EXPECT_EQ(Events("end").back()["exit_code"], 93);
  EXPECT_FALSE(std::filesystem::exists(run_ + "/quarantine"));
  EXPECT_EQ(LossColumn(run_, "step"), (std::vector<std::string>{"1", "2"}));
  const CommandResult resumed = Run(3, false);
  EXPECT_EQ(resumed.exit_code, 75) << resumed.errors;
  EXPECT_EQ(LossColumn(run_, "step"), (std::vector<std::string>{"1", "2", "3"}));
}

TEST_F(BadDevice, IsNotLookedForWhereTheConfigurationSaysSo) {
  EXPECT_NE(Run(1, true, "job.health_check=false").exit_code, 93);
  ASSERT_EQ(Events("health").size(), 2);
  EXPECT_EQ(Events("health")[0]["checked"], false);
}

}  // namespace
}  // namespace perdure
