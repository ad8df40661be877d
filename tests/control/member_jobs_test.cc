// A member whose run is another job's: it asks, waits, and offers its agent when nobody answers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/control/member_story.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

TEST(MemberOfTwoJobs, AsksTheOtherJobsCoordinatorAtEachReading) {
  MemberStory story(0);
  story.Read({Lead(0, 4, kOtherJob)});
  EXPECT_THAT(story.SentTo<msg::Probe>(), ElementsAre(Endpoint{kOtherJob, 4}));
  EXPECT_THAT(story.Sent<msg::Report>(), IsEmpty()) << "it is none of its coordinators";
  story.LogStaysAsItIs();
  story.After(Ms(1600));
  EXPECT_THAT(story.WhenSent<msg::Probe>(kStart), ElementsAre(Ms(500), Ms(1000), Ms(1500)));
  EXPECT_EQ(story.Sent<msg::Probe>()[0].term, 0u);
}

TEST(MemberOfTwoJobs, ReplacesASilentOneWhenItsLeasesHaveEnded) {
  MemberStory first(0), third(2);
  for (MemberStory* story : {&first, &third}) {
    story->Read({Lead(0, 4, kOtherJob)});
    story->LogStaysAsItIs();
    story->After(absl::Seconds(40));
  }
  EXPECT_THAT(first.When<Member::TakeLead>(kStart), ElementsAre(Ms(30'300)))
      << "the log lease and what clocks may differ";
  EXPECT_THAT(third.When<Member::TakeLead>(kStart), ElementsAre(Ms(30'700)));
}

TEST(MemberOfTwoJobs, WaitsOnWhileTheOtherAnswers) {
  MemberStory story(0);
  story.Read({Lead(0, 4, kOtherJob)});
  story.LogStaysAsItIs();
  story.After(absl::Seconds(30));
  story.Hear({kOtherJob, 4}, msg::Leading{.term = 0});
  story.After(Ms(30'299));
  EXPECT_THAT(story.All<Member::TakeLead>(), IsEmpty());
  story.After(Ms(1));
  EXPECT_THAT(story.All<Member::TakeLead>(), SizeIs(1));
}

TEST(MemberOfTwoJobs, AnAnswerOfAnotherTermIsNone) {
  MemberStory story(0);
  story.Read({Lead(0, 4, kOtherJob), Lead(1, 5, kOtherJob)});
  story.LogStaysAsItIs();
  story.After(absl::Seconds(30));
  story.Hear({kOtherJob, 4}, msg::Leading{.term = 0});
  story.After(Ms(300));
  EXPECT_THAT(story.All<Member::TakeLead>(), SizeIs(1));
}

TEST(MemberOfTwoJobs, ReplacesNobodyWhomItHasNotAskedThreeTimes) {
  MemberStory story(0);
  story.Read({Lead(0, 4, kOtherJob)});
  story.After(absl::Seconds(60));  // The log cannot be read.
  EXPECT_THAT(story.All<Member::TakeLead>(), IsEmpty());
  story.Read({});
  EXPECT_THAT(story.All<Member::TakeLead>(), IsEmpty());
  story.Read({});
  EXPECT_THAT(story.All<Member::TakeLead>(), SizeIs(1));
}

TEST(MemberOfTwoJobs, AnAnswerMakesItAskThreeTimesAnew) {
  MemberStory story(0);
  for (int i = 0; i < 3; ++i)
    story.Read(i == 0 ? std::vector{Lead(0, 4, kOtherJob)} : std::vector<LogEntry>());
  story.Hear({kOtherJob, 4}, msg::Leading{.term = 0});
  story.After(absl::Seconds(60));
  EXPECT_THAT(story.All<Member::TakeLead>(), IsEmpty());
}

TEST(MemberOfTwoJobs, ANewCoordinatorOfTheOtherGetsTimeToBeHeard) {
  MemberStory story(0);
  story.Read({Lead(0, 4, kOtherJob)});
  story.LogStaysAsItIs();
  story.After(absl::Seconds(30));
  story.Read({Lead(1, 5, kOtherJob)});
  EXPECT_THAT(story.SentTo<msg::Probe>(), ElementsAre(Endpoint{kOtherJob, 5}));
  story.After(Ms(30'299));
  EXPECT_THAT(story.All<Member::TakeLead>(), IsEmpty());
  story.After(Ms(1));
  EXPECT_THAT(story.All<Member::TakeLead>(), SizeIs(1));
}

TEST(MemberOfTwoJobs, ANewCoordinatorOfTheOtherIsAskedThreeTimes) {
  MemberStory story(0);
  for (int i = 0; i < 3; ++i)
    story.Read(i == 0 ? std::vector{Lead(0, 4, kOtherJob)} : std::vector<LogEntry>());
  story.Read({Lead(1, 5, kOtherJob)});
  story.After(absl::Seconds(60));
  EXPECT_THAT(story.All<Member::TakeLead>(), IsEmpty());
}

TEST(MemberOfTwoJobs, FollowsItsOwnAgainWhenThatOneTookOver) {
  MemberStory story(3);
  story.Read({Lead(0, 4, kOtherJob)});
  story.Read({Lead(1, 0)});
  EXPECT_THAT(story.SentTo<msg::Report>(), ElementsAre(Endpoint{kJob, 0}));
  EXPECT_THAT(story.Sent<msg::Probe>(), IsEmpty());
}

}  // namespace
}  // namespace perdure
