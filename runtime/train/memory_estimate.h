// How much memory a rank will need, from the configuration alone.
//
// What a stage and the sharded state allocate is counted by the very code that allocates it
// (Stage::MemoryOf, ShardedState::MemoryOf), so the plan cannot drift from the trainer. What
// libraries and messages take is a constant that tests/bench/train_bench.py checks against resident
// memory.
#pragma once

#include <cstdint>

#include "runtime/train/run_config.h"

namespace perdure {

// Bytes of one rank.
struct MemoryEstimate {
  int64_t parameters = 0;   // Weights in the compute dtype, gathered ones included.
  int64_t gradients = 0;    // fp32: of the leaf at hand, and summed over leaves.
  int64_t optimizer = 0;    // fp32: moments, and master values where the dtype is not fp32.
  int64_t activations = 0;  // Kept for the backward pass, of all micro-batches in flight.
  int64_t buffers = 0;      // Work space of one block or the head, and of the gradient exchange.
  int64_t checkpoint = 0;   // The frozen state, and what is on its way to disk: host memory.
  int64_t snapshots = 0;    // Own and ward's, two each: shared memory of the host.
  int64_t runtime = 0;      // Code, libraries, communication: a constant.

  bool on_gpu = false;  // The others are the GPU's memory then; the host's is another.

  // Of the memory that the rank computes in.
  int64_t total() const {
    return parameters + gradients + optimizer + activations + buffers + runtime +
           (on_gpu ? 0 : host());
  }
  // Of the host's memory alone.
  int64_t host() const { return checkpoint + snapshots; }
  friend bool operator==(const MemoryEstimate&, const MemoryEstimate&) = default;
};

// Of the rank that needs the most: over pipeline ranks, tensor rank 0 (whose slices are never the
// shorter ones), the replica that owns the most. REQUIRES: a validated configuration, a resolved
// layout (data > 0), a phase of the configuration. Where job.ranks_per_node ranks are all of them,
// snapshots have no peers.
MemoryEstimate EstimateMemory(const RunConfig& config, const LayoutConfig& layout,
                              const PhaseConfig& phase);

// Micro-batches that a replica runs in a step of `batch` samples, when it has the most leaves.
int64_t ReplicaMicroBatches(const NumericsConfig& numerics, int64_t data, int64_t batch);

}  // namespace perdure
