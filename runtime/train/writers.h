// Which rank writes which atoms into which file of a checkpoint: follows from the layout alone.
// Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "ckpt/part_plan.h"
#include "runtime/base/atoms.h"
#include "runtime/train/run_config.h"

namespace perdure {

struct Writers {
  struct Place {
    int64_t file = -1;  // Index in `files`; -1: the rank is responsible for no atom.
    int64_t run = -1;   // Within the file.
  };
  std::vector<PartPlan> files;
  std::vector<Place> ranks;
};

// Whether the rank at `tensor_index` is the one of its tensor group that answers for an atom of
// its: norms are replicated along the tensor axis.
bool AnswersFor(const AtomTable& table, int64_t atom, int tensor_index);

// The nonce of the names of an attempt's checkpoint: no two attempts of one (step, generation)
// share a name while terms are below 2^28 and attempts below 16. `term`: the slot of the
// coordinator's LEAD record.
constexpr uint32_t AttemptNonce(uint64_t term, int32_t attempt) {
  return static_cast<uint32_t>(term) << 4 | (static_cast<uint32_t>(attempt) & 15);
}

// By rank: the atoms that it answers for, in the order of ShardedState::OwnedAtoms; every atom of
// the table once. REQUIRES: as PlanWriters.
std::vector<std::vector<int64_t>> AtomsByRank(const RunConfig& config, const AtomTable& table);

// `ranks_per_file` consecutive ranks share a file. Atoms of a rank are in the order of
// ShardedState::OwnedAtoms. REQUIRES: a validated configuration, a resolved layout.
Writers PlanWriters(const RunConfig& config, const AtomTable& table, int64_t ranks_per_file);

}  // namespace perdure
