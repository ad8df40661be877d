// Slow nodes: what their ranks say of their work, and whom a coordinator may name and leave out.
#include <fmt/format.h>

#include <algorithm>

#include "tests/sim/world.h"

namespace perdure::sim {

// Its ranks' next step begins.
Nanos World::DrawWork(Agent& agent) {
  const int64_t jittered = work_.Between(90, 100 + scenario_.jitter);
  agent.ranks.work = scenario_.step * jittered / 100;
  if (agent.slow > now_) agent.ranks.work = agent.ranks.work * agent.slow_percent / 100;
  return agent.ranks.work;
}

// They have finished it. A replica's work is that of its leaves.
void World::CountWork(RankGroup& ranks) {
  const auto& seats = ranks.prepare.ranks;
  ranks.works.resize(seats.size());
  for (size_t i = 0; i < seats.size(); ++i) {
    const LayoutShape& shape = ranks.prepare.shape;
    const int64_t leaves =
        (scenario_.rule.leaves - shape.ReplicaOf(seats[i].rank) + shape.data - 1) / shape.data;
    ++ranks.works[i].steps;
    ranks.works[i].leaves += leaves;
    ranks.works[i].nanoseconds += ranks.work * leaves;
  }
}

void World::SlowDown(Index index, Nanos until, int64_t percent) {
  Agent& agent = Of(index);
  agent.slow = until;
  agent.slow_percent = percent;
  slow_spans_.push_back({.agent = index, .from = now_, .until = until});
}

// A coordinator names a node as slow: it was, for much of what was looked at.
void World::OnSlow(Index index, NodeId node) {
  const Index named = IndexOf({Of(index).job, node});
  const Nanos window = absl::ToInt64Nanoseconds(scenario_.control.slow_window);
  Nanos slow = 0;
  for (const SlowSpan& span : slow_spans_)
    if (span.agent == named)
      slow += std::max<Nanos>(
          0, std::min(now_, span.until) - std::max(span.from, now_ - 3 * window - 30 * kSecond));
  if (slow < window / 2) {
    Violate(fmt::format("node {} of job {} is named as slow, which it was for {} ms of late", node,
                        Of(index).job, slow / kMs));
    return;
  }
  ++outcome_.slow_named;
  named_slow_[named] = now_;
}

// Whom a job found slow and did without is not used again before its time, unless others do not
// hold what is needed.
void World::CheckSlow(const LogEntry& entry) {
  const auto job = static_cast<uint32_t>(entry.author.at.job);
  const bool leads = entry.kind == EntryKind::kLead;
  // The log remembers of one job, until another one leads.
  if (entry.kind == EntryKind::kEnd || (leads && job != slow_job_)) {
    left_until_.clear();
    left_times_.clear();
  }
  if (leads) slow_job_ = job;
  if (entry.kind == EntryKind::kStart) CheckSlowStart(entry);
}

void World::CheckSlowStart(const LogEntry& start) {
  const auto job = static_cast<uint32_t>(start.author.at.job);
  if (start.failure.kind == EvidenceKind::kSlow) {
    const Index left = IndexOf({job, start.failure.node.value_or(0)});
    const auto named = named_slow_.find(left);
    if (!start.failure.node.has_value() || named == named_slow_.end()) {
      Violate(fmt::format("START {} is for a slow node that nobody has named", start.generation));
      return;
    }
    ++outcome_.slow_left;
    const int times = left_times_[left]++;
    const Nanos retry = absl::ToInt64Nanoseconds(scenario_.control.slow_retry) *
                        (100 - scenario_.control.drift_percent) / 100;
    left_until_[left] = named->second + (retry << std::min(times, 10));
  }
  const LayoutShape& shape = start.layout->shape;
  int32_t fit_without = 0;
  std::optional<NodeId> early;
  for (const Seat& seat : start.layout->seats) {
    const Index index = IndexOf({job, seat.node});
    const auto until = left_until_.find(index);
    if (until != left_until_.end() && now_ < until->second) early = seat.node;
    fit_without += named_slow_.count(index) == 0 ? 1 : 0;
  }
  const int32_t needed = shape.replica_ranks() * scenario_.rule.data_min;
  if (early.has_value() && fit_without >= needed)
    Violate(fmt::format("START {} uses node {}, which was slow, although others are enough",
                        start.generation, *early));
}

}  // namespace perdure::sim
