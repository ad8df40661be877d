// Which checkpoints a run keeps, and the only code that deletes one.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/agent/records.h"

namespace perdure {

// Names to put into the next RETIRE. Of the `entries` (newest first, as ListCheckpoints gives them;
// retired and quarantined ones are gone) it keeps: the newest keep_last, never fewer than two; each
// that has fewer than two verified ones newer than itself among those kept, of which those do not
// count that no start would load any more; steps divisible by keep_every_steps (0: no such rule);
// the steps in phase_end_steps; those whose names are `pinned`; the one that a run begins with
// again that goes back by rollback_steps (0: it does not). Those that the run has left behind when
// it went back are kept only when they are pinned.
std::vector<std::string> ChooseRetired(std::span<const CheckpointEntry> entries, int64_t keep_last,
                                       int64_t keep_every_steps,
                                       std::span<const int64_t> phase_end_steps,
                                       std::span<const std::string> pinned = {},
                                       int64_t rollback_steps = 0);

// A pinned checkpoint is kept until it is unpinned: RUN/control/pins/<name>. NotFound: no COMMIT
// names it, or it is not pinned. FailedPrecondition: it was retired. Names are sorted.
absl::Status PinCheckpoint(const std::string& run_directory, const std::string& name);
absl::Status UnpinCheckpoint(const std::string& run_directory, const std::string& name);
absl::StatusOr<std::vector<std::string>> PinnedCheckpoints(const std::string& run_directory);

// Deletes RUN/ckpt/<name>, which a RETIRE record must name: FailedPrecondition otherwise, and when
// the directory holds something that is not of a checkpoint. OK when it is gone already, also half
// of it.
absl::Status DeleteCheckpoint(const std::string& run_directory, const std::string& name);

}  // namespace perdure
