// Which checkpoint a job starts from: the newest that the run log names and whose files stand as
// its manifest says. What the state itself is, ranks find out when they load it.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/checkpoint.h"
#include "runtime/agent/records.h"
#include "runtime/agent/run_log.h"
#include "runtime/base/gaps.h"

namespace perdure {

struct StartCheckpoint {
  std::string path;
  Manifest manifest;
  Digest digest;  // Of the manifest, by its COMMIT record.
};

// Which failed attempts to load a checkpoint count against it.
struct LoadRule {
  bool retry = false;  // Those of other jobs do not.
  uint64_t job = 0;    // This one; 0: it makes one attempt only, so that with `retry` none does.
  // Of the run that is to go on; none: those of its newest START.
  std::optional<Gaps> gaps = {};
};

// None where no checkpoint was committed, or the run goes back behind all of them. Only those count
// whose state a run with these gaps comes to. One whose manifest or files' lengths are wrong goes
// to quarantine/ and the one before it is tried, one that was loaded twice without a good step
// behind it is passed over; `tell` hears a line about each. DataLoss: there are checkpoints, and
// none may be loaded. Other errors are the file system's: not to answer is no reason to take an
// older one.
absl::StatusOr<std::optional<StartCheckpoint>> ChooseStart(
    const RunLog& log, const std::string& run_directory, const LoadRule& rule,
    const std::function<void(const std::string& line)>& tell);

// What ranks of other nodes need to load it: its name and its manifest's digest, as JSON.
std::string PackChosen(const StartCheckpoint& start);
struct ChosenName {
  std::string name;  // Of a checkpoint: it does not leave RUN/ckpt.
  Digest manifest;
};
// DataLoss: PackChosen has not written it. Safe on hostile bytes.
absl::StatusOr<ChosenName> ParseChosen(std::string_view packed);
// The checkpoint that is meant, its manifest read. DataLoss: it is another one's, or `packed` is
// bad.
absl::StatusOr<StartCheckpoint> OpenChosen(const std::string& run_directory,
                                           std::string_view packed);

// The manifest, and whether its files are there in full length: what can be known without reading
// the state. DataLoss, NotFound: they are not.
absl::StatusOr<Manifest> InspectCheckpoint(const CheckpointEntry& entry);

// Moves a checkpoint that must not be loaded to RUN/quarantine; nothing is deleted. `why` is
// written beside it.
absl::Status QuarantineCheckpoint(const std::string& run_directory, const std::string& name,
                                  const std::string& why);

}  // namespace perdure
