// What other releases than the recorded 22.05 print. Made from the records by the changes that
// Slurm's own list of changes (its CHANGELOG folder) and sources name, and by no others:
//   21.08  prints what 22.05 prints in every field that is read here; scancel has no --me.
//   23.02  scontrol show job: "Requested TRES and allocated TRES will now always be printed"
//          (ReqTRES=, AllocTRES= for TRES=); FailedNode= behind Reason=; NumNodes= may be the list
//          of sizes of --nodes=1,4-8:2. Partitions have MaxCPUsPerSocket=. sacct: Reserved is
//          Planned.
//   23.11  "Allow for a shared suffix to be used with the hostlist format", node[0001-0010]-int;
//          many commands said "Unexpected Message Received" when a connection timed out (23.11.9).
//   24.05  StepMgrEnabled=Yes behind BatchHost=; node state BLOCKED. There is no Power= any more.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "launch/slurm/scheduler.h"
#include "launch/slurm/scheduler_text.h"
#include "tests/slurm/recorded_command.h"

namespace perdure {
namespace {

using testing::ElementsAre;

void Replace(std::string& text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << from;
  text.replace(at, from.size(), to);
}

JobView Job(const std::string& text) {
  const auto jobs = ParseScontrolJobs(text, std::nullopt);
  EXPECT_TRUE(jobs.ok()) << jobs.status();
  return jobs.ok() && jobs->size() == 1 ? jobs->front() : JobView();
}

TEST(OtherReleases, NoCommandHasOptionsThat2108Lacks) {
  std::vector<std::string> words;
  Scheduler scheduler([&](const Invocation& command) -> absl::StatusOr<InvocationResult> {
    words.insert(words.end(), command.argv.begin(), command.argv.end());
    return InvocationResult{};
  });
  EXPECT_TRUE(scheduler.CancelPendingNamed("x").ok());
  EXPECT_TRUE(scheduler.JobsNamed("x").ok());
  EXPECT_THAT(words, testing::Not(testing::Contains("--me")));
}

TEST(OtherReleases, Running2302) {
  std::string text = ReadRecord("22.05/running").result.output;
  const JobView before = Job(text);
  Replace(text, " TRES=cpu=8,node=2,billing=8",
          " ReqTRES=cpu=2,mem=2000M,node=2,billing=2 AllocTRES=cpu=8,node=2,billing=8");
  EXPECT_EQ(Job(text), before);
}

TEST(OtherReleases, FailedNode2302) {
  std::string text = ReadRecord("22.05/node-failed").result.output;
  JobView before = Job(text);
  EXPECT_EQ(before.failed_node, "");
  Replace(text, "Reason=NodeDown ", "Reason=NodeDown FailedNode=n2 ");
  before.failed_node = "n2";
  EXPECT_EQ(Job(text), before);
}

TEST(OtherReleases, SizesOfAPendingJob2302) {
  std::string text = ReadRecord("22.05/pending").result.output;
  Replace(text, " NumNodes=2-3 ", " NumNodes=1,4-8:2 ");
  EXPECT_EQ(Job(text).nodes_min, 1);
  EXPECT_EQ(Job(text).nodes_max, 8);
}

TEST(OtherReleases, Partition2302) {
  std::string text = ReadRecord("22.05/partitions").result.output;
  const auto before = ParsePartitions(text);
  ASSERT_TRUE(before.ok());
  Replace(text, "MaxCPUsPerNode=UNLIMITED ",
          "MaxCPUsPerNode=UNLIMITED MaxCPUsPerSocket=UNLIMITED ");
  EXPECT_EQ(*ParsePartitions(text), *before);
}

TEST(OtherReleases, NodesWithASharedSuffix2311) {
  std::string text = ReadRecord("22.05/running").result.output;
  Replace(text, " NodeList=n[1-2] BatchHost=n1 ", " NodeList=n[1-2]-int BatchHost=n1-int ");
  EXPECT_THAT(Job(text).nodes, ElementsAre("n1-int", "n2-int"));
  EXPECT_FALSE(Job(text).batch_host_lost());
}

TEST(OtherReleases, TimedOutConnection2311) {
  EXPECT_TRUE(absl::IsUnavailable(CommandFailure(
      {"scancel", "9"}, {.exit_code = 1, .output = {}, .errors = "Unexpected Message Received"})));
}

TEST(OtherReleases, Running2405) {
  std::string text = ReadRecord("22.05/running").result.output;
  const JobView before = Job(text);
  Replace(text, " BatchHost=n1 ", " BatchHost=n1 StepMgrEnabled=Yes ");
  Replace(text, " Power= ", "");
  EXPECT_EQ(Job(text), before);
}

TEST(OtherReleases, BlockedNode2405) {
  const auto nodes = ParseSinfo("n1|blocked|none|\n", "|");
  ASSERT_TRUE(nodes.ok());
  EXPECT_EQ(nodes->front().state, "blocked");
  EXPECT_FALSE(nodes->front().down());
}

}  // namespace
}  // namespace perdure
