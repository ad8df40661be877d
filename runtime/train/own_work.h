// What a rank works itself: the time of its steps less what it waited in them for others. For
// people and for whoever compares ranks; no number of the run depends on it. One thread's; by the
// monotonic clock.
//
// Waits are those that its groups count: messages and host collectives, and through StagedGroup
// those of a device. With NCCL a rank waits for others inside its device's stream, where nobody can
// tell waiting from work: there all ranks of a step seem to work alike. What lies between two steps
// (lease, snapshots, freezing a checkpoint, orders) is no work of a step.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "runtime/base/work_done.h"

namespace perdure {

// The leaves of `leaves` that are replica `replica`'s of `replicas`.
inline int64_t LeavesOfReplica(int64_t leaves, int64_t replica, int64_t replicas) {
  return (leaves - replica + replicas - 1) / replicas;
}

class OwnWork {
 public:
  // A step begins and ends; `waited`: what the rank has waited for others so far, in seconds.
  void Begin(double waited) {
    began_ = std::chrono::steady_clock::now();
    waited_ = waited;
  }
  void End(double waited, int64_t leaves) {
    const auto wait = std::chrono::duration<double>(waited - waited_);
    const auto worked = std::chrono::steady_clock::now() - began_ -
                        std::chrono::duration_cast<std::chrono::nanoseconds>(wait);
    ++done_.steps;
    done_.leaves += leaves;
    done_.nanoseconds +=
        std::max<int64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(worked).count(), 0);
  }
  const WorkDone& done() const { return done_; }

 private:
  std::chrono::steady_clock::time_point began_;
  double waited_ = 0;
  WorkDone done_;
};

}  // namespace perdure
