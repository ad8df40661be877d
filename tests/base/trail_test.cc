#include "runtime/base/trail.h"

#include <gtest/gtest.h>

#include <limits>

#include "runtime/base/status.h"

namespace perdure {
namespace {

using Recent = std::vector<StepNumbers>;

TEST(Trail, KeepsTheLastSteps) {
  Trail trail;
  for (size_t i = 0; i < kRecentStepsMax + 3; ++i)
    trail.Took({.loss = static_cast<double>(i), .grad_norm = 1});
  EXPECT_EQ(trail.recent.size(), kRecentStepsMax);
  EXPECT_EQ(trail.recent.front().loss, 3);
  EXPECT_EQ(trail.recent.back().loss, static_cast<double>(kRecentStepsMax + 2));
}

TEST(Trail, HexKeepsEveryBit) {
  const Recent recent = {{0.1, 2.5}, {-0.0, std::numeric_limits<double>::denorm_min()}};
  const std::vector<std::string> hex = HexOf(recent);
  EXPECT_EQ(hex[0], "3fb999999999999a4004000000000000");
  EXPECT_EQ(hex[1], "80000000000000000000000000000001");
  const absl::StatusOr<Recent> again = RecentOf(hex);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(HexOf(*again), hex);
  EXPECT_EQ(RecentOf({}).value(), Recent());
}

TEST(Trail, RefusesWhatIsNone) {
  const std::string good = "3fb999999999999a4004000000000000";
  const auto refusal = [](const std::vector<std::string>& hex) {
    const absl::Status status = RecentOf(hex).status();
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    return Message(status);
  };
  const std::string shape = "entry 1 is not a loss and a gradient norm of 16 hex digits each";
  for (const std::string& bad :
       {std::string(), good.substr(1), good + "0", "x" + good.substr(1), good.substr(0, 31) + "g",
        "-" + good.substr(1), " " + good.substr(1)})
    EXPECT_EQ(refusal({good, bad}), shape) << bad;
  EXPECT_EQ(refusal({"7ff8000000000000" + good.substr(16)}),
            "entry 0 is loss nan and gradient norm 2.5: not both finite");
  EXPECT_EQ(refusal({good, good.substr(0, 16) + "7ff0000000000000"}),
            "entry 1 is loss 0.1 and gradient norm inf: not both finite");
  EXPECT_EQ(refusal(std::vector<std::string>(65, good)), "65 entries; at most 64 expected");
  EXPECT_TRUE(RecentOf(std::vector<std::string>(64, good)).ok());
}

}  // namespace
}  // namespace perdure
