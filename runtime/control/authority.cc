#include "runtime/control/authority.h"

#include <algorithm>

namespace perdure {

Authority::Authority(const ControlOptions& options, NodeId nodes)
    : options_(options), round_of_(nodes, 0), round_begin_(absl::InfinitePast()) {}

void Authority::LogRead(absl::Time asked) {
  log_end_ =
      std::max(log_end_, asked + HolderCounts(options_, options_.lease_log) - options_.visibility);
}

void Authority::Elect(const std::vector<NodeId>& nodes, absl::Time now) {
  std::fill(round_of_.begin(), round_of_.end(), 0);
  for (NodeId node : nodes) round_of_[node] = 1;
  voters_ = nodes.size();
  round_ = 2;
  round_begin_ = now;
  answered_ = 0;
  support_end_ = absl::InfinitePast();
}

void Authority::Answered(NodeId node, absl::Time stamp, absl::Time now) {
  uint32_t& last = round_of_[node];
  if (last == 0 || last == round_ || stamp < round_begin_) return;
  last = round_;
  if (2 * ++answered_ <= voters_) return;
  support_end_ = round_begin_ + HolderCounts(options_, options_.lease_support);
  ++round_;
  round_begin_ = now;
  answered_ = 0;
}

absl::Time Authority::end() const { return std::min(log_end_, support_end_); }

// Less the drift of both: the holder's clock may be slow, and this one fast.
absl::Duration Authority::Grant(absl::Time now) const {
  if (end() <= now) return absl::ZeroDuration();
  const absl::Duration left = end() - now;
  return std::min(options_.lease_agent, left - left * (2 * options_.drift_percent) / 100);
}

Fence::Fence(const ControlOptions& options, NodeId nodes)
    : options_(options), stopped_(nodes, 0), grants_(nodes), joined_(nodes, false) {}

void Fence::Inherit(const std::vector<LogView::Live>& live, uint64_t job, absl::Time led) {
  for (const LogView::Live& l : live) {
    Older older{.generation = l.layout->generation,
                .nodes = {},
                .joined = 0,
                .half_joined = absl::InfiniteFuture()};
    if (l.job == job) older.nodes = NodesOf(*l.layout);
    older_.push_back(std::move(older));
  }
  all_over_ = led + OthersWait(options_, options_.lease_log);
}

// With half of its nodes gone, a coordinator before this one has no more than half left, and needs
// more.
void Fence::Joined(NodeId node, absl::Time now) {
  if (joined_[node]) return;
  joined_[node] = true;
  for (Older& older : older_) {
    if (!std::binary_search(older.nodes.begin(), older.nodes.end(), node)) continue;
    if (2 * ++older.joined >= older.nodes.size())
      older.half_joined = std::min(older.half_joined, now);
  }
}

void Fence::Stopped(NodeId node, Generation up_to) {
  stopped_[node] = std::max(stopped_[node], up_to);
}

void Fence::Granted(NodeId node, Generation generation, absl::Time over) {
  Grants& grants = grants_[node];
  grants.generation = std::max(grants.generation, generation);
  grants.over = std::max(grants.over, over);
}

absl::Time Fence::Opens() const {
  absl::Time opens = absl::InfinitePast();
  for (const Older& older : older_) {
    const bool stopped = !older.nodes.empty() &&
                         std::all_of(older.nodes.begin(), older.nodes.end(), [&](NodeId node) {
                           return stopped_[node] >= older.generation;
                         });
    if (stopped) continue;
    opens = std::max(opens, std::min(all_over_, older.half_joined +
                                                    OthersWait(options_, options_.lease_support)));
  }
  for (size_t node = 0; node < grants_.size(); ++node)
    if (stopped_[node] < grants_[node].generation) opens = std::max(opens, grants_[node].over);
  return opens;
}

}  // namespace perdure
