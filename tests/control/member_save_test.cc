// What a member does for a checkpoint: its ranks freeze, write, read back, let go.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/control/member_story.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

// A member whose ranks run generation 4.
class SaveStory : public MemberStory {
 public:
  SaveStory() : MemberStory(3) {
    Follow(1);
    Run(4);
  }
  void Save(Generation generation = 4) {
    Hear(msg::Save{.term = member().term(), .generation = generation, .after = 40});
  }
  void Freeze(StepIndex step) { Do(Member::Frozen{4, step}); }
  void Write(StepIndex step, int32_t attempt, Generation generation = 4) {
    Hear(msg::Write{
        .term = member().term(), .generation = generation, .step = step, .attempt = attempt});
  }
  void Written(StepIndex step, int32_t attempt, bool ok = true, Generation generation = 4) {
    Do(Member::Written{generation, step, attempt, ok, "what"});
  }
  void Verify(StepIndex step, int32_t attempt, int32_t file, Generation generation = 4) {
    Hear(msg::Verify{.term = member().term(),
                     .generation = generation,
                     .step = step,
                     .attempt = attempt,
                     .file = file});
  }
  void Verified(StepIndex step, int32_t attempt, int32_t file, bool ok = true,
                Generation generation = 4) {
    Do(Member::Verified{generation, step, attempt, file, ok});
  }
  void Settle(StepIndex step, Generation generation = 4) {
    Hear(msg::Settle{
        .term = member().term(), .generation = generation, .step = step, .committed = true});
  }
};

TEST(MemberSaves, FreezesWhenItIsAsked) {
  SaveStory story;
  story.Save();
  ASSERT_THAT(story.All<Member::FreezeState>(), SizeIs(1));
  EXPECT_EQ(story.All<Member::FreezeState>()[0].save.after, 40);
  story.Freeze(50);
  ASSERT_THAT(story.Sent<msg::Report>(), SizeIs(1)) << "at once";
  EXPECT_EQ(story.newest().frozen, 50);
}

// Where the layout is to change, its ranks wait with the next state: what they hold is none that
// they wait with.
TEST(MemberSaves, FreezesASecondStateWhenAllAreToWaitWithIt) {
  SaveStory story;
  story.Freeze(50);
  story.Hear(msg::Save{.term = 0, .generation = 4, .after = 50, .pause = true});
  ASSERT_THAT(story.All<Member::FreezeState>(), SizeIs(1));
  EXPECT_TRUE(story.All<Member::FreezeState>()[0].save.pause);
}

TEST(MemberSaves, SaysAtOnceThatNothingIsKeptInMemory) {
  SaveStory story;
  EXPECT_FALSE(story.newest().no_snapshots);
  story.Do(Member::Progress{.generation = 4, .finished = 41, .no_snapshots = true});
  ASSERT_THAT(story.Sent<msg::Report>(), SizeIs(1));
  EXPECT_TRUE(story.newest().no_snapshots);
  story.Hear(msg::Stop{.term = 0, .generation = 4});
  story.Do(Member::RanksStopped{4, {}});
  story.Spawn(5);
  EXPECT_FALSE(story.newest().no_snapshots) << "of the next one nothing is known";
}

TEST(MemberSaves, FreezesNoSecondStateAndNoneOfAnotherGeneration) {
  SaveStory story;
  story.Save(3);
  story.Save(5);
  EXPECT_TRUE(story.DoesNothing());
  story.Freeze(50);
  story.Save();
  EXPECT_TRUE(story.DoesNothing()) << "there is memory for one";
  story.Settle(50);
  story.Save();
  EXPECT_THAT(story.All<Member::FreezeState>(), SizeIs(1));
}

TEST(MemberSaves, HandsOnThatTheNextIsTheLastWhateverIsFrozen) {
  SaveStory story;
  story.Freeze(50);
  story.Hear(msg::Save{.term = 0, .generation = 4, .after = 50, .last = true});
  ASSERT_THAT(story.All<Member::FreezeState>(), SizeIs(1));
  EXPECT_TRUE(story.All<Member::FreezeState>()[0].save.last);
  EXPECT_EQ(story.All<Member::FreezeState>()[0].save.after, 50);
}

TEST(MemberSaves, AStateOfAnotherGenerationIsNotFrozen) {
  SaveStory story;
  story.Do(Member::Frozen{3, 50});
  EXPECT_TRUE(story.DoesNothing());
  story.Do(Member::RanksStopped{4, {}});
  story.Freeze(50);
  EXPECT_TRUE(story.DoesNothing()) << "its ranks are gone";
  EXPECT_EQ(story.newest().frozen, -1);
}

TEST(MemberSaves, AnEarlierStateThatIsToldLateIsNotFrozenInItsPlace) {
  SaveStory story;
  story.Freeze(50);
  story.Write(50, 1);
  story.Written(50, 1);
  story.Freeze(48);
  story.Freeze(50);
  EXPECT_TRUE(story.DoesNothing());
  EXPECT_EQ(story.newest().frozen, 50);
  story.Write(50, 1);
  EXPECT_THAT(story.All<Member::WriteState>(), IsEmpty()) << "it is written";
  story.Settle(50);
  story.Freeze(52);
  EXPECT_EQ(story.newest().frozen, 52);
}

TEST(MemberSaves, WritesWhatItFrozeAndSaysWhatAtOnce) {
  SaveStory story;
  story.Freeze(50);
  story.Write(50, 1);
  ASSERT_THAT(story.All<Member::WriteState>(), SizeIs(1));
  EXPECT_EQ(story.All<Member::WriteState>()[0].write.attempt, 1);
  story.Written(50, 1, false);
  ASSERT_THAT(story.Sent<msg::Wrote>(), SizeIs(1));
  EXPECT_THAT(story.SentTo<msg::Wrote>(), ElementsAre(story.leader()));
  EXPECT_EQ(
      story.Sent<msg::Wrote>()[0],
      (msg::Wrote{
          .term = 0, .generation = 4, .step = 50, .attempt = 1, .ok = false, .packed = "what"}));
  story.Write(50, 2);
  EXPECT_THAT(story.All<Member::WriteState>(), SizeIs(1));
  story.Written(50, 2);
  ASSERT_THAT(story.Sent<msg::Wrote>(), SizeIs(1));
  EXPECT_EQ(story.Sent<msg::Wrote>()[0].attempt, 2);
  EXPECT_TRUE(story.Sent<msg::Wrote>()[0].ok);
}

TEST(MemberSaves, SaysWhatItWroteAgainWithoutWritingAgain) {
  SaveStory story;
  story.Freeze(50);
  story.Write(50, 1);
  story.Written(50, 1);
  const std::vector<msg::Wrote> before = story.Sent<msg::Wrote>();
  story.Write(50, 1);
  EXPECT_THAT(story.All<Member::WriteState>(), IsEmpty()) << "others may have read it already";
  EXPECT_EQ(story.Sent<msg::Wrote>(), before);
  story.FollowNext(7, 2);
  EXPECT_THAT(story.Sent<msg::Wrote>(), IsEmpty()) << "nobody asked";
  story.Write(50, 1);
  ASSERT_THAT(story.Sent<msg::Wrote>(), SizeIs(1));
  EXPECT_EQ(story.Sent<msg::Wrote>()[0].term, 7u);
  EXPECT_THAT(story.SentTo<msg::Wrote>(), ElementsAre(story.leader()));
}

TEST(MemberSaves, WaitsForWhatItFrozeAndSaysSoAtOnce) {
  SaveStory story;
  story.Freeze(50);
  story.Do(Member::Progress{.generation = 4, .finished = 60, .waits = true});
  ASSERT_THAT(story.Sent<msg::Report>(), SizeIs(1));
  EXPECT_TRUE(story.newest().waits);
  story.Do(Member::Progress{.generation = 4, .finished = 60, .waits = true});
  EXPECT_THAT(story.Sent<msg::Report>(), IsEmpty()) << "nothing new";
  story.Settle(50);
  ASSERT_THAT(story.Sent<msg::Report>(), SizeIs(1));
  EXPECT_FALSE(story.newest().waits) << "they go on";
  story.Freeze(60);
  story.Do(Member::Progress{.generation = 4, .finished = 60, .waits = true});
  story.Do(Member::Progress{.generation = 4, .finished = 61});
  EXPECT_FALSE(story.newest().waits);
}

TEST(MemberSaves, WhoHasStoppedWaitsForNothing) {
  SaveStory story;
  story.Freeze(50);
  story.Do(Member::Progress{.generation = 4, .finished = 60, .waits = true});
  story.Do(Member::RanksStopped{4, {}});
  EXPECT_FALSE(story.newest().waits);
}

TEST(MemberSaves, WritesNothingTwiceNorWhatItDoesNotHold) {
  SaveStory story;
  story.Write(50, 1);
  EXPECT_TRUE(story.DoesNothing()) << "nothing is frozen";
  story.Freeze(50);
  story.Write(49, 1);
  story.Write(51, 1);
  story.Write(50, 1, 3);
  EXPECT_TRUE(story.DoesNothing());
  story.Write(50, 0);
  EXPECT_TRUE(story.DoesNothing()) << "no attempt";
  story.Write(50, 2);
  story.Written(50, 2);
  story.Write(50, 1);
  EXPECT_TRUE(story.DoesNothing()) << "given up";
}

TEST(MemberSaves, WhatWasWrittenForAnotherSaveIsNotThis) {
  SaveStory story;
  story.Freeze(50);
  story.Write(50, 1);
  story.Settle(50);
  story.Freeze(60);
  story.Written(50, 1);
  EXPECT_TRUE(story.DoesNothing());
  story.Written(60, 1, true, 3);
  EXPECT_TRUE(story.DoesNothing());
}

TEST(MemberSaves, AnAttemptThatEndsLateDoesNotUndoTheNext) {
  SaveStory story;
  story.Freeze(50);
  story.Write(50, 1);
  story.Write(50, 2);
  story.Written(50, 2);
  story.Written(50, 1, false);
  EXPECT_TRUE(story.DoesNothing());
  story.Write(50, 2);
  EXPECT_EQ(story.Sent<msg::Wrote>().at(0).attempt, 2);
}

TEST(MemberSaves, ReadsFilesBackAndVotes) {
  SaveStory story;
  story.Freeze(50);
  story.Write(50, 1);
  story.Written(50, 1);
  story.Verify(50, 1, 8);
  ASSERT_THAT(story.All<Member::VerifyFile>(), SizeIs(1));
  EXPECT_EQ(story.All<Member::VerifyFile>()[0].verify.file, 8);
  story.Verified(50, 1, 8, false);
  ASSERT_THAT(story.Sent<msg::Voted>(), SizeIs(1));
  EXPECT_EQ(
      story.Sent<msg::Voted>()[0],
      (msg::Voted{.term = 0, .generation = 4, .step = 50, .attempt = 1, .file = 8, .ok = false}));
  EXPECT_THAT(story.SentTo<msg::Voted>(), ElementsAre(story.leader()));
}

TEST(MemberSaves, SaysAVoteAgainWithoutReadingAgain) {
  SaveStory story;
  story.Freeze(50);
  story.Write(50, 1);
  story.Written(50, 1);
  for (int32_t file : {8, 9}) {
    story.Verify(50, 1, file);
    story.Verified(50, 1, file, file == 8);
  }
  story.Verified(50, 1, 8, false);
  EXPECT_TRUE(story.DoesNothing()) << "a second reading of the same";
  story.FollowNext(7, 2);
  for (int32_t file : {8, 9}) {
    story.Verify(50, 1, file);
    EXPECT_THAT(story.All<Member::VerifyFile>(), IsEmpty());
    ASSERT_THAT(story.Sent<msg::Voted>(), SizeIs(1));
    EXPECT_EQ(
        story.Sent<msg::Voted>()[0],
        (msg::Voted{
            .term = 7, .generation = 4, .step = 50, .attempt = 1, .file = file, .ok = file == 8}));
  }
}

TEST(MemberSaves, ReadsAFileOfTheNextAttemptAnew) {
  SaveStory story;
  story.Freeze(50);
  for (int32_t attempt : {1, 2}) {
    story.Write(50, attempt);
    story.Written(50, attempt);
    story.Verify(50, attempt, 8);
    ASSERT_THAT(story.All<Member::VerifyFile>(), SizeIs(1)) << attempt;
    EXPECT_EQ(story.All<Member::VerifyFile>()[0].verify.attempt, attempt);
    story.Verified(50, attempt, 8, attempt == 2);
    ASSERT_THAT(story.Sent<msg::Voted>(), SizeIs(1));
    EXPECT_EQ(story.Sent<msg::Voted>()[0].ok, attempt == 2);
  }
}

TEST(MemberSaves, NoVoteOnAnotherAttemptStepOrGeneration) {
  SaveStory story;
  story.Freeze(50);
  story.Write(50, 1);
  story.Written(50, 1);
  story.Write(50, 2);
  story.Written(50, 2);
  story.Verify(50, 1, 8);
  story.Verify(50, 3, 8);
  story.Verify(49, 2, 8);
  story.Verify(50, 2, 8, 3);
  EXPECT_TRUE(story.DoesNothing());
  story.Verified(50, 1, 8);
  story.Verified(49, 2, 8);
  story.Verified(50, 2, 8, true, 3);
  EXPECT_TRUE(story.DoesNothing());
}

TEST(MemberSaves, LetsGoWhenItIsSettled) {
  SaveStory story;
  story.Freeze(50);
  story.Write(50, 1);
  story.Written(50, 1);
  story.Settle(50);
  ASSERT_THAT(story.All<Member::SettleState>(), SizeIs(1));
  EXPECT_TRUE(story.All<Member::SettleState>()[0].settle.committed);
  ASSERT_THAT(story.Sent<msg::Report>(), SizeIs(1)) << "at once";
  EXPECT_EQ(story.newest().frozen, -1);
  story.Settle(50);
  EXPECT_TRUE(story.DoesNothing());
}

TEST(MemberSaves, KeepsItsStateWhenAnotherIsSettled) {
  SaveStory story;
  story.Freeze(50);
  story.Settle(49);
  story.Settle(50, 3);
  EXPECT_TRUE(story.DoesNothing());
  story.Write(50, 1);
  EXPECT_THAT(story.All<Member::WriteState>(), SizeIs(1));
}

TEST(MemberSaves, NothingOfOneSaveIsLeftInTheNext) {
  SaveStory story;
  story.Freeze(50);
  story.Write(50, 1);
  story.Written(50, 1);
  story.Verify(50, 1, 8);
  story.Verified(50, 1, 8, false);
  story.Settle(50);
  story.Freeze(60);
  story.Write(60, 1);
  ASSERT_THAT(story.All<Member::WriteState>(), SizeIs(1));
  story.Written(60, 1);
  story.Verify(60, 1, 8);
  EXPECT_THAT(story.All<Member::VerifyFile>(), SizeIs(1)) << "it has not read that";
}

TEST(MemberSaves, WhatIsFrozenGoesWithItsGeneration) {
  SaveStory story;
  story.Freeze(50);
  story.Write(50, 1);
  story.Written(50, 1);
  story.Do(Member::RanksStopped{4, {}});
  EXPECT_EQ(story.newest().frozen, -1);
  story.Run(5);
  EXPECT_EQ(story.newest().frozen, -1);
  story.Hear(msg::Save{.term = 0, .generation = 5, .after = 40});
  EXPECT_THAT(story.All<Member::FreezeState>(), SizeIs(1));
}

TEST(MemberSaves, ASaveThatComesBeforeItsRanksRunIsNone) {
  MemberStory story(3);
  story.Follow(1);
  story.Ready(4);
  story.Hear(msg::Save{.term = 0, .generation = 4, .after = 40});
  EXPECT_TRUE(story.DoesNothing());
}

// Ranks that outlived their agent hold what they froze: the new one says so, and lets go of it.
TEST(MemberComesBack, AndKnowsWhatItsRanksHaveFrozen) {
  MemberStory story(3, {}, {.generation = 4, .finished = 45, .frozen = 44});
  story.Follow(1);
  const msg::Report report = story.Sent<msg::Report>().front();
  EXPECT_EQ(report.frozen, 44);
  story.Hear(msg::Write{.term = 0, .generation = 4, .step = 44, .attempt = 1});
  EXPECT_THAT(story.All<Member::WriteState>(), SizeIs(1));
  story.Hear(msg::Settle{.term = 0, .generation = 4, .step = 44, .committed = true});
  EXPECT_THAT(story.All<Member::SettleState>(), SizeIs(1));
}

}  // namespace
}  // namespace perdure
