// Ranks that are slow: they are named, and their nodes done without where that pays.
#include <algorithm>
#include <utility>

#include "runtime/base/status.h"
#include "runtime/control/coordinator.h"

namespace perdure {
namespace {

// A change of layout costs some steps; one that gains less is not worth it.
constexpr int64_t kGainPercentMin = 10;
constexpr int kDoublingsMax = 10;  // Of slow_retry.

}  // namespace

std::vector<Coordinator::SlowNode> Coordinator::slow() const {
  std::vector<SlowNode> slow;
  for (NodeId node = 0; node < identity_.nodes; ++node)
    if (const Peer& peer = peers_[node]; peer.slow_percent > 0 || peer.avoided)
      slow.push_back({.node = node, .percent = peer.slow_percent, .avoided = peer.avoided});
  return slow;
}

// What its ranks, which run, have worked.
void Coordinator::HearWork(NodeId node, Effects& effects) {
  const msg::Report& r = peers_[node].report;
  const std::vector<SlowRanks::Finding> findings = slow_.Hear(now_, r.generation, node, r.works);
  for (const SlowRanks::Finding& found : findings) {
    Peer& peer = peers_[found.seat.node];
    peer.slow_percent = 0;
    for (const auto& [seat, percent] : slow_.named())
      if (seat.node == found.seat.node) peer.slow_percent = std::max(peer.slow_percent, percent);
    if (!found.slow) {
      Say(fmt::format("rank {} on node {} is not slow any more", found.rank, found.seat.node),
          effects);
      continue;
    }
    effects.emplace_back(Evidence{.node = found.seat.node,
                                  .kind = EvidenceKind::kSlow,
                                  .number = found.percent,
                                  .rank = found.rank});
    Say(fmt::format("rank {} on node {} has been {} for {}", found.rank, found.seat.node,
                    WordsOf(EvidenceKind::kSlow, found.percent),
                    absl::FormatDuration(options_.slow_window)),
        effects);
  }
  if (findings.empty() || LeavesSlow(effects)) return;
  for (const SlowRanks::Finding& found : findings)
    if (found.slow && !ending_.has_value())
      Say(fmt::format("node {} is kept: a layout without it would be no faster, or there is none",
                      found.seat.node),
          effects);
}

// Of a step: one leaf of every replica at a time.
int64_t Coordinator::Rounds(int32_t data) const {
  return data == 0 ? 0 : (int64_t{rule_.leaves} + data - 1) / data;
}

// A step takes as long as the slowest rank for its rounds. Tries to do without the slowest node,
// the two slowest, and so on: a spare in its place costs nothing, one replica less perhaps a round.
// True: the generation is being stopped for that, or its state is saved before.
bool Coordinator::LeavesSlow(Effects& effects) {
  if (phase_ != Phase::kRunning || ending_.has_value()) return false;
  std::vector<NodeId> slow;
  for (NodeId node : members_)
    if (peers_[node].slow_percent > 0 && !peers_[node].avoided) slow.push_back(node);
  std::stable_sort(slow.begin(), slow.end(), [this](NodeId a, NodeId b) {
    return peers_[a].slow_percent > peers_[b].slow_percent;
  });
  size_t leaves = 0;  // So many of them.
  Decision best;
  int64_t takes = 0;
  for (size_t i = 0; i < slow.size(); ++i) {
    peers_[slow[i]].avoided = true;
    Decision without = DecideLayout(rule_, Survey());
    const bool sits = std::any_of(without.seats.begin(), without.seats.end(),
                                  [&](const Seat& seat) { return seat.node == slow[i]; });
    if (without.seats.empty() || sits) break;
    const int64_t slowest = i + 1 < slow.size() ? peers_[slow[i + 1]].slow_percent : 100;
    const int64_t would_take = Rounds(without.shape.data) * slowest;
    if (leaves > 0 && would_take >= takes) continue;
    leaves = i + 1;
    takes = would_take;
    best = std::move(without);
  }
  const bool pays =
      leaves > 0 && takes * (100 + kGainPercentMin) <=
                        Rounds(layout_.shape.data) * peers_[slow.front()].slow_percent * 100;
  if (!pays || SavesFirst(best.words, effects)) leaves = 0;
  for (size_t i = 0; i < slow.size(); ++i) {
    Peer& peer = peers_[slow[i]];
    peer.avoided = i < leaves;
    if (peer.avoided) Avoid(slow[i], peer.slow_times + 1);
  }
  if (leaves == 0) return pays;
  Blame(EvidenceKind::kSlow, peers_[slow.front()].slow_percent, slow.front());
  BeginStop(true, best.words, effects);
  return true;
}

// Because it was found slow for the `times`-th time.
void Coordinator::Avoid(NodeId node, int times) {
  Peer& peer = peers_[node];
  peer.avoided = true;
  peer.slow_times = times;
  peer.retry_at = now_ + options_.slow_retry * (int64_t{1} << std::min(times - 1, kDoublingsMax));
  retry_due_ = std::min(retry_due_, peer.retry_at);
}

// Nodes that were avoided for long enough are as any that came back.
void Coordinator::RetrySlow() {
  retry_due_ = absl::InfiniteFuture();
  for (NodeId node = 0; node < identity_.nodes; ++node) {
    Peer& peer = peers_[node];
    if (!peer.avoided) continue;
    if (now_ < peer.retry_at) {
      retry_due_ = std::min(retry_due_, peer.retry_at);
      continue;
    }
    peer.avoided = false;
    peer.slow_percent = 0;
    slow_.Forget(node);
    changed_at_ = now_;
    look_again_ = std::min(look_again_, now_ + options_.resend);
  }
}

}  // namespace perdure
