// What the ranks of a node wrote of a checkpoint, as their agent tells whoever coordinates, and
// what the coordinator's agent makes of it: the parts, and who reads each of them back. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/checkpoint.h"
#include "ckpt/part_plan.h"

namespace perdure {

// How long the slowest rank took, in seconds.
struct SaveSeconds {
  double freeze = 0, copy = 0, wait = 0, write = 0;  // As in SavedRun.
  void Include(const SaveSeconds& other);
};

struct NodeRuns {
  // Of the checkpoint's name.
  uint64_t generation = 0;
  int64_t step = 0;
  uint32_t nonce = 0;
  std::optional<Trail> trail;   // Behind that step; the node of rank 0 says it.
  std::vector<RunReport> runs;  // Of those of its ranks that answer for atoms.
  SaveSeconds seconds;
};

std::string PackNodeRuns(const NodeRuns& runs);
// DataLoss: PackNodeRuns has not written it. Safe on hostile bytes; what it says is for JoinNodes.
absl::StatusOr<NodeRuns> ParseNodeRuns(std::string_view packed);

struct JoinedNodes {
  std::vector<PartReport> parts;  // As in the plan.
  std::vector<int> readers;       // By part: an index of a member.
  Trail trail;
  SaveSeconds seconds;
};

// Puts together what the members say of the attempt `name` means (its runs are not looked at).
// Readers are members that wrote nothing of the file, where there is one, so that no file vouches
// for its own machine: the next one behind a writer. DataLoss: a run is missing, or is not what
// `plan` wants of it.
absl::StatusOr<JoinedNodes> JoinNodes(const NodeRuns& name, std::span<const PartPlan> plan,
                                      std::span<const NodeRuns> members);

}  // namespace perdure
