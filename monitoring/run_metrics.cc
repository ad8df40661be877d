#include "monitoring/run_metrics.h"

#include <prometheus/metric_family.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <iterator>
#include <string_view>
#include <utility>
#include <vector>

#include "monitoring/exposition.h"
#include "monitoring/metric_list.h"
#include "runtime/base/check.h"
#include "runtime/base/files.h"

namespace perdure {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::map<std::string, std::string>;

// Families of the table, in its order; each series has the run's name.
class Families {
 public:
  explicit Families(std::string run) : run_(std::move(run)) {}

  void Add(std::string_view name, double value, const Labels& labels = {}) {
    const MetricSpec& spec = FindMetric(name);
    ClientMetric metric = Labelled(spec, labels);
    if (spec.kind == MetricKind::kCounter)
      metric.counter.value = value;
    else
      metric.gauge.value = value;
    families_[std::string(spec.name)].push_back(std::move(metric));
  }
  void Add(std::string_view name, int64_t value, const Labels& labels = {}) {
    Add(name, static_cast<double>(value), labels);
  }
  // Counts of values up to each bound of the table, the last without bound.
  void AddHistogram(std::string_view name, const std::vector<int64_t>& counts, double sum) {
    const MetricSpec& spec = FindMetric(name);
    PERDURE_CHECK(spec.kind == MetricKind::kHistogram && counts.size() == spec.buckets.size() + 1);
    ClientMetric metric = Labelled(spec, {});
    uint64_t total = 0;
    for (size_t i = 0; i < counts.size(); ++i) {
      total += static_cast<uint64_t>(counts[i]);
      metric.histogram.bucket.push_back(
          {total, i < spec.buckets.size() ? spec.buckets[i] : HUGE_VAL});
    }
    metric.histogram.sample_count = total;
    metric.histogram.sample_sum = sum;
    families_[std::string(spec.name)].push_back(std::move(metric));
  }

  std::vector<MetricFamily> Take() {
    std::vector<MetricFamily> families;
    for (const MetricSpec& spec : MetricList())
      if (auto found = families_.find(spec.name); found != families_.end())
        families.push_back({.name = std::string(spec.name),
                            .help = std::string(spec.help),
                            .type = spec.kind == MetricKind::kGauge     ? MetricType::Gauge
                                    : spec.kind == MetricKind::kCounter ? MetricType::Counter
                                                                        : MetricType::Histogram,
                            .metric = std::move(found->second)});
    return families;
  }

 private:
  ClientMetric Labelled(const MetricSpec& spec, const Labels& labels) const {
    ClientMetric metric;
    metric.label.push_back({"run", run_});
    for (const auto& [name, value] : labels) {
      PERDURE_CHECK(std::any_of(spec.labels.begin(), spec.labels.end(),
                                [&name = name](const auto& label) { return label.name == name; }));
      metric.label.push_back({name, value});
    }
    return metric;
  }

  const std::string run_;
  std::map<std::string, std::vector<ClientMetric>, std::less<>> families_;
};

double Unix(absl::Time time) { return absl::ToDoubleSeconds(time - absl::UnixEpoch()); }

void AddIdentity(const LiveFacts& live, Families& f) {
  f.Add("perdure_build_info", 1.0, live.build);
  f.Add("perdure_run_info", 1.0, live.run_info);
}

void AddTraining(const RunHistory& history, const LiveFacts& live, Families& f) {
  if (live.steps_planned > 0) f.Add("perdure_steps_planned", live.steps_planned);
  if (live.told_step.has_value()) f.Add("perdure_step", *live.told_step);
  if (live.told_loss.has_value()) f.Add("perdure_loss", *live.told_loss);
  if (!history.last().has_value()) return;
  const LossRow& row = *history.last();
  f.Add("perdure_step", row.step);
  f.Add("perdure_samples", row.samples);
  f.Add("perdure_tokens", row.tokens);
  f.Add("perdure_phase_info", 1.0, {{"phase", row.phase}});
  f.Add("perdure_steps_total", history.steps_taken());
  f.Add("perdure_loss", row.loss);
  f.Add("perdure_loss_is_finite", std::isfinite(row.loss) ? 1.0 : 0.0);
  f.Add("perdure_grad_norm", row.grad_norm);
  f.Add("perdure_learning_rate", row.learning_rate);
  f.Add("perdure_batch_samples", row.batch);
  f.Add("perdure_context_tokens", row.context);
  f.Add("perdure_tokens_per_second", row.tokens_per_second);
  const double per_rank =
      row.ranks > 0 ? row.tokens_per_second / static_cast<double>(row.ranks) : 0;
  f.Add("perdure_tokens_per_second_per_rank", per_rank);
  if (live.peak_flops > 0)
    f.Add("perdure_model_flops_utilization_ratio",
          per_rank * live.flops_per_token / live.peak_flops);
  f.Add("perdure_rollbacks_total", history.rollbacks());
  f.AddHistogram("perdure_step_duration_seconds", history.step_durations(),
                 history.taken_seconds());
  f.Add("perdure_step_part_seconds_total", history.taken_seconds() - history.wait_seconds(),
        {{"part", "compute"}});
  f.Add("perdure_step_part_seconds_total", history.wait_seconds(), {{"part", "wait"}});
}

void AddState(const LiveFacts& live, Families& f) {
  for (const char* state : {"starting", "running", "recovering", "stopping"})
    f.Add("perdure_state", live.state == state ? 1.0 : 0.0, {{"state", state}});
  f.Add("perdure_run_complete", live.complete ? 1.0 : 0.0);
  f.Add("perdure_generation", static_cast<double>(live.generation));
  f.Add("perdure_ranks", live.ranks);
  f.Add("perdure_nodes", live.nodes);
  f.Add("perdure_spare_nodes", live.spare_nodes);
  f.Add("perdure_replicas", live.replicas);
  for (const auto& [node, ratio] : live.slow_nodes)
    f.Add("perdure_node_slow_ratio", ratio, {{"node", node}});
  if (live.job_ends.has_value())
    f.Add("perdure_job_time_left_seconds", absl::ToDoubleSeconds(*live.job_ends - live.now));
}

void AddRecovery(const RunHistory& history, const LiveFacts& live, Families& f) {
  // All from the first time on: a counter that appears with its first failure has not risen.
  std::map<std::string, int64_t> failures = history.failures(), recoveries = history.recoveries();
  for (const std::string& kind : live.failure_kinds) failures[kind];
  for (const char* from : {"memory", "checkpoint", "beginning"}) recoveries[from];
  for (const auto& [kind, count] : failures)
    f.Add("perdure_failures_total", count, {{"kind", kind}});
  for (const auto& [from, count] : recoveries)
    f.Add("perdure_recoveries_total", count, {{"from", from}});
  for (const auto& [part, seconds] : history.recovery_seconds())
    f.Add("perdure_recovery_part_seconds_total", seconds, {{"part", part}});
  f.Add("perdure_steps_redone_total", history.steps_redone());
}

void AddCheckpoints(const RunHistory& history, Families& f) {
  f.Add("perdure_checkpoints_total", history.checkpoints_committed(), {{"outcome", "committed"}});
  f.Add("perdure_checkpoints_total", history.checkpoints_failed(), {{"outcome", "failed"}});
  f.Add("perdure_checkpoint_stall_seconds_total", history.checkpoint_stall_seconds());
  if (!history.last_checkpoint().has_value()) return;
  const RunHistory::Checkpoint& checkpoint = *history.last_checkpoint();
  f.Add("perdure_checkpoint_step", checkpoint.step);
  f.Add("perdure_checkpoint_timestamp_seconds", Unix(checkpoint.time));
  f.Add("perdure_checkpoint_bytes", checkpoint.bytes);
  f.Add("perdure_checkpoint_duration_seconds", checkpoint.seconds);
}

void AddChain(const RunHistory& history, const LiveFacts& live, Families& f) {
  const std::vector<RunHistory::Job>& jobs = history.jobs();
  f.Add("perdure_jobs", static_cast<int64_t>(jobs.size()));
  for (const char* outcome : {"complete", "stopped", "failed", "lost"})
    f.Add("perdure_jobs_total",
          static_cast<int64_t>(
              std::count_if(jobs.begin(), jobs.end(),
                            [&](const RunHistory::Job& job) { return job.outcome == outcome; })),
          {{"outcome", outcome}});
  if (jobs.size() >= 2)
    f.Add("perdure_job_wait_seconds",
          absl::ToDoubleSeconds(jobs.back().began - jobs[jobs.size() - 2].ended));
  const RunHistory::Goodput goodput = history.goodput(live.now);
  const std::pair<const char*, double> kinds[] = {
      {"productive", goodput.productive}, {"redone", goodput.redone},
      {"starting", goodput.starting},     {"recovering", goodput.recovering},
      {"saving", goodput.saving},         {"other", goodput.other},
      {"queued", goodput.queued}};
  for (const auto& [kind, seconds] : kinds)
    f.Add("perdure_goodput_seconds", seconds, {{"kind", kind}});
  f.Add("perdure_goodput_ratio", goodput.ratio());
}

void AddDisk(const LiveFacts& live, Families& f) {
  const auto add = [&](const char* name, const std::optional<uint64_t>& value) {
    if (value.has_value()) f.Add(name, static_cast<double>(*value));
  };
  add("perdure_file_system_avail_bytes", live.disk_available_bytes);
  add("perdure_file_system_size_bytes", live.disk_size_bytes);
  add("perdure_file_system_avail_files", live.disk_available_files);
}

// Of this process, by the names that all Prometheus clients have.
void AddProcess(Families& f) {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  f.Add("process_cpu_seconds_total", seconds(usage.ru_utime) + seconds(usage.ru_stime));
  // Pages: all, resident, ...
  const absl::StatusOr<std::string> statm = ReadFile("/proc/self/statm");
  long long all = 0, resident = 0;
  if (statm.ok() && std::sscanf(statm->c_str(), "%lld %lld", &all, &resident) == 2)
    f.Add("process_resident_memory_bytes",
          static_cast<double>(resident) * static_cast<double>(::sysconf(_SC_PAGESIZE)));
  std::error_code error;
  const auto descriptors = std::filesystem::directory_iterator("/proc/self/fd", error);
  if (!error)
    f.Add("process_open_fds",
          static_cast<int64_t>(std::distance(begin(descriptors), end(descriptors))));
}

}  // namespace

std::string MetricsText(const RunHistory& history, const LiveFacts& live) {
  Families f(live.run);
  AddIdentity(live, f);
  AddTraining(history, live, f);
  AddState(live, f);
  AddRecovery(history, live, f);
  AddCheckpoints(history, f);
  AddChain(history, live, f);
  AddDisk(live, f);
  AddProcess(f);
  f.Add("perdure_exporter_refresh_seconds", live.refresh_seconds);
  f.Add("perdure_exporter_refresh_timestamp_seconds", Unix(live.now));
  return ExpositionText(f.Take());
}

}  // namespace perdure
