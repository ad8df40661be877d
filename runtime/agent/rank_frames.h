// What an agent and its rank processes say to each other over a FrameSocket: one JSON object each,
// with "type" and, where it is about one, "generation". Values; see rank_main.h for who says what
// when.
//
// Parsing is strict: missing, unknown, mistyped and out-of-range fields are DataLoss that names
// them. Both sides do it, so that neither trips over the other.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/json_object.h"
#include "runtime/base/digest.h"
#include "runtime/base/gaps.h"
#include "runtime/control/evidence.h"
#include "runtime/control/ids.h"
#include "runtime/train/rank_host.h"

namespace perdure {

// ---- agent to rank
namespace to_rank {

// The process is rank `rank` of a new generation.
struct Prepare {
  Generation generation = 0;
  int32_t rank = 0;
  int64_t local_rank = 0;  // The same for all generations of a process.
  int64_t tensor = 1, pipeline = 1, data = 1;
  std::string config;  // The resolved run.toml; the axes above overrule its layout's.
  std::string data_directory, run_directory, run_id;
  int64_t ranks_per_file = 1;
  int64_t host_threads = 1;
  bool spin = false;
  int64_t until_step = -1;
  std::string snapshot_directory;       // Empty: no snapshots.
  std::vector<int64_t> snapshot_peers;  // By rank; empty: no peers.
  // Where the state comes from; neither: the run begins.
  struct Checkpoint {
    std::string path;
    Digest manifest;
    friend bool operator==(const Checkpoint&, const Checkpoint&) = default;
  };
  struct Held {
    Generation generation = 0;
    int64_t step = 0;
    int64_t tensor = 1, pipeline = 1, data = 1;
    friend bool operator==(const Held&, const Held&) = default;
  };
  std::optional<Checkpoint> checkpoint;
  std::optional<Held> held;
  Gaps gaps;           // Of the run.
  int64_t begins = 0;  // Where the run did.
  friend bool operator==(const Prepare&, const Prepare&) = default;
};
// The addresses of some ranks from `first` on.
struct Table {
  Generation generation = 0;
  int64_t first = 0;
  std::vector<std::string> addresses;
  friend bool operator==(const Table&, const Table&) = default;
};
// All parts of the table have been sent.
struct Load {
  Generation generation = 0;
  friend bool operator==(const Load&, const Load&) = default;
};
struct Go {
  Generation generation = 0;
  friend bool operator==(const Go&, const Go&) = default;
};
// To rank 0: freeze a state of a step later than `after`.
struct Freeze {
  Generation generation = 0;
  int64_t after = 0;
  bool last = false;   // It is the last one, and done when that is saved.
  bool pause = false;  // No step is taken before it is settled.
  friend bool operator==(const Freeze&, const Freeze&) = default;
};
struct Write {
  Generation generation = 0;
  int64_t step = 0;
  int64_t attempt = 0;
  uint64_t term = 0;
  friend bool operator==(const Write&, const Write&) = default;
};
struct Verify {
  Generation generation = 0;
  int64_t step = 0;
  int64_t attempt = 0;
  uint64_t term = 0;
  int64_t file = 0;
  std::string part;  // PackPart's; any bytes.
  friend bool operator==(const Verify&, const Verify&) = default;
};
struct Settle {
  Generation generation = 0;
  int64_t step = 0;
  bool committed = false;
  friend bool operator==(const Settle&, const Settle&) = default;
};
// Flips a bit in the first step from `step` on that begins: a drill.
struct Corrupt {
  Generation generation = 0;
  int64_t step = 0;
  Flip flip;
  friend bool operator==(const Corrupt&, const Corrupt&) = default;
};
// Answers Need: paths by need, or why not.
struct Fetched {
  Generation generation = 0;
  std::vector<std::string> paths;
  std::string error;  // Empty: none.
  friend bool operator==(const Fetched&, const Fetched&) = default;
};
struct Stop {
  Generation generation = 0;
  bool at_boundary = false;
  friend bool operator==(const Stop&, const Stop&) = default;
};
// End the process. No generation runs.
struct Leave {
  friend bool operator==(const Leave&, const Leave&) = default;
};

using Frame = std::variant<Prepare, Table, Load, Go, Freeze, Write, Verify, Settle, Corrupt,
                           Fetched, Stop, Leave>;

}  // namespace to_rank

// ---- rank to agent
namespace from_rank {

// How the device is; once, before the first Present. For people and for the journal.
struct Health {
  Json report;  // device, checked, seconds, rates, facts, no_nvml, code, error.
  friend bool operator==(const Health&, const Health&) = default;
};
// Answers Prepare.
struct Present {
  Generation generation = 0;
  std::string address;
  friend bool operator==(const Present&, const Present&) = default;
};
// Its transport has met those of all others.
struct Connected {
  Generation generation = 0;
  friend bool operator==(const Connected&, const Connected&) = default;
};
// Rank 0, before Loaded: of the state that all have.
struct Certificate {
  Generation generation = 0;
  Digest certificate;
  friend bool operator==(const Certificate&, const Certificate&) = default;
};
// Answers Load.
struct Loaded {
  Generation generation = 0;
  friend bool operator==(const Loaded&, const Loaded&) = default;
};
struct Progress {
  Generation generation = 0;
  int64_t step = 0;
  WorkDone work;  // In this generation.
  friend bool operator==(const Progress&, const Progress&) = default;
};
// Rank 0 only.
struct Step {
  Generation generation = 0;
  StepReport report;
};
// All have come to a bad step, for which the run goes back: the gap that it has from then on. The
// rank lets go of the generation and waits for Stop.
struct FoundBad {
  Generation generation = 0;
  Gap gap;
  std::string why;
  friend bool operator==(const FoundBad&, const FoundBad&) = default;
};
// Training waits with the state of `step` until the one that was frozen before is settled.
struct Waiting {
  Generation generation = 0;
  int64_t step = 0;
  friend bool operator==(const Waiting&, const Waiting&) = default;
};
struct Frozen {
  Generation generation = 0;
  int64_t step = 0;
  std::string file;  // That it would write; empty: none.
  friend bool operator==(const Frozen&, const Frozen&) = default;
};
// Answers Write.
struct Written {
  Generation generation = 0;
  int64_t step = 0;
  int64_t attempt = 0;
  std::string error;               // Empty: it is written.
  std::optional<std::string> run;  // SerializeRun's; none where nothing was to be written.
  // Behind that step; rank 0's alone.
  std::optional<Trail> trail;
  double wait_seconds = 0, freeze_seconds = 0, copy_seconds = 0, write_seconds = 0;
  friend bool operator==(const Written&, const Written&) = default;
};
// Answers Verify.
struct Voted {
  Generation generation = 0;
  int64_t step = 0;
  int64_t attempt = 0;
  int64_t file = 0;
  std::string error;  // Empty: the file is what was said.
  friend bool operator==(const Voted&, const Voted&) = default;
};
// Asks for files of held snapshots; answered by Fetched.
struct Need {
  Generation generation = 0;
  std::vector<HeldNeed> needs;
};
struct OlderMayGo {
  Generation generation = 0;
  friend bool operator==(const OlderMayGo&, const OlderMayGo&) = default;
};
struct NoSnapshots {
  Generation generation = 0;
  friend bool operator==(const NoSnapshots&, const NoSnapshots&) = default;
};
struct Remark {
  std::string line;
  friend bool operator==(const Remark&, const Remark&) = default;
};
// Of DeviceWatch.
struct Evidence {
  Json evidence;
  friend bool operator==(const Evidence&, const Evidence&) = default;
};
// The process ends with exit code 1.
struct Error {
  int64_t code = 0;  // absl::StatusCode.
  std::string message;
  EvidenceKind kind = EvidenceKind::kRankCrashed;
  int64_t number = 0;  // As in EvidenceEntry.
  bool slot_lost = false;
  friend bool operator==(const Error&, const Error&) = default;
};
// It has lost a peer, has let go of the generation and waits for Stop.
struct BrokenOff {
  Generation generation = 0;
  std::string reason;
  friend bool operator==(const BrokenOff&, const BrokenOff&) = default;
};
// Answers Stop.
struct Stopped {
  Generation generation = 0;
  friend bool operator==(const Stopped&, const Stopped&) = default;
};
// Nothing is left to do, all is saved.
struct Done {
  Generation generation = 0;
  bool complete = false;  // The run is; else until_step was reached.
  friend bool operator==(const Done&, const Done&) = default;
};

using Frame = std::variant<Health, Present, Connected, Certificate, Loaded, Progress, Step,
                           FoundBad, Waiting, Frozen, Written, Voted, Need, OlderMayGo, NoSnapshots,
                           Remark, Evidence, Error, BrokenOff, Stopped, Done>;

}  // namespace from_rank

// Of each text of a frame that is for people.
inline constexpr size_t kFrameTextMax = 4096;

Json ToJson(const to_rank::Frame& frame);
Json ToJson(const from_rank::Frame& frame);
absl::StatusOr<to_rank::Frame> ParseToRank(const Json& json);
absl::StatusOr<from_rank::Frame> ParseFromRank(const Json& json);

}  // namespace perdure
