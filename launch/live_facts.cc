#include "launch/live_facts.h"

#include "absl/time/clock.h"
#include "launch/version.h"
#include "model/parameters.h"
#include "runtime/base/status.h"
#include "runtime/control/evidence.h"
#include "runtime/train/schedule_math.h"

namespace perdure {
namespace {

// Forward and backward of one token: 6 for each parameter, and for attention 6 a layer for each
// pair of a channel and a position that a token looks at, half of the context on average (Chowdhery
// et al., PaLM, 2022, appendix B, with the causal half).
double FlopsPerToken(const ModelConfig& model, int64_t context) {
  const auto channels = static_cast<double>(model.heads * model.head_dim);
  return 6.0 * static_cast<double>(CountParameters(model)) +
         6.0 * static_cast<double>(model.layers) * channels * static_cast<double>(context);
}

}  // namespace

LiveFacts LiveFactsOf(const Coordinator& lead, const RunConfig& config, const std::string& state,
                      const std::vector<std::string>& names, int64_t nodes_of_job,
                      absl::Time job_ends) {
  const PlacedLayout& placed = lead.layout();
  LiveFacts live{.run = config.name,
                 .build = {{"version", Version()}},
                 .run_info = {},
                 .state = state,
                 .complete = false,
                 .generation = placed.generation,
                 .ranks = static_cast<int64_t>(placed.seats.size()),
                 .nodes = static_cast<int64_t>(lead.members().size()),
                 .replicas = placed.shape.data,
                 .now = absl::Now()};
  for (int kind = 0; kind < kEvidenceKinds; ++kind)
    if (ClassOf(static_cast<EvidenceKind>(kind), 0) != EvidenceClass::kNone)
      live.failure_kinds.emplace_back(NameOf(static_cast<EvidenceKind>(kind)));
  live.spare_nodes = std::max<int64_t>(0, nodes_of_job - live.nodes);
  for (const Coordinator::SlowNode& slow : lead.slow()) {
    if (slow.percent == 0) continue;
    const std::string name =
        slow.node < names.size() ? names[slow.node] : fmt::format("{}", slow.node);
    live.slow_nodes[name] = static_cast<double>(slow.percent) / 100;
  }
  if (job_ends < absl::InfiniteFuture()) live.job_ends = job_ends;
  if (config.foreign()) {
    live.run_info = {{"trainer", "command"}};
    return live;
  }
  live.run_info = {{"layout", fmt::format("T{}P{}D{}", placed.shape.tensor, placed.shape.pipeline,
                                          placed.shape.data)},
                   {"dtype", config.numerics.dtype},
                   {"backend", config.numerics.backend},
                   {"transport", config.layout.transport}};
  const StepSchedule schedule(config);
  live.steps_planned = schedule.steps();
  live.peak_flops = config.monitoring.peak_tflops * 1e12;
  if (live.peak_flops > 0 && schedule.steps() > 0) {
    const int64_t step = std::clamp<int64_t>(lead.finished(), 0, schedule.steps() - 1);
    live.flops_per_token = FlopsPerToken(config.model, schedule.At(step).context);
  }
  return live;
}

}  // namespace perdure
