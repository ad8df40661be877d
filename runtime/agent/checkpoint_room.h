// Whether checkpoints fit where a run keeps them. May take long; any thread.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "runtime/agent/run_log.h"
#include "runtime/base/space.h"

namespace perdure {

// One more, of `need`. ResourceExhausted says what is missing and what a person can do.
absl::Status CheckRoomForOne(const std::string& run_directory, const SpaceNeed& need);

// As many as are to be kept, and the one that is written before the oldest goes. `goes_back`: for
// bad steps, so that an older one may be kept besides (ChooseRetired).
absl::Status CheckRoomToKeep(const RunLog& log, const std::string& run_directory,
                             const SpaceNeed& need, int64_t keep_last, bool goes_back = false);

}  // namespace perdure
