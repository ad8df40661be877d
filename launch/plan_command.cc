#include "launch/plan_command.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launch/byte_count.h"
#include "launch/config.h"
#include "launch/plan_queue.h"
#include "launch/slurm/scheduler.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "runtime/train/plan.h"

namespace perdure {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kUsageError = 2;

struct PlanOptions {
  std::string config;
  std::vector<std::string> settings;
  ForecastOptions forecast;
  std::string memory_per_rank;
  bool json = false;
  bool queue = false;  // Instead of all else:
  PlanQueueOptions of_queue;
  double overhead_seconds = 300;
};

// What a rank may use, and who says so; bytes = 0: not known.
struct MemoryLimit {
  int64_t bytes = 0;
  std::string source;
};

// The memory of this node that its ranks share: the machine's, or less where a control group says
// so.
int64_t NodeMemory() {
  const int64_t pages = sysconf(_SC_PHYS_PAGES);
  const int64_t page = sysconf(_SC_PAGESIZE);
  int64_t bytes = pages > 0 && page > 0 ? pages * page : 0;
  const absl::StatusOr<std::string> group = ReadFile("/sys/fs/cgroup/memory.max");
  int64_t most = 0;
  // "max" where there is no limit.
  if (group.ok() &&
      std::from_chars(group->data(), group->data() + group->size(), most).ec == std::errc() &&
      most > 0 && (bytes == 0 || most < bytes))
    bytes = most;
  return bytes;
}

// On GPUs nothing is known: they are of other nodes than the one that plans.
absl::StatusOr<MemoryLimit> FindMemoryLimit(const PlanOptions& options, const RunConfig& config,
                                            int64_t ranks_per_node) {
  if (options.memory_per_rank.empty()) {
    if (config.numerics.backend == "cuda") return MemoryLimit{};
    return MemoryLimit{NodeMemory() / ranks_per_node, "this node"};
  }
  ASSIGN_OR_RETURN(const int64_t bytes, ParseBytes("--memory-per-rank", options.memory_per_rank));
  return MemoryLimit{bytes, "--memory-per-rank"};
}

Json LayoutJson(const LayoutConfig& layout) {
  return {{"tensor", layout.tensor},
          {"pipeline", layout.pipeline},
          {"data", layout.data},
          {"zero", layout.zero},
          {"ranks", layout.ranks()}};
}

Json MemoryJson(const MemoryEstimate& memory) {
  return {{"parameters", memory.parameters}, {"gradients", memory.gradients},
          {"optimizer", memory.optimizer},   {"activations", memory.activations},
          {"buffers", memory.buffers},       {"checkpoint", memory.checkpoint},
          {"snapshots", memory.snapshots},   {"runtime", memory.runtime},
          {"total", memory.total()}};
}

Json PhaseJson(const PhaseForecast& phase) {
  return {{"name", phase.name},
          {"steps", phase.plan.steps},
          {"samples", phase.plan.samples},
          {"tokens", phase.plan.tokens},
          {"first_step", phase.plan.first_step},
          {"context", phase.context},
          {"batch_initial", phase.plan.batch_initial},
          {"batch_final", phase.plan.batch_final},
          {"nodes", phase.nodes},
          {"ranks", phase.ranks},
          {"layout", LayoutJson(phase.layout)},
          {"leaves", phase.leaves},
          {"leaf_rounds", phase.leaf_rounds},
          {"bubble_fraction", phase.bubble},
          {"memory_bytes_per_rank", MemoryJson(phase.memory)}};
}

// `layout` is the first phase's; memory and bubble those of the phase that needs the most memory.
std::string PrintJson(const RunConfig& config, const RunForecast& run, const MemoryLimit& limit) {
  const PhaseForecast& heaviest = run.phases[run.heaviest];
  Json json = {{"name", config.name},
               {"backend", config.numerics.backend},
               {"parameters", run.parameters},
               {"atoms", run.atoms},
               {"steps", run.steps},
               {"samples", run.samples},
               {"tokens", run.tokens},
               {"layout", LayoutJson(run.phases.front().layout)},
               {"bubble_fraction", heaviest.bubble},
               {"memory_phase", heaviest.name},
               {"memory_bytes_per_rank", MemoryJson(heaviest.memory)}};
  json["memory_limit_bytes_per_rank"] = limit.bytes > 0 ? Json(limit.bytes) : Json(nullptr);
  json["memory_limit_source"] = limit.bytes > 0 ? Json(limit.source) : Json(nullptr);
  json["fits"] = limit.bytes > 0 ? Json(heaviest.memory.total() <= limit.bytes) : Json(nullptr);
  json["phases"] = Json::array();
  for (const PhaseForecast& phase : run.phases) json["phases"].push_back(PhaseJson(phase));
  json["warnings"] = run.warnings;
  return json.dump(2) + "\n";
}

// 6706958336 -> "6,706,958,336".
std::string Grouped(int64_t value) {
  const std::string digits = fmt::format("{}", value);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

std::string Bytes(int64_t bytes) {
  constexpr double kMi = 1024.0 * 1024.0;
  const double value = static_cast<double>(bytes);
  if (value >= 1024.0 * kMi) return fmt::format("{:.2f} GiB", value / kMi / 1024.0);
  return fmt::format("{:.1f} MiB", value / kMi);
}

std::string PhaseTable(const RunForecast& run) {
  size_t width = 5;
  for (const PhaseForecast& phase : run.phases) width = std::max(width, phase.name.size());
  std::string text = fmt::format("{:<{}} {:>11} {:>15} {:>19} {:>8} {:>13}\n", "phase", width,
                                 "steps", "samples", "tokens", "context", "batch");
  for (const PhaseForecast& phase : run.phases) {
    const PhasePlan& plan = phase.plan;
    const std::string batch =
        plan.batch_initial == plan.batch_final
            ? Grouped(plan.batch_final)
            : fmt::format("{}-{}", Grouped(plan.batch_initial), Grouped(plan.batch_final));
    text += fmt::format("{:<{}} {:>11} {:>15} {:>19} {:>8} {:>13}\n", phase.name, width,
                        Grouped(plan.steps), Grouped(plan.samples), Grouped(plan.tokens),
                        phase.context, batch);
  }
  text += fmt::format("{:<{}} {:>11} {:>15} {:>19}\n", "run", width, Grouped(run.steps),
                      Grouped(run.samples), Grouped(run.tokens));
  text += fmt::format("\n{:<{}} {:>6} {:>6}  {:<36} {:>7} {:>7} {:>11}\n", "phase", width, "nodes",
                      "ranks", "layout", "rounds", "bubble", "memory/rank");
  for (const PhaseForecast& phase : run.phases)
    text += fmt::format("{:<{}} {:>6} {:>6}  {:<36} {:>7} {:>5.1f} % {:>11}\n", phase.name, width,
                        phase.nodes, phase.ranks,
                        fmt::format("tensor {} pipeline {} data {} zero {}", phase.layout.tensor,
                                    phase.layout.pipeline, phase.layout.data, phase.layout.zero),
                        phase.leaf_rounds, 100 * phase.bubble, Bytes(phase.memory.total()));
  return text;
}

std::string PrintTable(const RunConfig& config, const RunForecast& run, const MemoryLimit& limit) {
  const PhaseForecast& heaviest = run.phases[run.heaviest];
  const MemoryEstimate& memory = heaviest.memory;
  std::string text = fmt::format("run {}: {} parameters in {} atoms, {}, backend {}\n\n",
                                 config.name, Grouped(run.parameters), Grouped(run.atoms),
                                 config.numerics.dtype, config.numerics.backend);
  text += PhaseTable(run);
  text += fmt::format("\nmemory of the fullest rank, phase {} (estimate)\n", heaviest.name);
  for (const auto& [name, bytes] : {std::pair{"parameters", memory.parameters},
                                    {"gradients", memory.gradients},
                                    {"optimizer", memory.optimizer},
                                    {"activations", memory.activations},
                                    {"buffers", memory.buffers},
                                    {"runtime", memory.runtime},
                                    {"checkpoint", memory.checkpoint},
                                    {"snapshots", memory.snapshots},
                                    {"total", memory.total()}})
    text += fmt::format("  {:<12} {:>12}\n", name, Bytes(bytes));
  if (memory.on_gpu) text += "  (checkpoint and snapshots: memory of the host, not in the total)\n";
  if (limit.bytes > 0)
    text += fmt::format("  {} {} a rank ({})\n",
                        memory.total() <= limit.bytes ? "fits into" : "does NOT fit into",
                        Bytes(limit.bytes), limit.source);
  for (const std::string& warning : run.warnings) text += fmt::format("warning: {}\n", warning);
  return text;
}

absl::StatusOr<std::string> MakePlan(const PlanOptions& options, const CommandRunner& runner) {
  ASSIGN_OR_RETURN(RunConfig config, LoadConfig(options.config, options.settings));
  if (options.queue) {
    if (options.forecast.ranks_per_node > 0)
      config.job.ranks_per_node = options.forecast.ranks_per_node;
    PlanQueueOptions of_queue = options.of_queue;
    of_queue.overhead = absl::Seconds(options.overhead_seconds);
    of_queue.json = options.json;
    Scheduler scheduler(runner);
    return PlanQueue(config, of_queue, &scheduler);
  }
  ASSIGN_OR_RETURN(const RunForecast run, ForecastRun(config, options.forecast));
  const int64_t ranks_per_node = options.forecast.ranks_per_node == 0
                                     ? config.job.ranks_per_node
                                     : options.forecast.ranks_per_node;
  ASSIGN_OR_RETURN(const MemoryLimit limit, FindMemoryLimit(options, config, ranks_per_node));
  return options.json ? PrintJson(config, run, limit) : PrintTable(config, run, limit);
}

}  // namespace

void AddPlanCommand(CLI::App& app, int* exit_code, CommandRunner runner) {
  CLI::App* plan = app.add_subcommand("plan", "What a run is: steps, tokens, layout, memory");
  const auto options = std::make_shared<PlanOptions>();
  plan->add_option("config", options->config, "The run's configuration, RUN.toml")->required();
  plan->add_option("--nodes", options->forecast.nodes,
                   "Nodes of every phase (default: the most that the configuration allows)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  plan->add_option("--ranks-per-node", options->forecast.ranks_per_node,
                   "Ranks of a node (default: as configured)")
      ->check(CLI::Range(int64_t{1}, int64_t{1024}));
  plan->add_option("--set", options->settings, "KEY=VALUE over the file, again and again")
      ->allow_extra_args(false);
  plan->add_option("--memory-per-rank", options->memory_per_rank,
                   "Memory that a rank may use, for example 80GiB (default: this node's share)");
  plan->add_flag("--json", options->json, "Print JSON");
  CLI::Option* queue =
      plan->add_flag("--queue", options->queue,
                     "Instead: how long jobs of each size wait, and which gets the run done first");
  plan->add_option("--run-dir", options->of_queue.run_directory,
                   "Of --queue: the run's directory, for its steps, its step time and its chain")
      ->needs(queue);
  plan->add_option("--step-time", options->of_queue.step_seconds,
                   "Of --queue: seconds a step takes on the most nodes that the phase may have "
                   "(default: from --run-dir)")
      ->needs(queue)
      ->check(CLI::PositiveNumber);
  plan->add_option("--history-days", options->of_queue.days,
                   "Of --queue: of the scheduler's history")
      ->needs(queue)
      ->check(CLI::Range(int64_t{1}, int64_t{3650}))
      ->capture_default_str();
  plan->add_option("--job-overhead", options->overhead_seconds,
                   "Of --queue: seconds of a job without steps, from its start and for leaving")
      ->needs(queue)
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  queue->excludes("--nodes")->excludes("--memory-per-rank");
  plan->callback([options, exit_code, runner = std::move(runner)] {
    const absl::StatusOr<std::string> text = MakePlan(*options, runner);
    if (text.ok()) {
      std::fputs(text->c_str(), stdout);
      *exit_code = 0;
      return;
    }
    std::fprintf(stderr, "perdure plan: %s\n", Message(text.status()).c_str());
    *exit_code = kUsageError;
  });
}

}  // namespace perdure
