// A coordinator's authority: its records, polls of the log, whom it hears, leases.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/control/coordinator_story.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;
using Phase = Coordinator::Phase;

// ---- its records

TEST(CoordinatorLeads, ByALeadBehindWhatItsAgentHasRead) {
  CoordinatorStory story(2, View({Lead(0, 1), Start(1, 1, {0, 1})}));
  ASSERT_TRUE(story.Appends(EntryKind::kLead));
  EXPECT_EQ(story.append()->slot, 2u);
  EXPECT_EQ(story.append()->author, CoordinatorStory::Me());
  story.Win();
  EXPECT_EQ(story.lead().term(), 2u);
  EXPECT_EQ(story.Sent<msg::Announce>().at(1).term, 2u);
}

TEST(CoordinatorLeads, HearsNobodyBeforeItHasWon) {
  CoordinatorStory story(2);
  story.Report(1, NodeStage::kIdle);
  EXPECT_TRUE(story.DoesNothing());
}

TEST(CoordinatorLeads, TriesAFailedAppendAgainAfterAppendRetry) {
  CoordinatorStory story(1);
  const LogEntry first = *story.append();
  for (int i = 0; i < 3; ++i) {
    const absl::Time failed = story.now();
    story.Do(Coordinator::Appended{std::nullopt});
    EXPECT_TRUE(story.DoesNothing());
    story.After(Ms(600));
    EXPECT_THAT(story.When<Coordinator::Append>(failed), ElementsAre(Ms(500)));
    EXPECT_EQ(*story.append(), first) << "the first try may be on its way";
  }
}

TEST(CoordinatorLeads, ItsRecordsAreNobodyElses) {
  // A coordinator before it, of the same agent's life, wrote that.
  CoordinatorStory story(1);
  LogEntry other = *story.append();
  other.id = uint64_t{1} << 32 | 1;
  EXPECT_NE(story.append()->id, other.id);
  story.Do(Coordinator::Appended{other});
  EXPECT_EQ(story.phase(), Phase::kResigned);
}

TEST(CoordinatorLeads, ARecordOfAnotherSlotAnswersNothing) {
  CoordinatorStory story(1);
  const LogEntry lead = story.Win();
  story.Report(0, NodeStage::kIdle);
  ASSERT_TRUE(story.Appends(EntryKind::kStart));
  story.Do(Coordinator::Appended{lead});  // Come twice.
  EXPECT_TRUE(story.DoesNothing());
  story.Do(Coordinator::LogRead{.asked = story.now(), .entries = {{lead}}});
  EXPECT_TRUE(story.resigned().empty()) << "a record of its own is no other coordinator";
  EXPECT_EQ(story.phase(), Phase::kStarting);
}

TEST(CoordinatorLeads, PollsTheLogForOthers) {
  CoordinatorStory story(1);
  story.Win();
  story.After(absl::Seconds(10));
  EXPECT_THAT(story.When<Coordinator::ReadLog>(kStart),
              ElementsAre(absl::Seconds(3), absl::Seconds(6), absl::Seconds(9)));
  EXPECT_EQ(story.All<Coordinator::ReadLog>()[1].from, 1u);
  EXPECT_EQ(story.All<Coordinator::ReadLog>()[1].asked, kStart + absl::Seconds(6));
  story.Do(Coordinator::LogRead{.asked = story.now(), .entries = std::nullopt});
  EXPECT_EQ(story.phase(), Phase::kGathering) << "a log that cannot be read says nothing";
}

// ---- pulses, for who does not hear it

TEST(CoordinatorLeavesPulses, WhileSomebodyIsNotInTouch) {
  CoordinatorStory story(4);
  story.RunAll();
  story.AfterInTouch(absl::Seconds(5), {0, 1, 2, 3});
  EXPECT_THAT(story.All<Coordinator::LeavePulse>(), IsEmpty());
  const absl::Time cut = story.now();
  story.AfterInTouch(Ms(1500), {0, 1, 2});
  const auto pulses = story.All<Coordinator::LeavePulse>();
  ASSERT_THAT(pulses, SizeIs(5));
  for (size_t i = 0; i < pulses.size(); ++i) EXPECT_EQ(pulses[i].pulse, (Pulse{0, i + 1}));
  EXPECT_EQ(story.When<Coordinator::LeavePulse>(cut).front(), Ms(600));
  EXPECT_EQ(story.When<Coordinator::LeavePulse>(cut).back(), Ms(1400));
  story.AfterInTouch(Ms(100), {3});
  story.AfterInTouch(Ms(1000), {0, 1, 2, 3});
  EXPECT_THAT(story.All<Coordinator::LeavePulse>(), IsEmpty());
}

TEST(CoordinatorLeavesPulses, ForWhoIsHeardAndDoesNotHear) {
  CoordinatorStory story(3);
  story.RunAll();
  const int64_t long_ago = absl::ToUnixNanos(story.now());
  story.After(absl::Seconds(1));
  story.Report(2, NodeStage::kRunning, 1, [=](msg::Report& r) { r.echo = long_ago; });
  story.AfterInTouch(Ms(500), {0, 1, 2});
  EXPECT_THAT(story.All<Coordinator::LeavePulse>(), Not(IsEmpty()));
}

TEST(CoordinatorLeavesPulses, OnlyWhenMoreThanHalfFollow) {
  CoordinatorStory story(4, {}, CoordinatorStory::Needs(4, absl::Hours(1)));
  story.Win();
  for (NodeId node : {0, 1}) story.Report(node, NodeStage::kIdle);
  story.AfterInTouch(absl::Seconds(3), {0, 1});
  EXPECT_THAT(story.All<Coordinator::LeavePulse>(), IsEmpty()) << "it may be they who are cut off";
  story.Report(2, NodeStage::kIdle);
  story.AfterInTouch(Ms(500), {0, 1, 2});
  EXPECT_THAT(story.All<Coordinator::LeavePulse>(), Not(IsEmpty()));
  // Their support counts until it may have gone to another.
  story.AfterInTouch(absl::Seconds(4), {0, 1});
  EXPECT_LE(story.When<Coordinator::LeavePulse>(story.now() - absl::Seconds(4)).back(), Ms(2000));
}

// A successor counts those of the generation that it finds.
TEST(CoordinatorLeavesPulses, WhenMoreThanHalfOfARunningGenerationFollow) {
  CoordinatorStory story(6, View({Lead(0, 1), Start(1, 1, {0, 1, 2})}));
  story.Win();
  for (NodeId node : {0, 1}) story.Report(node, NodeStage::kRunning, 1);
  story.AfterInTouch(Ms(500), {0, 1});
  ASSERT_EQ(story.phase(), Phase::kGathering);
  ASSERT_THAT(story.All<Coordinator::LeavePulse>(), Not(IsEmpty()));
  EXPECT_EQ(story.All<Coordinator::LeavePulse>()[0].pulse.term, 2u);
}

TEST(CoordinatorLeavesPulses, NotOnceItsJobHasEnded) {
  CoordinatorStory story(2);
  story.Win();
  for (NodeId node : {0, 1}) story.Report(node, NodeStage::kIdle);
  story.Do(Coordinator::EndJob{75});
  while (story.append().has_value()) story.Win();
  ASSERT_EQ(story.phase(), Phase::kEnded);
  story.AfterInTouch(absl::Seconds(2), {0});
  EXPECT_THAT(story.All<Coordinator::LeavePulse>(), IsEmpty());
}

TEST(CoordinatorLeads, DoesNothingAfterItHasResigned) {
  CoordinatorStory story(2);
  story.RunAll();
  story.Do(Coordinator::LogRead{.asked = story.now(), .entries = {{Lead(2, 1)}}});
  ASSERT_EQ(story.phase(), Phase::kResigned);
  EXPECT_EQ(story.lead().NextDeadline(), absl::InfiniteFuture());
  story.Report(1, NodeStage::kRunning, 1);
  EXPECT_TRUE(story.DoesNothing()) << "no lease from who was replaced";
}

// ---- whom it hears

TEST(CoordinatorHears, AndAnswersEachReport) {
  CoordinatorStory story(2);
  story.Win();
  story.After(Ms(70));
  story.Report(1, NodeStage::kIdle, 0, [](msg::Report& r) { r.sequence = 55; });
  const msg::Answer answer = story.Sent<msg::Answer>().at(1);
  EXPECT_EQ(answer.term, 0u);
  EXPECT_EQ(answer.sequence, 55u);
  EXPECT_EQ(absl::FromUnixNanos(answer.stamp), kStart + Ms(70));
  EXPECT_EQ(answer.lease, 0);
}

TEST(CoordinatorHears, NoReportForAnotherCoordinator) {
  CoordinatorStory story(2);
  story.Win();
  story.Report(1, NodeStage::kIdle, 0, [](msg::Report& r) { r.term = 3; });
  EXPECT_TRUE(story.DoesNothing());
}

TEST(CoordinatorHears, NoOlderReportAfterANewerOne) {
  CoordinatorStory story(2);
  story.RunAll();
  story.Report(1, NodeStage::kRunning, 1, [](msg::Report& r) { r.sequence = 99; });
  story.Report(1, NodeStage::kReady, 1, [](msg::Report& r) { r.sequence = 98; });
  EXPECT_TRUE(story.DoesNothing());
  story.Report(1, NodeStage::kBroken, 1, [](msg::Report& r) { r.sequence = 99; });
  EXPECT_TRUE(story.DoesNothing()) << "the same again";
  EXPECT_EQ(story.phase(), Phase::kRunning);
}

TEST(CoordinatorHears, AnAgentThatWasStartedAgainAtOnce) {
  CoordinatorStory story(2);
  story.Win();
  story.Report(1, NodeStage::kIdle, 0, [](msg::Report& r) { r.sequence = 99; });
  story.Report(1, NodeStage::kIdle, 0, [](msg::Report& r) {
    r.incarnation = 777;
    r.sequence = 1;
  });
  EXPECT_THAT(story.Sent<msg::Answer>(), SizeIs(1));
}

TEST(CoordinatorHears, NothingButReportsOfANodeThatHasNotReported) {
  CoordinatorStory story(2, View({Lead(0, 1), Start(1, 1, {0, 1})}));
  story.Win();
  story.Report(0, NodeStage::kBroken, 1);
  story.AfterInTouch(absl::Seconds(2), {0});
  ASSERT_EQ(story.phase(), Phase::kStopping);
  story.Stopped(1, 1);
  story.Stopped(0, 1);
  ASSERT_TRUE(story.Appends(EntryKind::kStart));
  EXPECT_THAT(story.append()->layout->seats, ElementsAre(Seat{0, 0}));
}

TEST(CoordinatorHears, NodesThatFallSilentAndThoseThatComeBack) {
  CoordinatorStory story(3, {}, CoordinatorStory::TwoAndASpare());
  story.LogStaysAsItIs();
  story.RunAll();
  story.AfterInTouch(absl::Seconds(3), {0, 1});
  EXPECT_THAT(story.Blamed(), ElementsAre(std::pair(2, EvidenceKind::kNodeLost)));
  EXPECT_THAT(story.When<Coordinator::Evidence>(kStart)[0], testing::Ge(absl::Seconds(2)));
  EXPECT_EQ(story.phase(), Phase::kRunning) << "it was a spare";
  story.AfterInTouch(absl::Seconds(5), {0, 1});
  EXPECT_THAT(story.Blamed(), IsEmpty()) << "said once";
  story.Report(2, NodeStage::kIdle);
  story.AfterInTouch(absl::Seconds(3), {0, 1});
  EXPECT_THAT(story.Blamed(), SizeIs(1)) << "watched again";
}

TEST(CoordinatorHears, ANodeWhoseConnectionEndedIsLostSooner) {
  CoordinatorStory story(2);
  story.LogStaysAsItIs();
  story.RunAll();
  story.AfterInTouch(Ms(1000), {0, 1});
  const absl::Time closed = story.now();
  story.Do(Coordinator::Closed{99});
  story.Do(Coordinator::Closed{1});
  story.AfterInTouch(Ms(1500), {0});
  EXPECT_THAT(story.Blamed(), ElementsAre(std::pair(1, EvidenceKind::kNodeLost)));
  EXPECT_THAT(story.When<Coordinator::Evidence>(closed), ElementsAre(Ms(1000)));
  EXPECT_EQ(story.phase(), Phase::kStopping);
}

// ---- leases

TEST(CoordinatorLeases, GoToMembersThatRunItsGeneration) {
  CoordinatorStory story(3, {}, CoordinatorStory::TwoAndASpare());
  story.RunAll();
  story.Report(0, NodeStage::kRunning, 1);
  story.Report(1, NodeStage::kRunning, 1);
  EXPECT_EQ(story.LeaseOf(1), Ms(1980) * 98 / 100) << "the support lease, less both drifts";
  EXPECT_EQ(story.Sent<msg::Answer>().at(1).generation, 1u);
  story.Report(2, NodeStage::kIdle);
  EXPECT_EQ(story.LeaseOf(2), absl::ZeroDuration()) << "a spare";
  story.Report(2, NodeStage::kRunning, 1);
  EXPECT_EQ(story.LeaseOf(2), absl::ZeroDuration()) << "it has no seat";
  story.Report(1, NodeStage::kRunning, 2);
  EXPECT_EQ(story.LeaseOf(1), absl::ZeroDuration()) << "of another generation";
}

TEST(CoordinatorLeases, NeedAnswersOfMoreThanHalf) {
  CoordinatorStory story(2);
  story.RunAll();
  story.After(Ms(1900));
  story.Report(0, NodeStage::kRunning, 1);
  EXPECT_EQ(story.LeaseOf(0), Ms(80) * 98 / 100) << "since both reported that they are ready";
  story.AfterInTouch(Ms(80), {0});
  EXPECT_EQ(story.LeaseOf(0), absl::ZeroDuration()) << "one of two";
  story.Report(1, NodeStage::kRunning, 1);
  story.AfterInTouch(Ms(200), {0, 1});
  EXPECT_GT(story.LeaseOf(1), absl::ZeroDuration());
}

TEST(CoordinatorLeases, NeedAnswersToWhatWasSentToThisGeneration) {
  CoordinatorStory story(1);
  story.Win();
  story.Report(0, NodeStage::kIdle);
  story.After(Ms(10));
  story.Win();
  const auto old = [](msg::Report& r) { r.echo = absl::ToUnixNanos(kStart); };
  story.Present(0, 1);
  story.Report(0, NodeStage::kReady, 1, old);
  ASSERT_EQ(story.phase(), Phase::kRunning);
  story.Report(0, NodeStage::kRunning, 1, old);
  EXPECT_EQ(story.LeaseOf(0), absl::ZeroDuration());
  story.Report(0, NodeStage::kRunning, 1);
  EXPECT_GT(story.LeaseOf(0), absl::ZeroDuration());
}

TEST(CoordinatorLeases, EndWithTheLogLease) {
  CoordinatorStory story(1);
  story.RunAll();
  story.Report(0, NodeStage::kRunning, 1);
  story.AfterInTouch(absl::Seconds(29), {0});
  EXPECT_EQ(story.LeaseOf(0), Ms(700) * 98 / 100) << "30 s less the drift since START was asked";
  story.AfterInTouch(absl::Seconds(1), {0});
  EXPECT_EQ(story.LeaseOf(0), absl::ZeroDuration()) << "the log does not answer";
}

TEST(CoordinatorLeases, APollCountsFromWhenItWasAsked) {
  CoordinatorStory story(1);
  story.RunAll();
  story.Report(0, NodeStage::kRunning, 1);
  story.AfterInTouch(absl::Seconds(20), {0});
  story.Do(
      Coordinator::LogRead{.asked = kStart + absl::Seconds(3), .entries = std::vector<LogEntry>()});
  story.AfterInTouch(absl::Seconds(12), {0});
  EXPECT_EQ(story.LeaseOf(0), Ms(700) * 98 / 100);
}

// The first try may have taken the slot, and somebody else's LEAD the next one.
TEST(CoordinatorLeases, ARecordCountsFromWhenItWasFirstAsked) {
  CoordinatorStory story(1);
  story.Win();
  story.Report(0, NodeStage::kIdle);
  ASSERT_TRUE(story.Appends(EntryKind::kStart));
  for (int second = 0; second < 29; ++second) {
    story.Do(Coordinator::Appended{std::nullopt});
    story.AfterInTouch(absl::Seconds(1), {0});
  }
  story.Win();
  story.RunOn();
  ASSERT_EQ(story.phase(), Phase::kRunning);
  story.Report(0, NodeStage::kRunning, 1);
  EXPECT_EQ(story.LeaseOf(0), Ms(700) * 98 / 100);
}

// Node 1 falls silent; node 0 goes on without it, when its lease has ended by any clock.
class LeaseOfALostNode : public testing::Test {
 protected:
  static ControlOptions Impatient() {
    ControlOptions options = CoordinatorStory::Options();
    options.node_silence = Ms(1000);
    return options;
  }
  // How long after the lease was granted the next generation goes.
  absl::Duration GoesAfter() {
    story_.Report(0, NodeStage::kRunning, 1);
    story_.Report(1, NodeStage::kRunning, 1);
    lease_ = story_.LeaseOf(1);
    story_.AfterInTouch(Ms(1100), {0});
    EXPECT_EQ(story_.phase(), Phase::kStopping);
    story_.Stopped(0, 1, {{1, 1, 0}, {1, 1, 1}});
    story_.Win();
    story_.Present(0, 2);
    story_.Report(0, NodeStage::kReady, 2);
    story_.AfterInTouch(absl::Seconds(3), {0});
    const auto gone = story_.WhenSent<msg::Go>(0, kStart);
    return gone.empty() ? absl::InfiniteDuration() : gone.front();
  }
  CoordinatorStory story_{2, {}, CoordinatorStory::Rule(), Impatient()};
  absl::Duration lease_;
};

TEST_F(LeaseOfALostNode, IsWaitedForWithTheDrift) {
  story_.RunAll();
  const absl::Duration after = GoesAfter();
  EXPECT_EQ(after, lease_ * 101 / 100);
  EXPECT_GT(lease_, Ms(1900));
}

// Its report was on its way when START was written: it says nothing of what it runs afterwards.
TEST_F(LeaseOfALostNode, IsWaitedForThoughItWasIdleWhenTheGenerationBegan) {
  story_.Win();
  for (NodeId node : {0, 1}) story_.Report(node, NodeStage::kIdle);
  story_.Win();
  story_.Report(1, NodeStage::kIdle);
  story_.RunOn();
  ASSERT_EQ(story_.phase(), Phase::kRunning);
  const absl::Duration after = GoesAfter();
  EXPECT_EQ(after, lease_ * 101 / 100);
}

TEST_F(LeaseOfALostNode, IsNotWaitedForWhenItsRanksHaveStopped) {
  story_.RunAll();
  story_.Report(0, NodeStage::kRunning, 1);
  story_.Report(1, NodeStage::kRunning, 1);
  story_.Report(1, NodeStage::kBroken, 1);
  story_.Stopped(1, 1, {{1, 1, 0}, {1, 1, 1}});
  story_.Stopped(0, 1);
  story_.Win();
  story_.RunOn();
  EXPECT_EQ(story_.phase(), Phase::kRunning) << story_.said();
  EXPECT_THAT(story_.said(), HasSubstr("generation 2: 2 ranks on 2 nodes, from memory at step 1"));
}

}  // namespace
}  // namespace perdure
