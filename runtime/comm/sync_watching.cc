#include "runtime/comm/sync_watching.h"

#include <algorithm>

#include "absl/time/clock.h"

namespace perdure {
namespace {

// Short waits, as between two steps, should not cost a whole sleep; long ones need no core.
constexpr absl::Duration kSleepMin = absl::Microseconds(20);
constexpr absl::Duration kSleepMax = absl::Milliseconds(1);
constexpr absl::Duration kWatchEvery = absl::Milliseconds(10);

}  // namespace

absl::Status SyncWatching(Ops* ops, std::span<Collectives* const> groups, absl::Duration patience) {
  absl::Duration sleep = kSleepMin;
  absl::Time watch = absl::Now() + kWatchEvery, deadline = absl::InfiniteFuture();
  absl::Status fault;
  while (!ops->Idle()) {
    absl::SleepFor(sleep);
    sleep = std::min(2 * sleep, kSleepMax);
    const absl::Time now = absl::Now();
    if (now < watch) continue;
    watch = now + kWatchEvery;
    // Asked again to the end: who is lost may show after that something is.
    absl::Status found;
    for (Collectives* group : groups)
      if (group != nullptr) found.Update(group->Watch());
    if (!found.ok()) fault = found;
    if (!fault.ok()) deadline = std::min(deadline, now + patience);
    if (absl::IsCancelled(fault)) deadline = now;
    if (now < deadline) continue;
    for (Collectives* group : groups)
      if (group != nullptr) group->Abort();
    return fault;
  }
  return ops->Sync();
}

}  // namespace perdure
