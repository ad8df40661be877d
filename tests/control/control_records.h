// Records of a run log as the control plane's machines find them, for tests that write them down.
#pragma once

#include <vector>

#include "absl/time/time.h"
#include "runtime/control/log_view.h"

namespace perdure {

constexpr uint64_t kJob = 7, kOtherJob = 8;
inline const absl::Time kStart = absl::UnixEpoch() + absl::Hours(100);

inline absl::Duration Ms(int64_t ms) { return absl::Milliseconds(ms); }

inline LogEntry Lead(Slot slot, NodeId node, uint64_t job = kJob) {
  return {.slot = slot, .kind = EntryKind::kLead, .author = {.at = {job, node}, .incarnation = 1}};
}
// With one rank on each of `nodes`.
inline LogEntry Start(Slot slot, Generation generation, const std::vector<NodeId>& nodes,
                      uint64_t job = kJob) {
  PlacedLayout layout{
      .generation = generation, .shape = {.data = static_cast<int32_t>(nodes.size())}, .seats = {}};
  for (NodeId node : nodes) layout.seats.push_back({node, 0});
  return {.slot = slot,
          .kind = EntryKind::kStart,
          .author = {.at = {job, 0}, .incarnation = 1},
          .generation = generation,
          .layout = layout};
}
inline LogEntry End(Slot slot, int32_t code, uint64_t job = kJob) {
  return {.slot = slot,
          .kind = EntryKind::kEnd,
          .author = {.at = {job, 0}, .incarnation = 1},
          .exit_code = code};
}

inline LogView View(const std::vector<LogEntry>& entries) {
  LogView view;
  for (const LogEntry& entry : entries) view.Absorb(entry);
  return view;
}

}  // namespace perdure
