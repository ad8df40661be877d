// Whom a member follows, and when it offers its own agent: docs/architecture.md, "Control plane".
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/control/member_story.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

// ---- the log says who leads

TEST(MemberFollows, ReadsTheLogFromItsBeginningAndTellsNobody) {
  MemberStory story(3);
  ASSERT_THAT(story.All<Member::ReadLog>(), SizeIs(1));
  EXPECT_EQ(story.All<Member::ReadLog>()[0].from, 0u);
  EXPECT_EQ(story.All<Member::ReadLog>()[0].asked, kStart);
  EXPECT_THAT(story.All<Member::Send>(), IsEmpty());
}

TEST(MemberFollows, AsksAgainAfterSeekWhenTheLogSaysNothing) {
  MemberStory story(3);
  story.After(Ms(1600));
  EXPECT_THAT(story.When<Member::ReadLog>(kStart), ElementsAre(Ms(500), Ms(1000), Ms(1500)));
  EXPECT_THAT(story.All<Member::TakeLead>(), IsEmpty()) << "who cannot read cannot lead";
  story.Do(Member::LogRead{.asked = story.now(), .from = 0, .entries = std::nullopt});
  EXPECT_TRUE(story.DoesNothing());
}

TEST(MemberFollows, ReportsAtOnceToTheAuthorOfTheNewestLead) {
  MemberStory story(3);
  story.Read({Lead(0, 1), Start(1, 1, {1, 3}), Lead(2, 2)});
  EXPECT_THAT(story.SentTo<msg::Report>(), ElementsAre(Endpoint{kJob, 2}));
  EXPECT_EQ(story.newest().term, 2u);
}

TEST(MemberFollows, ReadsOnBehindWhatItKnows) {
  MemberStory story(3);
  story.Read({Lead(0, 1), Start(1, 1, {1, 3})});
  story.After(Ms(500));
  ASSERT_THAT(story.All<Member::ReadLog>(), SizeIs(1));
  EXPECT_EQ(story.All<Member::ReadLog>()[0].from, 2u);
}

TEST(MemberFollows, AReadingThatComesLateChangesNothing) {
  MemberStory story(0);
  story.Read({Lead(0, 1), Lead(1, 2)});
  story.After(Ms(1000));
  story.Do(Member::LogRead{.asked = kStart, .from = 0, .entries = {{Lead(0, 1)}}});
  EXPECT_TRUE(story.DoesNothing()) << "it says nothing of now: no reason to offer oneself";
  EXPECT_EQ(story.member().view().next_slot, 2u);
  EXPECT_EQ(story.member().term(), 1u);
}

// The one that an agent knew in its last life may be newer than what an old reading shows.
TEST(MemberFollows, DoesNotTrustReadingsThatMayBeOlderThanItsLife) {
  ControlOptions options;
  options.visibility = absl::Seconds(1);
  MemberStory story(0, options);
  story.After(Ms(1009));
  story.Read({Lead(0, 1)});
  EXPECT_TRUE(story.DoesNothing()) << "1 s and the drift of its clock are not over";
  story.Hear({kJob, 1}, msg::Announce{.term = 0});
  EXPECT_TRUE(story.DoesNothing()) << "nor does it know that this coordinator is no old one";
  story.After(Ms(1));
  story.Read({});
  EXPECT_THAT(story.SentTo<msg::Report>(), ElementsAre(Endpoint{kJob, 1}));
}

TEST(MemberFollows, LeavesWhenItsJobHasEnded) {
  MemberStory story(3);
  story.Read({Lead(0, 1), End(1, 75)});
  ASSERT_THAT(story.All<Member::Exit>(), SizeIs(1));
  EXPECT_EQ(story.All<Member::Exit>()[0].code, 75);
  EXPECT_TRUE(story.member().exited());
  EXPECT_EQ(story.member().NextDeadline(), absl::InfiniteFuture());
  story.Do(Member::Leave{});
  story.Hear({kJob, 1}, msg::Announce{.term = 5});
  EXPECT_TRUE(story.DoesNothing());
}

TEST(MemberFollows, LeavesWhenItsJobHasEndedAndTheNextOneHasBegun) {
  MemberStory story(3);
  story.Read({Lead(0, 1), End(1, 75), Lead(2, 1, kOtherJob)});
  ASSERT_THAT(story.All<Member::Exit>(), SizeIs(1)) << "nobody would ever tell it again";
  EXPECT_EQ(story.All<Member::Exit>()[0].code, 75);
}

TEST(MemberFollows, StaysWhenTheJobBeforeHasEnded) {
  MemberStory story(3);
  story.Read({Lead(0, 1, kOtherJob), End(1, 75, kOtherJob)});
  EXPECT_THAT(story.All<Member::Exit>(), IsEmpty());
  EXPECT_THAT(story.Sent<msg::Probe>(), IsEmpty()) << "nobody leads any more";
  story.After(Ms(600));
  EXPECT_THAT(story.When<Member::TakeLead>(kStart), ElementsAre(Ms(600)));
}

// ---- by message

TEST(MemberFollows, WhoAnnouncesANewerTerm) {
  MemberStory story(3);
  story.Follow(1);
  story.Hear({kJob, 2}, msg::Announce{.term = 5});
  EXPECT_THAT(story.SentTo<msg::Report>(), ElementsAre(Endpoint{kJob, 2}));
  EXPECT_EQ(story.newest().term, 5u);
}

TEST(MemberFollows, AnyCommandOfANewerTermAnnouncesItsSender) {
  MemberStory story(3);
  story.Follow(1);
  story.Hear({kJob, 2}, msg::Stop{.term = 5, .generation = 0});
  EXPECT_EQ(story.member().term(), 5u);
  EXPECT_THAT(story.SentTo<msg::Stopped>(), ElementsAre(Endpoint{kJob, 2}));
  EXPECT_THAT(story.SentTo<msg::Report>(), ElementsAre(Endpoint{kJob, 2}));
}

TEST(MemberFollows, NobodyOfAnOlderTerm) {
  MemberStory story(3);
  story.Follow(1);
  story.FollowNext(5, 2);
  story.Hear({kJob, 0}, msg::Announce{.term = 4});
  story.Hear({kJob, 0}, msg::Stop{.term = 4, .generation = 0});
  EXPECT_TRUE(story.DoesNothing());
  EXPECT_EQ(story.member().term(), 5u);
}

TEST(MemberFollows, NobodyWhomTheLogShowsReplaced) {
  MemberStory story(3);
  story.Read({Lead(0, 1), Lead(1, 1, kOtherJob)});
  story.Hear({kJob, 1}, msg::Announce{.term = 0});
  EXPECT_TRUE(story.DoesNothing());
}

TEST(MemberFollows, OneCoordinatorATerm) {
  MemberStory story(3);
  story.Follow(1);
  story.Hear({kJob, 2}, msg::Stop{.term = 0, .generation = 0});
  story.Hear({kJob, 2}, msg::Bye{.term = 0, .exit_code = 1});
  EXPECT_TRUE(story.DoesNothing());
  EXPECT_FALSE(story.member().exited());
}

TEST(MemberFollows, NobodyOfAnotherJob) {
  MemberStory story(3);
  story.Follow(1);
  story.Hear({kOtherJob, 1}, msg::Announce{.term = 9});
  story.Hear({kOtherJob, 1}, msg::Bye{.term = 0, .exit_code = 1});
  EXPECT_TRUE(story.DoesNothing());
  EXPECT_EQ(story.member().term(), 0u);
}

TEST(MemberFollows, WhoMissedAnAnnouncementFindsItInTheLog) {
  MemberStory story(3);
  story.Follow(1);
  story.After(Ms(1000));
  story.Read({Lead(1, 2)});
  EXPECT_THAT(story.SentTo<msg::Report>(), ElementsAre(Endpoint{kJob, 2}));
  EXPECT_EQ(story.newest().term, 1u);
}

// ---- its coordinator is silent

TEST(MemberFollows, ReadsNoLogWhileItsCoordinatorAnswers) {
  MemberStory story(0);
  story.Follow(1);
  story.AfterInTouch(absl::Seconds(10));
  EXPECT_THAT(story.All<Member::ReadLog>(), IsEmpty());
}

TEST(MemberFollows, ReadsTheLogAfterHalfOfLeaderSilence) {
  MemberStory story(2);
  story.Follow(1);
  story.After(Ms(400));
  story.Answer();
  story.After(Ms(499));
  EXPECT_THAT(story.All<Member::ReadLog>(), IsEmpty());
  story.After(Ms(1));
  EXPECT_THAT(story.All<Member::ReadLog>(), SizeIs(1));
}

// Half of it, and three pulses that could have come since the log was read first.
TEST(MemberOffers, ItselfAfterLeaderSilenceWhenItIsFirstInLine) {
  MemberStory story(0);
  story.Follow(1);
  story.LogStaysAsItIs();
  story.After(absl::Seconds(5));
  EXPECT_THAT(story.When<Member::TakeLead>(kStart), ElementsAre(Ms(1100)));
}

// It is cut off, not its coordinator.
TEST(MemberOffers, NothingWhilePulsesOfTheSilentOneAreFound) {
  MemberStory story(0);
  story.Follow(1);
  story.LogStaysAsItIs();
  uint64_t count = 7;
  story.pulse = [&] { return Pulse{0, ++count}; };
  story.After(absl::Seconds(60));
  EXPECT_THAT(story.All<Member::TakeLead>(), IsEmpty());
  // It goes, too.
  const absl::Time last = story.now();
  story.pulse = [&] { return Pulse{0, count}; };
  story.After(absl::Seconds(5));
  ASSERT_THAT(story.All<Member::TakeLead>(), SizeIs(1));
  EXPECT_THAT(story.When<Member::TakeLead>(last),
              ElementsAre(testing::AllOf(testing::Ge(Ms(500)), testing::Le(Ms(1000)))));
}

TEST(MemberOffers, ItselfWhereThereAreOldPulsesOnlyOrOthers) {
  const auto turn = [](const std::function<Pulse(uint64_t)>& pulse) {
    MemberStory story(0);
    story.Read({Lead(0, 2), Lead(1, 1)});
    story.LogStaysAsItIs();
    uint64_t reading = 0;
    story.pulse = [&] { return pulse(++reading); };
    story.After(absl::Seconds(9));
    const auto turns = story.When<Member::TakeLead>(kStart);
    return turns.empty() ? absl::InfiniteDuration() : turns.front();
  };
  EXPECT_EQ(turn([](uint64_t) { return Pulse{1, 40}; }), Ms(1100)) << "the last that it left";
  EXPECT_EQ(turn([](uint64_t n) { return Pulse{0, n}; }), Ms(1100)) << "of who led before";
  EXPECT_EQ(turn([](uint64_t n) { return Pulse{2, n}; }), Ms(1100)) << "of whom the log knows not";
  EXPECT_EQ(turn([](uint64_t n) { return Pulse{1, 40 - n}; }), Ms(1100)) << "older and older";
  EXPECT_EQ(turn([](uint64_t n) { return Pulse{1, n}; }), absl::InfiniteDuration());
}

// What was left during an earlier silence tells nothing of this one.
TEST(MemberOffers, ItselfAfterPulsesThatItMissed) {
  MemberStory story(0);
  story.Follow(1);
  story.LogStaysAsItIs();
  story.pulse = [] { return Pulse{0, 5}; };
  story.After(Ms(600));
  story.Answer();
  story.pulse = [] { return Pulse{0, 50}; };
  const absl::Time heard = story.now();
  story.After(absl::Seconds(5));
  EXPECT_THAT(story.When<Member::TakeLead>(heard), ElementsAre(Ms(1100)));
}

// The connection to who cannot be reached ends, in the end.
TEST(MemberOffers, NothingWhenTheConnectionEndsAndPulsesGoOn) {
  MemberStory story(0);
  story.Follow(1);
  story.LogStaysAsItIs();
  uint64_t count = 0;
  story.pulse = [&] { return Pulse{0, ++count}; };
  story.After(absl::Seconds(15));
  story.Do(Member::Closed{{kJob, 1}});
  EXPECT_THAT(story.All<Member::TakeLead>(), IsEmpty());
  story.After(absl::Seconds(15));
  EXPECT_THAT(story.All<Member::TakeLead>(), IsEmpty());
}

TEST(MemberOffers, ItselfAHeartbeatAfterTheConnectionEndedWhateverItLeft) {
  MemberStory story(0);
  story.Follow(1);
  story.LogStaysAsItIs();
  uint64_t count = 0;
  story.pulse = [&] { return Pulse{0, ++count}; };
  story.Do(Member::Closed{{kJob, 1}});
  story.After(absl::Seconds(1));
  EXPECT_THAT(story.When<Member::TakeLead>(kStart), ElementsAre(Ms(250)));
}

TEST(MemberOffers, ItselfAStaggerLaterForEachPlaceInLine) {
  MemberStory story(3);
  story.Follow(1);
  story.LogStaysAsItIs();
  story.After(absl::Seconds(5));
  EXPECT_THAT(story.When<Member::TakeLead>(kStart), ElementsAre(Ms(1700)));
}

TEST(MemberOffers, ItselfAfterStaggerMaxPlacesAtTheLatest) {
  MemberStory story(4000);
  story.Follow(1);
  story.LogStaysAsItIs();
  story.After(absl::Seconds(6));
  EXPECT_THAT(story.When<Member::TakeLead>(kStart), ElementsAre(Ms(1100 + 16 * 200)));
}

TEST(MemberOffers, NodesOfTheRunningGenerationFirst) {
  const auto turn = [](NodeId node) {
    MemberStory story(node);
    story.Read({Lead(0, 1), Start(1, 1, {5, 3, 9})});
    story.LogStaysAsItIs();
    story.After(absl::Seconds(6));
    const auto turns = story.When<Member::TakeLead>(kStart);
    return turns.empty() ? absl::InfiniteDuration() : turns.front();
  };
  EXPECT_EQ(turn(3), Ms(1100));
  EXPECT_EQ(turn(5), Ms(1300));
  EXPECT_EQ(turn(9), Ms(1500));
  EXPECT_EQ(turn(0), Ms(1700)) << "behind the three";
  EXPECT_EQ(turn(4), Ms(2500));
}

TEST(MemberOffers, AGenerationOfAnotherJobGivesNobodyAPlace) {
  MemberStory story(2);
  story.Read({Lead(0, 1, kOtherJob), Start(1, 1, {2}, kOtherJob), Lead(2, 1)});
  story.LogStaysAsItIs();
  story.After(absl::Seconds(6));
  EXPECT_THAT(story.When<Member::TakeLead>(kStart), ElementsAre(Ms(1500)));
}

TEST(MemberOffers, NothingWhenTheSilentOneSpeaksAgain) {
  MemberStory story(3);
  story.Follow(1);
  story.LogStaysAsItIs();
  story.After(Ms(1699));
  EXPECT_THAT(story.All<Member::TakeLead>(), IsEmpty());
  story.Answer();
  story.After(Ms(1699));
  EXPECT_THAT(story.All<Member::TakeLead>(), IsEmpty());
  story.After(Ms(1));
  EXPECT_THAT(story.All<Member::TakeLead>(), SizeIs(1));
}

TEST(MemberOffers, NothingOnTheGroundsOfAReadingOfBefore) {
  MemberStory story(0);
  story.Follow(1);
  story.After(absl::Seconds(5));
  EXPECT_THAT(story.All<Member::TakeLead>(), IsEmpty()) << "the log may show another";
  story.Read({Lead(1, 2)});
  EXPECT_THAT(story.All<Member::TakeLead>(), IsEmpty());
  EXPECT_EQ(story.member().term(), 1u);
}

TEST(MemberOffers, NothingOnTheGroundsOfAReadingOfItsLastSilence) {
  MemberStory story(3);
  story.Follow(1);
  story.After(Ms(1000));
  story.Read({});
  story.Answer();
  story.After(absl::Seconds(5));
  EXPECT_THAT(story.All<Member::TakeLead>(), IsEmpty());
}

TEST(MemberOffers, ItselfAHeartbeatAfterTheConnectionEndedWhenItIsFirst) {
  MemberStory story(0);
  story.Follow(1);
  story.After(Ms(300));
  story.Do(Member::Closed{{kJob, 1}});
  ASSERT_THAT(story.All<Member::ReadLog>(), SizeIs(1));
  EXPECT_THAT(story.Sent<msg::Report>(), SizeIs(1)) << "it may live, and is asked at once";
  story.Read({});
  story.After(Ms(500));
  EXPECT_THAT(story.When<Member::TakeLead>(kStart), ElementsAre(Ms(550)));
}

// Anything may cut a connection. Who is first in line would take the lead from one that lives.
TEST(MemberOffers, NothingWhenTheOtherEndLives) {
  MemberStory story(0);
  story.Follow(1);
  story.LogStaysAsItIs();
  for (int times = 0; times < 5; ++times) {
    story.Do(Member::Closed{{kJob, 1}});
    EXPECT_THAT(story.All<Member::TakeLead>(), IsEmpty());
    story.After(Ms(240));
    EXPECT_THAT(story.All<Member::TakeLead>(), IsEmpty());
    story.Answer();
    story.AfterInTouch(absl::Seconds(2));
    EXPECT_THAT(story.All<Member::TakeLead>(), IsEmpty());
  }
}

TEST(MemberOffers, ItselfAStaggerLaterWhenTheConnectionEnded) {
  MemberStory story(2);
  story.Follow(1);
  story.LogStaysAsItIs();
  story.After(Ms(300));
  story.Do(Member::Closed{{kJob, 1}});
  story.Do(Member::Closed{{kJob, 1}});
  story.After(Ms(100));
  story.Do(Member::Closed{{kJob, 1}});  // Said again: its turn does not move.
  story.After(absl::Seconds(1));
  EXPECT_THAT(story.When<Member::TakeLead>(kStart), ElementsAre(Ms(950)));
}

TEST(MemberOffers, NothingWhenTheConnectionIsThereAgain) {
  MemberStory story(2);
  story.Follow(1);
  story.LogStaysAsItIs();
  story.Do(Member::Closed{{kJob, 1}});
  story.After(Ms(100));
  story.Answer();
  story.AfterInTouch(absl::Seconds(5));
  EXPECT_THAT(story.All<Member::TakeLead>(), IsEmpty());
}

TEST(MemberOffers, NothingWhenAnotherConnectionEnded) {
  MemberStory story(0);
  story.Follow(1);
  story.LogStaysAsItIs();
  story.Do(Member::Closed{{kJob, 2}});
  EXPECT_TRUE(story.DoesNothing());
  story.After(Ms(400));
  EXPECT_THAT(story.All<Member::ReadLog>(), IsEmpty());
}

// ---- nobody leads

TEST(MemberOffers, ItselfAtOnceWhenNobodyEverLed) {
  MemberStory first(0), third(2);
  first.Read({});
  EXPECT_THAT(first.All<Member::TakeLead>(), SizeIs(1));
  third.LogStaysAsItIs();
  third.After(absl::Seconds(1));
  EXPECT_THAT(third.When<Member::TakeLead>(kStart), ElementsAre(Ms(500)))
      << "400 ms after it began, and not before it has read the log";
}

TEST(MemberOffers, ItselfOnceAndLooksWhoWon) {
  MemberStory story(0);
  story.Read({});
  ASSERT_THAT(story.All<Member::TakeLead>(), SizeIs(1));
  story.LogStaysAsItIs();
  story.After(absl::Seconds(20));
  EXPECT_THAT(story.All<Member::TakeLead>(), IsEmpty()) << "its coordinator is at it";
  EXPECT_THAT(story.All<Member::ReadLog>(), SizeIs(40));
}

TEST(MemberOffers, ItselfAgainWhenItsCoordinatorResignedAndNobodyIsHeard) {
  MemberStory story(1);
  story.LogStaysAsItIs();
  story.After(absl::Seconds(1));
  ASSERT_THAT(story.All<Member::TakeLead>(), SizeIs(1));
  story.Do(Member::LeadLost{});
  EXPECT_THAT(story.All<Member::ReadLog>(), SizeIs(1)) << "who won?";
  story.After(absl::Seconds(1));
  EXPECT_THAT(story.When<Member::TakeLead>(kStart + absl::Seconds(1)), ElementsAre(Ms(200)));
}

TEST(MemberOffers, WhoWonGetsTimeToBeHeard) {
  MemberStory story(0);
  story.Read({});
  story.After(absl::Seconds(3));
  story.Do(Member::LeadLost{});
  story.Read({Lead(0, 1)});
  EXPECT_THAT(story.SentTo<msg::Report>(), ElementsAre(Endpoint{kJob, 1}));
  story.LogStaysAsItIs();
  story.After(Ms(1099));
  EXPECT_THAT(story.All<Member::TakeLead>(), IsEmpty());
  story.After(Ms(1));
  EXPECT_THAT(story.All<Member::TakeLead>(), SizeIs(1));
}

// ---- its own agent leads

TEST(MemberOffers, AndFollowsItsOwnCoordinator) {
  MemberStory story(0);
  story.Read({});
  story.Hear(story.me(), msg::Announce{.term = 0});
  EXPECT_THAT(story.SentTo<msg::Report>(), ElementsAre(story.me()));
  EXPECT_THAT(story.All<Member::DropLead>(), IsEmpty());
}

// The log may show it before its coordinator has heard that it won.
TEST(MemberFollows, ItsOwnCoordinatorWhoseLeadItFinds) {
  MemberStory story(0);
  story.Read({});
  ASSERT_THAT(story.All<Member::TakeLead>(), SizeIs(1));
  LogEntry lead = Lead(0, 0);
  lead.author.incarnation = MemberStory::kLife;
  story.Read({lead});
  EXPECT_THAT(story.All<Member::DropLead>(), IsEmpty());
  EXPECT_THAT(story.SentTo<msg::Report>(), ElementsAre(story.me()));
  story.Do(Member::LeadLost{});  // It was of one before it.
  story.LogStaysAsItIs();
  story.After(absl::Seconds(2));
  EXPECT_THAT(story.When<Member::TakeLead>(kStart), ElementsAre(Ms(1100)));
}

TEST(MemberFollows, ItsOwnCoordinatorGoesWhenAnotherLifeOfItsAgentLed) {
  MemberStory story(0);
  story.Read({});
  story.Read({Lead(0, 0)});
  EXPECT_THAT(story.All<Member::DropLead>(), SizeIs(1));
}

TEST(MemberFollows, ItsOwnCoordinatorGoesWhenAnotherTookOver) {
  MemberStory story(0);
  story.Read({});
  story.Hear(story.me(), msg::Announce{.term = 0});
  story.Hear({kJob, 1}, msg::Announce{.term = 4});
  EXPECT_THAT(story.All<Member::DropLead>(), SizeIs(1));
  EXPECT_THAT(story.SentTo<msg::Report>(), ElementsAre(Endpoint{kJob, 1}));
  story.Hear({kJob, 2}, msg::Announce{.term = 6});
  EXPECT_THAT(story.All<Member::DropLead>(), IsEmpty()) << "there is none any more";
}

TEST(MemberFollows, ItsOwnCoordinatorThatHasNotWonGoesToo) {
  MemberStory story(0);
  story.Read({});
  story.Read({Lead(0, 1)});
  EXPECT_THAT(story.All<Member::DropLead>(), SizeIs(1));
}

TEST(MemberOffers, ItselfWhenTheLeadIsOfALifeOfItsOwnThatIsOver) {
  MemberStory story(0);
  story.Read({Lead(0, 0)});
  EXPECT_EQ(story.member().term(), 0u);
  story.LogStaysAsItIs();
  story.After(absl::Seconds(2));
  EXPECT_THAT(story.When<Member::TakeLead>(kStart), ElementsAre(Ms(1100)));
}

}  // namespace
}  // namespace perdure
