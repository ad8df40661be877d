// What `perdure drill` can break, and which processes of a running job it takes for that.
//
// A process is known by its number and its start time, and held by a descriptor, so that a signal
// reaches it or nobody.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/base/unique_fd.h"

namespace perdure {

enum class DrillAct : uint8_t {
  kKillRank,
  kKillNode,  // Its agent and all its ranks.
  kKillAgent,
  kKillCoordinator,
  kStopRank,     // Until it is replaced.
  kSlowRank,     // Stopped and let go on in turns, until it is named.
  kCorruptRank,  // A bit of its memory is flipped, by its agent.
};

struct DrillKind {
  DrillAct act = DrillAct::kKillRank;
  std::string_view name;
  std::string_view words;
  int64_t nodes_min = 1;   // Of the job; fewer: it would not outlive it.
  bool tolerable = false;  // May pass without a new generation.
};
// Each has a name of its own; `all` is not among them.
std::span<const DrillKind> DrillKinds();
const DrillKind* FindDrillKind(std::string_view name);

class HeldProcess {
 public:
  // FailedPrecondition: it is not there any more, or the number is somebody else's by now.
  // PermissionDenied: it is another user's. `what` is for the message.
  static absl::StatusOr<HeldProcess> Hold(pid_t pid, uint64_t start, const std::string& what);

  // NotFound: it has ended.
  absl::Status Signal(int signal) const;
  bool Lives() const;
  pid_t pid() const { return pid_; }

 private:
  HeldProcess(pid_t pid, uint64_t start, UniqueFd fd)
      : pid_(pid), start_(start), fd_(std::move(fd)) {}
  pid_t pid_;
  uint64_t start_;
  UniqueFd fd_;
};

struct DrillTarget {
  int64_t node = -1, rank = -1;        // Rank -1: a whole node, or its agent.
  int64_t local_rank = -1;             // Of kCorruptRank.
  std::string node_name;               // Slurm's; empty: the job is not Slurm's.
  int64_t slurm_job = 0;               // Likewise.
  std::vector<HeldProcess> processes;  // In the order in which they are to be hit.
};

// Why it is refused.
absl::Status TooFewNodes(const DrillKind& kind, int64_t nodes);

// Among what `status` (ReadStatus) of a job names; `random` chooses. FailedPrecondition: there are
// too few nodes, or what is named has changed since. InvalidArgument: the status does not say which
// processes there are.
absl::StatusOr<DrillTarget> ChooseTarget(const DrillKind& kind,
                                         const nlohmann::ordered_json& status, uint32_t random);

}  // namespace perdure
