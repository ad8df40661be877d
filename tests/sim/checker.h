// What must hold whatever happens, checked by books of its own. A check returns what is wrong; the
// world stops there.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "runtime/control/log_view.h"
#include "tests/sim/scenario.h"

namespace perdure::sim {

class Checker {
 public:
  explicit Checker(const Scenario& scenario);

  using Problem = std::optional<std::string>;

  // The state after `step` steps of an undisturbed run.
  uint64_t Expected(StepIndex step);
  // What the leaves of replica `d` of `shape` come to at a rank, in the step after `step`.
  uint64_t Leaves(const LayoutShape& shape, int32_t rank, StepIndex step) const;

  // A record got its slot.
  Problem OnAppend(const LogEntry& entry);
  // A node's ranks took step `step` of `generation` and hold `value`.
  Problem OnApply(Generation generation, NodeId node, StepIndex step, uint64_t value);
  // They loaded the state of `step`.
  Problem OnLoad(Generation generation, StepIndex step, bool from_checkpoint, uint64_t value);
  void OnWritten(Generation generation, StepIndex step, int32_t attempt, NodeId node, bool good,
                 uint64_t value);
  void OnVerified(Generation generation, StepIndex step, int32_t attempt, NodeId node);
  bool PartIsGood(Generation generation, StepIndex step, int32_t attempt, NodeId node) const;
  // The address that rank `rank` of `generation` must have.
  const PlacedLayout* LayoutOf(Generation generation) const;

  // Of the state that `generation` froze; another one may have made a checkpoint of the step since.
  bool Committed(Generation generation, StepIndex step) const {
    return by_generation_.count({generation, step}) != 0;
  }

  int64_t commits() const { return commits_; }
  int64_t generations() const { return static_cast<int64_t>(starts_.size()); }
  int64_t leads() const { return leads_; }
  StepIndex newest_commit() const { return commit_step_; }

 private:
  struct Part {
    bool good = false, verified = false;
    uint64_t value = 0;
  };
  using PartKey = std::tuple<Generation, StepIndex, int32_t, NodeId>;

  Scenario scenario_;
  std::vector<uint64_t> expected_;
  std::optional<LogEntry> lead_;
  bool ended_ = true;
  std::map<Generation, LogEntry> starts_;
  std::map<Generation, StepIndex> applied_;  // Newest step that somebody took.
  Generation stepping_ = 0;                  // The newest that anybody stepped in.
  std::map<std::pair<Generation, NodeId>, StepIndex> steps_;
  std::map<PartKey, Part> parts_;
  std::set<StepIndex> committed_;
  std::set<std::pair<Generation, StepIndex>> by_generation_;
  StepIndex commit_step_ = -1;
  int64_t commits_ = 0, leads_ = 0;
};

}  // namespace perdure::sim
