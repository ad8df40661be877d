#include "tests/sim/checker.h"

#include <fmt/format.h>

#include <algorithm>

#include "tests/prng.h"

namespace perdure::sim {

Checker::Checker(const Scenario& scenario) : scenario_(scenario) {
  expected_.push_back(Mix(scenario.seed, 0));
}

// A leaf's work at one (p, t) of the mesh; summed, because sums of whole numbers have no order.
uint64_t Checker::Leaves(const LayoutShape& shape, int32_t rank, StepIndex step) const {
  const int32_t t = rank % shape.tensor;
  const int32_t d = rank / shape.tensor % shape.data;
  const int32_t p = rank / shape.tensor / shape.data;
  uint64_t sum = 0;
  for (int32_t leaf = d; leaf < scenario_.rule.leaves; leaf += shape.data)
    sum += Mix(static_cast<uint64_t>(step) * 1'000'003u + static_cast<uint64_t>(leaf),
               static_cast<uint64_t>(p * 64 + t));
  return sum;
}

uint64_t Checker::Expected(StepIndex step) {
  const LayoutShape one{
      .tensor = scenario_.rule.tensor, .pipeline = scenario_.rule.pipeline, .data = 1};
  while (expected_.size() <= static_cast<size_t>(step)) {
    const auto last = static_cast<StepIndex>(expected_.size()) - 1;
    uint64_t sum = 0;
    for (int32_t rank = 0; rank < one.ranks(); ++rank) sum += Leaves(one, rank, last);
    expected_.push_back(Mix(expected_.back(), sum));
  }
  return expected_[static_cast<size_t>(step)];
}

Checker::Problem Checker::OnAppend(const LogEntry& e) {
  switch (e.kind) {
    case EntryKind::kLead:
      lead_ = e;
      ended_ = false;
      ++leads_;
      return std::nullopt;
    case EntryKind::kStart: {
      if (!lead_ || ended_ || lead_->author != e.author)
        return fmt::format("START {} by who does not lead", e.generation);
      if (!starts_.empty() && e.generation <= starts_.rbegin()->first)
        return fmt::format("START {} after START {}", e.generation, starts_.rbegin()->first);
      if (e.step < commit_step_)
        return fmt::format("START {} resumes at {}, the checkpoint is of {}", e.generation, e.step,
                           commit_step_);
      std::set<Seat> seats(e.layout->seats.begin(), e.layout->seats.end());
      if (seats.size() != e.layout->seats.size() ||
          e.layout->seats.size() != static_cast<size_t>(e.layout->shape.ranks()) || seats.empty())
        return fmt::format("START {}: seats are not one per rank", e.generation);
      starts_[e.generation] = e;
      return std::nullopt;
    }
    case EntryKind::kCommit: {
      if (!lead_ || ended_ || lead_->author != e.author)
        return fmt::format("COMMIT of step {} by who does not lead", e.step);
      if (starts_.empty() || starts_.rbegin()->first != e.generation)
        return fmt::format("COMMIT of generation {} which is not the newest", e.generation);
      if (e.step <= commit_step_)
        return fmt::format("COMMIT of step {} after step {}", e.step, commit_step_);
      const PlacedLayout& layout = *starts_.rbegin()->second.layout;
      for (const Seat& seat : layout.seats) {
        bool good = false;
        for (int32_t attempt = 1; attempt <= 2 && !good; ++attempt) {
          const auto part = parts_.find({e.generation, e.step, attempt, seat.node});
          good = part != parts_.end() && part->second.good && part->second.verified &&
                 part->second.value == Expected(e.step);
        }
        if (!good)
          return fmt::format("COMMIT of step {}: node {}'s part is not there, verified and right",
                             e.step, seat.node);
      }
      commit_step_ = e.step;
      committed_.insert(e.step);
      by_generation_.emplace(e.generation, e.step);
      ++commits_;
      return std::nullopt;
    }
    case EntryKind::kEnd:
      if (!lead_ || ended_ || lead_->author != e.author) return "END by who does not lead";
      ended_ = true;
      return std::nullopt;
    case EntryKind::kNote:
      return std::nullopt;
  }
  return std::nullopt;
}

Checker::Problem Checker::OnApply(Generation generation, NodeId node, StepIndex step,
                                  uint64_t value) {
  if (generation < stepping_)
    return fmt::format("node {} took step {} in generation {} after generation {} had stepped",
                       node, step, generation, stepping_);
  stepping_ = generation;
  const auto start = starts_.find(generation);
  if (start == starts_.end()) return fmt::format("generation {} steps without a START", generation);
  if (ended_) return fmt::format("node {} took step {} after the job's END", node, step);
  const bool member =
      std::any_of(start->second.layout->seats.begin(), start->second.layout->seats.end(),
                  [&](const Seat& seat) { return seat.node == node; });
  if (!member)
    return fmt::format("node {} steps in generation {}, where it has no seat", node, generation);
  const auto [last, first] = steps_.try_emplace({generation, node}, start->second.step);
  if (step != last->second + 1)
    return fmt::format("node {} took step {} after step {}", node, step, last->second);
  last->second = step;
  if (value != Expected(step))
    return fmt::format("node {} holds another state than the undisturbed run at step {}", node,
                       step);
  return std::nullopt;
}

Checker::Problem Checker::OnLoad(Generation generation, StepIndex step, bool from_checkpoint,
                                 uint64_t value) {
  const auto start = starts_.find(generation);
  if (start == starts_.end() || start->second.step != step)
    return fmt::format("generation {} loads step {}, its START says otherwise", generation, step);
  if (from_checkpoint && step != 0 && committed_.count(step) == 0)
    return fmt::format("generation {} loads a checkpoint of step {}, which was never committed",
                       generation, step);
  if (value != Expected(step))
    return fmt::format("generation {} loads a wrong state for step {}", generation, step);
  return std::nullopt;
}

void Checker::OnWritten(Generation generation, StepIndex step, int32_t attempt, NodeId node,
                        bool good, uint64_t value) {
  parts_[{generation, step, attempt, node}] = {.good = good, .verified = false, .value = value};
}

void Checker::OnVerified(Generation generation, StepIndex step, int32_t attempt, NodeId node) {
  const auto part = parts_.find({generation, step, attempt, node});
  if (part != parts_.end()) part->second.verified = true;
}

bool Checker::PartIsGood(Generation generation, StepIndex step, int32_t attempt,
                         NodeId node) const {
  const auto part = parts_.find({generation, step, attempt, node});
  return part != parts_.end() && part->second.good;
}

const PlacedLayout* Checker::LayoutOf(Generation generation) const {
  const auto start = starts_.find(generation);
  return start == starts_.end() ? nullptr : &*start->second.layout;
}

}  // namespace perdure::sim
