#include "runtime/control/log_view.h"

#include <algorithm>

#include "runtime/base/check.h"

namespace perdure {

std::vector<NodeId> NodesOf(const PlacedLayout& layout) {
  std::vector<NodeId> nodes;
  nodes.reserve(layout.seats.size());
  for (const Seat& seat : layout.seats) nodes.push_back(seat.node);
  std::sort(nodes.begin(), nodes.end());
  nodes.erase(std::unique(nodes.begin(), nodes.end()), nodes.end());
  return nodes;
}

void LogView::AddCheckpoint(StepIndex step) {
  const auto at = std::lower_bound(checkpoints.begin(), checkpoints.end(), step);
  if (at == checkpoints.end() || *at != step) checkpoints.insert(at, step);
}

// What failed behind a state of steps that are not taken any more says nothing of those in their
// place.
void LogView::TakeLine(const Gaps& next) {
  std::erase_if(failures, [&](const FailedGeneration& f) {
    return !SameLine(gaps, next, f.failure.step + 1);
  });
  gaps = next;
}

StepIndex LogView::NewestCheckpoint(const Gaps& of) const {
  for (auto step = checkpoints.rbegin(); step != checkpoints.rend(); ++step)
    if (SameLine(gaps, of, *step)) return *step;
  return -1;
}

void LogView::Absorb(const LogEntry& entry) {
  PERDURE_CHECK(entry.slot == next_slot);
  ++next_slot;
  switch (entry.kind) {
    case EntryKind::kLead:
      if (lead.has_value() && lead->author.at.job != entry.author.at.job) {
        failures.clear();
        last_failure.reset();
        slow.clear();
      }
      lead = Lead{.term = entry.slot, .author = entry.author};
      return;
    case EntryKind::kStart:
      AddFailure({.generation = generation, .failure = entry.failure}, failures);
      last_failure.reset();
      if (entry.failure.kind.has_value())
        last_failure = {.generation = generation, .failure = entry.failure};
      if (entry.failure.kind == EvidenceKind::kSlow && entry.failure.node.has_value())
        ++slow[*entry.failure.node];
      generation = std::max(generation, entry.generation);
      live.push_back({.job = entry.author.at.job,
                      .resumed = entry.step,
                      .from_checkpoint = entry.from_checkpoint,
                      .layout = entry.layout,
                      .gaps = entry.gaps});
      TakeLine(entry.gaps);
      // Behind where it resumes they are bad, or of steps that the run leaves.
      std::erase_if(checkpoints, [&](StepIndex step) { return step > entry.step; });
      if (entry.from_checkpoint) AddCheckpoint(entry.step);
      commit_step = checkpoints.empty() ? -1 : checkpoints.back();
      commits.clear();
      return;
    case EntryKind::kCommit:
      ForgetFailuresBefore(entry.step, failures);
      // Nobody has stepped in that generation: it was imported.
      if (!live.empty() && live.back().layout->shape.data == 0) begins = entry.step;
      AddCheckpoint(entry.step);
      commit_step = checkpoints.back();
      commits.push_back(entry.step);
      std::erase_if(live, [&](const Live& l) { return l.layout->generation < entry.generation; });
      return;
    case EntryKind::kEnd:
      lead.reset();
      live.clear();
      failures.clear();
      last_failure.reset();
      slow.clear();
      return;
    case EntryKind::kNote:
      return;
  }
}

}  // namespace perdure
