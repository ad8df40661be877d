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
    if (now >= deadline) {
      for (Collectives* group : groups)
        if (group != nullptr) group->Abort();
      return fault;
    }
    if (now < watch || !fault.ok()) continue;
    watch = now + kWatchEvery;
    for (Collectives* group : groups)
      if (group != nullptr) fault.Update(group->Watch());
    if (!fault.ok()) deadline = now + patience;
  }
  return ops->Sync();
}

}  // namespace perdure
