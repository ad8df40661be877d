// The long chain: a run of months in bounded jobs of a scheduler, simulated step by step under
// failures, once as Perdure runs it and once as the script that Lucie was trained with.
//
// Hours pass in one event, so this is another simulation than World's. What decides is
// production's: when a job leaves (LeaveTime), on which nodes the next one is and whether there is
// one (NodesFor, OtherNodesFrom, NextJobAfter, NoProgress), what layout goes on after a failure
// (DecideLayout, LayoutRuleOf), which nodes the next job does without (EvidenceBook, JudgeForJob).
// What things take is drawn (chain_draws.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "runtime/train/plan.h"
#include "runtime/train/run_config.h"
#include "tests/sim/chain_draws.h"
#include "tests/sim/chain_job.h"

namespace perdure::sim {

struct ChainOptions {
  ChainAssumptions assumed;
  RunConfig config;
};

// One start of one job.
struct ChainRow {
  int64_t job = 0;
  int restarts = 0;
  absl::Time eligible;  // Since when it alone keeps the run waiting.
  absl::Time began, left;
  int64_t nodes = 0, replicas = 0;  // As it began.
  int64_t first_step = 0, last_step = 0;
  std::string events;       // What happened inside.
  std::string end;          // How it left.
  bool at_its_end = false;  // Left because its time was nearly over.
  absl::Duration unused;    // Of its time.
  GpuHours hours;
};

struct ChainOutcome {
  std::vector<ChainRow> rows;
  absl::Time begins, ends;
  int failures = 0, promoted = 0, shrunk = 0;
  int by_limit = 0;  // Jobs that were killed because their time was over.
  int preempted = 0, crashed = 0, batch_hosts_lost = 0;
  int from_checkpoint = 0;  // Times that steps behind the newest checkpoint were lost.
  int excluded_max = 0;     // Nodes that a job was to do without, at most.
  std::string violation;    // Of what must hold; empty: all does.

  GpuHours hours() const;
  absl::Duration waited() const;  // Between jobs.
};

ChainOutcome SimulateChain(const ChainOptions& options, uint64_t seed);
ChainOutcome SimulateScript(const ChainOptions& options, uint64_t seed);

// One line a job; times by day and hour of the chain.
std::string Timeline(const ChainOutcome& outcome);
// Both beside each other: jobs, days, GPU-hours by what became of them.
std::string Summary(const ChainOutcome& chain, const ChainOutcome& script);

// What both need of a run: its steps, and how long one takes on a layout.
class ChainRun {
 public:
  explicit ChainRun(const ChainOptions& options);

  const RunConfig& config() const { return options_.config; }
  const ChainAssumptions& assumed() const { return options_.assumed; }
  int64_t steps() const { return schedule_.steps(); }
  // The first step behind `step` that begins a phase; steps() if none does.
  int64_t PhaseEnd(int64_t step) const;
  // Of the phase that `step` is in, on its whole layout: GPUs that compute.
  double WholeGpus(int64_t step) const;
  int64_t WholeNodes(int64_t step) const;
  absl::Duration StepTime(const ChainDraws& draws, int64_t step) const;
  // What takes `whole` there takes so long on `replicas`.
  absl::Duration TimeOn(int64_t replicas, int64_t step, absl::Duration whole) const;

 private:
  size_t PhaseOf(int64_t step) const;
  const ChainOptions options_;
  const StepSchedule schedule_;
  std::vector<PhaseForecast> phases_;
};

// Which steps count, and what they cost until they do.
class CountedLine {
 public:
  explicit CountedLine(int64_t steps) : taken_(static_cast<size_t>(steps), 0) {}

  int64_t next() const { return committed_ + static_cast<int64_t>(behind_.size()); }
  int64_t committed() const { return committed_; }
  void Took(int64_t step, double productive, double idle);
  // All before `step` are kept for good; what they cost.
  GpuHours Commit(int64_t step);
  // Goes back to what is kept; what that costs.
  GpuHours Lose();
  // Empty: each step was taken once, in order.
  std::string Check() const;

 private:
  struct Step {
    int64_t step = 0;
    double productive = 0, idle = 0;
  };
  std::vector<uint8_t> taken_;
  std::vector<Step> behind_;  // Not kept yet.
  int64_t committed_ = 0;
  std::string wrong_;
};

}  // namespace perdure::sim
