#include "runtime/control/layout_planner.h"

#include <algorithm>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/control/layout_words.h"
#include "runtime/control/offered_slots.h"
#include "runtime/control/seat_assignment.h"

namespace perdure {
namespace {

class Planner {
 public:
  // `avoided`: nodes that ranks of `current` may sit on and that are not offered; sorted.
  Planner(const LayoutRule& rule, const Situation& situation, const PlacedLayout& current,
          std::vector<NodeId> avoided)
      : rule_(rule),
        situation_(situation),
        current_(current),
        avoided_(std::move(avoided)),
        offered_(situation.offers, {.tensor = rule.tensor, .pipeline = rule.pipeline}, current),
        most_(std::min(rule.leaves, rule.data > 0 ? rule.data : rule.leaves)),
        least_(std::min(most_,
                        rule.shrink || current.seats.empty() ? rule.data_min : current.shape.data)),
        fit_(std::min(most_, offered_.Fit())) {}

  bool Fits() const { return fit_ >= least_; }
  Decision Decide();

 private:
  bool first() const { return current_.seats.empty(); }
  absl::Time wait_end() const {
    return std::min(situation_.now, situation_.waiting_since) + rule_.wait_max;
  }

  Decision WaitOrEnd() const;
  bool NeverFits() const;
  int32_t Replicas(Decision& decision) const;
  void Explain(const SeatPlan& plan, Decision& decision) const;
  bool LosesOthers(const SeatPlan& plan) const;

  const LayoutRule& rule_;
  const Situation& situation_;
  const PlacedLayout& current_;
  const std::vector<NodeId> avoided_;
  const OfferedSlots offered_;
  const int32_t most_, least_, fit_;  // Replicas that are of use, that are needed, that fit.
};

Decision Planner::Decide() {
  if (!Fits()) return WaitOrEnd();
  Decision decision;
  decision.shape = {.tensor = rule_.tensor, .pipeline = rule_.pipeline};
  decision.shape.data = Replicas(decision);
  const bool all_are_here =
      rule_.nodes_max > 0 && offered_.nodes().size() >= static_cast<size_t>(rule_.nodes_max);
  if (first() && situation_.nodes_coming && decision.shape.data < most_ && !all_are_here &&
      situation_.now < wait_end())
    return {.action = LayoutAction::kWait,
            .reason = LayoutReason::kNodesComing,
            .words = Clip(fmt::format(
                "{} nodes are here and hold {} replicas; more are coming: waiting up to {} more",
                offered_.nodes().size(), decision.shape.data,
                absl::FormatDuration(wait_end() - situation_.now))),
            .look_again = wait_end()};

  SeatPlan plan = AssignSeats(offered_, current_, decision.shape, rule_.spares);
  decision.seats = std::move(plan.seats);
  decision.spares = std::move(plan.spares);
  decision.source = std::move(plan.source);
  Explain(plan, decision);
  return decision;
}

// How many; and when more may be worth it.
int32_t Planner::Replicas(Decision& decision) const {
  if (first())
    return std::max(std::min(most_, offered_.FitBeside(rule_.spares, true)),
                    std::min(least_, fit_));
  const int32_t had = std::min(current_.shape.data, fit_);
  const int32_t grown = std::min(most_, offered_.FitBeside(rule_.spares, false));
  if (grown <= current_.shape.data) return had;
  const absl::Time at = situation_.unchanged_since + rule_.grow_after;
  if (situation_.now >= at) return grown;
  decision.look_again = at;
  return had;
}

// What the seats amount to.
void Planner::Explain(const SeatPlan& plan, Decision& decision) const {
  const int32_t had = current_.shape.data, data = decision.shape.data;
  using enum LayoutAction;
  if (first()) {
    decision.action = kStart;
    decision.reason = LayoutReason::kFirst;
  } else if (data > had) {
    decision.action = kGrow;
    decision.reason = LayoutReason::kRoom;
  } else if (data == had && decision.seats == current_.seats) {
    decision.action = kKeep;
    decision.reason = decision.look_again < absl::InfiniteFuture() ? LayoutReason::kGrowsLater
                                                                   : LayoutReason::kNothingChanged;
  } else {
    if (data == had)
      decision.action = plan.took_seats_of_others ? kRebuild : kPromoteSpare;
    else
      decision.action = plan.repaired > 0 ? kRebuild : kShrink;
    decision.reason = data < had && data == most_ ? LayoutReason::kMoreThanWanted
                      : LosesOthers(plan)         ? LayoutReason::kRanksLost
                      : !plan.lost.empty()        ? LayoutReason::kNodesSlow
                                                  : LayoutReason::kNodesDrained;
  }
  decision.words = WordsOfLayout(rule_, current_, offered_, avoided_, plan, decision);
}

// Than those on avoided nodes.
bool Planner::LosesOthers(const SeatPlan& plan) const {
  return std::any_of(plan.lost.begin(), plan.lost.end(), [&](int32_t rank) {
    return !std::binary_search(avoided_.begin(), avoided_.end(),
                               current_.seats[static_cast<size_t>(rank)].node);
  });
}

// Whether all nodes that the job may ever have, unhurt, would hold too few replicas.
bool Planner::NeverFits() const {
  if (rule_.nodes_max == 0 || rule_.ranks_per_node == 0) return false;
  const int32_t unit = rule_.ranks_per_node >= rule_.tensor ? rule_.tensor : 1;
  const int64_t blocks = static_cast<int64_t>(rule_.nodes_max) * (rule_.ranks_per_node / unit);
  return blocks < static_cast<int64_t>(rule_.tensor / unit) * rule_.pipeline * least_;
}

Decision Planner::WaitOrEnd() const {
  const std::string fits = fmt::format(
      "{} nodes with {} slots hold {} of the {} replicas that are needed ({})",
      offered_.nodes().size(), offered_.slots(), fit_, least_,
      least_ == rule_.data_min || rule_.shrink || first() ? "data_min" : "the run may not shrink");
  const auto end = [](LayoutReason reason, int exit_code, std::string words) {
    return Decision{.action = LayoutAction::kEnd,
                    .reason = reason,
                    .words = Clip(std::move(words)),
                    .exit_code = exit_code};
  };
  if (NeverFits())
    return end(
        LayoutReason::kNeverFits, kExitPersonMustLook,
        fmt::format("{} nodes of {} slots never hold {} replicas of tensor {} x pipeline {} "
                    "ranks: ask for more nodes, or lower [layout] tensor, pipeline or data",
                    rule_.nodes_max, rule_.ranks_per_node, least_, rule_.tensor, rule_.pipeline));
  if (offered_.slots() == 0 && !situation_.nodes_coming)
    return end(LayoutReason::kNoSlots, kExitPersonMustLook,
               fmt::format("none of {} nodes has a slot that can hold a rank: see in the journal "
                           "what failed on each, then start the next job",
                           offered_.nodes().size()));
  if (situation_.now >= wait_end())
    return end(
        LayoutReason::kWaitedTooLong, kExitMoreToDo,
        fmt::format("{}, after waiting {}: the next job gets fresh nodes", fits,
                    absl::FormatDuration(situation_.now -
                                         std::min(situation_.now, situation_.waiting_since))));
  return {.action = LayoutAction::kWait,
          .reason = LayoutReason::kTooFewSlots,
          .words = Clip(fmt::format("{}: waiting up to {} more{}", fits,
                                    absl::FormatDuration(wait_end() - situation_.now),
                                    situation_.nodes_coming ? ", nodes are coming" : "")),
          .look_again = wait_end()};
}

}  // namespace

Decision DecideLayout(const LayoutRule& rule, const Situation& situation) {
  PERDURE_CHECK(rule.tensor > 0 && rule.pipeline > 0 && rule.leaves > 0);
  PERDURE_CHECK(rule.data >= 0 && rule.data_min > 0 && rule.spares >= 0);
  const PlacedLayout& current = situation.current;
  PERDURE_CHECK(static_cast<size_t>(current.shape.ranks()) == current.seats.size());
  static const PlacedLayout kNone;
  const bool same = current.shape.tensor == rule.tensor && current.shape.pipeline == rule.pipeline;
  const PlacedLayout& last = same ? current : kNone;
  Situation without = situation;
  std::vector<NodeId> avoided;
  for (const NodeOffer& offer : situation.offers)
    if (offer.avoided) avoided.push_back(offer.node);
  if (avoided.empty()) return Planner(rule, situation, last, {}).Decide();
  std::sort(avoided.begin(), avoided.end());
  std::erase_if(without.offers, [](const NodeOffer& offer) { return offer.avoided; });
  Planner others(rule, without, last, std::move(avoided));
  if (others.Fits()) return others.Decide();
  Situation with = situation;
  for (NodeOffer& offer : with.offers) offer.drained |= offer.avoided;
  return Planner(rule, with, last, {}).Decide();
}

const char* Name(LayoutAction action) {
  constexpr const char* kNames[] = {"keep", "promote-spare", "rebuild", "shrink",
                                    "grow", "start",         "wait",    "end"};
  return kNames[static_cast<int>(action)];
}

}  // namespace perdure
