// Waiting for a device that may itself be waiting for a rank that has died.
#pragma once

#include <functional>
#include <span>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kernels/ops.h"
#include "runtime/comm/collectives.h"

namespace perdure {

// A member that ends in good order may be seen to leave while the device still works on what it
// had sent: so long is the device given to finish after one of the groups has found fault.
inline constexpr absl::Duration kDrainPatience = absl::Seconds(5);

// How code that shares a device with messages waits for it: SyncWatching with the groups of the
// rank, which it need not know.
using SyncCall = std::function<absl::Status()>;

// As ops->Sync(), but bounded: when a group's Watch() finds fault and the device does not become
// idle within `patience`, all groups are aborted and the fault is returned. When the fault is
// Cancelled, that is done at once. For the waits of a step whose device work includes messages;
// null groups are skipped.
absl::Status SyncWatching(Ops* ops, std::span<Collectives* const> groups,
                          absl::Duration patience = kDrainPatience);

}  // namespace perdure
