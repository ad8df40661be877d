// Until when a coordinator may grant leases, and when the leases that others granted have ended.
// Two values that the coordinator holds; the bounds are those of control_options.h.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/time/time.h"
#include "runtime/control/control_options.h"
#include "runtime/control/log_view.h"

namespace perdure {

// The coordinator's own two leases.
class Authority {
 public:
  Authority(const ControlOptions& options, NodeId nodes);

  // A reading of the log that was asked for at `asked`, by this clock, found no foreign record.
  void LogRead(absl::Time asked);
  // From now on `nodes` (sorted) are those whose support counts.
  void Elect(const std::vector<NodeId>& nodes, absl::Time now);
  // `node` answered to what was sent at `stamp`: it followed this coordinator then or later.
  void Answered(NodeId node, absl::Time stamp, absl::Time now);

  absl::Time end() const;
  // What may be granted at `now`; zero: nothing.
  absl::Duration Grant(absl::Time now) const;

 private:
  ControlOptions options_;
  absl::Time log_end_ = absl::InfinitePast();
  absl::Time support_end_ = absl::InfinitePast();
  // Support is counted in rounds: one begins when more than half have answered to the one before,
  // so that an answer costs a comparison and not a sort.
  std::vector<uint32_t> round_of_;  // By node: the last round that it answered to; 0: no voter.
  uint32_t round_ = 1;
  absl::Time round_begin_;
  size_t voters_ = 0, answered_ = 0;
};

// What must be over before a generation may step.
class Fence {
 public:
  Fence(const ControlOptions& options, NodeId nodes);

  // This coordinator took the lead at `led` (its LEAD was certainly there): `live` may be running
  // under leases of coordinators before it, as long as those do not know.
  void Inherit(const std::vector<LogView::Live>& live, uint64_t job, absl::Time led);
  // `node` answers this coordinator, and never again one before it.
  void Joined(NodeId node, absl::Time now);
  // Ranks of `node` never step in `up_to` or a generation before it again.
  void Stopped(NodeId node, Generation up_to);
  // A lease of `generation` went to `node`, surely over at `over`.
  void Granted(NodeId node, Generation generation, absl::Time over);

  // From when on a generation after all those may step.
  absl::Time Opens() const;

 private:
  struct Older {
    Generation generation = 0;
    std::vector<NodeId> nodes;  // Sorted; empty: of another job, which cannot answer.
    size_t joined = 0;
    absl::Time half_joined = absl::InfiniteFuture();
  };
  struct Grants {
    Generation generation = 0;
    absl::Time over = absl::InfinitePast();
  };

  ControlOptions options_;
  std::vector<Older> older_;
  absl::Time all_over_ = absl::InfinitePast();  // Leases of coordinators before this one.
  std::vector<Generation> stopped_;             // By node.
  std::vector<Grants> grants_;                  // By node.
  std::vector<bool> joined_;                    // By node.
};

}  // namespace perdure
