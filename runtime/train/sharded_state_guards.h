// What guards a ShardedState's memory, together. Private to sharded_state*.cc.
#pragma once

#include <map>
#include <vector>

#include "runtime/train/copy_seals.h"
#include "runtime/train/leaf_sums.h"
#include "runtime/train/sharded_state.h"
#include "runtime/train/state_guard.h"

namespace perdure {

struct ShardedState::Guards {
  StateGuard state;
  LeafSums leaves;
  CopySeals copies;
  LeafSums audit;                 // One round.
  SumTable sums;                  // [bucket]: of the own sum over leaves, when squares are taken.
  SumTable gradient;              // [bucket][replica]: of what the update reads.
  std::vector<KeptPlace> places;  // In the order of KeptAtoms.
  std::map<int64_t, size_t> positions;  // By atom.
  Verdict verdict;                      // Of the step, as far as this replica knows.
  std::vector<uint64_t> totals;         // [replica][bucket]: of the sums over leaves.
};

}  // namespace perdure
