#include "runtime/control/failure_detector.h"

#include <algorithm>
#include <cstddef>
#include <string_view>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// So much of silence_max may pass between two calls of Step; from more than half of it on it is a
// pause.
constexpr int kCallsPerSilence = 4;

template <typename... F>
struct Overload : F... {
  using F::operator()...;
};
template <typename... F>
Overload(F...) -> Overload<F...>;

absl::Status InRange(std::string_view option, absl::Duration value, absl::Duration least,
                     absl::Duration most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return InvalidArgument("failure detector: {} is {}; it must be {} to {}", option,
                         absl::FormatDuration(value), absl::FormatDuration(least),
                         absl::FormatDuration(most));
}
absl::Status InRange(std::string_view option, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return InvalidArgument("failure detector: {} is {}; it must be {} to {}", option, value, least,
                         most);
}

}  // namespace

absl::Status FailureDetector::Validate(const Options& o) {
  RETURN_IF_ERROR(InRange("heartbeat_interval", o.heartbeat_interval, absl::Milliseconds(1),
                          absl::Seconds(30)));
  // Two heartbeats may be late or lost.
  RETURN_IF_ERROR(
      InRange("silence_max", o.silence_max, 3 * o.heartbeat_interval, absl::Minutes(10)));
  RETURN_IF_ERROR(InRange("silence_after_close_max", o.silence_after_close_max,
                          o.heartbeat_interval, o.silence_max));
  // Progress travels with heartbeats.
  RETURN_IF_ERROR(InRange("stall_min", o.stall_min, 2 * o.heartbeat_interval, absl::Hours(24)));
  RETURN_IF_ERROR(InRange("stall_factor", o.stall_factor, 1, 1000));
  RETURN_IF_ERROR(InRange("first_step_max", o.first_step_max, o.stall_min, absl::Hours(24)));
  RETURN_IF_ERROR(InRange("step_times_max", o.step_times_max, 1, 4096));
  RETURN_IF_ERROR(InRange("reporters_min", o.reporters_min, 1, 64));
  RETURN_IF_ERROR(InRange("report_window", o.report_window, o.heartbeat_interval, absl::Hours(24)));
  RETURN_IF_ERROR(InRange("accused_max", o.accused_max, 1, 1 << 16));
  RETURN_IF_ERROR(InRange("suspects_max", o.suspects_max, 1, 1 << 16));
  return InRange("nodes_max", int64_t{o.nodes_max}, 1, 1 << 20);
}

FailureDetector::FailureDetector(const Options& options)
    : options_(options),
      accusations_({.window = options.report_window,
                    .reporters_min = options.reporters_min,
                    .accused_max = options.accused_max}),
      times_(options.step_times_max) {
  PERDURE_CHECK(Validate(options).ok());
}

void FailureDetector::Step(absl::Time now, const Event& event, Effects& effects) {
  NoticePause(now, effects);
  if (Belongs(event))
    std::visit([&](const auto& e) { On(e, effects); }, event);
  else
    ++dropped_;
  Expire(effects);
}

// What comes late, or of somebody who is not here, ends here.
bool FailureDetector::Belongs(const Event& event) const {
  const auto watched = [&](NodeId node) { return silent_.Contains(node); };
  const auto current = [&](Generation of) { return of != 0 && of == generation_; };
  return std::visit(
      Overload{
          [](const Tick&) { return true; },
          [](const NodeWatched&) { return true; },
          [&](const NodeForgotten& e) { return watched(e.node); },
          [&](const Heard& e) { return watched(e.node); },
          [&](const ConnectionClosed& e) { return watched(e.node); },
          [&](const RankExited& e) {
            return current(e.generation) && IsRank(e.rank) && nodes_[e.rank] == e.seat.node &&
                   !rank_lost_[e.rank];
          },
          [&](const EndpointError& e) {
            return current(e.generation) && IsRank(e.reporter) && IsRank(e.against);
          },
          [&](const GenerationFormed& e) { return e.generation > generation_latest_; },
          [&](const StepProgress& e) { return current(e.generation) && IsMember(e.node); },
          [&](const PaceChanges& e) { return current(e.generation); },
          [&](const StoodStill& e) { return current(e.generation); },
          [&](const GenerationEnded& e) { return current(e.generation); },
      },
      event);
}

bool FailureDetector::IsMember(NodeId node) const {
  return node < positions_.size() && positions_[node].finished != kAbsent;
}
bool FailureDetector::IsRank(int32_t rank) const {
  return rank >= 0 && static_cast<std::size_t>(rank) < nodes_.size();
}

// ---- Silence ------------------------------------------------------------------------------------

void FailureDetector::NoticePause(absl::Time now, Effects& effects) {
  const absl::Duration unseen = now - now_;
  now_ = std::max(now_, now);
  if ((silent_.empty() && generation_ == 0) || unseen <= options_.silence_max / 2) return;
  resumed_ = now_;
  if (generation_ != 0) BeginWait();
  seen_whole_ = false;
  effects.emplace_back(Resumed{unseen});
}

absl::Time FailureDetector::SilenceDeadline() const {
  if (silent_.empty()) return absl::InfiniteFuture();
  return std::max(heard_[silent_.front()], resumed_) + options_.silence_max;
}

absl::Time FailureDetector::CloseDeadline() const {
  if (unconnected_.empty()) return absl::InfiniteFuture();
  return std::max(closed_[unconnected_.front()], resumed_) + options_.silence_after_close_max;
}

absl::Time FailureDetector::NextDeadline() const {
  if (silent_.empty() && generation_ == 0) return absl::InfiniteFuture();
  const absl::Time awake = now_ + options_.silence_max / kCallsPerSilence;
  const absl::Time stall = generation_ == 0 ? absl::InfiniteFuture() : stall_deadline_;
  return std::min({awake, stall, SilenceDeadline(), CloseDeadline()});
}

void FailureDetector::Lose(NodeId node, Silence reason, Effects& effects) {
  silent_.Remove(node);
  unconnected_.Remove(node);
  effects.emplace_back(NodeLost{node, reason, now_ - heard_[node]});
}

void FailureDetector::Expire(Effects& effects) {
  while (now_ >= CloseDeadline()) Lose(unconnected_.front(), Silence::kClosed, effects);
  while (now_ >= SilenceDeadline()) Lose(silent_.front(), Silence::kUnheard, effects);
  if (generation_ == 0 || now_ < stall_deadline_) return;
  effects.emplace_back(Stalled{.generation = generation_,
                               .step = step_,
                               .since = since_,
                               .limit = limit_,
                               .times = ++stalls_,
                               .reason = first_ ? Stall::kFirstStep : Stall::kStep,
                               .suspects = Suspects()});
  BeginWait();
}

void FailureDetector::On(const NodeWatched& event, Effects&) {
  PERDURE_CHECK(event.node < options_.nodes_max);
  if (event.node >= heard_.size()) {
    heard_.resize(std::size_t{event.node} + 1);
    closed_.resize(heard_.size());
  }
  heard_[event.node] = now_;
  silent_.PutAtBack(event.node);
  unconnected_.Remove(event.node);
}

void FailureDetector::On(const NodeForgotten& event, Effects&) {
  silent_.Remove(event.node);
  unconnected_.Remove(event.node);
}

void FailureDetector::On(const Heard& event, Effects&) {
  heard_[event.node] = now_;
  silent_.PutAtBack(event.node);
  unconnected_.Remove(event.node);
}

// A second time it gains nothing by.
void FailureDetector::On(const ConnectionClosed& event, Effects&) {
  if (unconnected_.Contains(event.node)) return;
  closed_[event.node] = now_;
  unconnected_.PutAtBack(event.node);
}

void FailureDetector::On(const Tick&, Effects&) {}

// ---- Ranks --------------------------------------------------------------------------------------

void FailureDetector::On(const RankExited& event, Effects& effects) {
  if (event.kind == ExitKind::kKilledByUs) return;
  rank_lost_[event.rank] = true;
  effects.emplace_back(
      RankLost{event.generation, event.rank, event.seat, event.kind, event.number});
}

void FailureDetector::On(const EndpointError& event, Effects&) {
  accusations_.Report(now_, event.against, nodes_[event.reporter]);
}

// ---- Steps --------------------------------------------------------------------------------------

void FailureDetector::On(const GenerationFormed& event, Effects&) {
  PERDURE_CHECK(!event.nodes.empty());
  const NodeId last = *std::max_element(event.nodes.begin(), event.nodes.end());
  PERDURE_CHECK(last < options_.nodes_max);
  generation_ = generation_latest_ = event.generation;
  nodes_ = event.nodes;
  rank_lost_.assign(nodes_.size(), false);
  positions_.assign(std::size_t{last} + 1, {});
  members_ = 0;
  for (const NodeId node : nodes_) {
    members_ += IsMember(node) ? 0 : 1;
    positions_[node] = {event.step, event.step};
  }
  finished_by_ = {{event.step, members_}};
  accusations_.Clear();
  step_ = event.step;
  since_ = now_;
  stalls_ = 0;
  seen_whole_ = true;
  pace_changes_ = kAbsent;
  BeginPace();
  BeginWait();
}

void FailureDetector::On(const GenerationEnded&, Effects&) {
  generation_ = 0;
  nodes_.clear();
  rank_lost_.clear();
  positions_.clear();
  finished_by_.clear();
  accusations_.Clear();
}

void FailureDetector::On(const StepProgress& event, Effects&) {
  Position& position = positions_[event.node];
  const StepIndex before = position.finished;
  position.finished = std::max(before, event.finished);
  position.begun = std::max({position.begun, event.begun, position.finished});
  if (position.finished == before) return;
  ++finished_by_[position.finished];
  if (const auto left = finished_by_.find(before); --left->second == 0) finished_by_.erase(left);
  if (const StepIndex step = finished_by_.begin()->first; step > step_) Advance(step);
}

void FailureDetector::On(const PaceChanges& event, Effects&) {
  pace_changes_ = event.step;
  if (step_ < pace_changes_) return;
  BeginPace();
  BeginWait();
}

void FailureDetector::On(const StoodStill&, Effects&) {
  seen_whole_ = false;
  BeginWait();
}

// All have finished `step` steps. A heartbeat may bring several at once, whose times are alike.
void FailureDetector::Advance(StepIndex step) {
  const absl::Duration took = now_ - since_;
  if (first_) {
    first_took_ = seen_whole_ ? took : absl::InfiniteDuration();
    first_ = false;
  } else if (seen_whole_) {
    // A step that stalled counts as its limit, so that one long wait does not allow for longer
    // ones, and steps that have become slow are learnt all the same.
    times_.Add(std::min(took / (step - step_), limit_));
  }
  step_ = step;
  since_ = now_;
  seen_whole_ = true;
  stalls_ = 0;
  // The last node's progress may come after the first errors of the next step.
  accusations_.ForgetBefore(now_ - options_.report_window);
  if (pace_changes_ != kAbsent && step_ >= pace_changes_) BeginPace();
  BeginWait();
}

// The step under way is the first of its kind.
void FailureDetector::BeginPace() {
  first_ = true;
  first_took_ = absl::InfiniteDuration();
  pace_changes_ = kAbsent;
  times_.Clear();
}

void FailureDetector::BeginWait() {
  if (first_) {
    limit_ = options_.first_step_max;
  } else if (times_.empty()) {
    // The first step did what the second does, and more.
    limit_ = std::min(options_.first_step_max,
                      std::max(options_.stall_min, options_.stall_factor * first_took_));
  } else {
    limit_ = std::max(options_.stall_min, options_.stall_factor * times_.P99());
  }
  stall_deadline_ = now_ + limit_;
}

std::vector<FailureDetector::Suspect> FailureDetector::Suspects() const {
  const auto half = static_cast<std::size_t>(members_ / 2);
  std::map<NodeId, int> reported;  // By how many, the most of its ranks.
  for (const auto& [rank, reporters] : accusations_.Supported(members_ - 1)) {
    int& most = reported[nodes_[rank]];
    most = std::max(most, reporters);
  }
  if (reported.size() > half) reported.clear();

  std::map<Position, std::vector<NodeId>> at;
  for (NodeId node = 0; node < positions_.size(); ++node)
    if (IsMember(node)) at[positions_[node]].push_back(node);

  std::vector<Suspect> suspects;
  std::size_t behind_count = 0;
  for (auto& [position, nodes] : at) {
    behind_count += nodes.size();
    if (behind_count > half) break;
    for (const bool also_reported : {true, false})
      for (const NodeId node : nodes)
        if (reported.contains(node) == also_reported)
          suspects.push_back({node, also_reported ? Clue::kBoth : Clue::kBehind});
    for (const NodeId node : nodes) reported.erase(node);
  }
  std::vector<std::pair<int, NodeId>> others;
  for (const auto& [node, reporters] : reported) others.emplace_back(-reporters, node);
  std::sort(others.begin(), others.end());
  for (const auto& [fewer, node] : others) suspects.push_back({node, Clue::kReported});
  if (suspects.size() > static_cast<std::size_t>(options_.suspects_max))
    suspects.resize(static_cast<std::size_t>(options_.suspects_max));
  return suspects;
}

std::size_t FailureDetector::held() const {
  return heard_.size() + closed_.size() + silent_.size() + unconnected_.size() + nodes_.size() +
         rank_lost_.size() + positions_.size() + finished_by_.size() + accusations_.size() +
         times_.size();
}

// ---- Words --------------------------------------------------------------------------------------

namespace {

std::string ExitWords(FailureDetector::ExitKind kind, int32_t number) {
  switch (kind) {
    case FailureDetector::ExitKind::kCode:
      return fmt::format("exited with code {}", number);
    case FailureDetector::ExitKind::kSignal:
      return fmt::format("killed by signal {}", number);
    case FailureDetector::ExitKind::kOutOfMemory:
      return "killed because memory ran out";
    case FailureDetector::ExitKind::kKilledByUs:
      return "killed by us";
  }
  PERDURE_CHECK(false);
}

std::string SuspectsInWords(const std::vector<FailureDetector::Suspect>& suspects) {
  if (suspects.empty()) return "nobody in particular is suspected";
  std::string words = "suspected: ";
  for (const FailureDetector::Suspect& suspect : suspects) {
    const char* clue = suspect.clue == FailureDetector::Clue::kBehind     ? "behind"
                       : suspect.clue == FailureDetector::Clue::kReported ? "reported by others"
                                                                          : "behind, reported";
    words +=
        fmt::format("{}node {} ({})", &suspect == suspects.data() ? "" : ", ", suspect.node, clue);
  }
  return words;
}

}  // namespace

std::string InWords(const FailureDetector::Effect& effect) {
  using D = FailureDetector;
  return std::visit(
      Overload{
          [](const D::NodeLost& e) {
            return fmt::format("node {} is lost: nothing heard for {}{}", e.node,
                               absl::FormatDuration(e.silent),
                               e.reason == D::Silence::kClosed ? ", its connection closed" : "");
          },
          [](const D::RankLost& e) {
            return fmt::format("rank {} is lost: {} (node {}, slot {}, generation {})", e.rank,
                               ExitWords(e.reason, e.number), e.seat.node, e.seat.local_rank,
                               e.generation);
          },
          [](const D::Stalled& e) {
            return fmt::format("generation {} stalls after {} steps: {} takes longer than {}{}; {}",
                               e.generation, e.step,
                               e.reason == D::Stall::kFirstStep ? "the first step" : "a step",
                               absl::FormatDuration(e.limit),
                               e.times == 1 ? "" : fmt::format(" (report {})", e.times),
                               SuspectsInWords(e.suspects));
          },
          [](const D::Resumed& e) {
            return fmt::format("the coordinator itself was away for {}: all waits begin anew",
                               absl::FormatDuration(e.unseen));
          },
      },
      effect);
}

}  // namespace perdure
