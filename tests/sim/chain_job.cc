#include "tests/sim/chain_job.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "tests/prng.h"

namespace perdure::sim {

GpuHours& GpuHours::operator+=(const GpuHours& other) {
  for (double GpuHours::*each :
       {&GpuHours::productive, &GpuHours::idle, &GpuHours::redone, &GpuHours::recovering,
        &GpuHours::starting, &GpuHours::saving, &GpuHours::leaving})
    this->*each += other.*each;
  return *this;
}

// ---- Partition

Partition::Partition(const ChainAssumptions& assumed, const ChainDraws& draws)
    : repair_(absl::Hours(assumed.repair_hours)), draws_(draws) {
  for (int node = 0; node < assumed.partition_nodes; ++node)
    names_.push_back(fmt::format("n{:03}", node));
}

void Partition::Breaks(const std::string& node, absl::Time now, bool unseen) {
  const auto known = troubles_.find(node);
  if (known != troubles_.end() && now < known->second.repaired) return;
  troubles_[node] = {.repaired = now + repair_, .unseen = unseen};
}

bool Partition::Bad(const std::string& node, absl::Time now) const {
  const auto trouble = troubles_.find(node);
  return trouble != troubles_.end() && now < trouble->second.repaired;
}

std::vector<std::string> Partition::Allocate(int64_t count, absl::Time now,
                                             const std::set<std::string>& without) {
  std::vector<std::string> free;
  for (const std::string& node : names_)
    if (!without.contains(node) && (!Bad(node, now) || troubles_.at(node).unseen))
      free.push_back(node);
  PERDURE_CHECK(std::ssize(free) >= count);
  Prng(draws_.Bits(allocations_++)).Shuffle(free);
  free.resize(static_cast<size_t>(count));
  std::sort(free.begin(), free.end());
  return free;
}

// ---- Hazards

DrawnFailure Hazards::Take() { return std::exchange(next_, draws_.Failure(++failures_)); }

// ---- HeldJob

HeldJob::HeldJob(const ChainAssumptions& assumed, const ChainDraws& draws, Hazards* hazards,
                 const Partition& partition, Options options)
    : assumed_(assumed),
      options_(std::move(options)),
      hazards_(hazards),
      nodes_(options_.nodes),
      now_(options_.began),
      preempted_at_(now_ + draws.Preempted(options_.start, options_.limit)),
      crashed_at_(now_ + draws.Crashed(options_.start, options_.limit)) {
  for (const std::string& node : nodes_)
    if (partition.Bad(node, now_)) strikes_[node] = now_ + hazards_->Strike();
}

absl::Time HeldJob::end() const {
  const absl::Time noticed =
      notice_.has_value() ? *notice_ + absl::Seconds(assumed_.kill_wait) : absl::InfiniteFuture();
  return std::min(time_over(), noticed);
}

HeldJob::Spent HeldJob::Spend(absl::Duration most) {
  Spent spent;
  const auto pass = [&](absl::Time until) {
    const double held = absl::ToDoubleHours(until - now_) * gpus();
    spent.held += held;
    hazards_->Pass(held);
    now_ = until;
  };
  const absl::Time until = now_ + most;
  if (!notice_.has_value() && preempted_at_ <= std::min(until, time_over())) {
    // Not an end yet, a notice: the work goes on. What is due before comes first.
    const absl::Time notice = std::max(preempted_at_, now_);
    preempted_at_ = absl::InfiniteFuture();
    spent = Spend(notice - now_);
    if (now_ < notice) {
      preempted_at_ = notice;
      return spent;
    }
    notice_ = notice;
    const Spent rest = Spend(until - now_);
    return {.held = spent.held + rest.held, .happened = rest.happened};
  }
  const auto strike =
      std::min_element(strikes_.begin(), strikes_.end(),
                       [](const auto& a, const auto& b) { return a.second < b.second; });
  const absl::Time strikes = strike == strikes_.end() ? absl::InfiniteFuture() : strike->second;
  // Not computed for each step, but where it may be met.
  const double hours = hazards_->hours_left() / std::max(1.0, gpus());
  const absl::Time fails = hours > absl::ToDoubleHours(most)
                               ? absl::InfiniteFuture()
                               : now_ + absl::Hours(std::max(0.0, hours));
  const absl::Time first = std::min({until, end(), strikes, fails, crashed_at_});
  pass(std::max(first, now_));
  if (first == until) return spent;
  spent.happened = Happened{};
  if (first == end()) {
    spent.happened->what = Happened::What::kOver;
  } else if (first == crashed_at_) {
    spent.happened->what = Happened::What::kCrashed;
  } else if (first == strikes) {
    spent.happened->kind = ChainFailure::kDevice;
    spent.happened->node = strike->first;
    spent.happened->unseen = true;
    strike->second = now_ + hazards_->Strike();
  } else {
    const DrawnFailure failure = hazards_->Take();
    spent.happened->kind = failure.kind;
    spent.happened->node =
        nodes_[static_cast<size_t>(failure.node * static_cast<double>(nodes_.size()))];
    spent.happened->unseen = failure.unseen;
  }
  return spent;
}

void HeldJob::Loses(const std::string& node) {
  std::erase(nodes_, node);
  strikes_.erase(node);
}

}  // namespace perdure::sim
