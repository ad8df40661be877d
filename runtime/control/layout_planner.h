// Decides what layout a run takes next, where each rank sits, and why: at the start of a job and
// whenever nodes or slots come, go or are drained. The coordinator asks it in production, the
// simulation millions of times.
//
// One pure function of what is known: no state, clock or randomness. The order of the offers does
// not matter. Time O(n log n) of nodes and ranks.
//
//   fewer replicas fit than are needed   kWait, at last kEnd     (rule.data_min; without shrink:
//                                                                 as many as there were)
//   the job has no layout yet            kStart                  as many as fit beside the spares
//   the nodes have been the same for     kGrow                   as many as fit beside the spares
//   grow_after, one more fits beside                             on nodes that are not drained
//   the spares
//   as many replicas as before fit       kKeep, kPromoteSpare    nobody, or nobody but lost ranks
//                                        kRebuild                and ranks on drained nodes, moves
//   otherwise, at once                   kRebuild, kShrink       as many as fit, on spares too
//
// How many fit is counted in whole tensor groups per node (OfferedSlots); who sits where is
// AssignSeats' (its header has the rules). Spares wanted are kept back when a job starts and when
// it grows, not when something broke: that is what they are for; and data_min comes before them.
// A drained node counts as room where a job starts or something broke, but is filled last; nobody
// grows onto one. An avoided node is as if it was not there while the others hold as many replicas
// as are needed, and else as if it was drained.
//
// Asked again with its own answer as `current`, it answers kKeep.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "runtime/control/layout.h"

namespace perdure {

// Of the command and the job: see docs/operating.md.
inline constexpr int kExitUnsaved = 1;  // Failed: what was done last is not kept.
inline constexpr int kExitMoreToDo = 75;
inline constexpr int kExitPersonMustLook = 93;

// What the run and its job ask for; the same for all decisions of a job.
struct LayoutRule {
  int32_t tensor = 1;
  int32_t pipeline = 1;
  int32_t data = 0;      // Replicas wished for; 0: as many as fit.
  int32_t data_min = 1;  // With fewer the run waits; more than `data` or `leaves` counts as those.
  int32_t leaves = 1;    // Of a step: a replica without a leaf has nothing to do. May change.
  int32_t spares = 0;    // Nodes kept idle.

  int32_t nodes_max = 0;       // That the job can ever have, and slots of a whole one:
  int32_t ranks_per_node = 0;  // what needs more ends with 93. 0: not known.

  absl::Duration grow_after;  // Growing costs a restart, which flapping nodes would not pay back.
  absl::Duration wait_max;    // For nodes; then the job ends with 75.
  bool shrink = true;         // Whether fewer replicas than before may go on.
};

struct Situation {
  std::vector<NodeOffer> offers;  // All nodes that live, each once, in any order.
  PlacedLayout current;           // Of another tensor or pipeline than the rule's: as if empty.
  absl::Time now;
  // Since when nodes, slots and layout are as they are.
  absl::Time unchanged_since = absl::InfinitePast();
  absl::Time waiting_since = absl::InfiniteFuture();  // In the future: does not wait.
  // Nodes of the job are known to be on their way: a start waits for them.
  bool nodes_coming = false;
};

enum class LayoutAction {
  // Shape and seats stay. A rank can die on a good slot: whether dead processes need a new
  // generation on the same seats is not for the planner to say.
  kKeep,
  kPromoteSpare,  // Same shape; ranks move to slots where nobody sat.
  kRebuild,       // Broken replicas are repaired with what is left of others.
  kShrink,        // Replicas are given up.
  kGrow,
  kStart,  // The first layout of a job.
  kWait,   // No layout is possible yet: ask again at look_again, or when something changes.
  kEnd,    // None will be: the job ends with exit_code.
};

enum class LayoutReason {
  kNothingChanged,
  kGrowsLater,  // One more replica fits; the nodes must be the same for longer.
  kFirst,
  kRanksLost,
  kNodesDrained,    // Nobody is lost, but ranks sat on drained nodes.
  kNodesSlow,       // Nobody is lost, but ranks sat on avoided nodes.
  kMoreThanWanted,  // Replicas, for the leaves or the wish.
  kRoom,
  kNodesComing,
  kTooFewSlots,
  kWaitedTooLong,
  kNoSlots,
  kNeverFits,
};

struct Decision {
  LayoutAction action = LayoutAction::kKeep;
  LayoutReason reason = LayoutReason::kNothingChanged;
  std::string words;  // The reason for people, with numbers; one line of 1 to kWordsMax bytes.

  // Of a layout (kKeep included); empty for kWait and kEnd.
  LayoutShape shape;
  std::vector<Seat> seats;      // By rank.
  std::vector<Seat> spares;     // All other slots, but of nodes that are avoided; ascending.
  std::vector<int32_t> source;  // By replica: its number in the current layout, -1: a new one.

  absl::Time look_again = absl::InfiniteFuture();  // When time alone may change the answer.
  int exit_code = 0;                               // Of kEnd.

  friend bool operator==(const Decision&, const Decision&) = default;
};
inline constexpr size_t kWordsMax = 240;

const char* Name(LayoutAction action);  // "promote-spare".

// REQUIRES: positive tensor, pipeline, data_min and leaves; the invariants of layout.h.
Decision DecideLayout(const LayoutRule& rule, const Situation& situation);

}  // namespace perdure
