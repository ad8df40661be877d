// Where a generation's state comes from: memory where all of it is held somewhere, else the newest
// checkpoint. Pure functions.
#pragma once

#include <utility>
#include <vector>

#include "runtime/control/log_view.h"
#include "runtime/control/message.h"

namespace perdure {

// What one node holds.
struct NodeHoldings {
  NodeId node = 0;
  const std::vector<Holding>* holdings = nullptr;
};

// The newest step of which every rank of one of `layouts` is held, if it is newer than the
// checkpoint `commit_step` (-1: none; the run begins at step 0) and of a state that a run with
// `gaps` comes to. Such steps of two generations that have the same number are the same bits, but a
// state is taken from one generation alone: its ranks say which atoms they are. Of two generations
// with the same step the newer. Otherwise a checkpoint is needed; which one is not said here.
// O(n log n).
Resume ChooseResume(const std::vector<LogView::Live>& layouts,
                    const std::vector<NodeHoldings>& nodes, StepIndex commit_step,
                    const Gaps& gaps = {});

}  // namespace perdure
