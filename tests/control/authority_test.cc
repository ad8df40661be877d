#include "runtime/control/authority.h"

#include <gtest/gtest.h>

namespace perdure {
namespace {

absl::Time At(double seconds) { return absl::UnixEpoch() + absl::Seconds(seconds); }

// Leases of 10 s on the log, 2 s of support, 2 s of agents; clocks drift by 1 %.
ControlOptions Options() {
  ControlOptions options;
  options.lease_log = absl::Seconds(10);
  options.lease_support = absl::Seconds(2);
  options.lease_agent = absl::Seconds(2);
  return options;
}

TEST(Authority, NeedsLogAndMoreThanHalfOfTheNodes) {
  Authority authority(Options(), 4);
  authority.Elect({0, 1, 2, 3}, At(0));
  EXPECT_EQ(authority.Grant(At(0)), absl::ZeroDuration());
  authority.LogRead(At(0));
  EXPECT_EQ(authority.Grant(At(0)), absl::ZeroDuration());
  authority.Answered(0, At(0), At(0.1));
  authority.Answered(0, At(0), At(0.1));  // Twice the same.
  authority.Answered(1, At(0), At(0.1));
  EXPECT_EQ(authority.Grant(At(0.1)), absl::ZeroDuration()) << "two of four are not more than half";
  authority.Answered(2, At(0), At(0.1));
  EXPECT_EQ(authority.end(), At(1.98)) << "from the stamp, not from its return";
}

TEST(Authority, SupportIsRenewedByAnswersToWhatWasSentLater) {
  Authority authority(Options(), 3);
  authority.LogRead(At(0));
  authority.Elect({0, 1, 2}, At(0));
  authority.Answered(0, At(0), At(0.5));
  authority.Answered(1, At(0), At(0.5));
  authority.Answered(2, At(0.4), At(0.6));  // To something of before this round.
  authority.Answered(0, At(0.4), At(0.6));
  EXPECT_EQ(authority.end(), At(1.98));
  authority.Answered(2, At(0.5), At(0.7));
  authority.Answered(0, At(0.6), At(0.8));
  EXPECT_EQ(authority.end(), At(2.48));
}

TEST(Authority, StrangersDoNotCount) {
  Authority authority(Options(), 5);
  authority.LogRead(At(0));
  authority.Elect({1, 2}, At(0));
  for (NodeId node : {0, 3, 4, 1}) authority.Answered(node, At(0.1), At(0.2));
  EXPECT_EQ(authority.Grant(At(0.2)), absl::ZeroDuration());
}

TEST(Authority, EndsWithTheLogLease) {
  ControlOptions options = Options();
  options.visibility = absl::Seconds(1);
  Authority authority(options, 1);
  authority.LogRead(At(0));
  authority.Elect({0}, At(8));
  authority.Answered(0, At(8), At(8));
  EXPECT_EQ(authority.end(), At(8.9)) << "10 s less 1 % and what a reading may be old";
  EXPECT_EQ(authority.Grant(At(8.9)), absl::ZeroDuration());
  EXPECT_EQ(authority.Grant(At(7.9)), absl::Milliseconds(980)) << "what is left, less both drifts";
  authority.LogRead(At(5));
  EXPECT_EQ(authority.Grant(At(8)), absl::Seconds(1.98) - absl::Seconds(1.98) * 2 / 100);
}

TEST(Authority, AnotherElectionBeginsWithoutSupport) {
  Authority authority(Options(), 2);
  authority.LogRead(At(0));
  authority.Elect({0}, At(0));
  authority.Answered(0, At(0), At(0));
  EXPECT_GT(authority.Grant(At(0)), absl::ZeroDuration());
  authority.Elect({0, 1}, At(1));
  EXPECT_EQ(authority.Grant(At(1)), absl::ZeroDuration());
}

TEST(Authority, VotersOfTheLastElectionAreStrangers) {
  Authority authority(Options(), 3);
  authority.LogRead(At(0));
  authority.Elect({1, 2}, At(0));
  authority.Elect({0}, At(1));
  authority.Answered(1, At(1), At(1));
  authority.Answered(2, At(1), At(1));
  EXPECT_EQ(authority.Grant(At(1)), absl::ZeroDuration());
}

LogView::Live Live(uint64_t job, Generation generation, int nodes) {
  PlacedLayout layout{.generation = generation, .shape = {.data = nodes}, .seats = {}};
  for (NodeId node = 0; node < static_cast<NodeId>(nodes); ++node)
    layout.seats.push_back({node, 0});
  return {.job = job, .resumed = 0, .layout = layout};
}

TEST(Fence, NothingBeforeIsOpen) {
  Fence fence(Options(), 4);
  fence.Inherit({}, 7, At(100));
  EXPECT_EQ(fence.Opens(), absl::InfinitePast());
}

TEST(Fence, WaitsForTheLogLeaseOfOneBefore) {
  Fence fence(Options(), 4);
  fence.Inherit({Live(7, 3, 4)}, 7, At(100));
  EXPECT_EQ(fence.Opens(), At(110.1));
  fence.Joined(0, At(101));
  EXPECT_EQ(fence.Opens(), At(110.1));
  fence.Joined(0, At(101.1));  // Again: one node.
  EXPECT_EQ(fence.Opens(), At(110.1));
  fence.Joined(1, At(101.5));  // Half: nobody else can have more than half.
  EXPECT_EQ(fence.Opens(), At(103.52));
  fence.Joined(2, At(103));
  EXPECT_EQ(fence.Opens(), At(103.52));
}

TEST(Fence, TwoOfFiveAreNotHalf) {
  Fence fence(Options(), 5);
  fence.Inherit({Live(7, 3, 5)}, 7, At(100));
  fence.Joined(0, At(101));
  fence.Joined(1, At(101));
  EXPECT_EQ(fence.Opens(), At(110.1));
  fence.Joined(2, At(102));
  EXPECT_EQ(fence.Opens(), At(104.02));
}

TEST(Fence, OpensWhenAllHaveStopped) {
  Fence fence(Options(), 2);
  fence.Inherit({Live(7, 3, 2)}, 7, At(100));
  fence.Stopped(0, 3);
  fence.Stopped(1, 2);
  EXPECT_EQ(fence.Opens(), At(110.1));
  fence.Stopped(1, 3);
  EXPECT_EQ(fence.Opens(), absl::InfinitePast());
}

TEST(Fence, AnotherJobCannotAnswer) {
  Fence fence(Options(), 2);
  fence.Inherit({Live(6, 3, 2)}, 7, At(100));
  fence.Joined(0, At(100));
  fence.Joined(1, At(100));
  fence.Stopped(0, 3);
  fence.Stopped(1, 3);
  EXPECT_EQ(fence.Opens(), At(110.1));
}

TEST(Fence, EachOlderGenerationCounts) {
  Fence fence(Options(), 4);
  fence.Inherit({Live(7, 3, 4), Live(7, 4, 1)}, 7, At(100));
  fence.Joined(0, At(100.5));
  EXPECT_EQ(fence.Opens(), At(110.1)) << "one of four is not half";
  fence.Joined(3, At(101));
  EXPECT_EQ(fence.Opens(), At(103.02));
}

TEST(Fence, OwnGrantsEndOrStop) {
  Fence fence(Options(), 3);
  fence.Granted(0, 5, At(10));
  fence.Granted(1, 5, At(12));
  fence.Granted(1, 5, At(11));  // Earlier: does not shorten it.
  EXPECT_EQ(fence.Opens(), At(12));
  fence.Stopped(1, 4);
  EXPECT_EQ(fence.Opens(), At(12));
  fence.Stopped(1, 5);
  EXPECT_EQ(fence.Opens(), At(10));
  fence.Stopped(0, 6);
  EXPECT_EQ(fence.Opens(), absl::InfinitePast());
}

TEST(ControlOptions, RefusesWhatCannotHold) {
  const auto refusal = [](auto change) {
    ControlOptions options;
    change(options);
    return std::string(Validate(options).message());
  };
  EXPECT_TRUE(Validate(ControlOptions()).ok());
  EXPECT_NE(refusal([](auto& o) { o.poll = absl::ZeroDuration(); }).find("poll"),
            std::string::npos);
  EXPECT_NE(refusal([](auto& o) { o.lease_agent = o.heartbeat; }).find("heartbeat"),
            std::string::npos);
  EXPECT_NE(refusal([](auto& o) { o.lease_log = o.poll; }).find("lease_log"), std::string::npos);
  EXPECT_NE(refusal([](auto& o) { o.visibility = absl::Seconds(-1); }).find("visibility"),
            std::string::npos);
  EXPECT_NE(refusal([](auto& o) { o.drift_percent = 50; }).find("drift_percent"),
            std::string::npos);
  EXPECT_NE(refusal([](auto& o) { o.done_code = 256; }).find("done_code"), std::string::npos);
  EXPECT_NE(refusal([](auto& o) { o.done_code = -1; }).find("done_code"), std::string::npos);
  EXPECT_NE(refusal([](auto& o) { o.table_fan_out = 0; }).find("table_fan_out"), std::string::npos);
  EXPECT_NE(refusal([](auto& o) { o.node_silence = o.heartbeat; }).find("silence"),
            std::string::npos);
}

}  // namespace
}  // namespace perdure
