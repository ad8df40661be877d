// What the records of the run log say: their bodies as structs, JSON on disk (docs/formats.md, "Run
// log").
//
// Parsing is strict: missing, unknown, mistyped and out-of-range fields are DataLoss that names the
// field. RunLog parses every body it reads or appends, so that whoever holds a RunLog may rely on
// them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/agent/run_log.h"
#include "runtime/base/digest.h"
#include "runtime/base/gaps.h"
#include "runtime/control/layout.h"
#include "runtime/control/no_progress.h"

namespace perdure {

// The record's author coordinates from now on.
struct LeadRecord {
  std::string address;  // Where agents reach him: "10.0.0.5:4711", "[fd00::5]:4711".
  friend bool operator==(const LeadRecord&, const LeadRecord&) = default;
};

// A generation begins.
struct StartRecord {
  LayoutShape shape;             // data 0: nobody steps (an import).
  std::vector<Seat> seats;       // By rank, all distinct; shape.ranks() of them.
  std::vector<uint32_t> domains = {};  // As PlacedLayout's.
  std::string layout;            // In words.
  int64_t step = 0;              // Where it resumes.
  bool from_checkpoint = false;  // Of that step, COMMITs of later ones name bad checkpoints;
                                 // otherwise from memory, or at the run's beginning.
  Failure failure = {};          // Why the generation before it ended, in the same job.
  Gaps gaps = {};                // That the run has.
  friend bool operator==(const StartRecord&, const StartRecord&) = default;
};

// A checkpoint exists.
struct CommitRecord {
  std::string checkpoint;  // Name of its directory in RUN/ckpt.
  int64_t step = 0;
  int64_t samples = 0;
  Digest manifest;  // Of manifest.json.
  Digest certificate;
  uint64_t bytes = 0;
  int64_t files = 0;
  friend bool operator==(const CommitRecord&, const CommitRecord&) = default;
};

// Somebody begins to load a checkpoint.
struct AttemptRecord {
  std::string name;
  friend bool operator==(const AttemptRecord&, const AttemptRecord&) = default;
};

// A checkpoint proved good.
struct VerifiedRecord {
  std::string name;
  std::string
      kind;  // "read": every digest was read and compared; "ran": good steps followed its load.
  friend bool operator==(const VerifiedRecord&, const VerifiedRecord&) = default;
};

// Names that may be deleted from now on.
struct RetireRecord {
  std::vector<std::string> names;
  friend bool operator==(const RetireRecord&, const RetireRecord&) = default;
};

// A job (or the run) is over.
struct EndRecord {
  std::string reason;
  int64_t exit_code = 0;
  int64_t step = 0;
  friend bool operator==(const EndRecord&, const EndRecord&) = default;
};

std::string SerializeLead(const LeadRecord& record);
std::string SerializeStart(const StartRecord& record);
std::string SerializeCommit(const CommitRecord& record);
std::string SerializeAttempt(const AttemptRecord& record);
std::string SerializeVerified(const VerifiedRecord& record);
std::string SerializeRetire(const RetireRecord& record);
std::string SerializeEnd(const EndRecord& record);

absl::StatusOr<LeadRecord> ParseLead(std::string_view body);
absl::StatusOr<StartRecord> ParseStart(std::string_view body);
absl::StatusOr<CommitRecord> ParseCommit(std::string_view body);
absl::StatusOr<AttemptRecord> ParseAttempt(std::string_view body);
absl::StatusOr<VerifiedRecord> ParseVerified(std::string_view body);
absl::StatusOr<RetireRecord> ParseRetire(std::string_view body);
absl::StatusOr<EndRecord> ParseEnd(std::string_view body);

// Whether `body` is a body of `type`.
absl::Status CheckBody(RecordType type, std::string_view body);

// "s000000120.g3.9f3c21aa" and nothing else: such a name never leaves RUN/ckpt.
bool IsCheckpointName(std::string_view name);

// Loads of a checkpoint without a good step behind them, after which it is passed over.
inline constexpr int64_t kLoadAttemptsMax = 2;

// A COMMIT and what later records say about it.
struct CheckpointEntry {
  CommitRecord commit;
  uint64_t generation = 0;
  bool verified = false;     // A VERIFIED of kind "read".
  bool retired = false;      // Named by a RETIRE.
  bool quarantined = false;  // Its directory is in RUN/quarantine.
  bool gone = false;         // Its directory is nowhere, and it was not retired.
  Gaps gaps;                 // That its state has behind it.
  bool left = false;         // The run went back behind it: its state is of no step of the run.
  // ATTEMPTs since the last VERIFIED of kind "ran" behind which no clean END (exit code 0 or 75)
  // stands: of its generation, or of its job with no other ATTEMPT in between.
  int64_t failed_attempts = 0;
  std::vector<uint64_t> failed_jobs;  // Those who made them.
  std::string path;                   // RUN/ckpt/<name>.
};

// The gaps of a run, by its newest START.
Gaps GapsOfRun(const RunLog& log);

// Newest first.
std::vector<CheckpointEntry> ListCheckpoints(const RunLog& log, const std::string& run_directory);

}  // namespace perdure
