// What a member does for a generation: its ranks are made, wired, loaded, run, stopped, killed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/control/member_story.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

const std::vector<Holding> kHoldings = {{4, 50, 0}, {4, 50, 1}};

// ---- forming

TEST(MemberForms, MakesTheRanksThatPrepareNames) {
  MemberStory story(3);
  story.Follow(1);
  const msg::Prepare prepare = story.PrepareOf(4);
  story.Hear(prepare);
  ASSERT_THAT(story.All<Member::MakeRanks>(), SizeIs(1));
  EXPECT_EQ(story.All<Member::MakeRanks>()[0].prepare, prepare);
  EXPECT_EQ(story.member().generation(), 4u);
}

TEST(MemberForms, APrepareThatComesTwiceMakesNothing) {
  MemberStory story(3);
  story.Follow(1);
  story.Spawn(4);
  story.Hear(story.PrepareOf(4));
  EXPECT_TRUE(story.DoesNothing());
}

TEST(MemberForms, APrepareOfAnOlderGenerationMakesNothing) {
  MemberStory story(3);
  story.Follow(1);
  story.Run(4);
  story.Hear(story.PrepareOf(3));
  EXPECT_TRUE(story.DoesNothing());
  story.Do(Member::RanksStopped{4, {}});
  story.Hear(story.PrepareOf(3));
  EXPECT_TRUE(story.DoesNothing());
  EXPECT_EQ(story.member().generation(), 4u);
}

TEST(MemberForms, StopsWhatRunsBeforeItMakesRanks) {
  MemberStory story(3);
  story.Follow(1);
  story.Run(4);
  story.Hear(story.PrepareOf(5));
  EXPECT_THAT(story.All<Member::MakeRanks>(), IsEmpty());
  ASSERT_THAT(story.All<Member::StopRanks>(), SizeIs(1));
  EXPECT_EQ(story.All<Member::StopRanks>()[0].generation, 4u);
  EXPECT_FALSE(story.All<Member::StopRanks>()[0].at_boundary);
  story.Hear(story.PrepareOf(5));
  EXPECT_TRUE(story.DoesNothing()) << "they are stopping";
  story.Do(Member::RanksStopped{4, kHoldings});
  story.Hear(story.PrepareOf(5));
  EXPECT_THAT(story.All<Member::MakeRanks>(), SizeIs(1));
}

TEST(MemberForms, SendsTheAddressesOfItsRanks) {
  MemberStory story(3);
  story.Follow(1);
  story.Spawn(4);
  story.Do(Member::RanksMade{3, {"old"}});
  EXPECT_TRUE(story.DoesNothing());
  story.Do(Member::RanksMade{4, {"a", "b"}});
  ASSERT_THAT(story.Sent<msg::Present>(), SizeIs(1));
  EXPECT_EQ(story.Sent<msg::Present>()[0],
            (msg::Present{.term = 0, .generation = 4, .addresses = {"a", "b"}}));
  EXPECT_THAT(story.SentTo<msg::Present>(), ElementsAre(story.leader()));
  story.Do(Member::RanksMade{4, {"c", "d"}});
  EXPECT_TRUE(story.DoesNothing());
}

TEST(MemberForms, SendsThemAgainWhenItIsAskedAgain) {
  MemberStory story(3);
  story.Follow(1);
  story.Present(4);
  story.Hear(story.PrepareOf(4));
  ASSERT_THAT(story.Sent<msg::Present>(), SizeIs(1));
  EXPECT_EQ(story.Sent<msg::Present>()[0].addresses, std::vector<std::string>{"a"});
  EXPECT_THAT(story.All<Member::MakeRanks>(), IsEmpty());
}

TEST(MemberForms, TellsTheNextCoordinatorOfItsTerm) {
  MemberStory story(3);
  story.Follow(1);
  story.Present(4);
  story.FollowNext(7, 2);
  story.Hear(story.PrepareOf(4));
  ASSERT_THAT(story.Sent<msg::Present>(), SizeIs(1));
  EXPECT_EQ(story.Sent<msg::Present>()[0].term, 7u);
  EXPECT_THAT(story.SentTo<msg::Present>(), ElementsAre(Endpoint{kJob, 2}));
}

TEST(MemberForms, ConnectsPartsOfTheTableAsTheyComeAndLoadsWithTheLast) {
  MemberStory story(3);
  story.Follow(1);
  story.Present(4);
  story.Hear(story.TableOf(4, 2, 1, 3));
  EXPECT_THAT(story.All<Member::Connect>(), SizeIs(1));
  EXPECT_THAT(story.All<Member::Load>(), IsEmpty());
  story.Hear(story.TableOf(4, 0, 2, 3));
  EXPECT_THAT(story.All<Member::Connect>(), SizeIs(1));
  ASSERT_THAT(story.All<Member::Load>(), SizeIs(1));
  EXPECT_EQ(story.All<Member::Load>()[0].generation, 4u);
  EXPECT_EQ(story.member().stage(), NodeStage::kLoading);
  story.Hear(story.TableOf(4, 0, 2, 3));
  EXPECT_TRUE(story.DoesNothing());
}

TEST(MemberForms, APartThatComesTwiceCountsOnce) {
  MemberStory story(3);
  story.Follow(1);
  story.Present(4);
  story.Hear(story.TableOf(4, 0, 1));
  story.Hear(story.TableOf(4, 0, 1));
  EXPECT_TRUE(story.DoesNothing());
  story.Hear(story.TableOf(4, 1, 1));
  EXPECT_THAT(story.All<Member::Load>(), SizeIs(1));
}

TEST(MemberForms, PartsOfAnotherGenerationTermOrSizeAreNone) {
  MemberStory story(3);
  story.Follow(1);
  story.Present(4);
  story.Hear(story.TableOf(3, 0, 2));
  EXPECT_TRUE(story.DoesNothing());
  story.Hear(story.TableOf(5, 0, 2));
  EXPECT_TRUE(story.DoesNothing());
  story.Hear(story.TableOf(4, 0, 0));
  EXPECT_TRUE(story.DoesNothing());
  msg::Table table = story.TableOf(4, 0, 2);
  table.term = 9;
  story.Hear({kJob, 2}, table);
  EXPECT_TRUE(story.DoesNothing()) << "a table makes nobody coordinator";
}

TEST(MemberForms, ATableMayComeFromAnyNodeAndGoesOnToItsChildren) {
  MemberStory story(3);
  story.Follow(1);
  msg::Prepare prepare = story.PrepareOf(4);
  prepare.children = {8, 9};
  story.Hear(prepare);
  story.Do(Member::RanksMade{4, {"a"}});
  const msg::Table table = story.TableOf(4, 0, 2);
  story.Hear({kJob, 6}, table);
  EXPECT_THAT(story.SentTo<msg::Table>(), ElementsAre(Endpoint{kJob, 8}, Endpoint{kJob, 9}));
  EXPECT_EQ(story.Sent<msg::Table>()[0], table);
  EXPECT_THAT(story.All<Member::Load>(), SizeIs(1));
}

TEST(MemberForms, AsksForATableThatDoesNotCome) {
  MemberStory story(3);
  story.Follow(1);
  story.Present(4);
  const absl::Time begin = story.now();
  story.AfterInTouch(Ms(3200));
  EXPECT_THAT(story.WhenSent<msg::NeedTable>(begin), ElementsAre(Ms(2000), Ms(2500), Ms(3000)));
  EXPECT_EQ(story.Sent<msg::NeedTable>()[0], (msg::NeedTable{.term = 0, .generation = 4}));
  EXPECT_THAT(story.SentTo<msg::NeedTable>()[0], story.leader());
}

TEST(MemberForms, AsksForNoTableWhenItHasOneOrNoUseForIt) {
  MemberStory loading(3), stopping(3), broken(3);
  for (MemberStory* story : {&loading, &stopping, &broken}) {
    story->Follow(1);
    story->Present(4);
  }
  loading.Hear(loading.TableOf(4, 0, 2));
  stopping.Hear(msg::Stop{.term = 0, .generation = 4});
  broken.Do(Member::RankFailed{.generation = 4, .local_rank = 0});
  for (MemberStory* story : {&loading, &stopping, &broken}) {
    story->AfterInTouch(absl::Seconds(4));
    EXPECT_THAT(story->Sent<msg::NeedTable>(), IsEmpty());
  }
}

TEST(MemberForms, IsReadyWhenItsRanksHaveLoaded) {
  MemberStory story(3);
  story.Follow(1);
  story.Present(4);
  story.Do(Member::RanksLoaded{4});
  EXPECT_EQ(story.member().stage(), NodeStage::kPresent);
  story.Hear(story.TableOf(4, 0, 2));
  story.Do(Member::RanksLoaded{3});
  EXPECT_EQ(story.member().stage(), NodeStage::kLoading);
  story.Do(Member::RanksLoaded{4});
  EXPECT_EQ(story.member().stage(), NodeStage::kReady);
}

TEST(MemberForms, RunsAtGoOnceAndNotBefore) {
  MemberStory story(3);
  story.Follow(1);
  const auto go = [&](Generation generation) {
    story.Hear(msg::Go{.term = 0, .generation = generation});
  };
  story.LoadAll(4);
  go(4);
  EXPECT_TRUE(story.DoesNothing()) << "the state is not there";
  story.Do(Member::RanksLoaded{4});
  go(3);
  go(5);
  EXPECT_TRUE(story.DoesNothing());
  go(4);
  ASSERT_THAT(story.All<Member::Run>(), SizeIs(1));
  EXPECT_EQ(story.All<Member::Run>()[0].generation, 4u);
  go(4);
  EXPECT_TRUE(story.DoesNothing());
}

TEST(MemberForms, ANewGenerationKnowsNothingOfTheTableBefore) {
  MemberStory story(3);
  story.Follow(1);
  story.Present(4);
  story.Hear(story.TableOf(4, 0, 1));
  story.Do(Member::RanksStopped{4, {}});
  story.Present(5);
  story.Hear(story.TableOf(5, 1, 1));
  EXPECT_THAT(story.All<Member::Load>(), IsEmpty());
  story.Hear(story.TableOf(5, 0, 1));
  EXPECT_THAT(story.All<Member::Load>(), SizeIs(1));
}

// ---- stopping

TEST(MemberStops, ItsRanksAndSaysWhatTheyLeave) {
  MemberStory story(3);
  story.Follow(1);
  story.Run(4);
  story.Hear(msg::Stop{.term = 0, .generation = 4, .at_boundary = false});
  ASSERT_THAT(story.All<Member::StopRanks>(), SizeIs(1));
  EXPECT_FALSE(story.All<Member::StopRanks>()[0].at_boundary);
  EXPECT_EQ(story.newest().stage, NodeStage::kStopping);
  story.Do(Member::RanksStopped{4, kHoldings});
  EXPECT_EQ(story.newest().stage, NodeStage::kStopped);
  ASSERT_THAT(story.Sent<msg::Stopped>(), SizeIs(1));
  EXPECT_EQ(
      story.Sent<msg::Stopped>()[0],
      (msg::Stopped{
          .term = 0, .incarnation = MemberStory::kLife, .generation = 4, .holdings = kHoldings}));
}

TEST(MemberStops, AndSaysItAgainWhenItIsToldAgain) {
  MemberStory story(3);
  story.Follow(1);
  story.Run(4);
  story.Do(Member::RanksStopped{4, kHoldings});
  for (const Slot term : {0u, 6u}) {
    story.Hear({kJob, term == 0 ? 1u : 2u}, msg::Stop{.term = term, .generation = 5});
    ASSERT_THAT(story.Sent<msg::Stopped>(), SizeIs(1));
    EXPECT_EQ(story.Sent<msg::Stopped>()[0], (msg::Stopped{.term = term,
                                                           .incarnation = MemberStory::kLife,
                                                           .generation = 4,
                                                           .holdings = kHoldings}));
    EXPECT_THAT(story.All<Member::StopRanks>(), IsEmpty());
  }
}

TEST(MemberStops, WhoHasNoRanksSaysSo) {
  MemberStory story(3);
  story.Follow(1);
  story.Hear(msg::Stop{.term = 0, .generation = 4});
  ASSERT_THAT(story.Sent<msg::Stopped>(), SizeIs(1));
  EXPECT_EQ(story.Sent<msg::Stopped>()[0].generation, 0u);
  EXPECT_THAT(story.Sent<msg::Stopped>()[0].holdings, IsEmpty());
}

TEST(MemberStops, NotForAnOlderGeneration) {
  MemberStory story(3);
  story.Follow(1);
  story.Run(4);
  story.Hear(msg::Stop{.term = 0, .generation = 3});
  EXPECT_TRUE(story.DoesNothing());
  EXPECT_EQ(story.member().stage(), NodeStage::kRunning);
}

TEST(MemberStops, AtABoundaryWhenItRuns) {
  MemberStory running(3), ready(3);
  for (MemberStory* story : {&running, &ready}) story->Follow(1);
  running.Run(4);
  ready.Ready(4);
  for (MemberStory* story : {&running, &ready}) {
    story->Hear(msg::Stop{.term = 0, .generation = 4, .at_boundary = true});
    ASSERT_THAT(story->All<Member::StopRanks>(), SizeIs(1));
  }
  EXPECT_TRUE(running.All<Member::StopRanks>()[0].at_boundary);
  EXPECT_FALSE(ready.All<Member::StopRanks>()[0].at_boundary) << "no step is under way";
}

TEST(MemberStops, AtOnceWhenTheBoundaryWillNotCome) {
  MemberStory story(3);
  story.Follow(1);
  story.Run(4);
  story.Hear(msg::Stop{.term = 0, .generation = 4, .at_boundary = true});
  story.Hear(msg::Stop{.term = 0, .generation = 4, .at_boundary = true});
  EXPECT_TRUE(story.DoesNothing());
  story.Hear(msg::Stop{.term = 0, .generation = 4, .at_boundary = false});
  ASSERT_THAT(story.All<Member::StopRanks>(), SizeIs(1));
  EXPECT_FALSE(story.All<Member::StopRanks>()[0].at_boundary);
}

TEST(MemberStops, AndSaysThatTheGenerationStandsStill) {
  for (const bool stalled : {false, true}) {
    MemberStory story(3);
    story.Follow(1);
    story.Run(4);
    const msg::Stop stop{.term = 0, .generation = 4, .at_boundary = false, .stalled = stalled};
    for (int times = 1; times <= 2; ++times) {
      story.Hear(stop);
      ASSERT_THAT(story.All<Member::StopRanks>(), SizeIs(1));
      EXPECT_EQ(story.All<Member::StopRanks>()[0].stalled, stalled);
    }
  }
}

TEST(MemberStops, KillsRanksThatDoNotStopAndAgainUntilTheyHave) {
  MemberStory story(3);
  story.Follow(1);
  story.Run(4);
  story.Hear(msg::Stop{.term = 0, .generation = 4});
  const absl::Time begin = story.now();
  story.AfterInTouch(absl::Seconds(26));
  EXPECT_THAT(story.When<Member::KillRanks>(begin),
              ElementsAre(absl::Seconds(5), absl::Seconds(15), absl::Seconds(25)))
      << "half of stop_max, so that what is left is known before it is over";
  EXPECT_EQ(story.All<Member::KillRanks>()[0].generation, 4u);
  story.Do(Member::RanksStopped{4, {}});
  story.AfterInTouch(absl::Seconds(30));
  EXPECT_THAT(story.All<Member::KillRanks>(), IsEmpty());
}

TEST(MemberStops, KillsWithoutACoordinatorToo) {
  MemberStory story(3);
  story.Follow(1);
  story.Run(4);
  story.Hear(msg::Stop{.term = 0, .generation = 4});
  story.After(absl::Seconds(6));
  EXPECT_THAT(story.All<Member::KillRanks>(), SizeIs(1));
}

// An agent that comes back without ranks has what they left in memory, and says so when it is
// asked.
TEST(MemberStops, WhatAnAgentFindsInMemoryIsHeld) {
  MemberStory story(3, {}, {.generation = 4, .finished = 50, .frozen = -1, .holdings = kHoldings});
  story.Follow(1);
  EXPECT_EQ(story.newest().stage, NodeStage::kStopped);
  EXPECT_EQ(story.newest().generation, 4u);
  story.Hear(msg::Stop{.term = 0, .generation = 4});
  ASSERT_THAT(story.Sent<msg::Stopped>(), SizeIs(1));
  EXPECT_EQ(
      story.Sent<msg::Stopped>()[0],
      (msg::Stopped{
          .term = 0, .incarnation = MemberStory::kLife, .generation = 4, .holdings = kHoldings}));
  EXPECT_THAT(story.All<Member::StopRanks>(), IsEmpty());
  story.Hear(story.PrepareOf(5));
  EXPECT_THAT(story.All<Member::MakeRanks>(), SizeIs(1));
}

TEST(MemberStops, RanksOfAnotherGenerationThatStoppedAreNotThese) {
  MemberStory story(3);
  story.Follow(1);
  story.Run(4);
  story.Do(Member::RanksStopped{3, kHoldings});
  EXPECT_TRUE(story.DoesNothing());
  EXPECT_EQ(story.member().stage(), NodeStage::kRunning);
  story.Do(Member::RanksStopped{4, kHoldings});
  story.Do(Member::RanksStopped{4, {}});
  EXPECT_TRUE(story.DoesNothing()) << "once";
}

TEST(MemberStops, ABrokenGenerationWhenItIsTold) {
  MemberStory story(3);
  story.Follow(1);
  story.Run(4);
  story.Do(Member::RankFailed{.generation = 4, .local_rank = 0});
  EXPECT_THAT(story.All<Member::StopRanks>(), IsEmpty()) << "it decides nothing";
  story.Hear(msg::Stop{.term = 0, .generation = 4, .at_boundary = true});
  ASSERT_THAT(story.All<Member::StopRanks>(), SizeIs(1));
  EXPECT_FALSE(story.All<Member::StopRanks>()[0].at_boundary);
}

TEST(MemberStops, WhoFollowsNobodySaysItWhenAsked) {
  MemberStory story(3, {}, {.generation = 4, .finished = 50});
  story.Do(Member::RanksStopped{4, kHoldings});
  EXPECT_TRUE(story.DoesNothing()) << "there is nobody to tell";
  story.Follow(1);
  EXPECT_EQ(story.newest().stage, NodeStage::kStopped);
  story.Hear(msg::Stop{.term = 0, .generation = 4});
  ASSERT_THAT(story.Sent<msg::Stopped>(), SizeIs(1));
  EXPECT_EQ(story.Sent<msg::Stopped>()[0].holdings, kHoldings);
}

// ---- the end

TEST(MemberEnds, IsDoneWhenNothingIsLeftToTrain) {
  MemberStory story(3);
  story.Follow(1);
  story.Run(4);
  story.Do(Member::Progress{.generation = 3, .finished = 90, .complete = true});
  EXPECT_EQ(story.member().stage(), NodeStage::kRunning);
  story.Do(Member::Progress{.generation = 4, .finished = 90, .complete = true});
  EXPECT_EQ(story.newest().stage, NodeStage::kDone);
  EXPECT_EQ(story.newest().finished, 90);
  story.Hear(msg::Stop{.term = 0, .generation = 4});
  ASSERT_THAT(story.Sent<msg::Stopped>(), SizeIs(1));
  EXPECT_THAT(story.All<Member::StopRanks>(), IsEmpty()) << "they have";
  story.AfterInTouch(absl::Seconds(20));
  EXPECT_THAT(story.All<Member::KillRanks>(), IsEmpty());
  story.Do(Member::RanksStopped{4, kHoldings});
  EXPECT_EQ(story.member().stage(), NodeStage::kDone);
}

TEST(MemberEnds, RanksThatEndWhileTheyAreStoppedAreNotKilled) {
  MemberStory story(3);
  story.Follow(1);
  story.Run(4);
  story.Hear(msg::Stop{.term = 0, .generation = 4, .at_boundary = true});
  story.Do(Member::Progress{.generation = 4, .finished = 90, .complete = true});
  story.AfterInTouch(absl::Seconds(20));
  EXPECT_THAT(story.All<Member::KillRanks>(), IsEmpty());
}

TEST(MemberEnds, LeavesWithTheCodeOfBye) {
  MemberStory story(3);
  story.Follow(1);
  story.Hear(msg::Bye{.term = 0, .exit_code = 75});
  ASSERT_THAT(story.All<Member::Exit>(), SizeIs(1));
  EXPECT_EQ(story.All<Member::Exit>()[0].code, 75);
  EXPECT_THAT(story.Sent<msg::Report>(), IsEmpty());
  EXPECT_EQ(story.member().NextDeadline(), absl::InfiniteFuture());
}

}  // namespace
}  // namespace perdure
