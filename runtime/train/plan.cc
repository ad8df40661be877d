#include "runtime/train/plan.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string_view>
#include <tuple>

#include "model/parameters.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr int64_t kMostNodes = 1 << 20;
constexpr size_t kSuggestions = 3;

int64_t DivCeil(int64_t a, int64_t b) { return (a + b - 1) / b; }
double Ratio(int64_t a, int64_t b) { return static_cast<double>(a) / static_cast<double>(b); }

bool ParseCount(std::string_view text, int64_t& count) {
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, count);
  return error == std::errc() && stop == end && count >= 1 && count <= kMostNodes;
}

std::string Describe(int64_t tensor, int64_t pipeline, int64_t data) {
  return fmt::format("tensor {} x pipeline {} x data {}", tensor, pipeline, data);
}

// Layouts that `ranks` ranks can hold, the fewest idle ranks and then the nearest to the wanted
// (tensor, pipeline) first. Only pipelines whose chunks have equally many blocks.
std::vector<LayoutConfig> NearestLayouts(const RunConfig& config, int64_t ranks) {
  const LayoutConfig& want = config.layout;
  const auto distance = [&](const LayoutConfig& layout) {
    return std::abs(std::log2(Ratio(layout.tensor, want.tensor))) +
           std::abs(std::log2(Ratio(layout.pipeline, want.pipeline)));
  };
  std::vector<LayoutConfig> found;
  for (int64_t tensor = 1; tensor <= std::min(config.numerics.tensor_shards, ranks); tensor *= 2) {
    const int64_t most = std::min(config.model.layers / want.virtual_stages, ranks / tensor);
    for (int64_t pipeline = want.virtual_stages > 1 ? 2 : 1; pipeline <= most; ++pipeline) {
      if (config.model.layers % (pipeline * want.virtual_stages) != 0) continue;
      LayoutConfig layout = want;
      layout.tensor = tensor;
      layout.pipeline = pipeline;
      layout.data = ranks / (tensor * pipeline);
      found.push_back(layout);
    }
  }
  const auto order = [&](const LayoutConfig& layout) {
    return std::tuple(ranks - layout.ranks(), distance(layout), -layout.tensor);
  };
  std::sort(found.begin(), found.end(),
            [&](const LayoutConfig& a, const LayoutConfig& b) { return order(a) < order(b); });
  if (found.size() > kSuggestions) found.resize(kSuggestions);
  return found;
}

std::string Suggest(const RunConfig& config, int64_t ranks, int64_t needed) {
  std::string text;
  for (const LayoutConfig& layout : NearestLayouts(config, ranks))
    text +=
        (text.empty() ? "nearest: " : ", ") + Describe(layout.tensor, layout.pipeline, layout.data);
  return text + fmt::format("{} at least {} ranks", text.empty() ? "it takes" : "; or use", needed);
}

// Filling and draining the pipeline costs P - 1 micro-batches, shared among the chunks of a rank;
// it is paid once a step, because a leaf's first micro-batch follows its predecessor's last.
double BubbleShare(const LayoutConfig& layout, int64_t micro_batches) {
  const double wait = Ratio(layout.pipeline - 1, layout.virtual_stages);
  return wait / (static_cast<double>(micro_batches) + wait);
}

int64_t CountAtoms(const RunConfig& config) {
  int64_t atoms = 0;
  for (const TensorSpec& tensor : ModelTensors(config.model, config.numerics.tensor_shards))
    for (int64_t slice = 0; slice < tensor.slices; ++slice)
      atoms += DivCeil(tensor.SliceSize(slice), config.numerics.atom_elements);
  return atoms;
}

absl::StatusOr<PhaseForecast> ForecastPhase(const RunConfig& config, const PhaseConfig& phase,
                                            const PhasePlan& plan, const ForecastOptions& options) {
  PhaseForecast forecast{.name = phase.name, .plan = plan, .context = phase.context};
  forecast.nodes = options.nodes;
  if (forecast.nodes == 0) {
    ASSIGN_OR_RETURN(const NodeRange range,
                     ParseNodeRange(phase.nodes.empty() ? config.job.nodes : phase.nodes));
    forecast.nodes = range.most;
  }
  const int64_t per_node =
      options.ranks_per_node == 0 ? config.job.ranks_per_node : options.ranks_per_node;
  forecast.ranks = forecast.nodes * per_node;
  absl::StatusOr<LayoutConfig> layout = ResolveLayout(config, forecast.ranks);
  if (!layout.ok())
    return InvalidArgument("phase \"{}\" on {} nodes of {} ranks: {}", phase.name, forecast.nodes,
                           per_node, Message(layout.status()));
  forecast.layout = *layout;
  const NumericsConfig& numerics = config.numerics;
  forecast.leaves = DivCeil(plan.batch_final / numerics.micro_batch, numerics.leaf);
  forecast.leaf_rounds = DivCeil(forecast.leaves, layout->data);
  forecast.bubble =
      BubbleShare(*layout, ReplicaMicroBatches(numerics, layout->data, plan.batch_final));
  RunConfig seated = config;
  seated.job.ranks_per_node = per_node;
  forecast.memory = EstimateMemory(seated, *layout, phase);
  return forecast;
}

void AddWarnings(const PhaseForecast& phase, std::vector<std::string>& warnings) {
  const int64_t data = phase.layout.data;
  if (const int64_t idle = phase.ranks - phase.layout.ranks(); idle > 0)
    warnings.push_back(fmt::format("phase \"{}\": {} of {} ranks are beyond {} and stand idle",
                                   phase.name, idle, phase.ranks,
                                   Describe(phase.layout.tensor, phase.layout.pipeline, data)));
  if (phase.leaves < data)
    warnings.push_back(fmt::format(
        "phase \"{}\": its last step has {} leaves for {} replicas, so {} without work; "
        "a smaller numerics.leaf or fewer nodes would do",
        phase.name, phase.leaves, data, data - phase.leaves));
  else if (phase.leaves % data != 0)
    warnings.push_back(
        fmt::format("phase \"{}\": {} leaves over {} replicas take {} rounds, {:.0f} % of them "
                    "filled; a smaller numerics.leaf evens them out",
                    phase.name, phase.leaves, data, phase.leaf_rounds,
                    100 * Ratio(phase.leaves, phase.leaf_rounds * data)));
}

}  // namespace

absl::StatusOr<NodeRange> ParseNodeRange(const std::string& text) {
  NodeRange range;
  const size_t dash = text.find('-');
  const std::string_view view = text;
  const bool ok = dash == std::string::npos
                      ? ParseCount(view, range.least) && ParseCount(view, range.most)
                      : ParseCount(view.substr(0, dash), range.least) &&
                            ParseCount(view.substr(dash + 1), range.most);
  if (!ok || range.least > range.most)
    return InvalidArgument(
        "nodes = \"{}\" is neither a number of nodes nor MIN-MAX, for example \"4\" or \"2-8\"",
        text);
  return range;
}

absl::StatusOr<LayoutConfig> ResolveLayout(const RunConfig& config, int64_t ranks) {
  LayoutConfig layout = config.layout;
  if (ranks < 1) return InvalidArgument("a layout on {} ranks: at least 1 is needed", ranks);
  const int64_t replica = layout.tensor * layout.pipeline;
  if (ranks < replica)
    return InvalidArgument("{} ranks cannot hold tensor {} x pipeline {} = {} ranks a replica; {}",
                           ranks, layout.tensor, layout.pipeline, replica,
                           Suggest(config, ranks, replica));
  const int64_t room = ranks / replica;
  if (layout.data > room)
    return InvalidArgument(
        "{} ranks cannot hold {} = {} ranks; with data = \"auto\" it would be {}; {}", ranks,
        Describe(layout.tensor, layout.pipeline, layout.data), layout.ranks(),
        Describe(layout.tensor, layout.pipeline, room), Suggest(config, ranks, layout.ranks()));
  if (layout.data == 0) layout.data = room;
  return layout;
}

absl::StatusOr<RunForecast> ForecastRun(const RunConfig& config, const ForecastOptions& options) {
  PERDURE_CHECK(!config.phases.empty());
  const std::vector<PhasePlan> plans = PlanPhases(config);
  RunForecast run{.parameters = CountParameters(config.model), .atoms = CountAtoms(config)};
  for (size_t i = 0; i < plans.size(); ++i) {
    ASSIGN_OR_RETURN(PhaseForecast phase,
                     ForecastPhase(config, config.phases[i], plans[i], options));
    run.steps += plans[i].steps;
    run.samples += plans[i].samples;
    run.tokens += plans[i].tokens;
    AddWarnings(phase, run.warnings);
    run.phases.push_back(std::move(phase));
    if (run.phases[i].memory.total() > run.phases[run.heaviest].memory.total()) run.heaviest = i;
  }
  return run;
}

std::string LayoutWords(const LayoutConfig& layout) {
  return fmt::format(
      "tensor {} x pipeline {} x data {}, zero {}{}", layout.tensor, layout.pipeline, layout.data,
      layout.zero,
      layout.virtual_stages > 1 ? fmt::format(", {} virtual stages", layout.virtual_stages) : "");
}

int64_t RanksPerFile(const CheckpointConfig& config, int64_t ranks_per_node) {
  if (config.files == "node") return ranks_per_node;
  if (config.files == "rank") return 1;
  int64_t count = 0;
  const char* end = config.files.data() + config.files.size();
  const auto parsed = std::from_chars(config.files.data(), end, count);
  return parsed.ec == std::errc() && parsed.ptr == end && count > 0 ? count : 0;
}

}  // namespace perdure
