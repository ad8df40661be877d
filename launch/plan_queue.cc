#include "launch/plan_queue.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "absl/time/clock.h"
#include "launch/chain.h"
#include "launch/queue_forecast.h"
#include "monitoring/loss_csv.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using Json = nlohmann::ordered_json;

// So many of the newest steps say what one takes.
constexpr int64_t kRecentSteps = 500;

// What is known, and who says so.
struct Waits {
  std::vector<QueueWait> waits;
  std::string source;
};
struct StepTime {
  double seconds_per_pass = 0;
  std::string source;
};
struct Left {
  size_t phase = 0;
  int64_t step = 0;   // Where the run is.
  int64_t steps = 0;  // Of that phase from there.
};

std::string LossPath(const PlanQueueOptions& options) {
  return options.run_directory + "/metrics/loss.csv";
}

absl::StatusOr<Left> FindLeft(const RunConfig& config, const PlanQueueOptions& options) {
  const StepSchedule schedule(config);
  Left left;
  if (!options.run_directory.empty()) {
    const absl::StatusOr<std::optional<LossRow>> last = LastLossRow(LossPath(options));
    if (!last.ok() && !absl::IsNotFound(last.status())) return last.status();
    if (last.ok() && last->has_value()) left.step = (*last)->step;
  }
  if (left.step >= schedule.steps())
    return FailedPrecondition("run {} is complete at step {}: no job is left to plan", config.name,
                              left.step);
  left.phase = static_cast<size_t>(schedule.At(left.step).phase);
  const PhasePlan& plan = schedule.phases()[left.phase];
  left.steps = plan.first_step + plan.steps - left.step;
  return left;
}

// Of one chain, from where a job could have begun: the end of the one before.
std::vector<QueueWait> WaitsOfChain(const std::vector<ChainJob>& jobs) {
  std::vector<QueueWait> waits;
  for (size_t i = 1; i < jobs.size(); ++i) {
    const ChainJob &before = jobs[i - 1], &job = jobs[i];
    if (!before.left.has_value() || job.time_over == absl::InfiniteFuture() ||
        job.began < *before.left)
      continue;
    waits.push_back({.nodes = std::ssize(job.nodes),
                     .time_limit = job.time_over - job.began,
                     .waited = job.began - *before.left});
  }
  return waits;
}

// The partition that jobs of the run go to; none where Slurm does not say.
std::optional<PartitionView> FindPartition(const RunConfig& config, Scheduler* scheduler) {
  const absl::StatusOr<std::vector<PartitionView>> partitions = scheduler->Partitions();
  if (!partitions.ok()) return std::nullopt;
  for (const PartitionView& partition : *partitions)
    if (config.slurm.partition.empty() ? partition.is_default
                                       : partition.name == config.slurm.partition)
      return partition;
  return std::nullopt;
}

absl::StatusOr<Waits> FindWaits(const RunConfig& config, const PlanQueueOptions& options,
                                const std::optional<PartitionView>& partition,
                                Scheduler* scheduler) {
  const std::string name = partition.has_value() ? partition->name : config.slurm.partition;
  const absl::StatusOr<std::vector<PastJob>> history =
      scheduler->History(absl::Now() - options.days * absl::Hours(24), name);
  Waits found;
  if (history.ok()) {
    for (const PastJob& job : *history)
      if (job.waited().has_value() && job.time_limit.has_value())
        found.waits.push_back(
            {.nodes = job.nodes, .time_limit = *job.time_limit, .waited = *job.waited()});
    found.source = fmt::format("sacct, {}, {} days: {} jobs that started",
                               name.empty() ? "all partitions" : "partition " + name, options.days,
                               found.waits.size());
    return found;
  }
  // No accounting here, or no Slurm: what the run's own jobs have met is known nevertheless.
  if (!absl::IsUnimplemented(history.status()) && !absl::IsFailedPrecondition(history.status()))
    return history.status();
  if (options.run_directory.empty())
    return FailedPrecondition(
        "how long jobs wait is not known: {}; --run-dir of a run with a chain has its own jobs' "
        "waits",
        Message(history.status()));
  const absl::StatusOr<Chain> chain = Chain::Open(options.run_directory);
  if (chain.ok()) found.waits = WaitsOfChain(chain->Jobs());
  if (found.waits.empty())
    return FailedPrecondition(
        "how long jobs wait is not known: {}; and {}", Message(history.status()),
        chain.ok() ? fmt::format("the chain of {} has no two jobs yet, one behind the other",
                                 options.run_directory)
                   : Message(chain.status()));
  found.source = fmt::format("the chain of {}: {} jobs behind others ({})", options.run_directory,
                             found.waits.size(), Message(history.status()));
  return found;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// From the steps that ran last on one number of ranks with one batch.
absl::StatusOr<std::optional<StepTime>> StepTimeOfRun(const RunConfig& config,
                                                      const PlanQueueOptions& options,
                                                      const std::string& phase) {
  if (options.run_directory.empty()) return std::nullopt;
  const std::string path = LossPath(options);
  const absl::StatusOr<std::optional<LossRow>> last = LastLossRow(path);
  if (absl::IsNotFound(last.status())) return std::nullopt;
  RETURN_IF_ERROR(last.status());
  if (!last->has_value() || (*last)->phase != phase) return std::nullopt;
  const int64_t replica = config.layout.tensor * config.layout.pipeline;
  const int64_t ranks = (*last)->ranks, batch = (*last)->batch;
  if (ranks % replica != 0) return std::nullopt;  // Another layout than is planned for.
  ASSIGN_OR_RETURN(const std::vector<LossRow> rows,
                   ReadLossRows(path, (*last)->step - kRecentSteps));
  std::vector<double> seconds;
  for (const LossRow& row : rows)
    if (row.ranks == ranks && row.batch == batch && row.phase == phase)
      seconds.push_back(row.step_seconds);
  const double median = Median(seconds);
  return StepTime{.seconds_per_pass = median / StepPasses(config, ranks / replica, batch),
                  .source = fmt::format("{:.2f} s on {} ranks, median of the last {} of them in {}",
                                        median, ranks, seconds.size(), path)};
}

// `replicas`: as many as the phase's nodes hold, of a step of `batch`.
absl::StatusOr<StepTime> FindStepTime(const RunConfig& config, const PlanQueueOptions& options,
                                      const std::string& phase, int64_t replicas, int64_t batch) {
  if (options.step_seconds > 0)
    return StepTime{.seconds_per_pass = options.step_seconds / StepPasses(config, replicas, batch),
                    .source = fmt::format("{:.2f} s on {} replicas (--step-time)",
                                          options.step_seconds, replicas)};
  ASSIGN_OR_RETURN(const std::optional<StepTime> measured, StepTimeOfRun(config, options, phase));
  if (measured.has_value()) return *measured;
  return FailedPrecondition(
      "what a step of phase {} takes is not known: no step of it is in {}; say it for {} replicas, "
      "for example --step-time 4.5",
      phase, options.run_directory.empty() ? "a run directory (--run-dir)" : LossPath(options),
      replicas);
}

absl::StatusOr<NodeRange> ConfiguredRange(const RunConfig& config, size_t phase) {
  const std::string& own = config.phases[phase].nodes;
  return ParseNodeRange(own.empty() ? config.job.nodes : own);
}

// The nodes that compute which a job of the phase may ask for: those of the configuration where
// they are a range, else whatever the partition gives to a job.
absl::StatusOr<NodeRange> FindRange(const RunConfig& config, size_t phase,
                                    const std::optional<PartitionView>& partition) {
  ASSIGN_OR_RETURN(NodeRange range, ConfiguredRange(config, phase));
  if (!partition.has_value()) return range;
  const int64_t most = std::min<int64_t>(partition->nodes_total,
                                         partition->nodes_max.value_or(partition->nodes_total)) -
                       config.job.spares;
  if (range.least > most)
    return InvalidArgument(
        "phase {} needs {} nodes and {} spares, but a job of partition {} gets {} at most",
        config.phases[phase].name, range.least, config.job.spares, partition->name,
        most + config.job.spares);
  if (range.least == range.most) return NodeRange{.least = 1, .most = most};
  return NodeRange{.least = range.least, .most = std::min(range.most, most)};
}

// ---- what people see

std::string TimeText(absl::Duration time) {
  if (time < absl::Hours(2)) return fmt::format("{:.1f} min", absl::ToDoubleMinutes(time));
  return fmt::format("{:.1f} h", absl::ToDoubleHours(time));
}

Json SizeJson(const RunConfig& config, const SizeForecast& forecast) {
  const JobSize& size = forecast.size;
  Json json = {{"nodes", size.nodes},
               {"replicas", size.replicas},
               {"ranks", size.replicas * config.layout.tensor * config.layout.pipeline},
               {"leaf_rounds", size.rounds},
               {"step_seconds", forecast.step_seconds},
               {"steps_per_job", forecast.steps_per_job},
               {"jobs_behind", forecast.jobs_behind},
               {"too_few", forecast.jobs_behind < kJobsBehindMin},
               {"best", forecast.best}};
  const auto& estimate = forecast.estimate;
  const auto put = [&](const char* key, auto value) {
    json[key] = estimate.has_value() ? Json(value(*estimate)) : Json(nullptr);
  };
  using Estimate = SizeForecast::Estimate;
  put("wait_median_seconds",
      [](const Estimate& e) { return absl::ToDoubleSeconds(e.wait_median); });
  put("wait_90_seconds", [](const Estimate& e) { return absl::ToDoubleSeconds(e.wait_90); });
  put("steps_per_day", [](const Estimate& e) { return e.steps_per_day; });
  put("jobs", [](const Estimate& e) { return e.jobs; });
  put("days", [](const Estimate& e) { return e.days; });
  put("gpu_hours", [](const Estimate& e) { return e.gpu_hours; });
  return json;
}

std::string SizeLine(const RunConfig& config, const SizeForecast& forecast) {
  const JobSize& size = forecast.size;
  const std::string begins =
      fmt::format("{} {:>5} {:>6} {:>8} {:>6} {:>7.2f} s {:>6}", forecast.best ? '*' : ' ',
                  size.nodes, size.replicas * config.layout.tensor * config.layout.pipeline,
                  size.replicas, size.rounds, forecast.step_seconds, forecast.jobs_behind);
  if (!forecast.estimate.has_value())
    return begins + (forecast.steps_per_job == 0 ? "  a step takes longer than a job\n"
                                                 : "  no job of such a size is known\n");
  const SizeForecast::Estimate& estimate = *forecast.estimate;
  return begins + fmt::format(" {:>9} {:>9} {:>9} {:>9.0f} {:>7.1f} {:>10.0f}{}\n",
                              TimeText(estimate.wait_median), TimeText(estimate.wait_90),
                              forecast.steps_per_job, estimate.steps_per_day, estimate.days,
                              estimate.gpu_hours,
                              forecast.jobs_behind < kJobsBehindMin ? "  too few jobs" : "");
}

struct Found {
  const RunConfig& config;
  const Left& left;
  const Waits& waits;
  const StepTime& step;
  const std::vector<SizeForecast>& sizes;
  const PlanQueueOptions& options;
};

std::string PrintQueueJson(const Found& found) {
  Json json = {{"name", found.config.name},
               {"phase", found.config.phases[found.left.phase].name},
               {"step", found.left.step},
               {"steps_left_of_phase", found.left.steps},
               {"time_limit_seconds", absl::ToDoubleSeconds(found.config.job.time_limit)},
               {"overhead_seconds", absl::ToDoubleSeconds(found.options.overhead)},
               {"waits_source", found.waits.source},
               {"step_time_source", found.step.source},
               {"sizes", Json::array()}};
  for (const SizeForecast& size : found.sizes)
    json["sizes"].push_back(SizeJson(found.config, size));
  return json.dump(2) + "\n";
}

std::string PrintQueueTable(const Found& found) {
  const RunConfig& config = found.config;
  std::string text = fmt::format(
      "run {}, phase {}: {} steps from step {}, jobs of {}, {} of it without steps\n"
      "waits      {}\nstep time  {}; other sizes by their rounds\n\n",
      config.name, config.phases[found.left.phase].name, found.left.steps, found.left.step,
      absl::FormatDuration(config.job.time_limit), absl::FormatDuration(found.options.overhead),
      found.waits.source, found.step.source);
  text +=
      fmt::format("  {:>5} {:>6} {:>8} {:>6} {:>9} {:>6} {:>9} {:>9} {:>9} {:>9} {:>7} {:>10}\n",
                  "nodes", "ranks", "replicas", "rounds", "step", "jobs", "wait", "90 %",
                  "steps/job", "steps/day", "days", "GPU-hours");
  for (const SizeForecast& size : found.sizes) text += SizeLine(config, size);
  const bool any =
      std::any_of(found.sizes.begin(), found.sizes.end(), [](const auto& s) { return s.best; });
  text += any ? "\n* done soonest, of the sizes with 5 jobs or more behind their wait\n"
              : "\nno size has 5 jobs behind its wait: none is marked\n";
  text +=
      "jobs: past ones of two thirds to one and a half times the nodes and half to twice the time "
      "limit; wait: their median\n"
      "A wait counts from when a job may start. The next job of a chain is queued while the one "
      "before it runs, but may start\n"
      "only when that one has ended: the whole wait lies between two jobs, and nothing is taken "
      "off.\n";
  if (found.left.phase + 1 < config.phases.size())
    text += fmt::format(
        "Days and GPU-hours are those of phase {}; phases behind it have steps of "
        "another length.\n",
        config.phases[found.left.phase].name);
  return text;
}

}  // namespace

absl::StatusOr<std::string> PlanQueue(const RunConfig& config, const PlanQueueOptions& options,
                                      Scheduler* scheduler) {
  if (options.overhead >= config.job.time_limit)
    return InvalidArgument("--job-overhead {} leaves nothing of job.time_limit {}",
                           absl::FormatDuration(options.overhead),
                           absl::FormatDuration(config.job.time_limit));
  ASSIGN_OR_RETURN(const Left left, FindLeft(config, options));
  const int64_t batch = StepSchedule(config).phases()[left.phase].batch_final;
  ASSIGN_OR_RETURN(const NodeRange configured, ConfiguredRange(config, left.phase));
  ASSIGN_OR_RETURN(const LayoutConfig whole,
                   ResolveLayout(config, configured.most * config.job.ranks_per_node));
  ASSIGN_OR_RETURN(
      const StepTime step,
      FindStepTime(config, options, config.phases[left.phase].name, whole.data, batch));
  const std::optional<PartitionView> partition = FindPartition(config, scheduler);
  ASSIGN_OR_RETURN(const Waits waits, FindWaits(config, options, partition, scheduler));
  ASSIGN_OR_RETURN(const NodeRange range, FindRange(config, left.phase, partition));
  ASSIGN_OR_RETURN(const std::vector<JobSize> sizes, UsefulSizes(config, range, batch));
  const std::vector<SizeForecast> forecasts =
      ForecastSizes(sizes, waits.waits,
                    {.steps_left = left.steps,
                     .time_limit = config.job.time_limit,
                     .overhead = options.overhead,
                     .gpus_per_node = config.job.ranks_per_node,
                     .seconds_per_pass = step.seconds_per_pass});
  const Found found{.config = config,
                    .left = left,
                    .waits = waits,
                    .step = step,
                    .sizes = forecasts,
                    .options = options};
  return options.json ? PrintQueueJson(found) : PrintQueueTable(found);
}

}  // namespace perdure
