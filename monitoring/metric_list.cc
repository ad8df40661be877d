#include "monitoring/metric_list.h"

#include <algorithm>
#include <iterator>

#include "monitoring/run_history.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr MetricKind kGauge = MetricKind::kGauge, kCounter = MetricKind::kCounter,
                     kHistogram = MetricKind::kHistogram;

std::vector<double> StepBounds() {
  return {std::begin(RunHistory::kStepBounds), std::end(RunHistory::kStepBounds)};
}

std::vector<MetricSpec> MakeList() {
  return {
      {"Identity",
       "perdure_build_info",
       kGauge,
       "1; the program, by its labels",
       {{"version", "one"}}},
      {"Identity",
       "perdure_run_info",
       kGauge,
       "1; how the run trains now, by its labels",
       {{"layout", "T4P4D32"},
        {"dtype", "fp32, bf16"},
        {"backend", "cpu, cuda"},
        {"transport", "ucx, libfabric"},
        {"trainer", "command: one that is not Perdure's"}}},
      {"Position", "perdure_step", kGauge, "Steps finished that count: the newest row of loss.csv"},
      {"Position", "perdure_steps_planned", kGauge, "Steps of the whole run"},
      {"Position", "perdure_samples", kGauge, "Samples that the run has trained on"},
      {"Position", "perdure_tokens", kGauge, "Tokens that the run has trained on"},
      {"Position",
       "perdure_phase_info",
       kGauge,
       "1; the phase of the newest step",
       {{"phase", "of run.toml"}}},
      {"Position", "perdure_steps_total", kCounter,
       "Steps taken in all jobs, also those that were taken again"},
      {"Position", "perdure_run_complete", kGauge, "1 when nothing is left to train"},
      {"Training", "perdure_loss", kGauge,
       "Mean loss over the tokens of the newest step, as in loss.csv"},
      {"Training", "perdure_loss_is_finite", kGauge, "0 when the newest loss is NaN or infinite"},
      {"Training", "perdure_grad_norm", kGauge,
       "Norm of the newest step's gradient before clipping"},
      {"Training", "perdure_learning_rate", kGauge, "Learning rate of the newest step"},
      {"Training", "perdure_batch_samples", kGauge, "Samples of the newest step"},
      {"Training", "perdure_context_tokens", kGauge, "Tokens of a sample of the newest step"},
      {"Training", "perdure_rollbacks_total", kCounter,
       "Times that the run went back for a bad step"},
      {"Speed", "perdure_tokens_per_second", kGauge, "Tokens of the newest step over its seconds"},
      {"Speed", "perdure_tokens_per_second_per_rank", kGauge, "The same, for each rank"},
      {"Speed", "perdure_model_flops_utilization_ratio", kGauge,
       "Model FLOP/s over monitoring.peak_tflops of each rank; 6 FLOP a parameter and token, and 6 "
       "x "
       "layers x heads x head_dim x context a token for causal attention"},
      {"Speed",
       "perdure_step_duration_seconds",
       kHistogram,
       "How long steps took, of all jobs",
       {},
       StepBounds()},
      {"Speed",
       "perdure_step_part_seconds_total",
       kCounter,
       "Seconds of all steps by what they were spent on, on rank 0",
       {{"part", "compute, wait (inside communication)"}}},
      {"State",
       "perdure_state",
       kGauge,
       "1 for what the job does now, 0 for the others",
       {{"state", "starting, running, recovering, stopping"}}},
      {"State", "perdure_generation", kGauge, "The newest generation: it rises with each recovery"},
      {"State", "perdure_ranks", kGauge, "Ranks that train"},
      {"State", "perdure_nodes", kGauge, "Nodes with ranks"},
      {"State", "perdure_spare_nodes", kGauge,
       "Nodes of the job without ranks, lost ones among them"},
      {"State", "perdure_replicas", kGauge, "Replicas of the model: data parallelism"},
      {"State",
       "perdure_node_slow_ratio",
       kGauge,
       "Work of a slow node's worst rank over that of the others; only slow nodes have it",
       {{"node", "its name; slow ones only"}}},
      {"Recovery",
       "perdure_failures_total",
       kCounter,
       "Failures that stopped a generation, by the first thing that failed",
       {{"kind", "rank-crashed, node-lost, ...: 20 at most"}}},
      {"Recovery",
       "perdure_recoveries_total",
       kCounter,
       "Recoveries that came to a step, by where the state came from",
       {{"from", "memory, checkpoint, beginning"}}},
      {"Recovery",
       "perdure_recovery_part_seconds_total",
       kCounter,
       "Seconds of recoveries and changes of the layout, by part",
       {{"part", "before, stop, choose, spawn, rendezvous, load, wait, first"}}},
      {"Recovery", "perdure_steps_redone_total", kCounter, "Steps that were taken again"},
      {"Checkpoints", "perdure_checkpoint_step", kGauge, "Step of the newest checkpoint"},
      {"Checkpoints", "perdure_checkpoint_timestamp_seconds", kGauge,
       "When the newest checkpoint was committed, since 1970"},
      {"Checkpoints", "perdure_checkpoint_bytes", kGauge, "Bytes of the newest checkpoint"},
      {"Checkpoints", "perdure_checkpoint_duration_seconds", kGauge,
       "What the newest checkpoint took to freeze, copy and write, on the slowest rank"},
      {"Checkpoints", "perdure_checkpoint_stall_seconds_total", kCounter,
       "Seconds that training stood still for checkpoints"},
      {"Checkpoints",
       "perdure_checkpoints_total",
       kCounter,
       "Checkpoints by what became of them",
       {{"outcome", "committed, failed"}}},
      {"Chain", "perdure_jobs", kGauge, "Jobs that have begun, this one included"},
      {"Chain",
       "perdure_jobs_total",
       kCounter,
       "Jobs that are over, by how they ended",
       {{"outcome", "complete, stopped, failed, lost"}}},
      {"Chain", "perdure_job_time_left_seconds", kGauge,
       "Until the job's time is over; only where it has an end"},
      {"Chain", "perdure_job_wait_seconds", kGauge,
       "Between the end of the job before and the beginning of this one"},
      {"Goodput",
       "perdure_goodput_seconds",
       kGauge,
       "Seconds of all jobs, and between them (queued), by what they were for; no counter, because "
       "steps that are left behind change from productive to redone",
       {{"kind", "productive, redone, starting, recovering, saving, other, queued"}}},
      {"Goodput", "perdure_goodput_ratio", kGauge,
       "Seconds of steps that count over seconds that jobs had nodes"},
      {"Disk", "perdure_file_system_avail_bytes", kGauge,
       "Left in the run directory's file system"},
      {"Disk", "perdure_file_system_size_bytes", kGauge, "Size of the run directory's file system"},
      {"Disk", "perdure_file_system_avail_files", kGauge,
       "Files that can still be made in the run directory's file system"},
      {"Process", "process_cpu_seconds_total", kCounter, "Of the exporting agent"},
      {"Process", "process_resident_memory_bytes", kGauge, "Of the exporting agent"},
      {"Process", "process_open_fds", kGauge, "Of the exporting agent"},
      {"Process", "perdure_exporter_refresh_seconds", kGauge,
       "How long it took to make what was served before"},
      {"Process", "perdure_exporter_refresh_timestamp_seconds", kGauge,
       "When what is served was made, since 1970"},
  };
}

}  // namespace

const std::vector<MetricSpec>& MetricList() {
  static const std::vector<MetricSpec> list = MakeList();
  return list;
}

const MetricSpec& FindMetric(std::string_view name) {
  const std::vector<MetricSpec>& list = MetricList();
  const auto found = std::find_if(list.begin(), list.end(),
                                  [&](const MetricSpec& spec) { return spec.name == name; });
  PERDURE_CHECK(found != list.end());
  return *found;
}

std::string MetricsPage() {
  std::string page =
      "# Metrics\n\n"
      "What `/metrics` says of a run (operating.md, Monitoring), made from "
      "monitoring/metric_list.cc. Counters and positions are of "
      "the\nwhole run, over all its jobs. Every series has the label `run`; no label grows with "
      "steps, jobs or ranks: a run of "
      "10,000 ranks has as\nmany series as one of two, but for nodes that are slow. Of GPUs DCGM's "
      "exporter says more, and is not repeated here.\n";
  std::string_view group;
  for (const MetricSpec& spec : MetricList()) {
    if (spec.group != group)
      page += fmt::format("\n## {}\n\n| metric | kind | what it is |\n|---|---|---|\n",
                          group = spec.group);
    std::string labels;
    for (const LabelSpec& label : spec.labels)
      labels += fmt::format("; `{}`: {}", label.name, label.values);
    const char* kind = spec.kind == kGauge     ? "gauge"
                       : spec.kind == kCounter ? "counter"
                                               : "histogram";
    page += fmt::format("| `{}` | {} | {}{} |\n", spec.name, kind, spec.help, labels);
  }
  return page;
}

}  // namespace perdure
