// What the control plane knows of the run log: its records as values, and the little that follows
// from all of them. Pure; the shell reads and writes the files (runtime/agent/run_log.h).
//
// Two records establish authority. LEAD: its author is the coordinator from now on; its slot is the
// **term**. START: a generation begins. All types share one sequence of slots, so whoever did not
// see a LEAD or START cannot append anything (facts of that: tests/formal).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "runtime/base/gaps.h"
#include "runtime/control/ids.h"
#include "runtime/control/layout.h"
#include "runtime/control/no_progress.h"

namespace perdure {

using Slot = uint64_t;

// An agent of some job.
struct Endpoint {
  uint64_t job = 0;
  NodeId node = 0;
  friend auto operator<=>(const Endpoint&, const Endpoint&) = default;
};

// Who wrote a record: one life of one agent.
struct Author {
  Endpoint at;
  uint64_t incarnation = 0;
  friend auto operator<=>(const Author&, const Author&) = default;
};

enum class EntryKind : uint8_t {
  kLead,    // The author coordinates.
  kStart,   // A generation begins.
  kCommit,  // A checkpoint exists.
  kEnd,     // The author's job is over, all its ranks have stopped.
  kNote,    // Anything else that takes a slot: ATTEMPT, VERIFIED, RETIRE.
};

// A layout that many views of the log share: 100,000 seats once and not in each of 12,500 agents of
// a simulation. A value all the same.
class SharedLayout {
 public:
  SharedLayout() : layout_(std::make_shared<const PlacedLayout>()) {}
  SharedLayout(PlacedLayout layout)  // NOLINT: wherever a layout is meant.
      : layout_(std::make_shared<const PlacedLayout>(std::move(layout))) {}
  const PlacedLayout& operator*() const { return *layout_; }
  const PlacedLayout* operator->() const { return layout_.get(); }
  friend bool operator==(const SharedLayout& a, const SharedLayout& b) { return *a == *b; }

 private:
  std::shared_ptr<const PlacedLayout> layout_;
};

// The nodes of a layout, sorted, each once.
std::vector<NodeId> NodesOf(const PlacedLayout& layout);

struct LogEntry {
  Slot slot = 0;
  EntryKind kind = EntryKind::kNote;
  Author author;
  uint64_t id = 0;  // Tells records of one author apart, and a retry from a second record.
  Generation generation = 0;
  StepIndex step = 0;  // START: where it resumes. COMMIT: of the checkpoint. END: the last one.
  bool from_checkpoint = false;  // START: and neither from memory nor at the run's beginning.
  int32_t exit_code = 0;         // END.
  SharedLayout layout;           // START.
  Failure failure;               // START: why the generation before it ended, in the same job.
  Gaps gaps = {};                // START: in the samples of its run.
  uint64_t note = 0;             // NOTE: what its author knows it by; not in the log.
  friend bool operator==(const LogEntry&, const LogEntry&) = default;
};

// A coordinator's sign of life beside the log: another one each time. Old ones may be read, in
// order; what is torn or missing is none.
struct Pulse {
  Slot term = 0;
  uint64_t count = 0;
  friend bool operator==(const Pulse&, const Pulse&) = default;
};

// The log, read from its beginning to next_slot.
struct LogView {
  // A generation whose ranks may still be stepping.
  struct Live {
    uint64_t job = 0;
    StepIndex resumed = 0;
    bool from_checkpoint = false;
    SharedLayout layout;
    Gaps gaps = {};  // Of its START: which line of steps its states are of.
    friend bool operator==(const Live&, const Live&) = default;
  };
  struct Lead {
    Slot term = 0;
    Author author;
    friend bool operator==(const Lead&, const Lead&) = default;
  };

  Slot next_slot = 0;
  Generation generation = 0;  // Highest of a START.
  std::optional<Lead> lead;   // The latest; nothing once its job has ended.
  Gaps gaps;                  // Of the newest START: the run's.
  // Where the run began: what was imported, or 0.
  StepIndex begins = 0;
  // Steps of the checkpoints that count, ascending. A START that resumes from one says that those
  // behind it are bad: they do not count any more. (One that was bad may have been mended since.)
  // Nor do those of steps that the run has left, by the gaps of a START.
  std::vector<StepIndex> checkpoints;
  StepIndex commit_step = -1;      // Of the newest of them; -1: none.
  std::vector<StepIndex> commits;  // Of checkpoints of the newest generation, in order.
  // Newest last. A COMMIT proves that its generation ran, hence that all before it had stopped; an
  // END that nobody runs.
  std::vector<Live> live;
  std::vector<FailedGeneration> failures;  // What the newest lead's job has not got beyond.
  // What the generation before the newest one failed with, also where it cannot come again.
  std::optional<FailedGeneration> last_failure;
  // Nodes that its generations were ended to do without, because they were slow, and how often.
  std::map<NodeId, int> slow;

  // REQUIRES: entry.slot == next_slot.
  void Absorb(const LogEntry& entry);
  // The step of the newest checkpoint that a run with gaps `of` may go on from; -1: none.
  StepIndex NewestCheckpoint(const Gaps& of) const;
  friend bool operator==(const LogView&, const LogView&) = default;

 private:
  void AddCheckpoint(StepIndex step);
  void TakeLine(const Gaps& next);
};

}  // namespace perdure
