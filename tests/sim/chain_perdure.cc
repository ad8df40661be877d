// The chain as Perdure runs it.
#include <algorithm>
#include <optional>
#include <utility>

#include "launch/chain.h"
#include "launch/chain_queue.h"
#include "launch/exit_codes.h"
#include "launch/job_clock.h"
#include "launch/layout_rule.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/control/leave_time.h"
#include "tests/sim/chain_world.h"

namespace perdure::sim {
namespace {

constexpr int64_t kXidFellOff = 79, kXidDoubleBit = 48;
constexpr absl::Duration kFarFromLeaving = absl::Hours(2);

// What a chain knows from job to job.
struct ChainState {
  const ChainRun& run;
  const ChainDraws& draws;
  Partition partition;
  Hazards hazards;
  CountedLine line;
  EvidenceBook book{EvidenceBook::Options{}};
  std::vector<ChainJob> told;  // As RUN/chain has it.
  int64_t saves = 0, starts = 0;
  ChainOutcome outcome;
};

// One start of a job, from its first process to its last.
class PerdureJob {
 public:
  PerdureJob(ChainState* chain, ChainRow row, std::vector<std::string> names)
      : chain_(chain),
        config_(chain->run.config()),
        names_(names),
        held_(chain->run.assumed(), chain->draws, &chain->hazards, chain->partition,
              {.nodes = std::move(names),
               .gpus_per_node = config_.job.ranks_per_node,
               .began = row.began,
               .limit = config_.job.time_limit,
               .start = chain->starts}),
        leave_(
            {.save = SaveGuess(config_, std::ssize(names_)), .margin = config_.job.leave_margin}),
        row_(std::move(row)),
        number_(chain->starts++) {}

  // Its exit code.
  int Run();
  const ChainRow& row() const { return row_; }
  bool batch_host_lost() const { return batch_host_lost_; }
  bool preempted() const { return held_.preempted(); }

 private:
  const ChainAssumptions& assumed() const { return chain_->run.assumed(); }
  bool Starts();
  bool Steps(int64_t until);
  bool Step();
  bool Save();
  bool SavesLast();
  void Committed(int64_t step);
  bool Through(absl::Duration time, double GpuHours::*on);
  bool Meet(const Happened& happened);
  bool Recovers(const Happened& happened);
  Decision Decide();
  bool Layout(double* lost_seconds);
  void Evidence(const Happened& happened);
  int Over(int exit_code, const std::string& how);
  void Lose();

  ChainState* const chain_;
  const RunConfig& config_;
  const std::vector<std::string> names_;
  HeldJob held_;
  LeaveTime leave_;
  ChainRow row_;
  const int64_t number_;

  std::vector<NodeOffer> offers_;
  PlacedLayout layout_;
  absl::Time layout_waits_ = absl::InfiniteFuture();
  bool stepped_ = false;  // In this generation.
  int steps_left_ = -1;   // Until it leaves; negative: it was not asked to.
  struct Saving {
    int64_t step = 0;
    absl::Time began, done;
  };
  std::optional<Saving> saving_;
  absl::Time saved_at_;
  std::optional<int> exit_code_;  // It is over.
  bool batch_host_lost_ = false;
  int devices_ = 0, nodes_lost_ = 0, corruptions_ = 0, programs_ = 0, promoted_ = 0, shrunk_ = 0;
  int back_ = 0;
};

Decision PerdureJob::Decide() {
  Decision decision = DecideLayout(
      LayoutRuleOf(config_, row_.first_step, std::ssize(names_), config_.job.ranks_per_node),
      {.offers = offers_,
       .current = layout_,
       .now = held_.now(),
       .unchanged_since = held_.now(),
       .waiting_since = layout_waits_});
  return decision;
}

// The job is over where there is none; *lost_seconds: what ranks that are new take.
bool PerdureJob::Layout(double* lost_seconds) {
  layout_waits_ = absl::InfiniteFuture();
  while (true) {
    const Decision decision = Decide();
    if (decision.action == LayoutAction::kEnd) {
      Lose();
      Over(decision.exit_code, decision.words);
      return false;
    }
    if (decision.action == LayoutAction::kWait) {
      if (layout_waits_ == absl::InfiniteFuture()) layout_waits_ = held_.now();
      const HeldJob::Spent spent =
          held_.Spend(std::max(absl::Seconds(1), decision.look_again - held_.now()));
      row_.hours.recovering += spent.held;
      if (spent.happened.has_value() && !Meet(*spent.happened)) return false;
      continue;
    }
    promoted_ += decision.action == LayoutAction::kPromoteSpare;
    shrunk_ += decision.action == LayoutAction::kShrink;
    *lost_seconds =
        decision.action == LayoutAction::kShrink ? assumed().kept_process : assumed().new_process;
    layout_ = {
        .generation = layout_.generation + 1, .shape = decision.shape, .seats = decision.seats};
    stepped_ = false;
    return true;
  }
}

void PerdureJob::Lose() {
  const GpuHours lost = chain_->line.Lose();
  if (lost.redone > 0) ++back_;
  row_.hours += lost;
  saving_.reset();
}

int PerdureJob::Over(int exit_code, const std::string& how) {
  exit_code_ = exit_code;
  row_.end = how;
  return exit_code;
}

void PerdureJob::Evidence(const Happened& happened) {
  EvidenceEntry entry{.node = happened.node,
                      .time = held_.now(),
                      .generation = layout_.generation,
                      .job = std::to_string(row_.job)};
  switch (happened.kind) {
    case ChainFailure::kDevice:
      ++devices_;
      entry.kind = EvidenceKind::kDeviceError;
      entry.number = happened.unseen ? kXidDoubleBit : kXidFellOff;
      break;
    case ChainFailure::kNode:
      ++nodes_lost_;
      entry.kind = EvidenceKind::kNodeLost;
      break;
    case ChainFailure::kCorruption:
      ++corruptions_;
      entry.kind = EvidenceKind::kSilentCorruption;
      break;
    case ChainFailure::kProgram:
      ++programs_;
      entry.kind = EvidenceKind::kRankCrashed;
      break;
  }
  ++chain_->outcome.failures;
  PERDURE_CHECK(chain_->book.Record(entry).ok());
}

// False: the job is over.
bool PerdureJob::Meet(const Happened& happened) {
  switch (happened.what) {
    case Happened::What::kFailed:
      return Recovers(happened);
    case Happened::What::kCrashed:
      ++chain_->outcome.crashed;
      Lose();
      Over(kExitFailed, "died as a whole");
      return false;
    case Happened::What::kOver:
      Lose();
      if (!held_.preempted()) ++chain_->outcome.by_limit;
      Over(kExitFailed, held_.preempted() ? "killed behind its notice" : "KILLED AT ITS LIMIT");
      return false;
  }
  return false;
}

// A failure in the job: who is lost, what goes on, what it takes.
bool PerdureJob::Recovers(const Happened& happened) {
  Evidence(happened);
  const auto node =
      static_cast<NodeId>(std::find(names_.begin(), names_.end(), happened.node) - names_.begin());
  const bool sat = std::any_of(layout_.seats.begin(), layout_.seats.end(),
                               [&](const Seat& seat) { return seat.node == node; });
  const auto offer = std::find_if(offers_.begin(), offers_.end(),
                                  [&](const NodeOffer& each) { return each.node == node; });
  const bool gone = happened.kind == ChainFailure::kNode;
  // What memory holds is whole again with the generation's first step; a node that takes its part
  // along before that costs what no checkpoint has.
  if (gone && !stepped_ && chain_->line.next() > chain_->line.committed()) Lose();
  if (happened.kind != ChainFailure::kProgram)
    chain_->partition.Breaks(happened.node, held_.now(), happened.unseen);
  if (offer != offers_.end()) {
    if (gone)
      offers_.erase(offer);
    else if (happened.kind != ChainFailure::kProgram && !offer->slots.empty())
      offer->slots.pop_back();
  }
  if (gone) {
    batch_host_lost_ |= node == 0;
    held_.Loses(happened.node);
  }
  if (happened.kind != ChainFailure::kProgram) held_.Avoids(happened.node);
  if (!sat) return true;
  double making = 0;
  if (!Layout(&making)) return false;
  saving_.reset();  // It is given up, and made anew at the next step.
  saved_at_ = absl::InfinitePast();
  const double detect = gone ? assumed().detect_node : assumed().detect_rank;
  const HeldJob::Spent spent =
      held_.Spend(absl::Seconds(detect + assumed().reform + assumed().load + making));
  row_.hours.recovering += spent.held;
  return !spent.happened.has_value() || Meet(*spent.happened);
}

// All of `time`, from its beginning again where something fails meanwhile. False: the job is over.
bool PerdureJob::Through(absl::Duration time, double GpuHours::*on) {
  while (true) {
    const HeldJob::Spent spent = held_.Spend(time);
    row_.hours.*on += spent.held;
    if (!spent.happened.has_value()) return true;
    if (!Meet(*spent.happened)) return false;
  }
}

bool PerdureJob::Starts() {
  const std::vector<int32_t> slots = [&] {
    std::vector<int32_t> all;
    for (int32_t slot = 0; slot < config_.job.ranks_per_node; ++slot) all.push_back(slot);
    return all;
  }();
  for (NodeId node = 0; node < names_.size(); ++node)
    offers_.push_back({.node = node, .slots = slots, .coordinates = node == 0});
  double making = 0;
  if (!Through(chain_->draws.Launch(number_), &GpuHours::starting) || !Layout(&making))
    return false;
  row_.replicas = layout_.shape.data;
  if (!Through(absl::Seconds(assumed().start_up), &GpuHours::starting)) return false;
  saved_at_ = held_.now();
  return true;
}

void PerdureJob::Committed(int64_t step) { row_.hours += chain_->line.Commit(step); }

// Behind a step: what was being saved may be whole, and the next save may be due.
bool PerdureJob::Save() {
  if (saving_.has_value() && held_.now() >= saving_->done) {
    Committed(saving_->step);
    leave_.Saved(saving_->done - saving_->began);
    saving_.reset();
  }
  if (saving_.has_value() || held_.now() < saved_at_ + config_.checkpoint.every) return true;
  const absl::Time began = held_.now();
  if (!Through(absl::Seconds(assumed().freeze), &GpuHours::saving)) return false;
  saved_at_ = began;
  saving_ = {.step = chain_->line.next(),
             .began = began,
             .done = held_.now() + chain_->draws.Save(chain_->saves++, /*read_back=*/true)};
  return true;
}

// One step, or a failure in it. False: the job is over.
bool PerdureJob::Step() {
  const int64_t step = chain_->line.next();
  const absl::Duration whole = chain_->run.StepTime(chain_->draws, step);
  const absl::Duration took = chain_->run.TimeOn(layout_.shape.data, step, whole);
  // Not asked all day, which would take longer than all else here.
  const absl::Time leaves_at = held_.time_over() - held_.now() > kFarFromLeaving
                                   ? absl::InfiniteFuture()
                                   : leave_.At(held_.time_over());
  const HeldJob::Spent spent = held_.Spend(took);
  if (spent.happened.has_value()) {
    row_.hours.redone += spent.held;
    return Meet(*spent.happened);
  }
  const double productive = absl::ToDoubleHours(whole) * chain_->run.WholeGpus(step);
  chain_->line.Took(step, productive, spent.held - productive);
  stepped_ = true;
  // Asked to leave, the ranks agree in one step more.
  if (steps_left_ > 0)
    --steps_left_;
  else if (held_.preempted() || held_.now() >= leaves_at)
    steps_left_ = 1;
  leave_.Stepped(took);
  return Save();
}

bool PerdureJob::Steps(int64_t until) {
  while (chain_->line.next() < until && steps_left_ != 0)
    if (!Step()) return false;
  return true;
}

bool PerdureJob::SavesLast() {
  while (chain_->line.committed() < chain_->line.next()) {
    if (saving_.has_value()) {
      const Saving saving = *saving_;
      if (!Through(std::max(absl::ZeroDuration(), saving.done - held_.now()), &GpuHours::leaving))
        return false;
      if (saving_.has_value()) Committed(saving.step);
      saving_.reset();
      continue;
    }
    const int64_t step = chain_->line.next();
    const absl::Duration takes =
        absl::Seconds(assumed().freeze) + chain_->draws.Save(chain_->saves++, /*read_back=*/true);
    if (!Through(takes, &GpuHours::leaving)) return false;
    // Not if meanwhile it went back: then there is nothing more to save.
    if (chain_->line.next() == step) Committed(step);
  }
  return true;
}

int PerdureJob::Run() {
  const int64_t other = OtherNodesFrom(config_, row_.first_step);
  const int64_t until = other >= 0 ? other : chain_->run.steps();
  if (Starts() && Steps(until) && SavesLast()) {
    const absl::Duration stop = chain_->draws.Stop(number_);
    row_.hours.leaving += absl::ToDoubleHours(stop) * held_.gpus();
    held_.Idle(stop);
    if (held_.out_of_time() && !held_.preempted()) ++chain_->outcome.by_limit;
    const int64_t step = chain_->line.committed();
    if (step >= chain_->run.steps())
      Over(kExitComplete, "the run is complete");
    else if (step >= until)
      Over(kExitStopped, "the next phase has other nodes");
    else
      Over(kExitStopped, held_.preempted() ? "preempted, requeued" : "end of its time");
    row_.at_its_end = !held_.preempted() && step < until;
  }
  row_.left = held_.now();
  row_.unused = held_.time_over() - row_.left;
  row_.last_step = chain_->line.committed();
  const auto say = [&](int count, const char* what) {
    if (count > 0)
      row_.events += fmt::format("{}{} {}", row_.events.empty() ? "" : ", ", count, what);
  };
  say(devices_, "device");
  say(nodes_lost_, "node lost");
  say(corruptions_, "wrong sum");
  say(programs_, "rank crashed");
  say(promoted_, "spare taken");
  say(shrunk_, "shrunk");
  say(back_, "back to a checkpoint");
  if (batch_host_lost_) row_.events += " (batch host)";
  chain_->outcome.promoted += promoted_;
  chain_->outcome.shrunk += shrunk_;
  chain_->outcome.from_checkpoint += back_;
  chain_->outcome.batch_hosts_lost += batch_host_lost_;
  for (const std::string& node : held_.nodes())
    if (chain_->book.Knows(node)) {
      const EvidenceEntry worked{.node = node,
                                 .time = row_.left,
                                 .kind = EvidenceKind::kWorked,
                                 .number = absl::ToInt64Seconds(row_.left - row_.began),
                                 .job = std::to_string(row_.job)};
      PERDURE_CHECK(chain_->book.Record(worked).ok());
    }
  return *exit_code_;
}

// ---- the chain

struct Queued {
  int64_t job = 0;
  int restarts = 0;
  absl::Time submitted;
  std::string nodes;  // Asked for.
  std::set<std::string> without;
  absl::Duration wait;
};

class PerdureChain {
 public:
  PerdureChain(const ChainRun& run, const ChainDraws& draws)
      : run_(run),
        draws_(draws),
        state_{.run = run,
               .draws = draws,
               .partition = Partition(run.assumed(), draws),
               .hazards = Hazards(draws),
               .line = CountedLine(run.steps())} {}
  ChainOutcome Run();

 private:
  Queued Submit(absl::Time now, const std::string& nodes);
  std::set<std::string> Without(const std::string& nodes, absl::Time now);
  absl::Time Begins(const Queued& job, absl::Time eligible) const;
  int64_t Granted(const Queued& job) const;
  void Violated(const std::string& what) {
    if (state_.outcome.violation.empty()) state_.outcome.violation = what;
  }
  void CheckRow(const ChainRow& row);

  const ChainRun& run_;
  const ChainDraws& draws_;
  ChainState state_;
  int64_t submitted_ = 0, waits_ = 0;
};

std::set<std::string> PerdureChain::Without(const std::string& nodes, absl::Time now) {
  const absl::StatusOr<EvidenceBook::Options> options = BookOptionsFor(nodes);
  PERDURE_CHECK(options.ok());
  const absl::StatusOr<NodeRange> range = ParseNodeRange(nodes);
  PERDURE_CHECK(range.ok());
  const absl::StatusOr<DoneWithout> without =
      JudgeForJob(state_.book, *options, state_.partition.names(), range->least, now);
  PERDURE_CHECK(without.ok());
  std::set<std::string> names;
  for (const EvidenceBook::Verdict& verdict : without->excluded) names.insert(verdict.node);
  state_.outcome.excluded_max =
      std::max(state_.outcome.excluded_max, static_cast<int>(names.size()));
  return names;
}

Queued PerdureChain::Submit(absl::Time now, const std::string& nodes) {
  return {.job = ++submitted_,
          .submitted = now,
          .nodes = nodes,
          .without = Without(nodes, now),
          .wait = draws_.Wait(waits_++)};
}

absl::Time PerdureChain::Begins(const Queued& job, absl::Time eligible) const {
  const absl::Time since = run_.assumed().age_counts ? job.submitted : eligible;
  return std::max(since + job.wait, eligible + absl::Seconds(run_.assumed().dispatch));
}

// Of a range what is free just then.
int64_t PerdureChain::Granted(const Queued& job) const {
  const absl::StatusOr<NodeRange> range = ParseNodeRange(job.nodes);
  PERDURE_CHECK(range.ok());
  const double share = draws_.Share(job.job * 8 + job.restarts);
  const double whole = run_.assumed().whole_share;
  if (range->least == range->most || share < whole) return range->most;
  return range->least + static_cast<int64_t>((share - whole) / (1 - whole) *
                                             static_cast<double>(range->most - range->least));
}

void PerdureChain::CheckRow(const ChainRow& row) {
  const std::vector<ChainRow>& rows = state_.outcome.rows;
  const int64_t before = rows.empty() ? 0 : rows.back().last_step;
  if (row.first_step != before)
    Violated(fmt::format("job {} began at step {} and the one before ended at {}", row.job,
                         row.first_step, before));
  if (row.last_step > row.first_step &&
      run_.WholeNodes(row.first_step) != run_.WholeNodes(row.last_step - 1))
    Violated(fmt::format("job {} went from step {} to {} on the nodes of one phase", row.job,
                         row.first_step, row.last_step));
  if (!rows.empty() && row.began <= rows.back().left)
    Violated(fmt::format("job {} began while the one before ran", row.job));
  if (row.unused < absl::ZeroDuration() || row.end.starts_with("KILLED"))
    Violated(fmt::format("job {} was ended by its time limit", row.job));
}

ChainOutcome PerdureChain::Run() {
  ChainOutcome& outcome = state_.outcome;
  const RunConfig& config = run_.config();
  absl::Time eligible = absl::UnixEpoch() + absl::Hours(9);
  outcome.begins = eligible;
  std::optional<Queued> job = Submit(eligible, NodesFor(config, 0));
  std::optional<Queued> next = Submit(eligible, NodesFor(config, 0));
  while (job.has_value()) {
    const int64_t step = state_.line.committed();
    ChainRow row{.job = job->job,
                 .restarts = job->restarts,
                 .eligible = eligible,
                 .began = Begins(*job, eligible),
                 .first_step = step};
    if (NoProgress(state_.told, step, config.job.no_progress_jobs)) {
      Violated(fmt::format("no progress since step {}", step));
      break;
    }
    const std::vector<std::string> names =
        state_.partition.Allocate(Granted(*job), row.began, job->without);
    row.nodes = std::ssize(names);
    state_.told.push_back({.job = job->job,
                           .restarts = job->restarts,
                           .nodes = {},
                           .began = row.began,
                           .first_step = step});
    // EnsureNext: there is one already but where the job before had none to leave behind.
    if (!next.has_value()) next = Submit(row.began, NodesFor(config, step));
    next->without = Without(next->nodes, row.began);
    PerdureJob runs(&state_, row, names);
    const int exit_code = runs.Run();
    row = runs.row();
    CheckRow(row);
    outcome.rows.push_back(row);
    outcome.preempted += runs.preempted();
    eligible = row.left;
    if (runs.preempted() && exit_code != kExitComplete) {
      job->restarts += 1;
      job->submitted = row.left;
      job->wait = draws_.Wait(waits_++);
      eligible += absl::Seconds(run_.assumed().requeue_delay);
      continue;
    }
    if (!runs.batch_host_lost()) {
      if (NextJobAfter(exit_code) == NextJob::kStopped)
        Violated(fmt::format("job {} stopped the chain: {}", row.job, row.end));
      if (NextJobAfter(exit_code) != NextJob::kQueued) break;
      const std::string nodes = NodesFor(config, row.last_step);
      if (next->nodes == nodes)
        next->without = Without(nodes, row.left);
      else
        next = Submit(row.left, nodes);
    } else if (exit_code == kExitComplete) {
      break;  // The next job finds nothing to do and ends at once.
    }
    job = std::exchange(next, std::nullopt);
  }
  outcome.ends = outcome.rows.back().left;
  if (const std::string wrong = state_.line.Check(); !wrong.empty()) Violated(wrong);
  return std::move(outcome);
}

}  // namespace

ChainOutcome SimulateChain(const ChainOptions& options, uint64_t seed) {
  const ChainRun run(options);
  const ChainDraws draws(options.assumed, seed);
  return PerdureChain(run, draws).Run();
}

}  // namespace perdure::sim
