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
  static Json Report(int rank, double bf16, double upload) {
    return {{"device", "GPU of host n" + std::to_string(rank)},
            {"checked", true},
            {"rates", {{"matmul_bf16", bf16}, {"upload", upload}, {"memory", 0.0}}}};
  }
  static JobHealth::Member Member(int rank, int node, double bf16, double upload) {
    const Json report = Report(rank, bf16, upload);
    return {.rank = rank, .node = node, .device = report["device"], .rates = report["rates"]};
  }

  std::vector<std::string> warnings_;
  std::vector<Json> events_;
  JobHealth health_{1,
                    {.event =
                         [this](const std::string& event, Json fields) {
                           fields["event"] = event;
                           events_.push_back(fields);
                         },
                     .warn = [this](const std::string& line) { warnings_.push_back(line); }}};
};

TEST_F(JobHealthTest, ASlowRankIsNamedWithNodeAndRate) {
  EXPECT_THAT(JobHealth::Compare({Member(2, 1, 6.9e14, 50e9), Member(0, 0, 7.0e14, 52e9),
                                  Member(1, 0, 7.1e14, 12e9)}),
              ElementsAre(AllOf(HasSubstr("rank 1 (node 0): GPU of host n1: copies from the host "
                                          "reach 12.0 GB/s, 24 % of the others' median 51.0"),
                                HasSubstr("leave the node out"))));
}

TEST_F(JobHealthTest, WhatIsSaidIsWrittenDownAndKept) {
  health_.OnHealth(3, 2, Report(2, 6.9e14, 50e9));
  ASSERT_EQ(events_.size(), 1);
  EXPECT_EQ(events_[0]["event"], "health");
  EXPECT_EQ(events_[0]["rank"], 2);
  EXPECT_EQ(events_[0]["node"], 1);
  EXPECT_EQ(events_[0]["local_rank"], 3);
  EXPECT_EQ(events_[0]["rates"]["upload"], 50e9);
  const Json devices = health_.Devices();
  ASSERT_EQ(devices.size(), 1);
  EXPECT_EQ(devices[0]["local_rank"], 3);
  EXPECT_EQ(devices[0]["device"], "GPU of host n2");
  EXPECT_EQ(devices[0]["rates"]["upload"], 50e9);
  // Another process with another device in the slot; one that is bad is not compared.
  health_.OnHealth(3, 0, Report(0, 7e14, 50e9));
  Json bad = Report(1, 7e14, 50e9);
  bad["error"] = "computes nonsense";
  health_.OnHealth(1, 1, bad);
  ASSERT_EQ(health_.Devices().size(), 1);
  EXPECT_EQ(health_.Devices()[0]["device"], "GPU of host n0");
}

TEST_F(JobHealthTest, EqualRatesOrNoneAreNoWarning) {
  std::vector<JobHealth::Member> members;
  for (int rank = 0; rank < 3; ++rank) members.push_back(Member(rank, 0, 7e14, 0));
  EXPECT_THAT(JobHealth::Compare(members), IsEmpty());
}

// A report without rates: job.health_check = false.
TEST_F(JobHealthTest, RanksThatWereNotChecked) {
  std::vector<JobHealth::Member> members;
  for (int rank = 0; rank < 3; ++rank) {
    health_.OnHealth(rank, rank, {{"device", "GPU"}, {"checked", false}});
    members.push_back({.rank = rank, .node = 0, .device = "GPU", .rates = Json::object()});
  }
  EXPECT_THAT(warnings_, IsEmpty());
  EXPECT_EQ(events_.size(), 3);
  ASSERT_EQ(health_.Devices().size(), 3);
  EXPECT_EQ(health_.Devices()[0]["rates"], Json::object());
  EXPECT_THAT(JobHealth::Compare(members), IsEmpty());
}

TEST_F(JobHealthTest, AMissingNvmlIsSaidOnce) {
  for (int rank = 0; rank < 3; ++rank) {
    Json report = Report(rank, 7e14, 5e10);
    report["no_nvml"] = "libnvidia-ml.so.1 is not here";
    health_.OnHealth(rank, rank, report);
  }
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("no NVML (libnvidia-ml.so.1 is not here)")));
}

TEST_F(JobHealthTest, FactsThatNeedAPerson) {
  Json report = Report(0, 7e14, 5e10);
  report["facts"] = {{"remap_pending", 1}, {"remap_failed", 1}, {"ecc_uncorrected", 3}};
  health_.OnHealth(0, 0, report);
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("waits to be remapped"),
                                     HasSubstr("could not remap"), HasSubstr("has had 3 unc")));
}

TEST_F(JobHealthTest, TheLastEvidenceOfADeviceIsKept) {
  EXPECT_EQ(health_.EvidenceOf(1), "");
  health_.OnEvidence(1, 5, {{"what", "Xid 79: gone"}, {"xid", 79}});
  health_.OnEvidence(1, 5, {{"what", "NVML: lost"}, {"event", "lost"}});
  health_.OnEvidence(0, 4, {{"what", "NVML: lost"}, {"event", "lost"}});
  EXPECT_EQ(health_.EvidenceOf(1), "\n  last of its device: Xid 79: gone");
  EXPECT_EQ(health_.EvidenceOf(0), "\n  last of its device: NVML: lost");
  EXPECT_EQ(health_.EvidenceOf(2), "");
  EXPECT_EQ(events_.size(), 3);
  EXPECT_EQ(events_[0]["event"], "evidence");
  EXPECT_EQ(events_[0]["xid"], 79);
  EXPECT_EQ(events_[0]["rank"], 5);
  EXPECT_EQ(events_[0]["node"], 1);
  EXPECT_EQ(events_[0]["local_rank"], 1);
  EXPECT_THAT(warnings_[0], HasSubstr("rank 5 (node 1): Xid 79: gone"));
}

}  // namespace
}  // namespace perdure
