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

void LogView::Absorb(const LogEntry& entry) {
  PERDURE_CHECK(entry.slot == next_slot);
  ++next_slot;
  switch (entry.kind) {
    case EntryKind::kLead:
      if (lead.has_value() && lead->author.at.job != entry.author.at.job) {
        failures.clear();
        slow.clear();
      }
      lead = Lead{.term = entry.slot, .author = entry.author};
      return;
    case EntryKind::kStart:
      AddFailure({.generation = generation, .failure = entry.failure}, failures);
      if (entry.failure.kind == EvidenceKind::kSlow && entry.failure.node.has_value())
        ++slow[*entry.failure.node];
      generation = std::max(generation, entry.generation);
      live.push_back({.job = entry.author.at.job,
                      .resumed = entry.step,
                      .from_checkpoint = entry.from_checkpoint,
                      .layout = entry.layout});
      commit_step = entry.from_checkpoint ? entry.step : std::min(commit_step, entry.step);
      commits.clear();
      return;
    case EntryKind::kCommit:
      ForgetFailuresBefore(entry.step, failures);
      commit_step = std::max(commit_step, entry.step);
      commits.push_back(entry.step);
      std::erase_if(live, [&](const Live& l) { return l.layout->generation < entry.generation; });
      return;
    case EntryKind::kEnd:
      lead.reset();
      live.clear();
      failures.clear();
      slow.clear();
      return;
    case EntryKind::kNote:
      return;
  }
}

}  // namespace perdure
