// Which checkpoint a job starts from: the newest that the run log names and whose files stand as
// its manifest says. What the state itself is, ranks find out when they load it.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/checkpoint.h"
#include "runtime/agent/records.h"
#include "runtime/agent/run_log.h"

namespace perdure {

struct StartCheckpoint {
  std::string path;
  Manifest manifest;
  Digest digest;  // Of the manifest, by its COMMIT record.
};

// None where no checkpoint was committed. One whose manifest or files' lengths are wrong goes to
// quarantine/ and the one before it is tried, one that was loaded twice without a good step behind
// it is passed over unless `retry`; `tell` hears a line about each. DataLoss: there are
// checkpoints, and none may be loaded. Other errors are the file system's: not to answer is no
// reason to take an older one.
absl::StatusOr<std::optional<StartCheckpoint>> ChooseStart(
    const RunLog& log, const std::string& run_directory, bool retry,
    const std::function<void(const std::string& line)>& tell);

// The manifest, and whether its files are there in full length: what can be known without reading
// the state. DataLoss, NotFound: they are not.
absl::StatusOr<Manifest> InspectCheckpoint(const CheckpointEntry& entry);

// Moves a checkpoint that must not be loaded to RUN/quarantine; nothing is deleted. `why` is
// written beside it.
absl::Status QuarantineCheckpoint(const std::string& run_directory, const std::string& name,
                                  const std::string& why);

}  // namespace perdure
