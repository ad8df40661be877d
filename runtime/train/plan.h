// What a run is before it runs: steps, parameters, layouts and memory, from the configuration
// alone.
//
// Pure functions. `perdure plan` prints them; the job and its coordinator resolve layouts with
// them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/train/memory_estimate.h"
#include "runtime/train/run_config.h"
#include "runtime/train/schedule_math.h"

namespace perdure {

// Of [job] nodes: "4" or "2-8".
struct NodeRange {
  int64_t least = 0;
  int64_t most = 0;
};
absl::StatusOr<NodeRange> ParseNodeRange(const std::string& text);

// config.layout on `ranks` ranks: data = "auto" becomes as many replicas as there is room for, and
// the ranks left over are spares. InvalidArgument where not even one replica fits, or not as many
// as asked, with the nearest layouts that do. REQUIRES: a validated configuration.
absl::StatusOr<LayoutConfig> ResolveLayout(const RunConfig& config, int64_t ranks);

// One phase on the most nodes it may have.
struct PhaseForecast {
  std::string name;
  PhasePlan plan;
  int64_t context = 0;
  int64_t nodes = 0;
  int64_t ranks = 0;        // Of all nodes; those beyond layout.ranks() are idle.
  LayoutConfig layout{};    // Resolved.
  int64_t leaves = 0;       // Of its last step.
  int64_t leaf_rounds = 0;  // Leaves of the replica that has the most.
  double bubble = 0;        // Share of that step in which a pipeline rank waits for others.
  MemoryEstimate memory{};  // Of its worst rank.
};

struct RunForecast {
  int64_t parameters = 0;
  int64_t atoms = 0;
  int64_t steps = 0;
  int64_t samples = 0;
  int64_t tokens = 0;
  std::vector<PhaseForecast> phases{};
  size_t heaviest = 0;                  // Index of the phase that needs the most memory per rank.
  std::vector<std::string> warnings{};  // Sentences: it will run, but a person should know.
};

struct ForecastOptions {
  int64_t nodes = 0;           // Of every phase; 0: the most that [job] and the phase allow.
  int64_t ranks_per_node = 0;  // 0: as [job] says.
};

// REQUIRES: a validated configuration.
absl::StatusOr<RunForecast> ForecastRun(const RunConfig& config, const ForecastOptions& options);

// "tensor 2 x pipeline 2 x data 2, zero 1", for people.
std::string LayoutWords(const LayoutConfig& layout);

// Consecutive ranks that share a file of a checkpoint; 0: checkpoint.files is neither "node",
// "rank" nor a positive number.
int64_t RanksPerFile(const CheckpointConfig& config, int64_t ranks_per_node);

}  // namespace perdure
