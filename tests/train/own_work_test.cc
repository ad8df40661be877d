#include "runtime/train/own_work.h"

#include <gtest/gtest.h>

namespace perdure {
namespace {

TEST(OwnWork, IsWhatWasNotWaited) {
  OwnWork work;
  work.Begin(0);
  const auto began = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - began < std::chrono::milliseconds(2)) {
  }
  work.End(0, 3);
  EXPECT_EQ(work.done().steps, 1);
  EXPECT_EQ(work.done().leaves, 3);
  const int64_t first = work.done().nanoseconds;
  EXPECT_GE(first, 2'000'000);
  // All of it waited, and more than there was: never less than no work.
  work.Begin(10);
  work.End(10 + 3600, 2);
  EXPECT_EQ(work.done(), (WorkDone{.steps = 2, .leaves = 5, .nanoseconds = first}));
}

TEST(OwnWork, LeavesGoRoundTheReplicas) {
  for (int64_t leaves = 0; leaves < 12; ++leaves)
    for (int64_t replicas = 1; replicas < 6; ++replicas)
      for (int64_t d = 0; d < replicas; ++d) {
        int64_t count = 0;
        for (int64_t leaf = d; leaf < leaves; leaf += replicas) ++count;
        EXPECT_EQ(LeavesOfReplica(leaves, d, replicas), count) << leaves << " " << replicas;
      }
}

}  // namespace
}  // namespace perdure
