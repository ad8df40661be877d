// Who is named as slow, and who is not.
#include "runtime/control/slow_ranks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "tests/prng.h"

namespace perdure {
namespace {

using testing::IsEmpty;
using testing::SizeIs;

constexpr int64_t kMs = 1'000'000;

// Ranks of a layout on nodes of `per_node`, which step together, each step as long as the slowest.
class Job {
 public:
  using Work = std::function<int64_t(int32_t rank)>;  // ms a step.

  explicit Job(LayoutShape shape, int32_t per_node = 1, const SlowRanks::Options& options = {})
      : ranks_(options), shape_(shape), per_node_(per_node) {
    layout_.shape = shape;
    for (int32_t rank = 0; rank < shape.ranks(); ++rank)
      layout_.seats.push_back({static_cast<NodeId>(rank / per_node), rank % per_node});
    NextGeneration();
  }
  void NextGeneration() {
    ++layout_.generation;
    works_.assign(layout_.seats.size(), {});
    ranks_.Begin(layout_, now_);
  }
  // So many leaves a step; each replica has the same number unless it is said.
  Job& Leaves(int64_t leaves) {
    leaves_ = leaves;
    return *this;
  }
  // Steps until `time` has passed; what was found.
  std::vector<SlowRanks::Finding> Run(absl::Duration time, const Work& work) {
    std::vector<SlowRanks::Finding> all;
    for (const absl::Time end = now_ + time; now_ < end;) {
      int64_t longest = 1;
      for (int32_t rank = 0; rank < shape_.ranks(); ++rank) {
        const int64_t ms = work(rank);
        longest = std::max(longest, ms);
        WorkDone& done = works_[static_cast<size_t>(rank)];
        ++done.steps;
        done.leaves += (leaves_ - shape_.ReplicaOf(rank) + shape_.data - 1) / shape_.data;
        done.nanoseconds += ms * kMs;
      }
      now_ += absl::Milliseconds(longest);
      for (size_t first = 0; first < works_.size(); first += static_cast<size_t>(per_node_)) {
        const auto found = Hear(static_cast<NodeId>(first / static_cast<size_t>(per_node_)));
        all.insert(all.end(), found.begin(), found.end());
      }
    }
    return all;
  }
  std::vector<SlowRanks::Finding> Hear(NodeId node) {
    return ranks_.Hear(now_, layout_.generation, node,
                       std::span(works_).subspan(node * static_cast<size_t>(per_node_),
                                                 static_cast<size_t>(per_node_)));
  }

  SlowRanks& ranks() { return ranks_; }
  std::vector<WorkDone>& works() { return works_; }
  absl::Time now() const { return now_; }
  Generation generation() const { return layout_.generation; }

 private:
  SlowRanks ranks_;
  LayoutShape shape_;
  int32_t per_node_;
  PlacedLayout layout_;
  std::vector<WorkDone> works_;
  int64_t leaves_ = 64;
  absl::Time now_ = absl::UnixEpoch();
};

Job::Work OneIs(int32_t slow, int64_t percent, int64_t ms = 500) {
  return [=](int32_t rank) { return rank == slow ? ms * percent / 100 : ms; };
}

TEST(SlowRanks, NamesWhoTakesThreeTimesAsLong) {
  Job job({.data = 4});
  const auto found = job.Run(absl::Seconds(40), OneIs(2, 300));
  ASSERT_THAT(found, SizeIs(1));
  EXPECT_EQ(found[0].rank, 2);
  EXPECT_EQ(found[0].seat, (Seat{2, 0}));
  EXPECT_EQ(found[0].percent, 300);
  EXPECT_TRUE(found[0].slow);
  EXPECT_THAT(job.ranks().named(), SizeIs(1));
}

TEST(SlowRanks, WithinAMinute) {
  Job job({.data = 4});
  EXPECT_THAT(job.Run(absl::Seconds(17), [](int32_t) { return 500; }), IsEmpty());
  EXPECT_THAT(job.Run(absl::Seconds(30), OneIs(0, 300)), SizeIs(1));
}

TEST(SlowRanks, StepsOfManySeconds) {
  Job job({.data = 3});
  EXPECT_THAT(job.Run(absl::Seconds(60), OneIs(1, 300, 2000)), SizeIs(1));
}

TEST(SlowRanks, NotBeforeTheWholeWindow) {
  Job job({.data = 4});
  EXPECT_THAT(job.Run(absl::Seconds(19), OneIs(2, 300)), IsEmpty());
  EXPECT_THAT(job.Run(absl::Seconds(10), [](int32_t) { return 500; }), IsEmpty())
      << "it was a passing thing";
  EXPECT_THAT(job.Run(absl::Seconds(19), OneIs(2, 300)), IsEmpty()) << "counted anew";
}

TEST(SlowRanks, TheRatioIsTheLine) {
  EXPECT_THAT(Job({.data = 4}).Run(absl::Minutes(2), OneIs(1, 149, 1000)), IsEmpty());
  EXPECT_THAT(Job({.data = 4}).Run(absl::Minutes(2), OneIs(1, 150, 1000)), SizeIs(1));
}

TEST(SlowRanks, TheSlowerOfTwo) {
  Job job({.data = 2});
  const auto found = job.Run(absl::Minutes(1), OneIs(1, 200));
  ASSERT_THAT(found, SizeIs(1));
  EXPECT_EQ(found[0].rank, 1);
}

TEST(SlowRanks, OfOneNobody) {
  EXPECT_THAT(Job({.tensor = 2, .pipeline = 2, .data = 1}).Run(absl::Minutes(2), OneIs(1, 900)),
              IsEmpty());
}

TEST(SlowRanks, TwoOfFour) {
  const auto found =
      Job({.data = 4}).Run(absl::Minutes(1), [](int32_t rank) { return rank < 2 ? 1000 : 500; });
  EXPECT_THAT(found, SizeIs(2)) << "the lesser median of the others is what they are held against";
}

// Stages have unequal work: a rank is compared with its like.
TEST(SlowRanks, OnlyTheSamePositionIsCompared) {
  const LayoutShape shape{.tensor = 2, .pipeline = 2, .data = 3};
  const auto stage = [&](int32_t rank) { return rank < shape.ranks() / 2 ? 200 : 900; };
  EXPECT_THAT(Job(shape, 2).Run(absl::Minutes(2), stage), IsEmpty());
  const auto found = Job(shape, 2).Run(
      absl::Minutes(2), [&](int32_t rank) { return rank == 3 ? 2 * stage(rank) : stage(rank); });
  ASSERT_THAT(found, SizeIs(1));
  EXPECT_EQ(found[0].rank, 3);
  EXPECT_EQ(found[0].seat, (Seat{1, 1}));
}

// Four leaves of three replicas: the first has two. Whatever part of the work is by the leaf.
TEST(SlowRanks, MoreLeavesAreMoreWork) {
  for (const int64_t fixed : {0, 100, 1000, 5000}) {
    const auto work = [=](int32_t rank) { return fixed + (rank == 0 ? 2 : 1) * 400; };
    Job job({.data = 3});
    EXPECT_THAT(job.Leaves(4).Run(absl::Minutes(4), work), IsEmpty()) << fixed;
    Job slow({.data = 3});
    const auto found = slow.Leaves(4).Run(
        absl::Minutes(4), [&](int32_t rank) { return rank == 1 ? 3 * work(rank) : work(rank); });
    ASSERT_THAT(found, SizeIs(1)) << fixed;
    EXPECT_EQ(found[0].rank, 1) << fixed;
  }
}

TEST(SlowRanks, AReplicaWithoutALeafIsNoMeasure) {
  Job job({.data = 3});
  EXPECT_THAT(
      job.Leaves(2).Run(absl::Minutes(2), [](int32_t rank) { return rank == 2 ? 10 : 400; }),
      IsEmpty());
}

// A busy machine: each step takes each rank between one and two and a half times as long.
TEST(SlowRanks, JitterNamesNobody) {
  for (const int32_t data : {2, 3, 4, 16}) {
    Prng draw(static_cast<uint64_t>(data));
    const auto work = [&](int32_t) { return draw.Between(100, 250); };
    EXPECT_THAT(Job({.data = data}).Run(absl::Hours(4), work), IsEmpty()) << data;
  }
}

TEST(SlowRanks, APauseNowAndThenNamesNobody) {
  int64_t step = 0;
  const auto work = [&](int32_t rank) {
    return rank == 0 && ++step % 60 == 0 ? 20'000 : 300;  // Of 18 s of steps.
  };
  EXPECT_THAT(Job({.data = 4}).Run(absl::Hours(1), work), IsEmpty());
}

TEST(SlowRanks, TheFirstStepDoesNotCount) {
  Job job({.data = 2}, 1, {.window = absl::Milliseconds(1)});
  EXPECT_THAT(job.Run(absl::Milliseconds(1), [](int32_t rank) { return rank == 0 ? 60'000 : 100; }),
              IsEmpty());
  EXPECT_THAT(job.Run(absl::Seconds(60), [](int32_t) { return 100; }), IsEmpty());
}

TEST(SlowRanks, NamedOnceUntilItIsCleared) {
  Job job({.data = 4});
  ASSERT_THAT(job.Run(absl::Minutes(1), OneIs(2, 300)), SizeIs(1));
  EXPECT_THAT(job.Run(absl::Minutes(10), OneIs(2, 300)), IsEmpty());
  EXPECT_THAT(job.Run(absl::Minutes(10), OneIs(2, 140)), IsEmpty()) << "better, not yet well";
  EXPECT_THAT(job.Run(absl::Seconds(15), OneIs(2, 110)), IsEmpty()) << "not for long enough";
  EXPECT_THAT(job.Run(absl::Minutes(1), OneIs(2, 300)), IsEmpty());
  const auto cleared = job.Run(absl::Minutes(1), OneIs(2, 110));
  ASSERT_THAT(cleared, SizeIs(1));
  EXPECT_FALSE(cleared[0].slow);
  EXPECT_EQ(cleared[0].rank, 2);
  EXPECT_THAT(job.ranks().named(), IsEmpty());
  EXPECT_THAT(job.Run(absl::Minutes(1), OneIs(2, 300)), SizeIs(1));
}

TEST(SlowRanks, TheWindowIsOfOneGeneration) {
  Job job({.data = 4});
  for (int i = 0; i < 10; ++i) {
    EXPECT_THAT(job.Run(absl::Seconds(15), OneIs(1, 300)), IsEmpty());
    job.NextGeneration();
  }
}

TEST(SlowRanks, WhoIsNamedStaysSoInTheNextGeneration) {
  Job job({.data = 4});
  ASSERT_THAT(job.Run(absl::Minutes(1), OneIs(2, 300)), SizeIs(1));
  job.NextGeneration();
  EXPECT_THAT(job.Run(absl::Minutes(1), OneIs(2, 300)), IsEmpty());
  job.ranks().Forget(2);
  EXPECT_THAT(job.Run(absl::Minutes(1), OneIs(2, 300)), SizeIs(1));
}

TEST(SlowRanks, CanBeTurnedOff) {
  EXPECT_THAT(
      Job({.data = 4}, 1, {.window = absl::ZeroDuration()}).Run(absl::Minutes(5), OneIs(2, 900)),
      IsEmpty());
}

// What a node cannot have worked is as if it had said nothing; then nobody is compared.
TEST(SlowRanks, WhatCannotBeIsIgnored) {
  Job job({.data = 2});
  job.Run(absl::Seconds(5), OneIs(1, 300));
  const WorkDone good = job.works()[1];
  const auto hear = [&](WorkDone work) {
    return job.ranks().Hear(job.now() + absl::Hours(1), job.generation(), 1, std::span(&work, 1));
  };
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  for (const WorkDone& bad : {WorkDone{good.steps - 1, good.leaves, good.nanoseconds},
                              WorkDone{good.steps + 9, good.leaves - 1, good.nanoseconds},
                              WorkDone{good.steps + 9, good.leaves + 9, good.nanoseconds - 1},
                              WorkDone{kMost, kMost, kMost}, WorkDone{-1, -1, -1}})
    EXPECT_THAT(hear(bad), IsEmpty());
  std::vector<WorkDone> two(2, good);
  EXPECT_THAT(job.ranks().Hear(job.now(), job.generation(), 1, two), IsEmpty());
  EXPECT_THAT(job.ranks().Hear(job.now(), job.generation() + 1, 1, std::span(&good, 1)), IsEmpty());
  EXPECT_THAT(job.ranks().Hear(job.now(), job.generation(), 7, std::span(&good, 1)), IsEmpty());
  EXPECT_THAT(job.Run(absl::Minutes(1), OneIs(1, 300)), SizeIs(1)) << "and it goes on";
}

}  // namespace
}  // namespace perdure
