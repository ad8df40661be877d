// What a rank does at a moment: what its agent reads to say who stopped first.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

namespace perdure {

// Plain bytes, for a ring in memory that outlives the rank. Values are stable: the reader may be
// another process.
struct Activity {
  enum class Phase : int32_t {
    kNone = 0,
    kLoading = 1,     // Reads, digests and publishes its state.
    kLease = 2,       // Waits for the right to begin the step.
    kForward = 3,     // Of micro_batch.
    kBackward = 4,    // Likewise.
    kExchange = 5,    // Ends the exchanges of gradients, and waits for the device.
    kSnapshot = 6,    // Waits for its snapshot and that of its ward to be whole.
    kGather = 7,      // Statistics, from all ranks.
    kUpdate = 8,      // The optimizer; then parameters begin to be gathered.
    kCheckpoint = 9,  // Freezes its state, or waits for the save before.
    kLeaving = 10,    // The last barrier, or the last save.
  };
  // Whom it may be waiting for.
  enum class Group : int32_t { kNone = 0, kTensor = 1, kData = 2, kPipeline = 3, kAll = 4 };

  int64_t step = 0;         // That it works on: finished steps + 1.
  int64_t nanoseconds = 0;  // CLOCK_MONOTONIC, when it began.
  Phase phase = Phase::kNone;
  Group group = Group::kNone;
  int32_t micro_batch = -1;  // Of the step, in this replica.
  int32_t peer = -1;         // The one rank that it may be waiting for; -1: none, or several.
};
static_assert(std::is_trivially_copyable_v<Activity> && sizeof(Activity) == 32);

// "step 17, forward of micro-batch 3, with rank 5".
std::string Describe(const Activity& activity);

}  // namespace perdure
