#include "runtime/control/slow_ranks.h"

#include <algorithm>
#include <limits>

namespace perdure {
namespace {

// Longer than any job; a hundred times as much is still a number.
constexpr int64_t kNanosecondsMax = int64_t{3} * 10'000'000 * 1'000'000'000;

bool Follows(const WorkDone& before, const WorkDone& after) {
  return after.steps >= before.steps && after.leaves >= before.leaves &&
         after.nanoseconds >= before.nanoseconds && after.nanoseconds <= kNanosecondsMax;
}

// What all but one of `sorted` have in the middle; of two the lesser, so that more are slow rather
// than fewer. REQUIRES: two at least; `value` is one of them.
int64_t MedianOfOthers(const std::vector<int64_t>& sorted, int64_t value) {
  const size_t middle = (sorted.size() - 2) / 2;
  return value <= sorted[middle] ? sorted[middle + 1] : sorted[middle];
}

// By rank what each has for one of something; -1: it had none, and is not compared. One ratio per
// rank, in percent; -1: there is none.
std::vector<int64_t> RatiosOf(const std::vector<int64_t>& each) {
  std::vector<int64_t> sorted;
  for (const int64_t value : each)
    if (value >= 0) sorted.push_back(value);
  std::sort(sorted.begin(), sorted.end());
  std::vector<int64_t> ratios;
  for (const int64_t value : each) {
    const int64_t others = value < 0 || sorted.size() < 2 ? 0 : MedianOfOthers(sorted, value);
    ratios.push_back(others <= 0 ? -1 : std::min(100 * value / others, SlowRanks::kPercentMax));
  }
  return ratios;
}

}  // namespace

void SlowRanks::Begin(const PlacedLayout& layout, absl::Time now) {
  End();
  if (options_.window <= absl::ZeroDuration() || layout.shape.data < 2) return;
  generation_ = layout.generation;
  shape_ = layout.shape;
  seats_ = layout.seats;
  for (size_t rank = 0; rank < seats_.size(); ++rank)
    of_nodes_[seats_[rank].node].push_back(static_cast<int32_t>(rank));
  ranks_.resize(seats_.size());
  short_ = ranks_.size();
  warm_ = false;
  slice_due_ = now;
}

void SlowRanks::End() {
  generation_ = 0;
  seats_.clear();
  of_nodes_.clear();
  ranks_.clear();
}

std::vector<SlowRanks::Finding> SlowRanks::Hear(absl::Time now, Generation generation, NodeId node,
                                                std::span<const WorkDone> works) {
  if (generation_ == 0 || generation != generation_) return {};
  const auto of_node = of_nodes_.find(node);
  if (of_node == of_nodes_.end() || of_node->second.size() != works.size()) return {};
  const std::vector<int32_t>& ranks = of_node->second;
  for (size_t i = 0; i < works.size(); ++i)
    if (!Follows(ranks_[static_cast<size_t>(ranks[i])].now, works[i])) return {};
  for (size_t i = 0; i < works.size(); ++i) {
    Rank& rank = ranks_[static_cast<size_t>(ranks[i])];
    const bool was_short = Short(rank);
    rank.now = works[i];
    if (was_short && !Short(rank)) --short_;
  }
  if (short_ > 0 || now < slice_due_) return {};
  std::vector<Finding> findings;
  if (warm_) findings = Judge();
  NextSlice(now);
  return findings;
}

void SlowRanks::NextSlice(absl::Time now) {
  warm_ = true;
  for (Rank& rank : ranks_) rank.begin = rank.now;
  short_ = ranks_.size();
  slice_due_ = now + options_.window / kSlices;
}

// Of the slice, by rank; -1: there is nothing to compare.
std::vector<int64_t> SlowRanks::Ratios() const {
  std::vector<int64_t> ratios(ranks_.size(), -1);
  std::vector<int64_t> for_a_step, for_a_leaf;
  for (int32_t p = 0; p < shape_.pipeline; ++p)
    for (int32_t t = 0; t < shape_.tensor; ++t) {
      for_a_step.clear();
      for_a_leaf.clear();
      for (int32_t d = 0; d < shape_.data; ++d) {
        const Rank& rank = ranks_[static_cast<size_t>(shape_.Rank(p, d, t))];
        const int64_t leaves = rank.now.leaves - rank.begin.leaves;
        const int64_t work = rank.now.nanoseconds - rank.begin.nanoseconds;
        // A replica that has no leaf is no measure for those that have some.
        for_a_step.push_back(leaves > 0 ? work / (rank.now.steps - rank.begin.steps) : -1);
        for_a_leaf.push_back(leaves > 0 ? work / leaves : -1);
      }
      const std::vector<int64_t> by_step = RatiosOf(for_a_step), by_leaf = RatiosOf(for_a_leaf);
      for (int32_t d = 0; d < shape_.data; ++d) {
        const auto i = static_cast<size_t>(d);
        ratios[static_cast<size_t>(shape_.Rank(p, d, t))] = std::min(by_step[i], by_leaf[i]);
      }
    }
  return ratios;
}

std::vector<SlowRanks::Finding> SlowRanks::Judge() {
  std::vector<Finding> findings;
  const std::vector<int64_t> ratios = Ratios();
  for (size_t i = 0; i < ratios.size(); ++i) {
    Rank& rank = ranks_[i];
    const int64_t ratio = ratios[i];
    const bool slow = ratio >= options_.ratio_percent;
    rank.least = rank.slow == 0 ? ratio : std::min(rank.least, ratio);
    rank.slow = slow ? std::min(rank.slow + 1, kSlices) : 0;
    rank.clear =
        ratio >= 0 && ratio < options_.clear_percent ? std::min(rank.clear + 1, kSlices) : 0;
    const auto named = named_.find(seats_[i]);
    if (named == named_.end() && rank.slow == kSlices) {
      named_[seats_[i]] = rank.least;
      findings.push_back({.seat = seats_[i],
                          .rank = static_cast<int32_t>(i),
                          .percent = rank.least,
                          .slow = true});
    } else if (named != named_.end() && rank.clear == kSlices) {
      named_.erase(named);
      findings.push_back(
          {.seat = seats_[i], .rank = static_cast<int32_t>(i), .percent = ratio, .slow = false});
    }
  }
  return findings;
}

void SlowRanks::Forget(NodeId node) {
  std::erase_if(named_, [&](const auto& named) { return named.first.node == node; });
}

}  // namespace perdure
