// The phases of starts and recoveries, from what is seen of a coordinator after each of its steps:
// events for the journal (docs/formats.md names them), and how long each part took until the first
// step.
//
// One per coordinator, its agent's; on the loop's thread. It decides nothing: a coordinator neither
// knows it nor needs it. All times are of the coordinator node's monotonic clock.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "runtime/control/coordinator.h"

namespace perdure {

// What is seen of a coordinator.
struct PhaseSight {
  Coordinator::Phase phase = Coordinator::Phase::kClaiming;
  Slot term = 0;
  Generation generation = 0;  // The newest of the run log;
  bool ran = false;           // it is of this job.
  SharedLayout layout;        // Its; empty where it is of no job that may still run.
  size_t nodes = 0;           // Of it,
  size_t ready = 0;           // and those that hold its state.
  bool from_checkpoint = false, from_beginning = false;
  StepIndex resumed = 0, finished = 0;
  std::optional<Failure> cause;
};
PhaseSight SightOf(const Coordinator& lead, uint64_t job);

// Something that was seen of a node in the step of the coordinator that has just been.
struct PhaseFailure {
  std::optional<NodeId> node;
  std::optional<int32_t> local_rank;
  EvidenceKind kind = EvidenceKind::kNodeLost;
  int64_t number = 0;
  std::string_view noticed;  // How.
};
// From what the coordinator was told and what it did.
std::vector<PhaseFailure> FailuresIn(const Coordinator::Event& event,
                                     const Coordinator::Effects& effects, const PhaseSight& sight);

class PhaseWatch {
 public:
  using Tell = std::function<void(std::string_view event, const nlohmann::json& fields)>;

  // `began`: since when the first step of a job is waited for.
  PhaseWatch(NodeId coordinator, absl::Time began, Tell tell)
      : coordinator_(coordinator), began_(began), tell_(std::move(tell)) {}

  // After each step of the coordinator.
  void See(absl::Time now, const PhaseSight& sight, const std::vector<PhaseFailure>& failures);
  // All ranks have addresses; the coordinator's own node's have met all others; its ranks have
  // finished that step. Of other generations than the newest: nothing.
  void Made(absl::Time now, Generation generation);
  void Connected(absl::Time now, Generation generation);
  void Finished(absl::Time now, Generation generation, StepIndex step);

  // How long the newest generation's first step took to come, as in the event first_step; null: it
  // has not come. Its `seconds` are null: this coordinator took the generation over.
  const nlohmann::json& first_step() const { return first_step_; }

 private:
  void Failed(absl::Time now, const PhaseFailure& failure);
  void Stops(absl::Time now);
  void Stopped(absl::Time now);
  void Starts(absl::Time now, const PhaseSight& before);
  void Restored(absl::Time now);
  void Say(absl::Time now, std::string_view event, nlohmann::json fields);

  const NodeId coordinator_;
  const absl::Time began_;
  const Tell tell_;
  PhaseSight sight_;
  std::set<std::pair<int64_t, EvidenceKind>> told_;  // Failures of this generation.
  std::optional<EvidenceKind> first_failure_;
  StepIndex finished_ = 0;  // By ranks of this node, in this generation.
  Generation stopped_ = 0;  // The newest one that was told to have stopped.
  bool stepped_ = false;    // The newest generation has.
  nlohmann::json first_step_;

  // Of the way to the next first step; infinite past: not yet.
  std::string_view why_ = "start";
  StepIndex redone_ = 0;
  absl::Time since_ = absl::InfinitePast(), stopping_at_ = absl::InfinitePast(),
             stopped_at_ = absl::InfinitePast(), started_at_ = absl::InfinitePast(),
             made_at_ = absl::InfinitePast(), connected_at_ = absl::InfinitePast(),
             restored_at_ = absl::InfinitePast(), went_at_ = absl::InfinitePast();
};

}  // namespace perdure
