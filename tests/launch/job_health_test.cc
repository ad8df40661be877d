// What a job makes of its ranks' words about their devices.
#include "launch/job_health.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace perdure {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Json = nlohmann::json;

class JobHealthTest : public testing::Test {
 protected:
  static Json Frame(int rank, double bf16, double upload) {
    return {{"type", "health"},
            {"device", "GPU of host n" + std::to_string(rank)},
            {"checked", true},
            {"rates", {{"matmul_bf16", bf16}, {"upload", upload}, {"memory", 0.0}}}};
  }

  std::vector<std::string> warnings_;
  std::vector<Json> events_;
  JobHealth health_{3,
                    {.event =
                         [this](const std::string& event, Json fields) {
                           fields["event"] = event;
                           events_.push_back(fields);
                         },
                     .warn = [this](const std::string& line) { warnings_.push_back(line); }}};
};

TEST_F(JobHealthTest, ASlowRankIsNamedWithNodeAndRate) {
  health_.OnHealth(2, 1, Frame(2, 6.9e14, 50e9));
  health_.OnHealth(0, 0, Frame(0, 7.0e14, 52e9));
  EXPECT_THAT(warnings_, IsEmpty());
  health_.OnHealth(1, 0, Frame(1, 7.1e14, 12e9));
  EXPECT_THAT(warnings_,
              ElementsAre(AllOf(HasSubstr("rank 1 (node 0): GPU of host n1: copies from the host "
                                          "reach 12.0 GB/s, 24 % of the others' median 51.0"),
                                HasSubstr("leave the node out"))));
  ASSERT_EQ(events_.size(), 3);
  EXPECT_EQ(events_[0]["event"], "health");
  EXPECT_EQ(events_[0]["rank"], 2);
  EXPECT_EQ(events_[0]["node"], 1);
  EXPECT_EQ(events_[0]["rates"]["upload"], 50e9);
}

TEST_F(JobHealthTest, EqualRatesOrNoneAreNoWarning) {
  for (int rank = 0; rank < 3; ++rank) health_.OnHealth(rank, 0, Frame(rank, 7e14, 0));
  EXPECT_THAT(warnings_, IsEmpty());
}

// A frame without rates: job.health_check = false.
TEST_F(JobHealthTest, RanksThatWereNotChecked) {
  for (int rank = 0; rank < 3; ++rank)
    health_.OnHealth(rank, 0, {{"type", "health"}, {"device", "GPU"}, {"checked", false}});
  EXPECT_THAT(warnings_, IsEmpty());
  EXPECT_EQ(events_.size(), 3);
}

TEST_F(JobHealthTest, AMissingNvmlIsSaidOnce) {
  for (int rank = 0; rank < 3; ++rank) {
    Json frame = Frame(rank, 7e14, 5e10);
    frame["no_nvml"] = "libnvidia-ml.so.1 is not here";
    health_.OnHealth(rank, 0, frame);
  }
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("no NVML (libnvidia-ml.so.1 is not here)")));
}

TEST_F(JobHealthTest, FactsThatNeedAPerson) {
  Json frame = Frame(0, 7e14, 5e10);
  frame["facts"] = {{"remap_pending", 1}, {"remap_failed", 1}, {"ecc_uncorrected", 3}};
  health_.OnHealth(0, 0, frame);
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("waits to be remapped"),
                                     HasSubstr("could not remap"), HasSubstr("has had 3 unc")));
}

TEST_F(JobHealthTest, TheLastEvidenceOfADeviceIsKept) {
  EXPECT_EQ(health_.EvidenceOf(1), "");
  health_.OnEvidence(1, 0, {{"type", "evidence"}, {"what", "Xid 79: gone"}, {"xid", 79}});
  health_.OnEvidence(1, 0, {{"type", "evidence"}, {"what", "NVML: lost"}, {"event", "lost"}});
  health_.OnEvidence(0, 0, {{"type", "evidence"}, {"what", "NVML: lost"}, {"event", "lost"}});
  EXPECT_EQ(health_.EvidenceOf(1), "\n  last of its device: Xid 79: gone");
  EXPECT_EQ(health_.EvidenceOf(0), "\n  last of its device: NVML: lost");
  EXPECT_EQ(health_.EvidenceOf(2), "");
  EXPECT_EQ(events_.size(), 3);
  EXPECT_EQ(events_[0]["event"], "evidence");
  EXPECT_EQ(events_[0]["xid"], 79);
  EXPECT_THAT(warnings_[0], HasSubstr("rank 1 (node 0): Xid 79: gone"));
}

}  // namespace
}  // namespace perdure
