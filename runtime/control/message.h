// What agents of one run tell each other. Every message names the coordinator's term and, where it
// is about one, the generation: what is of another is dropped at the door.
//
// Messages may be lost, doubled and reordered (connections break). So members report a state, not
// events: a coordinator compares it with what it wants and repeats the command. Commands may
// come twice.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/base/gaps.h"
#include "runtime/base/work_done.h"
#include "runtime/control/evidence.h"
#include "runtime/control/ids.h"
#include "runtime/control/log_view.h"

namespace perdure {

// What a node is about.
enum class NodeStage : uint8_t {
  kIdle,      // No rank of it belongs to a generation.
  kSpawning,  // Ranks of `generation` are made; they have no addresses yet.
  kPresent,   // They have, and wait for the others'.
  kLoading,   // They connect and load.
  kReady,     // They hold the state and wait for Go.
  kRunning,
  kBroken,  // One of them failed; the others are still there.
  kStopping,
  kStopped,  // They stepped for the last time, have let go of each other, and hold their state.
  kDone,     // As kStopped: there is nothing more to train.
};

// Whether no rank of a node in that stage steps, now or later by itself.
inline bool Idle(NodeStage stage) {
  return stage == NodeStage::kIdle || stage == NodeStage::kStopped || stage == NodeStage::kDone;
}

// State of a rank of `generation` at `step`, verified, in this node's memory.
struct Holding {
  Generation generation = 0;
  StepIndex step = 0;
  int32_t rank = 0;
  friend auto operator<=>(const Holding&, const Holding&) = default;
};

// Where the state comes from: the ranks of `generation` at `step`, where they sat, or from a
// checkpoint.
struct Resume {
  bool from_checkpoint = true;
  Generation generation = 0;
  StepIndex step = 0;
  LayoutShape shape;  // Of `generation`; its seats are those of its START.
  struct Held {
    int32_t rank = 0;
    NodeId node = 0;
    friend bool operator==(const Held&, const Held&) = default;
  };
  std::vector<Held> elsewhere;  // Ranks whose state is not in their own seat any more.
  // Which checkpoint, in the words of who chose it: nobody but the ranks looks into it. Empty: the
  // run begins.
  std::string checkpoint;
  friend bool operator==(const Resume&, const Resume&) = default;
};

inline constexpr size_t kNodeRanksMax = 64;  // Report.slots is a mask of them.

// All ranks of a generation have come to a bad step, for which the run goes back: the gap that it
// has from then on, behind those of the generation's START. They step no more.
struct BadStep {
  Gap gap;          // bad_step 0: there is none.
  std::string why;  // For people.
  friend bool operator==(const BadStep&, const BadStep&) = default;
};
inline constexpr size_t kBadStepWordsMax = 256;

namespace msg {

// ---- member to coordinator

// Every heartbeat, and at once when something changed.
struct Report {
  Slot term = 0;
  uint64_t incarnation = 0;
  uint64_t sequence = 0;  // Rises with each; an older one that comes later is dropped.
  int64_t echo = 0;       // The stamp of the newest Answer of this term.
  uint64_t slots = 0;     // Bit i: local rank i can be used; a node has 64 at most.
  uint32_t domain = 0;    // Of failures: rack, switch.
  bool leaving = false;   // Its node is to be given back.
  Generation generation = 0;
  NodeStage stage = NodeStage::kIdle;
  StepIndex finished = 0;
  int32_t failed_local_rank = -1;  // kBroken: the first rank that failed, and of what:
  EvidenceKind failure = EvidenceKind::kRankCrashed;
  int64_t failure_number = 0;  // As in EvidenceEntry.
  StepIndex frozen = -1;       // The step of the state that is kept for a checkpoint; -1: none.
  bool waits = false;          // Its ranks go on only when that is settled.
  std::vector<WorkDone> works;  // Of its ranks in `generation`, ascending; empty: not known.
  bool no_snapshots = false;    // They keep none: what no checkpoint has is lost with them.
  BadStep bad;                  // Likewise.
  friend bool operator==(const Report&, const Report&) = default;
};
// What is left behind; answers Stop.
struct Stopped {
  Slot term = 0;
  uint64_t incarnation = 0;  // What a life held that is over is gone, however late it is told.
  Generation generation = 0;
  std::vector<Holding> holdings;
  friend bool operator==(const Stopped&, const Stopped&) = default;
};
// Answers Prepare.
struct Present {
  Slot term = 0;
  Generation generation = 0;
  std::vector<std::string> addresses;  // By the order of Prepare's ranks.
  friend bool operator==(const Present&, const Present&) = default;
};
// Answers Write.
struct Wrote {
  Slot term = 0;
  Generation generation = 0;
  StepIndex step = 0;
  int32_t attempt = 0;
  bool ok = false;
  std::string packed;  // What the node's ranks wrote: nobody but the store looks into it.
  friend bool operator==(const Wrote&, const Wrote&) = default;
};
// Answers Verify.
struct Voted {
  Slot term = 0;
  Generation generation = 0;
  StepIndex step = 0;
  int32_t attempt = 0;
  int32_t file = 0;
  bool ok = false;
  friend bool operator==(const Voted&, const Voted&) = default;
};
// A part of the table got lost on its way down the tree.
struct NeedTable {
  Slot term = 0;
  Generation generation = 0;
  friend bool operator==(const NeedTable&, const NeedTable&) = default;
};

// ---- coordinator to member

// Answers Report.
struct Answer {
  Slot term = 0;
  uint64_t sequence = 0;  // Of the report.
  int64_t stamp = 0;      // When this was sent, by the coordinator's clock, in ns.
  Generation generation = 0;
  int64_t lease = 0;  // ns, from the sending of the report; 0: ranks may not step.
  friend bool operator==(const Answer&, const Answer&) = default;
};
// There is a new coordinator.
struct Announce {
  Slot term = 0;
  friend bool operator==(const Announce&, const Announce&) = default;
};
struct Stop {
  Slot term = 0;
  Generation generation = 0;  // And all before it.
  bool at_boundary = false;   // Finish the step that is under way, if that is possible.
  bool stalled = false;       // It stands still: who does not wait for others is waited for.
  friend bool operator==(const Stop&, const Stop&) = default;
};
struct Prepare {
  Slot term = 0;
  Generation generation = 0;
  LayoutShape shape;
  struct Assignment {
    int32_t local_rank = 0;
    int32_t rank = 0;
    friend bool operator==(const Assignment&, const Assignment&) = default;
  };
  std::vector<Assignment> ranks;
  Resume resume;
  std::vector<NodeId> children;  // In the tree that hands on the table.
  Gaps gaps;                     // As START says.
  StepIndex begins = 0;          // Where the run did; it goes back no further.
  friend bool operator==(const Prepare&, const Prepare&) = default;
};
// The addresses of `count` ranks from `first` on, of `ranks`.
struct Table {
  Slot term = 0;
  Generation generation = 0;
  int32_t ranks = 0;
  int32_t first = 0;
  int32_t count = 0;
  std::string packed;  // PackAddress of each: nobody but the ranks looks into it.
  friend bool operator==(const Table&, const Table&) = default;
};
struct Go {
  Slot term = 0;
  Generation generation = 0;
  friend bool operator==(const Go&, const Go&) = default;
};
// Freeze the state of a step boundary; goes to the node of rank 0, the ranks tell each other.
struct Save {
  Slot term = 0;
  Generation generation = 0;
  StepIndex after = 0;  // Of a step later than this.
  bool last = false;    // And take no step beyond it: the job ends.
  bool pause = false;   // And take none before it is settled: the layout is to change.
  friend bool operator==(const Save&, const Save&) = default;
};
struct Write {
  Slot term = 0;
  Generation generation = 0;
  StepIndex step = 0;
  int32_t attempt = 0;
  friend bool operator==(const Write&, const Write&) = default;
};
struct Verify {
  Slot term = 0;
  Generation generation = 0;
  StepIndex step = 0;
  int32_t attempt = 0;
  int32_t file = 0;
  std::string packed;  // What is in the file, from who joined the parts.
  friend bool operator==(const Verify&, const Verify&) = default;
};
// The frozen state may go.
struct Settle {
  Slot term = 0;
  Generation generation = 0;
  StepIndex step = 0;
  bool committed = false;
  friend bool operator==(const Settle&, const Settle&) = default;
};
// The job is over.
struct Bye {
  Slot term = 0;
  int32_t exit_code = 0;
  friend bool operator==(const Bye&, const Bye&) = default;
};

// ---- between jobs

// Does the author of LEAD `term` still lead?
struct Probe {
  Slot term = 0;
  friend bool operator==(const Probe&, const Probe&) = default;
};
struct Leading {
  Slot term = 0;
  friend bool operator==(const Leading&, const Leading&) = default;
};

}  // namespace msg

// Appends one address: its size in two bytes, little end first, and itself. REQUIRES: at most 65535
// bytes.
void PackAddress(const std::string& address, std::string& packed);
// DataLoss: not `count` addresses.
absl::StatusOr<std::vector<std::string>> UnpackAddresses(std::string_view packed, int32_t count);

using ControlMessage =
    std::variant<msg::Report, msg::Stopped, msg::Present, msg::Voted, msg::NeedTable, msg::Answer,
                 msg::Announce, msg::Stop, msg::Prepare, msg::Table, msg::Go, msg::Save, msg::Write,
                 msg::Verify, msg::Settle, msg::Bye, msg::Probe, msg::Leading, msg::Wrote>;

// Whether it is for an agent's coordinator; otherwise for its member.
bool ForCoordinator(const ControlMessage& message);

}  // namespace perdure
