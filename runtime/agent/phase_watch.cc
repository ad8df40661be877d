#include "runtime/agent/phase_watch.h"

#include <algorithm>
#include <cmath>
#include <variant>

namespace perdure {
namespace {

using Json = nlohmann::json;
using Phase = Coordinator::Phase;

// In microseconds: what a person reads, and no more digits than a clock is worth.
double Seconds(absl::Duration duration) {
  return std::round(absl::ToDoubleSeconds(duration) * 1e6) / 1e6;
}

bool Known(absl::Time time) { return time != absl::InfinitePast(); }

bool Runs(Phase phase) { return phase == Phase::kForming || phase == Phase::kRunning; }
bool HasStopped(Phase phase) {
  return phase == Phase::kWaiting || phase == Phase::kChoosing || phase == Phase::kStarting ||
         phase == Phase::kEnding || phase == Phase::kEnded;
}

std::string_view HowNoticed(EvidenceKind kind) {
  switch (kind) {
    case EvidenceKind::kNodeLost:
      return "silent";
    case EvidenceKind::kHung:
      return "stalled";
    case EvidenceKind::kSlow:
      return "compared";
    default:
      return "late";  // In stopping, or in getting ready.
  }
}

}  // namespace

PhaseSight SightOf(const Coordinator& lead, uint64_t job) {
  const LogView& view = lead.view();
  PhaseSight sight{
      .phase = lead.phase(),
      .term = lead.term(),
      .generation = view.generation,
      .ran = !view.live.empty() && view.live.back().job == job,
      .layout = {},
      .ready = lead.ready(),
      .from_checkpoint = lead.resume().from_checkpoint,
      .from_beginning = lead.resume().from_checkpoint && lead.resume().checkpoint.empty(),
      .finished = lead.finished(),
      .cause = lead.cause()};
  if (!sight.ran) return sight;
  sight.layout = view.live.back().layout;
  sight.resumed = view.live.back().resumed;
  sight.nodes = lead.layout().generation == sight.generation ? lead.members().size() : 0;
  return sight;
}

std::vector<PhaseFailure> FailuresIn(const Coordinator::Event& event,
                                     const Coordinator::Effects& effects, const PhaseSight& sight) {
  std::vector<PhaseFailure> failures;
  const auto* received = std::get_if<Coordinator::Received>(&event);
  const msg::Report* report =
      received == nullptr ? nullptr : std::get_if<msg::Report>(&received->message);
  if (report != nullptr && report->failed_local_rank >= 0 &&
      report->generation == sight.generation && report->term == sight.term)
    failures.push_back({.node = received->from.node,
                        .local_rank = report->failed_local_rank,
                        .kind = report->failure,
                        .number = report->failure_number,
                        .noticed = "reported"});
  const auto add = [&](std::optional<NodeId> node, EvidenceKind kind, int64_t number) {
    const bool returned =
        kind == EvidenceKind::kNodeLost && report != nullptr && received->from.node == node;
    failures.push_back({.node = node,
                        .local_rank = {},
                        .kind = kind,
                        .number = number,
                        .noticed = returned ? "returned" : HowNoticed(kind)});
  };
  for (const Coordinator::Effect& effect : effects)
    // A slow rank is no failure unless the generation ends for it.
    if (const auto* evidence = std::get_if<Coordinator::Evidence>(&effect);
        evidence != nullptr && evidence->kind != EvidenceKind::kSlow)
      add(evidence->node, evidence->kind, evidence->number);
  if (sight.cause.has_value() && sight.cause->kind.has_value())
    add(sight.cause->node, *sight.cause->kind, sight.cause->number);
  return failures;
}

void PhaseWatch::Say(absl::Time now, std::string_view event, Json fields) {
  fields["coordinator"] = coordinator_;
  fields["term"] = sight_.term;
  fields["clock"] = Seconds(now - absl::UnixEpoch());
  if (tell_) tell_(event, fields);
}

void PhaseWatch::See(absl::Time now, const PhaseSight& sight,
                     const std::vector<PhaseFailure>& failures) {
  const PhaseSight before = std::exchange(sight_, sight);
  if (sight.phase == Phase::kClaiming || sight.phase == Phase::kResigned) return;
  if (before.phase == Phase::kClaiming) Say(now, "lead", Json::object());
  const bool gathered = before.phase == Phase::kClaiming || before.phase == Phase::kGathering;
  // A new generation begins when its START is in the log; what ran until then has stopped.
  const bool starts =
      sight.ran && sight.generation > before.generation && before.phase == Phase::kStarting;
  if (starts) Starts(now, before);
  for (PhaseFailure failure : failures) {
    // It has not been there to fall silent.
    if (gathered && failure.noticed == HowNoticed(EvidenceKind::kNodeLost))
      failure.noticed = "gathered";
    Failed(now, failure);
  }
  const bool ran = starts || Runs(before.phase) || (gathered && sight.ran);
  const bool stopping = sight.phase == Phase::kStopping || HasStopped(sight.phase);
  if (ran && stopping) {
    if (gathered && told_.empty()) {
      Say(now, "failure_detected",
          {{"generation", sight.generation},
           {"node", nullptr},
           {"member", true},
           {"rank", nullptr},
           {"local_rank", nullptr},
           {"kind", nullptr},
           {"number", 0},
           {"noticed", "gathered"},
           {"step", sight.finished}});
      why_ = "failure";
    }
    Stops(now);
  }
  if ((ran || before.phase == Phase::kStopping) && HasStopped(sight.phase)) Stopped(now);
  if (before.phase == Phase::kGathering && sight.phase == Phase::kRunning) {
    Say(now, "generation_taken_over", {{"generation", sight.generation}, {"step", sight.finished}});
    stepped_ = true;  // Or will: nobody waits for it.
    first_step_ = {{"generation", sight.generation},
                   {"seconds", Json()},
                   {"not_known", "the coordinator that saw it begin is gone"}};
  }
  if (Runs(sight.phase) && sight.nodes > 0 && sight.ready == sight.nodes && !stepped_)
    Restored(now);
  if (sight.phase != Phase::kRunning || stepped_) return;
  if (!Known(went_at_)) went_at_ = now;
  Finished(now, sight.generation, sight.finished);
}

void PhaseWatch::Failed(absl::Time now, const PhaseFailure& failure) {
  const int64_t node = failure.node.has_value() ? int64_t{*failure.node} : -1;
  if (!sight_.ran || !told_.emplace(node, failure.kind).second) return;
  const std::vector<Seat>& seats = sight_.layout->seats;
  const bool member = !failure.node.has_value() ||
                      std::any_of(seats.begin(), seats.end(),
                                  [&](const Seat& seat) { return seat.node == *failure.node; });
  Json rank;
  if (failure.node.has_value() && failure.local_rank.has_value()) {
    const auto at = std::find(seats.begin(), seats.end(), Seat{*failure.node, *failure.local_rank});
    if (at != seats.end()) rank = at - seats.begin();
  }
  if (member) {
    if (!Known(since_)) since_ = now;
    if (!first_failure_.has_value()) first_failure_ = failure.kind;
    why_ = "failure";
  }
  Say(now, "failure_detected",
      {{"generation", sight_.generation},
       {"node", failure.node.has_value() ? Json(*failure.node) : Json()},
       {"member", member},
       {"rank", rank},
       {"local_rank", failure.local_rank.has_value() ? Json(*failure.local_rank) : Json()},
       {"kind", NameOf(failure.kind)},
       {"number", failure.number},
       {"noticed", failure.noticed},
       {"step", std::max(finished_, sight_.finished)}});
}

void PhaseWatch::Stops(absl::Time now) {
  if (stopped_ >= sight_.generation) return;
  if (stepped_ && why_ != "failure") why_ = "change";
  stepped_ = false;
  first_step_ = Json();
  if (!Known(since_)) since_ = now;
  stopping_at_ = now;
  stopped_at_ = absl::InfinitePast();
  Say(now, "generation_stopping",
      {{"generation", sight_.generation},
       {"failure", first_failure_.has_value() ? Json(NameOf(*first_failure_)) : Json()},
       {"step", std::max(finished_, sight_.finished)}});
}

void PhaseWatch::Stopped(absl::Time now) {
  if (!Known(stopping_at_) || Known(stopped_at_) || stopped_ >= sight_.generation) return;
  stopped_ = sight_.generation;
  stopped_at_ = now;
  Say(now, "generation_stopped",
      {{"generation", sight_.generation}, {"seconds", Seconds(now - stopping_at_)}});
}

void PhaseWatch::Starts(absl::Time now, const PhaseSight& before) {
  // A generation that never stepped took none of these again.
  const StepIndex finished = before.ran ? std::max(finished_, before.finished) : sight_.resumed;
  redone_ += std::max(finished - sight_.resumed, StepIndex{0});
  if (!Known(since_)) since_ = began_;
  const absl::Time decides_from = Known(stopped_at_) ? stopped_at_ : since_;
  told_.clear();
  first_failure_.reset();
  finished_ = 0;
  stepped_ = false;
  started_at_ = now;
  made_at_ = connected_at_ = restored_at_ = went_at_ = absl::InfinitePast();
  const LayoutShape& shape = sight_.layout->shape;
  Say(now, "generation_starting",
      {{"generation", sight_.generation},
       {"from", sight_.from_beginning    ? "beginning"
                : sight_.from_checkpoint ? "checkpoint"
                                         : "memory"},
       {"step", sight_.resumed},
       {"redone", redone_},
       {"layout", {{"tensor", shape.tensor}, {"pipeline", shape.pipeline}, {"data", shape.data}}},
       {"ranks", shape.ranks()},
       {"nodes", NodesOf(*sight_.layout).size()},
       {"seconds", Seconds(now - decides_from)}});
}

void PhaseWatch::Made(absl::Time now, Generation generation) {
  if (generation != sight_.generation || !Known(started_at_) || Known(made_at_)) return;
  made_at_ = now;
  Say(now, "ranks_made", {{"generation", generation}, {"seconds", Seconds(now - started_at_)}});
}

void PhaseWatch::Connected(absl::Time now, Generation generation) {
  if (generation != sight_.generation || !Known(made_at_) || Known(connected_at_)) return;
  connected_at_ = now;
  Say(now, "ranks_connected", {{"generation", generation}, {"seconds", Seconds(now - made_at_)}});
}

void PhaseWatch::Restored(absl::Time now) {
  if (!Known(started_at_) || Known(restored_at_)) return;
  if (!Known(made_at_)) made_at_ = now;
  restored_at_ = now;
  Say(now, "state_restored",
      {{"generation", sight_.generation},
       {"step", sight_.resumed},
       {"seconds", Seconds(now - (Known(connected_at_) ? connected_at_ : made_at_))}});
}

void PhaseWatch::Finished(absl::Time now, Generation generation, StepIndex step) {
  if (generation != sight_.generation) return;
  finished_ = std::max(finished_, step);
  if (sight_.phase != Phase::kRunning || stepped_ || step <= sight_.resumed || !Known(restored_at_))
    return;
  stepped_ = true;
  if (!Known(went_at_)) went_at_ = restored_at_;
  const bool stopped = Known(stopped_at_);
  const auto seconds = [](absl::Time from, absl::Time to) { return Seconds(to - from); };
  // What came before the last attempt: nodes that were waited for, generations that never stepped.
  first_step_ = {
      {"generation", generation},
      {"why", why_},
      {"step", step},
      {"redone", redone_},
      {"seconds", seconds(since_, now)},
      {"before", stopped ? seconds(since_, stopping_at_) : 0},
      {"stop", stopped ? seconds(stopping_at_, stopped_at_) : 0},
      {"choose", seconds(stopped ? stopped_at_ : since_, started_at_)},
      {"spawn", seconds(started_at_, made_at_)},
      {"rendezvous", Known(connected_at_) ? Json(seconds(made_at_, connected_at_)) : Json()},
      {"load", seconds(Known(connected_at_) ? connected_at_ : made_at_, restored_at_)},
      {"wait", seconds(restored_at_, went_at_)},
      {"first", seconds(went_at_, now)}};
  Say(now, "first_step", first_step_);
  why_ = "change";
  redone_ = 0;
  since_ = stopping_at_ = stopped_at_ = absl::InfinitePast();
}

}  // namespace perdure
