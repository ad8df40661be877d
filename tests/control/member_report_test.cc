// What a member reports and when, and what it makes of the answers: leases of its ranks.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/control/rank_guard.h"
#include "tests/control/member_story.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

// ---- reports

TEST(MemberReports, WhatItIs) {
  MemberStory story(3);
  story.Follow(1);
  const msg::Report& report = story.newest();
  EXPECT_EQ(report.incarnation, MemberStory::kLife);
  EXPECT_EQ(report.slots, 0b11u);
  EXPECT_EQ(report.domain, MemberStory::kDomain);
  EXPECT_EQ(report.stage, NodeStage::kIdle);
  EXPECT_EQ(report.generation, 0u);
  EXPECT_EQ(report.frozen, -1);
  EXPECT_EQ(report.failed_local_rank, -1);
  EXPECT_FALSE(report.leaving);
}

TEST(MemberReports, EveryHeartbeat) {
  MemberStory story(3);
  story.Follow(1);
  const uint64_t first = story.newest().sequence;
  story.After(Ms(900));
  EXPECT_THAT(story.WhenSent<msg::Report>(kStart), ElementsAre(Ms(250), Ms(500), Ms(750)));
  EXPECT_EQ(story.newest().sequence, first + 3);
}

TEST(MemberReports, ABadStepAtOnceAndUntilTheNextGeneration) {
  const BadStep bad{.gap = {.first_step = 40, .samples = 8, .bad_step = 42, .number = 1},
                    .why = "nan"};
  MemberStory story(3);
  story.Follow(1);
  story.Run(4);
  story.After(Ms(10));
  story.Do(Member::RanksFoundBad{3, bad});
  EXPECT_THAT(story.Sent<msg::Report>(), IsEmpty()) << "of another generation";
  story.Do(Member::RanksFoundBad{4, bad});
  ASSERT_THAT(story.Sent<msg::Report>(), SizeIs(1));
  EXPECT_EQ(story.newest().bad, bad);
  EXPECT_EQ(story.newest().stage, NodeStage::kRunning);
  story.Do(Member::RanksStopped{4, {}});
  EXPECT_EQ(story.newest().bad, bad) << "whoever leads next must hear of it";
  story.Spawn(5);
  EXPECT_EQ(story.newest().bad, BadStep());
}

TEST(MemberReports, NobodyWhileItKnowsNobody) {
  MemberStory story(3);
  story.After(absl::Seconds(2));
  EXPECT_THAT(story.Sent<msg::Report>(), IsEmpty());
}

TEST(MemberReports, OnToASilentCoordinator) {
  MemberStory story(3);
  story.Follow(1);
  story.After(absl::Seconds(5));
  EXPECT_THAT(story.Sent<msg::Report>(), SizeIs(20)) << "it may have slept, and the others not";
}

TEST(MemberReports, AtOnceWhenItsStageChanges) {
  MemberStory story(3);
  story.Follow(1);
  story.After(Ms(10));
  story.Hear(story.PrepareOf(4));
  ASSERT_THAT(story.Sent<msg::Report>(), SizeIs(1));
  EXPECT_EQ(story.newest().stage, NodeStage::kSpawning);
  EXPECT_EQ(story.newest().generation, 4u);
  EXPECT_EQ(story.newest().finished, 40) << "where it resumes";
  story.Do(Member::RanksMade{4, {"a"}});
  EXPECT_EQ(story.newest().stage, NodeStage::kPresent);
  story.Hear(story.TableOf(4, 0, 2));
  EXPECT_EQ(story.newest().stage, NodeStage::kLoading);
  story.Do(Member::RanksLoaded{4});
  EXPECT_EQ(story.newest().stage, NodeStage::kReady);
  story.Hear(msg::Go{.term = 0, .generation = 4});
  EXPECT_EQ(story.newest().stage, NodeStage::kRunning);
  EXPECT_THAT(story.Sent<msg::Report>(), SizeIs(1));
  story.After(Ms(249));
  EXPECT_THAT(story.Sent<msg::Report>(), IsEmpty());
  story.After(Ms(1));
  EXPECT_THAT(story.Sent<msg::Report>(), SizeIs(1)) << "the next heartbeat counts from that one";
}

TEST(MemberReports, StepsWithTheNextHeartbeat) {
  MemberStory story(3);
  story.Follow(1);
  story.Run(4);
  story.Do(Member::Progress{.generation = 4, .finished = 42});
  EXPECT_TRUE(story.DoesNothing()) << "100,000 ranks step often";
  story.Do(Member::Progress{.generation = 4, .finished = 41});
  story.Do(Member::Progress{.generation = 3, .finished = 99});
  story.After(Ms(250));
  EXPECT_EQ(story.newest().finished, 42);
}

TEST(MemberReports, TheFirstFailureOfAGenerationAndItsCause) {
  MemberStory story(3);
  story.Follow(1);
  story.Run(4);
  story.Do(Member::RankFailed{.generation = 4,
                              .local_rank = 1,
                              .kind = EvidenceKind::kDeviceError,
                              .number = 79,
                              .slot_lost = true});
  ASSERT_THAT(story.Sent<msg::Report>(), SizeIs(1));
  // What follows from it.
  story.Do(
      Member::RankFailed{.generation = 4, .local_rank = 0, .kind = EvidenceKind::kNetworkError});
  story.After(Ms(250));
  EXPECT_EQ(story.newest().stage, NodeStage::kBroken);
  EXPECT_EQ(story.newest().failed_local_rank, 1);
  EXPECT_EQ(story.newest().failure, EvidenceKind::kDeviceError);
  EXPECT_EQ(story.newest().failure_number, 79);
  EXPECT_EQ(story.newest().slots, 0b01u);
}

TEST(MemberReports, NoFailureOfAnotherGeneration) {
  MemberStory story(3);
  story.Follow(1);
  story.Run(4);
  story.Do(Member::RankFailed{.generation = 3, .local_rank = 0});
  EXPECT_TRUE(story.DoesNothing());
  EXPECT_EQ(story.member().stage(), NodeStage::kRunning);
}

TEST(MemberReports, ALostSlotAtOnceWhateverItsRanksDo) {
  MemberStory story(3);
  story.Follow(1);
  story.Do(Member::RankFailed{.generation = 0, .local_rank = 0, .slot_lost = true});
  ASSERT_THAT(story.Sent<msg::Report>(), SizeIs(1));
  EXPECT_EQ(story.newest().slots, 0b10u);
  EXPECT_EQ(story.newest().stage, NodeStage::kIdle);
}

TEST(MemberReports, NoFailureWhileItsRanksAreStopped) {
  MemberStory story(3);
  story.Follow(1);
  story.Run(4);
  story.Hear(msg::Stop{.term = 0, .generation = 4});
  story.Do(Member::RankFailed{.generation = 4, .local_rank = 0});
  EXPECT_EQ(story.member().stage(), NodeStage::kStopping) << "it was told to";
  story.Do(Member::RanksStopped{4, {}});
  story.Do(Member::RankFailed{.generation = 4, .local_rank = 0});
  EXPECT_EQ(story.member().stage(), NodeStage::kStopped);
}

TEST(MemberReports, AFailureIsForgottenWithItsGeneration) {
  MemberStory story(3);
  story.Follow(1);
  story.Run(4);
  story.Do(Member::RankFailed{.generation = 4, .local_rank = 1});
  story.Do(Member::RanksStopped{4, {}});
  EXPECT_EQ(story.newest().failed_local_rank, -1);
  story.Run(5);
  EXPECT_EQ(story.newest().failed_local_rank, -1);
}

TEST(MemberReports, ThatItsNodeIsToBeGivenBack) {
  MemberStory story(3);
  story.Follow(1);
  story.Do(Member::Leave{});
  ASSERT_THAT(story.Sent<msg::Report>(), SizeIs(1));
  EXPECT_TRUE(story.newest().leaving);
  story.Do(Member::Leave{});
  EXPECT_TRUE(story.DoesNothing());
}

TEST(MemberReports, RanksThatOutlivedTheirAgent) {
  MemberStory story(3, {}, {.generation = 6, .finished = 120});
  story.Follow(1);
  EXPECT_EQ(story.newest().stage, NodeStage::kRunning);
  EXPECT_EQ(story.newest().generation, 6u);
  EXPECT_EQ(story.newest().finished, 120);
}

// ---- echoes: what supports a coordinator

TEST(MemberEchoes, TheNewestStamp) {
  MemberStory story(3);
  story.Follow(1);
  const uint64_t first = story.newest().sequence;
  EXPECT_EQ(story.newest().echo, 0);
  story.After(Ms(250));
  story.Hear(msg::Answer{.term = 0, .sequence = first + 1, .stamp = 900});
  story.Hear(msg::Answer{.term = 0, .sequence = first, .stamp = 800});  // Late.
  story.After(Ms(250));
  EXPECT_EQ(story.newest().echo, 900);
}

TEST(MemberEchoes, NothingOfAnotherCoordinatorsClock) {
  MemberStory story(3);
  story.Follow(1);
  story.Answer();
  story.After(Ms(250));
  ASSERT_GT(story.newest().echo, 0);
  story.FollowNext(5, 2);
  EXPECT_EQ(story.newest().echo, 0);
}

TEST(MemberEchoes, NoAnswerToWhatItNeverSent) {
  MemberStory story(3);
  story.Follow(1);
  story.Hear(msg::Answer{.term = 0, .sequence = story.newest().sequence + 1, .stamp = 900});
  story.After(Ms(250));
  EXPECT_EQ(story.newest().echo, 0);
}

// ---- leases

TEST(MemberLeases, RunFromTheSendingOfTheReportLessTheDrift) {
  MemberStory story(3);
  story.Follow(1);
  story.Run(4);
  const absl::Time sent = story.now();
  story.After(Ms(100));
  story.Answer(1000, 4);
  ASSERT_THAT(story.All<Member::Renew>(), SizeIs(1));
  EXPECT_EQ(story.All<Member::Renew>()[0].generation, 4u);
  EXPECT_EQ(story.All<Member::Renew>()[0].until, sent + Ms(990));
}

TEST(MemberLeases, OfTheReportThatIsAnsweredNotOfTheNewest) {
  MemberStory story(3);
  story.Follow(1);
  story.Run(4);
  const absl::Time sent = story.now();
  const msg::Report report = story.newest();
  story.After(Ms(700));
  story.Hear(
      msg::Answer{.term = 0, .sequence = report.sequence, .generation = 4, .lease = 1'000'000'000});
  ASSERT_THAT(story.All<Member::Renew>(), SizeIs(1));
  EXPECT_EQ(story.All<Member::Renew>()[0].until, sent + Ms(990));
}

TEST(MemberLeases, AreNoLongerThanLeaseAgent) {
  MemberStory story(3);
  story.Follow(1);
  story.Run(4);
  story.Answer(3'600'000, 4);
  ASSERT_THAT(story.All<Member::Renew>(), SizeIs(1));
  EXPECT_EQ(story.All<Member::Renew>()[0].until, story.now() + Ms(1980));
}

TEST(MemberLeases, AnAnswerThatIsTooLateIsNone) {
  MemberStory story(3);
  story.Follow(1);
  story.Run(4);
  const msg::Report report = story.newest();
  story.After(Ms(990));
  story.Hear(
      msg::Answer{.term = 0, .sequence = report.sequence, .generation = 4, .lease = 1'000'000'000});
  EXPECT_THAT(story.All<Member::Renew>(), IsEmpty());
}

// When so many reports went out within a lease that the answered one is forgotten.
TEST(MemberLeases, AnAnswerToAReportThatIsForgottenIsNone) {
  ControlOptions options;
  options.heartbeat = Ms(100);
  for (const uint64_t later : {15u, 16u, 17u, 31u}) {
    MemberStory story(3, options);
    story.Follow(1);
    story.Run(4);
    const absl::Time sent = story.now();
    const msg::Report report = story.newest();
    story.After(Ms(100) * static_cast<int64_t>(later));
    ASSERT_EQ(story.newest().sequence, report.sequence + later);
    story.Hear(msg::Answer{
        .term = 0, .sequence = report.sequence, .generation = 4, .lease = 2'000'000'000});
    const auto leases = story.All<Member::Renew>();
    ASSERT_EQ(leases.size(), later == 15 ? 1u : 0u) << later;
    if (later == 15) EXPECT_EQ(leases[0].until, sent + Ms(1980));
  }
}

TEST(MemberLeases, OfAnotherGenerationAreNone) {
  MemberStory story(3);
  story.Follow(1);
  story.Answer(1000, 0);
  EXPECT_THAT(story.All<Member::Renew>(), IsEmpty()) << "it has no ranks";
  story.Run(4);
  story.Answer(1000, 3);
  EXPECT_THAT(story.All<Member::Renew>(), IsEmpty());
  story.Answer(1000, 5);
  EXPECT_THAT(story.All<Member::Renew>(), IsEmpty());
}

TEST(MemberLeases, OfNoLengthAreNone) {
  MemberStory story(3);
  story.Follow(1);
  story.Run(4);
  story.Answer(0, 4);
  story.Answer(-1000, 4);
  EXPECT_THAT(story.All<Member::Renew>(), IsEmpty());
}

// The answer may overtake Go.
TEST(MemberLeases, AreTakenWhileReadyAndRunningOnly) {
  MemberStory story(3);
  story.Follow(1);
  story.LoadAll(4);
  story.Answer(1000, 4);
  EXPECT_THAT(story.All<Member::Renew>(), IsEmpty());
  story.Do(Member::RanksLoaded{4});
  story.Answer(1000, 4);
  EXPECT_THAT(story.All<Member::Renew>(), SizeIs(1));
  story.Hear(msg::Go{.term = 0, .generation = 4});
  story.Answer(1000, 4);
  EXPECT_THAT(story.All<Member::Renew>(), SizeIs(1));
  story.Hear(msg::Stop{.term = 0, .generation = 4});
  story.Answer(1000, 4);
  EXPECT_THAT(story.All<Member::Renew>(), IsEmpty());
}

TEST(MemberLeases, NoneFromACoordinatorThatWasReplaced) {
  MemberStory story(3);
  story.Follow(1);
  story.Run(4);
  const msg::Report report = story.newest();
  story.FollowNext(5, 2);
  for (const Slot term : {0u, 5u}) {
    story.Hear(
        term == 0 ? Endpoint{kJob, 1} : Endpoint{kJob, 2},
        msg::Answer{
            .term = term, .sequence = report.sequence, .generation = 4, .lease = 1'000'000'000});
    EXPECT_THAT(story.All<Member::Renew>(), IsEmpty()) << "that report was for another";
  }
}

// ---- a rank's right to step

TEST(RankGuard, StepsBeforeTheEndOfItsLeaseAndNotAtIt) {
  RankGuard guard;
  guard.Join(4);
  EXPECT_FALSE(guard.MayStep(kStart)) << "it was not granted any";
  guard.Renew(4, kStart + Ms(1000));
  EXPECT_TRUE(guard.MayStep(kStart + Ms(1000) - absl::Nanoseconds(1)));
  EXPECT_FALSE(guard.MayStep(kStart + Ms(1000)));
  guard.Renew(4, kStart + Ms(1500));
  EXPECT_TRUE(guard.MayStep(kStart + Ms(1000)));
  guard.Renew(4, kStart + Ms(1200));  // Come late: it takes nothing away.
  EXPECT_TRUE(guard.MayStep(kStart + Ms(1499)));
}

TEST(RankGuard, TakesNoLeaseOfAnotherGeneration) {
  RankGuard guard;
  guard.Renew(0, kStart + Ms(1000));
  EXPECT_FALSE(guard.MayStep(kStart)) << "it belongs to none";
  guard.Join(4);
  guard.Renew(3, kStart + Ms(1000));
  guard.Renew(5, kStart + Ms(1000));
  EXPECT_FALSE(guard.MayStep(kStart));
  EXPECT_EQ(guard.generation(), 4u);
}

TEST(RankGuard, KeepsNoLeaseForTheNextGeneration) {
  RankGuard guard;
  guard.Join(4);
  guard.Renew(4, kStart + Ms(1000));
  guard.Join(5);
  EXPECT_FALSE(guard.MayStep(kStart));
}

}  // namespace
}  // namespace perdure
