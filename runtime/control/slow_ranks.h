// Which ranks take longer for the same work than others do: what each worked itself is compared,
// what it waited for others is not in it. Pure; the coordinator's.
//
// Compared are the ranks of one (pipeline, tensor) position across the replicas: stages have
// unequal work. Time is cut into slices, each so long that every rank has taken kSliceSteps steps
// in it. In a slice a rank's ratio is its work for a step over the median of the others', or its
// work for a leaf over theirs, whichever is less: replicas may have one leaf more than others, and
// part of the work is the same for all. A rank is slow when its ratio was ratio_percent in each of
// kSlices slices in a row, all of one generation; so neither a single pause nor jitter that all
// have names anybody. It is not named again before it has been below clear_percent for as many
// slices. With two replicas the slower one is slow; with one there is nobody to compare with, and
// nobody is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "absl/time/time.h"
#include "runtime/control/ids.h"
#include "runtime/control/layout.h"
#include "runtime/control/message.h"

namespace perdure {

class SlowRanks {
 public:
  static constexpr int kSlices = 4;      // Of a window.
  static constexpr int kSliceSteps = 2;  // At least.
  static constexpr int64_t kPercentMax = 1'000'000;

  struct Options {
    absl::Duration window = absl::Seconds(20);  // At least; zero: nobody is looked at.
    int64_t ratio_percent = 150;
    int64_t clear_percent = 125;
  };

  explicit SlowRanks(const Options& options) : options_(options) {}

  // `layout` steps from now on. What ranks did in another generation counts no more; who is named
  // stays so.
  void Begin(const PlacedLayout& layout, absl::Time now);
  // Nobody steps.
  void End();

  struct Finding {
    Seat seat;
    int32_t rank = 0;
    int64_t percent = 0;  // The least of the window.
    bool slow = true;     // Or, of one that was named: not any more.
  };
  // What the ranks of `node`, ascending, have worked since `generation` began; findings when a
  // slice is over, by rank. Of another generation, and what cannot be: as if nothing was said.
  // O(ranks of the node), and O(ranks * log(replicas)) at the end of a slice.
  std::vector<Finding> Hear(absl::Time now, Generation generation, NodeId node,
                            std::span<const WorkDone> works);

  // With their last ratios, as found.
  const std::map<Seat, int64_t>& named() const { return named_; }
  // Ranks on it may be named anew.
  void Forget(NodeId node);

 private:
  struct Rank {
    WorkDone begin, now;      // Of the slice.
    int slow = 0, clear = 0;  // Slices in a row,
    int64_t least = 0;        // and the least ratio of those that were slow.
  };

  int64_t NeededSteps() const { return warm_ ? kSliceSteps : 1; }
  bool Short(const Rank& rank) const { return rank.now.steps - rank.begin.steps < NeededSteps(); }
  void NextSlice(absl::Time now);
  std::vector<int64_t> Ratios() const;
  std::vector<Finding> Judge();

  Options options_;
  Generation generation_ = 0;  // 0: none steps.
  LayoutShape shape_;
  std::vector<Seat> seats_;                          // By rank.
  std::map<NodeId, std::vector<int32_t>> of_nodes_;  // Ranks, ascending.
  std::vector<Rank> ranks_;
  size_t short_ = 0;   // Ranks that have not taken enough steps in this slice.
  bool warm_ = false;  // The first step, which is unlike the others, is behind all.
  absl::Time slice_due_;
  std::map<Seat, int64_t> named_;
};

}  // namespace perdure
