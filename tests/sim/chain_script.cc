// The chain as Lucie's scripts ran it (facts of its repository): a timer from the start of the
// processes, a synchronous checkpoint every so many steps, nothing queued behind a job, and a
// person who looks, leaves out a node that broke two jobs, converts checkpoints between the phases.
#include <algorithm>
#include <optional>
#include <utility>

#include "runtime/base/status.h"
#include "tests/sim/chain_world.h"

namespace perdure::sim {
namespace {

constexpr const char* kPreempted = "preempted, requeued";

class ScriptChain {
 public:
  ScriptChain(const ChainRun& run, const ChainDraws& draws)
      : run_(run),
        assumed_(run.assumed()),
        draws_(draws),
        partition_(assumed_, draws),
        hazards_(draws),
        line_(run.steps()) {}
  ChainOutcome Run();

 private:
  void RunJob(ChainRow* row, HeldJob* job);
  bool Spend(HeldJob* job, ChainRow* row, absl::Duration time, double GpuHours::*on);
  void Dies(HeldJob* job, ChainRow* row, const Happened& happened);
  bool Saves(HeldJob* job, ChainRow* row, double GpuHours::*on);
  absl::Time PersonLooks(absl::Time at) const;

  const ChainRun& run_;
  const ChainAssumptions& assumed_;
  const ChainDraws& draws_;
  Partition partition_;
  Hazards hazards_;
  CountedLine line_;
  std::map<std::string, int> broke_;  // Jobs, by node.
  std::set<std::string> excluded_;
  int64_t starts_ = 0, saves_ = 0, waits_ = 0;
  ChainOutcome outcome_;
};

absl::Time ScriptChain::PersonLooks(absl::Time at) const {
  const absl::Duration every = absl::Minutes(assumed_.person_every_minutes);
  const absl::Duration since = at - absl::UnixEpoch();
  absl::Time looks = absl::UnixEpoch() + (absl::Floor(since, every) + every);
  const absl::Time day =
      absl::UnixEpoch() + absl::Floor(looks - absl::UnixEpoch(), absl::Hours(24));
  if (looks < day + absl::Hours(assumed_.person_from))
    looks = day + absl::Hours(assumed_.person_from);
  else if (looks > day + absl::Hours(assumed_.person_until))
    looks = day + absl::Hours(24 + assumed_.person_from);
  return looks;
}

// Whatever happens ends the job.
void ScriptChain::Dies(HeldJob* job, ChainRow* row, const Happened& happened) {
  double detected = 0;
  switch (happened.what) {
    case Happened::What::kFailed:
      ++outcome_.failures;
      if (happened.kind != ChainFailure::kProgram) {
        partition_.Breaks(happened.node, job->now(), happened.unseen);
        // By the scheduler where it knows; by hand where one node breaks a second job.
        if (++broke_[happened.node] > 1) excluded_.insert(happened.node);
      }
      detected = happened.kind == ChainFailure::kNode ? assumed_.script_detect_node
                                                      : assumed_.script_detect_rank;
      row->end = happened.kind == ChainFailure::kNode     ? "crashed: node lost"
                 : happened.kind == ChainFailure::kDevice ? "crashed: device"
                                                          : "crashed: a rank";
      break;
    case Happened::What::kCrashed:
      ++outcome_.crashed;
      row->end = "died as a whole";
      break;
    case Happened::What::kOver:
      row->end = job->preempted() ? kPreempted : "KILLED AT ITS LIMIT";
      if (!job->preempted()) ++outcome_.by_limit;
      break;
  }
  const absl::Duration hangs = std::min(
      absl::Seconds(detected), std::max(absl::ZeroDuration(), job->time_over() - job->now()));
  row->hours.recovering += absl::ToDoubleHours(hangs) * job->gpus();
  job->Idle(hangs);
  const GpuHours lost = line_.Lose();
  if (lost.redone > 0) ++outcome_.from_checkpoint;
  row->hours += lost;
}

// False: the job is over.
bool ScriptChain::Spend(HeldJob* job, ChainRow* row, absl::Duration time, double GpuHours::*on) {
  const absl::Time until = job->now() + time;
  while (true) {
    const HeldJob::Spent spent = job->Spend(until - job->now());
    row->hours.*on += spent.held;
    if (!spent.happened.has_value()) return true;
    if (spent.happened->what == Happened::What::kFailed &&
        spent.happened->kind == ChainFailure::kCorruption)
      continue;  // Nobody notices.
    Dies(job, row, *spent.happened);
    return false;
  }
}

bool ScriptChain::Saves(HeldJob* job, ChainRow* row, double GpuHours::*on) {
  if (!Spend(job, row, draws_.Save(saves_++, /*read_back=*/false), on)) return false;
  row->hours += line_.Commit(line_.next());
  return true;
}

void ScriptChain::RunJob(ChainRow* row, HeldJob* job) {
  const int64_t until = run_.PhaseEnd(row->first_step);
  const int64_t every =
      until == run_.PhaseEnd(0) ? assumed_.script_save_steps : assumed_.script_save_steps_later;
  if (!Spend(job, row, draws_.Launch(starts_ - 1), &GpuHours::starting)) return;
  const absl::Time timer = job->now() + absl::Minutes(assumed_.script_timer_minutes);
  if (!Spend(job, row, absl::Seconds(assumed_.script_start_up), &GpuHours::starting)) return;
  while (line_.next() < until && job->now() < timer) {
    const int64_t step = line_.next();
    const absl::Duration took = run_.StepTime(draws_, step);
    const double redone_before = row->hours.redone;
    if (!Spend(job, row, took, &GpuHours::redone)) return;
    const double held = row->hours.redone - redone_before;
    row->hours.redone = redone_before;
    line_.Took(step, held, 0);
    if (line_.next() % every == 0 && line_.next() < until && job->now() < timer &&
        !Saves(job, row, &GpuHours::saving))
      return;
  }
  if (!Saves(job, row, &GpuHours::leaving)) return;
  const absl::Duration stop = draws_.Stop(starts_ - 1);
  row->hours.leaving += absl::ToDoubleHours(stop) * job->gpus();
  job->Idle(stop);
  row->at_its_end = line_.committed() < until;
  row->end = line_.committed() >= run_.steps() ? "the run is complete"
             : line_.committed() >= until      ? "the phase is complete"
                                               : "its timer";
}

ChainOutcome ScriptChain::Run() {
  absl::Time submitted = absl::UnixEpoch() + absl::Hours(9), eligible = submitted;
  outcome_.begins = submitted;
  int64_t number = 0;
  int restarts = 0;
  while (line_.committed() < run_.steps()) {
    if (restarts == 0) ++number;
    const int64_t step = line_.committed();
    ChainRow row{.job = number,
                 .restarts = restarts,
                 .eligible = eligible,
                 .began = submitted + draws_.Wait(waits_++),
                 .nodes = run_.WholeNodes(step),
                 .first_step = step};
    HeldJob job(assumed_, draws_, &hazards_, partition_,
                {.nodes = partition_.Allocate(row.nodes, row.began, excluded_),
                 .gpus_per_node = run_.config().job.ranks_per_node,
                 .began = row.began,
                 .limit = run_.config().job.time_limit,
                 .start = starts_++});
    RunJob(&row, &job);
    row.left = job.now();
    row.unused = job.time_over() - row.left;
    row.last_step = line_.committed();
    outcome_.preempted += row.end == kPreempted;
    outcome_.rows.push_back(row);
    eligible = row.left;
    if (row.end == kPreempted) {
      submitted = row.left + absl::Seconds(assumed_.requeue_delay);
      ++restarts;
      continue;
    }
    restarts = 0;
    submitted = PersonLooks(row.left);
    if (row.last_step == run_.PhaseEnd(row.first_step))
      submitted += absl::Minutes(assumed_.script_convert_minutes);
  }
  outcome_.ends = outcome_.rows.back().left;
  outcome_.violation = line_.Check();
  return std::move(outcome_);
}

}  // namespace

ChainOutcome SimulateScript(const ChainOptions& options, uint64_t seed) {
  const ChainRun run(options);
  const ChainDraws draws(options.assumed, seed);
  return ScriptChain(run, draws).Run();
}

}  // namespace perdure::sim
