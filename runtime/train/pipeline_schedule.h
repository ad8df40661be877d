// The order in which a pipeline rank runs its passes: 1F1B (Narayanan et al. 2021), interleaved
// over several model chunks per rank when virtual_stages > 1 (same paper, section 2.2), for any
// number of micro-batches.
//
// Orders come from one simulation of the whole pipeline in unit time, so they cannot deadlock: a
// pass runs at a tick in which all that it needs was finished before. Each chunk sees its
// micro-batches in order, forward and backward, hence gradients are summed in micro-batch order
// whatever the pipeline is.
#pragma once

#include <cstdint>
#include <vector>

namespace perdure {

struct Pass {
  bool backward = false;
  int chunk = 0;            // Virtual stage k = chunk * P + p.
  int64_t micro_batch = 0;  // Of the replica, over the whole step.

  friend bool operator==(const Pass&, const Pass&) = default;
};

struct PipelineSchedule {
  std::vector<Pass> passes;        // Of one rank, in order.
  std::vector<int> in_flight_max;  // Per chunk: most micro-batches between forward and backward.
  int64_t ticks = 0;               // Of the whole pipeline; the idle share is 1 - passes / ticks.
};

// The schedule of pipeline rank p of P with `chunks` virtual stages each.
PipelineSchedule MakePipelineSchedule(int stages, int chunks, int64_t micro_batches, int stage);

}  // namespace perdure
