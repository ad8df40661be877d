#include "runtime/control/no_progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;
using Kind = EvidenceKind;

// One failure after the other, of generations 1, 2, ...
class Job {
 public:
  Job& Fails(StepIndex step, std::optional<Kind> kind = Kind::kRankCrashed,
             std::optional<NodeId> node = std::nullopt, int64_t number = 0) {
    AddFailure({.generation = ++generation_,
                .failure = {.kind = kind, .number = number, .step = step, .node = node}},
               failures_);
    return *this;
  }
  ProgressVerdict Judge() const { return JudgeProgress(failures_); }
  std::vector<FailedGeneration>& failures() { return failures_; }

 private:
  Generation generation_ = 0;
  std::vector<FailedGeneration> failures_;
};

TEST(NoProgress, CountsWhatTheProgramMayCause) {
  for (const Kind kind :
       {Kind::kRankCrashed, Kind::kRankKilled, Kind::kOutOfMemory, Kind::kHung, Kind::kBadSnapshot})
    EXPECT_TRUE(MayComeAgain(kind, 0)) << NameOf(kind);
  for (const Kind kind :
       {Kind::kUnkillable, Kind::kNodeLost, Kind::kStartFailed, Kind::kDeviceError,
        Kind::kHealthCheckFailed, Kind::kSilentCorruption, Kind::kStorageError, Kind::kNetworkError,
        Kind::kSlow, Kind::kDrained, Kind::kBadCheckpoint, Kind::kTrainingFailed})
    EXPECT_FALSE(MayComeAgain(kind, 0)) << NameOf(kind);
  EXPECT_TRUE(MayComeAgain(Kind::kDeviceError, 31)) << "an illegal address";
  EXPECT_FALSE(MayComeAgain(Kind::kDeviceError, 79)) << "fell off the bus";
}

TEST(NoProgress, OnceIsAsAnyFailure) {
  EXPECT_EQ(Job().Judge(), ProgressVerdict());
  EXPECT_EQ(Job().Fails(40).Judge(), ProgressVerdict());
}

TEST(NoProgress, TwiceAtOneStepDistrustsMemory) {
  const ProgressVerdict verdict =
      Job().Fails(40).Fails(40, Kind::kDeviceError, NodeId{3}, 31).Judge();
  EXPECT_FALSE(verdict.ends);
  EXPECT_EQ(verdict.distrusted, 2u);
  EXPECT_THAT(verdict.drains, IsEmpty());
  EXPECT_THAT(verdict.words, HasSubstr("2 times"));
  EXPECT_THAT(verdict.words, HasSubstr("step 40"));
  EXPECT_THAT(verdict.words, HasSubstr("device error (Xid 31) on node 3"));
  EXPECT_THAT(verdict.words, HasSubstr("from a checkpoint"));
}

TEST(NoProgress, ThreeTimesEndsTheJob) {
  const ProgressVerdict verdict = Job().Fails(40).Fails(40).Fails(40, Kind::kHung).Judge();
  EXPECT_TRUE(verdict.ends);
  EXPECT_THAT(verdict.words, HasSubstr("3 times"));
  EXPECT_THAT(verdict.words, HasSubstr("hung; a person must look"));
}

TEST(NoProgress, OneNodeEachTimeIsTheLastToBeUsed) {
  using Node = std::optional<NodeId>;
  const auto drains = [](Node first, Node second) {
    return Job().Fails(40, Kind::kRankKilled, first).Fails(40, Kind::kHung, second).Judge().drains;
  };
  EXPECT_THAT(drains(7, 7), ElementsAre(7));
  EXPECT_THAT(drains(7, 8), IsEmpty());
  EXPECT_THAT(drains(std::nullopt, 8), IsEmpty());
  EXPECT_THAT(drains(8, std::nullopt), IsEmpty());
  EXPECT_THAT(drains(std::nullopt, std::nullopt), IsEmpty());
}

TEST(NoProgress, AFinishedStepBeyondForgetsIt) {
  EXPECT_EQ(Job().Fails(40).Fails(40).Fails(41).Judge(), ProgressVerdict());
  EXPECT_EQ(Job().Fails(40).Fails(40).Fails(41, std::nullopt).Judge(), ProgressVerdict())
      << "a planned stop";
  EXPECT_EQ(Job().Fails(40).Fails(40).Fails(41, Kind::kNodeLost).Judge(), ProgressVerdict());
  Job job;
  job.Fails(40).Fails(40);
  ForgetFailuresBefore(40, job.failures());
  EXPECT_EQ(job.Judge().distrusted, 2u);
  ForgetFailuresBefore(41, job.failures());
  EXPECT_EQ(job.Judge(), ProgressVerdict());
}

// From the checkpoint steps are taken again, and may fail again for other reasons.
TEST(NoProgress, AStepBeforeIsAnotherAndNoProgress) {
  Job job;
  job.Fails(40).Fails(40).Fails(30);
  EXPECT_FALSE(job.Judge().ends);
  EXPECT_EQ(job.Judge().distrusted, 2u) << "generation 3 has its memory from a checkpoint";
  EXPECT_THAT(job.Judge().words, HasSubstr("step 40"));
  job.Fails(40);
  EXPECT_TRUE(job.Judge().ends);
}

TEST(NoProgress, TheNewestOfWhatIsDistrusted) {
  Job job;
  job.Fails(40).Fails(40).Fails(30).Fails(30);
  EXPECT_EQ(job.Judge().distrusted, 4u);
  job.Fails(30);
  EXPECT_TRUE(job.Judge().ends);
  EXPECT_THAT(job.Judge().words, HasSubstr("step 30"));
}

TEST(NoProgress, OtherFailuresNeitherCountNorForget) {
  Job job;
  job.Fails(40).Fails(40, Kind::kNodeLost).Fails(40, std::nullopt);
  EXPECT_EQ(job.Judge(), ProgressVerdict());
  job.Fails(40);
  EXPECT_EQ(job.Judge().distrusted, 4u);
  job.Fails(40, Kind::kNetworkError);
  EXPECT_FALSE(job.Judge().ends);
}

TEST(NoProgress, TheListIsBounded) {
  Job job;
  for (StepIndex step = 1000; step > 0; --step) job.Fails(step);
  EXPECT_THAT(job.failures(), SizeIs(64));
  EXPECT_EQ(job.failures().back().failure.step, 1) << "the newest are kept";
}

}  // namespace
}  // namespace perdure
