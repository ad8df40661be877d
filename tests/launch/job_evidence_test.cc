#include "launch/job_evidence.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "runtime/agent/job_start.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::ElementsAre;
using testing::IsEmpty;
using Kind = EvidenceKind;

const absl::Time kNow = absl::FromUnixSeconds(1'800'000'000);

class JobEvidenceTest : public testing::Test {
 protected:
  JobEvidenceTest()
      : run_(fs::temp_directory_path() / ("perdure_job_evidence_" + std::to_string(::getpid()))) {
    fs::remove_all(run_);
    fs::create_directory(run_);
  }
  ~JobEvidenceTest() override { fs::remove_all(run_); }

  JobEvidence Evidence(std::vector<std::string> names = {"n1", "n2", "n3"}) {
    return JobEvidence(
        {.run_directory = run_, .job = JobStart(12, 1), .node = 0, .names = std::move(names)},
        [this](const std::string& line) { warnings_.push_back(line); });
  }
  // "n2 node-lost 0 in 3", in the order of the book.
  std::vector<std::string> Known() const {
    std::vector<std::string> known;
    const absl::StatusOr<NodeBook::Contents> contents = NodeBook(run_).Read({});
    EXPECT_TRUE(contents.ok()) << contents.status();
    for (const EvidenceEntry& entry : contents->book.Entries()) {
      EXPECT_EQ(entry.job, "12");
      known.push_back(entry.node + " " + std::string(NameOf(entry.kind)) + " " +
                      std::to_string(entry.number) + " in " + std::to_string(entry.generation));
    }
    return known;
  }

  const std::string run_;
  std::vector<std::string> warnings_;
};

TEST_F(JobEvidenceTest, EachIsPutDownOnceAGeneration) {
  JobEvidence evidence = Evidence();
  evidence.Hear(kNow, 3, 1, Kind::kNodeLost, 0);
  evidence.Hear(kNow + absl::Seconds(1), 3, 1, Kind::kNodeLost, 0);
  evidence.Hear(kNow, 3, 2, Kind::kSlow, 150);
  evidence.Hear(kNow, 3, 2, Kind::kSlow, 170);
  evidence.Hear(kNow, 4, 1, Kind::kNodeLost, 0);
  EXPECT_THAT(Known(), testing::UnorderedElementsAre("n2 node-lost 0 in 3", "n2 node-lost 0 in 4",
                                                     "n3 slow 150 in 3"));
}

TEST_F(JobEvidenceTest, WhatSaysNothingOfANodeIsNotPutDown) {
  JobEvidence evidence = Evidence();
  evidence.Hear(kNow, 3, 1, Kind::kTrainingFailed, 0);
  evidence.Hear(kNow, 3, 1, Kind::kBadCheckpoint, 0);
  evidence.Hear(kNow, 3, 3, Kind::kNodeLost, 0);  // Not of the job.
  EXPECT_THAT(Known(), IsEmpty());
}

TEST_F(JobEvidenceTest, WithoutNamesNothingIsPutDown) {
  JobEvidence evidence = Evidence({});
  evidence.Hear(kNow, 3, 0, Kind::kNodeLost, 0);
  evidence.Form(kNow, 4, {0}, {});
  evidence.End(kNow + absl::Hours(1));
  EXPECT_FALSE(fs::exists(run_ + "/nodes"));
  EXPECT_THAT(warnings_, IsEmpty());
}

// The survivors of a node that dies are heard first, and are not to blame.
TEST_F(JobEvidenceTest, ConnectionsThatBreakWithANodeDoNotCount) {
  JobEvidence evidence = Evidence();
  evidence.Hear(kNow, 3, 0, Kind::kNetworkError, 0);
  evidence.Hear(kNow, 3, 2, Kind::kNetworkError, 0);
  evidence.Hear(kNow, 3, 1, Kind::kNodeLost, 0);
  evidence.Form(kNow, 4, {0, 2},
                {{.generation = 3, .failure = {.kind = Kind::kNodeLost, .node = NodeId{1}}}});
  EXPECT_THAT(Known(), ElementsAre("n2 node-lost 0 in 3"));
}

TEST_F(JobEvidenceTest, ConnectionsThatBreakByThemselvesCount) {
  JobEvidence evidence = Evidence();
  evidence.Hear(kNow, 3, 0, Kind::kNetworkError, 0);
  evidence.Hear(kNow, 3, 2, Kind::kNetworkError, 0);
  EXPECT_THAT(Known(), IsEmpty()) << "not before it is known what ended the generation";
  const std::vector<FailedGeneration> failures = {
      {.generation = 3, .failure = {.kind = Kind::kNetworkError, .node = NodeId{0}}}};
  evidence.Form(kNow, 4, {0, 1, 2}, failures);
  evidence.Form(kNow, 5, {0, 1, 2}, failures);
  EXPECT_THAT(Known(), ElementsAre("n1 network-error 0 in 3", "n3 network-error 0 in 3"));
}

TEST_F(JobEvidenceTest, AnOlderGenerationsBrokenConnectionsAreForgotten) {
  JobEvidence evidence = Evidence();
  evidence.Hear(kNow, 3, 0, Kind::kNetworkError, 0);
  evidence.Form(kNow, 4, {0, 1, 2}, {});
  evidence.Form(kNow, 5, {0, 1, 2},
                {{.generation = 3, .failure = {.kind = Kind::kNetworkError, .node = NodeId{2}}}});
  EXPECT_THAT(Known(), ElementsAre("n3 network-error 0 in 3"));
}

// Nobody tells a new coordinator of its predecessor's node but the log.
TEST_F(JobEvidenceTest, ThePredecessorsNodeIsPutDown) {
  JobEvidence evidence = Evidence();
  const std::vector<FailedGeneration> failures = {
      {.generation = 3, .failure = {.kind = Kind::kNodeLost, .node = NodeId{2}}},
      {.generation = 4, .failure = {.kind = Kind::kRankCrashed}},  // Whose is not known.
      {.generation = 5, .failure = {}}};
  evidence.Form(kNow, 6, {0, 1}, failures);
  evidence.Form(kNow, 7, {0, 1}, failures);
  EXPECT_THAT(Known(), ElementsAre("n3 node-lost 0 in 3"));
}

TEST_F(JobEvidenceTest, WhatDevicesSay) {
  JobEvidence evidence = Evidence();
  evidence.HearDevice(kNow, 3, json{{"what", "Xid 79 at PCI 1"}, {"xid", 79}});
  evidence.HearDevice(kNow, 3, json{{"what", "Xid 79 at PCI 2"}, {"xid", 79}});
  evidence.HearDevice(kNow, 3, json{{"what", "a double-bit"}, {"event", "double-bit ECC"}});
  evidence.HearDevice(kNow, 3, json{{"what", "NVML can no longer watch"}, {"event", "lost"}});
  // Its rank dies of it, as the coordinator hears.
  evidence.Hear(kNow, 3, 0, Kind::kDeviceError, 79);
  EXPECT_THAT(Known(),
              testing::UnorderedElementsAre("n1 device-error 79 in 3", "n1 device-error 48 in 3"));
}

TEST_F(JobEvidenceTest, NodesThatAreKnownGetBetterByWork) {
  JobEvidence evidence = Evidence();
  ASSERT_EQ(
      NodeBook(run_).Append(
          "8-0",
          {.node = "n1", .time = kNow - absl::Hours(1), .kind = Kind::kNodeLost, .job = "12"}),
      absl::OkStatus());
  evidence.Form(kNow, 3, {0, 1, 2}, {});
  evidence.Hear(kNow + absl::Hours(1), 3, 1, Kind::kRankCrashed, 1);
  evidence.Hear(kNow + absl::Hours(1), 3, 2, Kind::kNodeLost, 0);
  evidence.Form(kNow + absl::Hours(2), 4, {0, 1}, {});
  evidence.End(kNow + absl::Hours(3));
  EXPECT_THAT(Known(), testing::UnorderedElementsAre("n1 node-lost 0 in 0", "n1 worked 10800 in 0",
                                                     "n2 rank-crashed 1 in 3",
                                                     "n2 worked 7200 in 0", "n3 node-lost 0 in 3"));
}

TEST_F(JobEvidenceTest, WhatCannotBeWrittenIsSaidOnce) {
  std::ofstream(run_ + "/nodes") << "no folder";
  JobEvidence evidence = Evidence();
  evidence.Hear(kNow, 3, 1, Kind::kNodeLost, 0);
  evidence.Hear(kNow, 3, 2, Kind::kNodeLost, 0);
  evidence.Form(kNow, 4, {0}, {});
  evidence.End(kNow + absl::Hours(1));
  ASSERT_EQ(warnings_.size(), 1U);
  EXPECT_THAT(warnings_[0], testing::HasSubstr("next jobs will not know it"));
}

}  // namespace
}  // namespace perdure
