// When to stop trying: what a job does about failures that come again at the same step, which the
// program, its data or its state may cause, so that no other node or memory would help for ever.
// Pure functions of the failures that the log knows (START says why the generation before ended).
//
//   times that it failed    what is done
//   there, in one job
//   1                       as after any failure: the newest state in memory, else a checkpoint
//   2                       memory of the generations so far is not trusted: from a checkpoint; and
//                           if both times the same node failed, it is the last to be used
//   3                       nothing: the job ends, a person must look
//
// `There`: with the same number of steps finished. Once more are finished it is forgotten. Counted
// are:
//
//   rank crashed, rank killed by a signal, out of memory, hung,          yes
//   bad snapshot; device error that the catalogue ascribes to programs
//   node lost, process that could not be killed, start failed,           no: another node may do,
//   device, storage or network error, silent corruption, ...             or the same one later
//   drained, slow, stopped for another layout, by a person or the        no: nothing failed
//   scheduler
//   bad checkpoint                                                       no: the next one is taken
//   training failed                                                      no: ends the job at once
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/control/evidence.h"
#include "runtime/control/ids.h"

namespace perdure {

// Why a generation ended.
struct Failure {
  std::optional<EvidenceKind> kind;  // None: nothing failed, or nobody knows what.
  int64_t number = 0;                // As in EvidenceEntry.
  StepIndex step = 0;                // Finished then.
  std::optional<NodeId> node;        // Of `kind`; none: not known.
  friend bool operator==(const Failure&, const Failure&) = default;
};
// Of which generation.
struct FailedGeneration {
  Generation generation = 0;
  Failure failure;
  friend bool operator==(const FailedGeneration&, const FailedGeneration&) = default;
};

inline constexpr int kFailuresMax = 3;  // At one step.

// Whether it counts.
bool MayComeAgain(EvidenceKind kind, int64_t number);

// Adds `failed` to what a job has not got beyond, in the order in which it happened, if it counts.
// The list is bounded.
void AddFailure(const FailedGeneration& failed, std::vector<FailedGeneration>& failures);
// Steps up to `finished` are done for good, or again.
void ForgetFailuresBefore(StepIndex finished, std::vector<FailedGeneration>& failures);

struct ProgressVerdict {
  bool ends = false;           // The job does, with kExitPersonMustLook.
  Generation distrusted = 0;   // Memory of this generation and those before it is not to be used.
  std::vector<NodeId> drains;  // Nodes that are the last to be used; sorted.
  std::string words;           // Why, for people; empty: as after any failure.
  friend bool operator==(const ProgressVerdict&, const ProgressVerdict&) = default;
};
ProgressVerdict JudgeProgress(const std::vector<FailedGeneration>& failures);

}  // namespace perdure
