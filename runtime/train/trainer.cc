#include "runtime/train/trainer.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <set>

#include "model/parameters.h"
#include "runtime/base/status.h"
#include "runtime/comm/group.h"
#include "runtime/comm/make_collectives.h"
#include "runtime/comm/sync_watching.h"
#include "runtime/train/audit.h"
#include "runtime/train/checkpoint_saver.h"
#include "runtime/train/judge_step.h"
#include "runtime/train/own_work.h"
#include "runtime/train/pipeline.h"
#include "runtime/train/rank_state.h"
#include "runtime/train/sharded_state.h"
#include "runtime/train/snapshots.h"
#include "runtime/train/statistics.h"
#include "runtime/train/step_report.h"
#include "runtime/train/writers.h"

namespace perdure {
namespace {

// Channels of the groups: any two ranks share at most one group of each kind.
enum Channel : uint32_t {
  kTensorChannel = 1,
  kDataChannel = 2,
  kPipelineChannel = 3,
  kHostTensorChannel = 4,
  kHostDataChannel = 5,
  kHostPipelineChannel = 6,
  kSnapshotChannel = 7
};

std::vector<int> AllRanks(int ranks) {
  std::vector<int> all(static_cast<size_t>(ranks));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

// max_norm / (norm + 1e-6), at most 1: as torch.nn.utils.clip_grad_norm_.
double ClipScale(double clip, double norm) {
  return clip > 0 ? std::min(1.0, clip / (norm + 1e-6)) : 1.0;
}

}  // namespace

struct Trainer::Impl {
  Impl(const TrainerOptions& trainer_options, const StartPoint& start_point,
       std::shared_ptr<Ops> rank_ops, Transport* rank_transport, RankHost* rank_host)
      : options(trainer_options),
        config(options.config),
        start(start_point),
        host(rank_host),
        transport(rank_transport),
        rank(transport->rank()),
        mesh(config.layout),
        at(mesh.At(rank)),
        schedule(config, options.gaps),
        table(ModelTensors(config.model, config.numerics.tensor_shards),
              config.numerics.atom_elements),
        ops(std::move(rank_ops)),
        host_tensor_group(transport, mesh.TensorGroup(at), kHostTensorChannel),
        host_data_group(transport, mesh.DataGroup(at), kHostDataChannel),
        host_pipeline_group(transport, mesh.PipelineGroup(at), kHostPipelineChannel),
        snapshot_group(transport, AllRanks(mesh.ranks()), kSnapshotChannel) {}
  // After an error messages may be under way: no peer may write into memory that is given back.
  ~Impl() {
    if (clean) return;
    // Memory that a device's messages still use is given back only after they have been stopped.
    for (Collectives* group : {tensor_group.get(), data_group.get(), pipeline_group.get()})
      if (group != nullptr) group->Abort();
    for (int peer = 0; peer < mesh.ranks(); ++peer)
      if (peer != rank) transport->FailPeer(peer, "this rank gave up");
  }

  absl::Status Prepare();
  absl::Status MakeGroups();
  absl::StatusOr<Outcome> Run();
  absl::Status Begin(int64_t* saved);
  absl::Status End();
  absl::Status Leave();
  absl::Status Pause(int64_t step);
  absl::Status EnterPhase(int phase);
  absl::StatusOr<StepStatistics> Compute(const StepInfo& info, Verdict verdict);
  absl::StatusOr<StepStatistics> ComputeAgain(const StepInfo& info, const StepStatistics& first);
  absl::Status AuditStep(const StepInfo& info);
  absl::StatusOr<StepReport> Step(const StepInfo& info, int* command);
  absl::Status GoBack(const StepInfo& info, const StepNumbers& step);
  // What this rank ends with, after it has seen to what others may still read of it.
  absl::Status Fail(const absl::Status& status);
  absl::Status AwaitSnapshot();
  absl::Status Checkpoint(int64_t step);
  absl::Status ShareRecent();
  void MakeSaver();
  absl::Status Snapshot(int64_t step);
  absl::Status GoesWithout(const absl::Status& status);
  // Whether the state after so many steps has a checkpoint, asked for or not.
  bool CheckpointDue(int64_t step) const;
  int64_t SamplesAt(int64_t step) const;
  absl::Status CheckStop() const {
    return stopping ? absl::CancelledError(fmt::format("rank {} was told to stop", rank))
                    : absl::OkStatus();
  }
  void Doing(Activity::Phase what, Activity::Group group = Activity::Group::kNone,
             int64_t micro_batch = -1, int peer = -1) const {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    host->Doing({.step = step_now,
                 .nanoseconds = std::chrono::nanoseconds(now).count(),
                 .phase = what,
                 .group = group,
                 .micro_batch = static_cast<int32_t>(micro_batch),
                 .peer = peer});
  }
  // Bounded where the device waits for a message from a rank that is lost.
  absl::Status Sync() {
    Collectives* const groups[] = {tensor_group.get(), data_group.get(), pipeline_group.get()};
    return SyncWatching(ops.get(), groups);
  }
  // How memory of devices gets from rank to rank, in words for people; empty where it does not.
  std::string DeviceTransport() const;
  RankState StateOfRank() {
    return {.options = &options,
            .start = &start,
            .table = &table,
            .mesh = mesh,
            .at = at,
            .state = state.get(),
            .ops = ops.get(),
            .host = host};
  }
  double WaitSeconds() const {
    return tensor_group->wait_seconds() + data_group->wait_seconds() +
           pipeline_group->wait_seconds() + host_tensor_group.wait_seconds() +
           host_data_group.wait_seconds() + host_pipeline_group.wait_seconds() +
           snapshot_group.wait_seconds();
  }

  TrainerOptions options;
  RunConfig config;
  StartPoint start;
  RankHost* host;
  Transport* transport;
  int rank;
  Mesh mesh;
  MeshPoint at;
  StepSchedule schedule;
  AtomTable table;
  std::shared_ptr<Ops> ops;
  // Of device memory, and of the host's: statistics.
  std::unique_ptr<Collectives> tensor_group, data_group, pipeline_group;
  Group host_tensor_group, host_data_group, host_pipeline_group, snapshot_group;
  std::unique_ptr<ShardedState> state;
  Writers writers;
  std::unique_ptr<CheckpointSaver> saver;
  std::unique_ptr<Snapshots> snapshots;  // Null: none.
  std::optional<StatisticsGather> statistics;
  std::unique_ptr<SampleOrder> samples;
  std::unique_ptr<Pipeline> pipeline;
  int phase = -1;
  Command command = Command::kNone;  // Rank 0: what the host asked for, not yet shared.
  StepHistory history;               // Rank 0's alone is whole: others need the recent steps.
  bool clean = false;                // Nothing is under way any more.
  bool first_gather = true;
  OwnWork work;
  int64_t step_now = 0;    // That it works on.
  bool goes_back = false;  // That one is bad.
  std::atomic<bool> stopping = false;
};

absl::Status Trainer::Impl::MakeGroups() {
  const std::string& how = config.layout.device_transport;
  ASSIGN_OR_RETURN(tensor_group, MakeCollectives(transport, mesh.TensorGroup(at), kTensorChannel,
                                                 ops.get(), how));
  ASSIGN_OR_RETURN(data_group,
                   MakeCollectives(transport, mesh.DataGroup(at), kDataChannel, ops.get(), how));
  // Neighbours of a pipeline start sends and receives in different orders.
  ASSIGN_OR_RETURN(pipeline_group,
                   MakeCollectives(transport, mesh.PipelineGroup(at), kPipelineChannel, ops.get(),
                                   how, StartOrder::kNeighbours));
  if (rank == 0 && !DeviceTransport().empty())
    host->Remark("device transport: " + DeviceTransport());
  return absl::OkStatus();
}

std::string Trainer::Impl::DeviceTransport() const {
  std::set<std::string> words;
  for (const Collectives* group : {tensor_group.get(), data_group.get(), pipeline_group.get()})
    if (group->size() > 1) words.insert(group->Describe());
  words.erase("");
  return fmt::format("{}", fmt::join(words, "; "));
}

absl::Status Trainer::Impl::Prepare() {
  if (start.manifest.has_value() && start.manifest->gaps != GapsBehind(options.gaps, start.step))
    return DataLoss("{} is of a line of steps that the run has left, or does not know",
                    start.checkpoint);
  step_now = start.step + 1;
  Doing(Activity::Phase::kLoading);
  RETURN_IF_ERROR(MakeGroups());
  const std::vector<int64_t> layers = LayersOfRank(config.model.layers, config.layout, at.pipeline);
  const TensorSlot slot{
      .shards = config.numerics.tensor_shards, .size = config.layout.tensor, .index = at.tensor};
  ShardedState::Options state_options{.dtype = DTypeOf(config.numerics),
                                      .zero = static_cast<int>(config.layout.zero),
                                      .optimizer = config.optimizer,
                                      .guard = config.integrity.check,
                                      .sync = [this] { return Sync(); }};
  state =
      std::make_unique<ShardedState>(state_options, MakeBuckets(table, config.model, slot, layers),
                                     &table, ops.get(), data_group.get());
  std::vector<std::vector<int64_t>> owned;
  for (int d = 0; d < mesh.data(); ++d) owned.push_back(state->OwnedAtomIndices(d));
  ASSIGN_OR_RETURN(
      statistics,
      StatisticsGather::Create(mesh, at, static_cast<int64_t>(table.atoms().size()),
                               &host_tensor_group, &host_data_group, &host_pipeline_group, owned));
  const RankState rank_state = StateOfRank();
  ASSIGN_OR_RETURN(history, FillState(rank_state));
  RETURN_IF_ERROR(ShareRecent());
  absl::StatusOr<std::unique_ptr<Snapshots>> made = MakeSnapshots(rank_state, &snapshot_group);
  if (made.ok()) {
    snapshots = *std::move(made);
    if (snapshots == nullptr) host->NoSnapshots();
  } else {
    RETURN_IF_ERROR(GoesWithout(made.status()));
  }
  const int64_t samples_before =
      start.manifest.has_value() ? start.manifest->samples : SamplesAt(start.step);
  RETURN_IF_ERROR(CertifyState(rank_state, samples_before, &*statistics));
  MakeSaver();
  return state->PublishParameters();
}

// All ranks judge steps by the same ones before.
absl::Status Trainer::Impl::ShareRecent() {
  struct {
    uint64_t count = 0;
    std::array<StepNumbers, kRecentStepsMax> steps{};
  } shared;
  std::vector<StepNumbers>& recent = history.trail.recent;
  shared.count = recent.size();
  std::copy(recent.begin(), recent.end(), shared.steps.begin());
  RETURN_IF_ERROR(statistics->Share(&shared, sizeof shared));
  if (shared.count > kRecentStepsMax)
    return DataLoss("rank 0 tells of {} recent steps; at most {} expected", shared.count,
                    kRecentStepsMax);
  recent.assign(shared.steps.begin(), shared.steps.begin() + static_cast<int64_t>(shared.count));
  return absl::OkStatus();
}

void Trainer::Impl::MakeSaver() {
  writers = PlanWriters(config, table, options.ranks_per_file);
  CheckpointSaver::Options saver_options;
  saver_options.run_directory = options.run_directory;
  saver_options.stamp.generation = options.generation;
  saver_options.stamp.run_id = options.run_id;
  saver_options.nonce = options.nonce;
  saver_options.write = WriteOptionsOf(config.checkpoint);
  saver_options.asynchronous = config.checkpoint.asynchronous;
  saver_options.sync = [this] { return Sync(); };
  const std::vector<AtomState> answered = StateOfRank().Answered(state->OwnedAtoms());
  if (state->guarded()) saver_options.sums = [this, answered] { return state->SumsNow(answered); };
  saver = std::make_unique<CheckpointSaver>(saver_options, &table, &writers, rank, answered,
                                            ops.get(), host);
}

absl::Status Trainer::Impl::EnterPhase(int next) {
  phase = next;
  const PhaseConfig& config_phase = config.phases[static_cast<size_t>(phase)];
  std::vector<MixtureSource> mixture;
  for (const SourceConfig& source : config_phase.mixture)
    mixture.push_back(
        {(std::filesystem::path(options.data_directory) / source.path).string(), source.weight});
  ASSIGN_OR_RETURN(samples, SampleOrder::Open(mixture, config_phase.context, config.model.vocab,
                                              config.seed, phase));
  // Between pieces of compute there is time to be stopped, and for snapshots to advance.
  const auto before_pass = [this, group = mesh.PipelineGroup(at)](const Pipeline::PassBegin& pass) {
    RETURN_IF_ERROR(CheckStop());
    Doing(pass.backward ? Activity::Phase::kBackward : Activity::Phase::kForward,
          Activity::Group::kNone, pass.micro_batch,
          pass.peer < 0 ? -1 : group[static_cast<size_t>(pass.peer)]);
    return snapshots == nullptr ? absl::OkStatus() : snapshots->Advance();
  };
  const Pipeline::Options pipeline_options{.config = config,
                                           .phase = phase,
                                           .at = at,
                                           .sync = [this] { return Sync(); },
                                           .before_pass = before_pass};
  RETURN_IF_ERROR(state->Quiesce());
  pipeline.reset();
  pipeline = std::make_unique<Pipeline>(pipeline_options, &table, ops.get(), state.get(),
                                        tensor_group.get(), pipeline_group.get(), samples.get());
  return absl::OkStatus();
}

// The step's gradients and what they amount to. `verdict`: what this rank knows already. An error
// of all ranks, if memory of one has gone wrong.
absl::StatusOr<StepStatistics> Trainer::Impl::Compute(const StepInfo& info, Verdict verdict) {
  RETURN_IF_ERROR(pipeline->RunStep(info));
  Doing(Activity::Phase::kExchange, Activity::Group::kData);
  ASSIGN_OR_RETURN(const std::vector<double> squares, state->FinishGradients());
  RETURN_IF_ERROR(AwaitSnapshot());
  if (state->guarded()) {
    const std::vector<uint64_t> own = state->GuardWords();
    std::vector<uint64_t> words(own.size() * static_cast<size_t>(mesh.data()));
    RETURN_IF_ERROR(
        host_data_group.AllGather(own.data(), own.size() * sizeof(uint64_t), words.data()));
    verdict.Include(state->JudgeStep(words));
    // Also where another one is at fault: what it sent may be in what this rank keeps of it.
    if (verdict.kind != Verdict::Kind::kFine && snapshots != nullptr) snapshots->Distrust();
  }
  Doing(Activity::Phase::kGather, Activity::Group::kAll);
  ASSIGN_OR_RETURN(
      StepStatistics totals,
      statistics->Gather(LeavesOf(config.numerics, info.batch), pipeline->losses(), squares,
                         static_cast<int>(command), static_cast<int>(verdict.kind)));
  RETURN_IF_ERROR(statistics->ResolveTogether(verdict, totals.verdicts));
  return totals;
}

// What looks odd must come out a second time before it is believed.
absl::StatusOr<StepStatistics> Trainer::Impl::ComputeAgain(const StepInfo& info,
                                                           const StepStatistics& first) {
  const std::vector<uint64_t> sums =
      state->guarded() ? state->LeafSumsOfStep() : std::vector<uint64_t>();
  ASSIGN_OR_RETURN(const StepStatistics again, Compute(info, {}));
  const auto bits = [](double x) { return std::bit_cast<uint64_t>(x); };
  const bool same = bits(first.loss_sum) == bits(again.loss_sum) &&
                    bits(first.square_sum) == bits(again.square_sum);
  Verdict verdict;
  if (!same && (sums.empty() || sums != state->LeafSumsOfStep())) {
    // Of several ranks that compute one replica together, each passes on what another got wrong.
    const bool sure = !sums.empty() && mesh.tensor() * mesh.pipeline() == 1;
    verdict = {.kind = sure ? Verdict::Kind::kOwn : Verdict::Kind::kSuspected,
               .words = fmt::format("step {} computed twice came to loss sums {} and {}, gradient "
                                    "norms {} and {}",
                                    info.step + 1, first.loss_sum, again.loss_sum,
                                    std::sqrt(first.square_sum), std::sqrt(again.square_sum))};
  }
  ASSIGN_OR_RETURN(const std::vector<int> kinds,
                   statistics->GatherNumbers(static_cast<int>(verdict.kind)));
  RETURN_IF_ERROR(statistics->ResolveTogether(verdict, kinds));
  if (!same)
    return SuspectedCorruption(fmt::format(
        "step {} computed twice gave two results, and no rank knows of its own", info.step + 1));
  return again;
}

absl::Status Trainer::Impl::AuditStep(const StepInfo& info) {
  const int64_t every = config.integrity.audit_every;
  if (every == 0 || (info.step + 1) % every != 0 || !state->guarded()) return absl::OkStatus();
  return Audit({.mesh = mesh,
                .at = at,
                .leaves = LeavesOf(config.numerics, info.batch),
                .pipeline = pipeline.get(),
                .state = state.get(),
                .data = &host_data_group,
                .statistics = &*statistics},
               info);
}

// All ranks come to the same, and take no step any more.
absl::Status Trainer::Impl::GoBack(const StepInfo& info, const StepNumbers& step) {
  const std::string why = WhyBad(config.integrity, history.trail.recent, step);
  const absl::StatusOr<Gap> gap = GapFor(config.integrity, schedule, info, options.begins);
  if (!gap.ok())
    return DataLoss(
        "step {}: {}; {}. Look at the data around sample {} of phase {}, lower the rate, or leave "
        "such steps out with integrity.bad_step = \"skip\"",
        info.step + 1, why, Message(gap.status()), info.phase_sample,
        config.phases[static_cast<size_t>(info.phase)].name);
  goes_back = true;
  host->FoundBad(*gap, why);
  return absl::OkStatus();
}

absl::StatusOr<StepReport> Trainer::Impl::Step(const StepInfo& info, int* shared_command) {
  const auto began = std::chrono::steady_clock::now();
  const double waited = WaitSeconds();
  work.Begin(waited);
  for (const Flip& flip : host->Planted(info.step + 1)) state->Plant(flip);
  ASSIGN_OR_RETURN(StepStatistics totals, Compute(info, {}));
  if (snapshots != nullptr && std::exchange(first_gather, false)) host->OlderMayGo();
  StepReport report = PlannedReport(schedule, info.step + 1);
  // Steps of another phase, with other samples, are no measure.
  std::vector<StepNumbers>& recent = history.trail.recent;
  if (info.step == schedule.phases()[static_cast<size_t>(info.phase)].first_step) recent.clear();
  const auto numbers = [&report](const StepStatistics& of) {
    return StepNumbers{.loss = of.loss_sum / static_cast<double>(report.step_tokens),
                       .grad_norm = std::sqrt(of.square_sum)};
  };
  if (LooksOdd(config.integrity, recent, numbers(totals))) {
    ASSIGN_OR_RETURN(totals, ComputeAgain(info, totals));
  }
  RETURN_IF_ERROR(AuditStep(info));
  *shared_command = totals.command;
  const StepNumbers step = numbers(totals);
  report.loss = step.loss;
  report.grad_norm = step.grad_norm;
  const StepDecision decision = JudgeStep(config.integrity, recent, step);
  if (decision == StepDecision::kStop)
    return DataLoss(
        "step {}: {}; the newest checkpoint is from before. Look at the data of samples {} to {}, "
        "lower the rate, leave such steps out with integrity.bad_step = \"skip\", or go back for "
        "them with \"rollback\"",
        report.step, WhyBad(config.integrity, recent, step), info.first_sample,
        info.first_sample + info.batch);
  if (decision == StepDecision::kGoBack) {
    RETURN_IF_ERROR(GoBack(info, step));
    return report;
  }
  if (decision == StepDecision::kSkip) {
    if (rank == 0)
      host->Remark(fmt::format("step {} is skipped: {}; its samples {} to {} change nothing",
                               report.step, WhyBad(config.integrity, recent, step),
                               info.first_sample, info.first_sample + info.batch));
  } else {
    Doing(Activity::Phase::kUpdate, Activity::Group::kData);
    RETURN_IF_ERROR(
        state->Update(report.step, info.rate, ClipScale(config.optimizer.clip, step.grad_norm)));
    history.trail.Took(step);
  }
  report.sample_chain =
      samples->Chain(history.trail.sample_chain, info.phase_sample, info.phase_sample + info.batch);
  history.trail.sample_chain = report.sample_chain;
  history.Add(step);
  work.End(WaitSeconds(),
           LeavesOfReplica(LeavesOf(config.numerics, info.batch), at.data, mesh.data()));
  report.wait_seconds = WaitSeconds() - waited;
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  return report;
}

absl::Status Trainer::Impl::Fail(const absl::Status& status) {
  if (snapshots != nullptr && (IsCorruption(status) || IsSuspectedCorruption(status)))
    snapshots->Distrust();
  return status;
}

absl::Status Trainer::Impl::Checkpoint(int64_t step) {
  Doing(Activity::Phase::kCheckpoint);
  RETURN_IF_ERROR(state->Quiesce());
  return saver->Save(step, rank == 0 ? std::optional(history.trail) : std::nullopt);
}

absl::Status Trainer::Impl::Snapshot(int64_t step) {
  return snapshots == nullptr ? absl::OkStatus() : GoesWithout(snapshots->Begin(step, history));
}

// Where there is no room for snapshots this generation goes on without, all ranks alike: what fails
// then costs the steps since the newest checkpoint, and is no reason to fail now.
absl::Status Trainer::Impl::GoesWithout(const absl::Status& status) {
  if (!absl::IsResourceExhausted(status)) return status;
  snapshots.reset();
  host->NoSnapshots();
  if (rank == 0)
    host->Remark(fmt::format("generation {} goes on without snapshots from step {}: {}",
                             options.generation, step_now, Message(status)));
  return absl::OkStatus();
}

absl::Status Trainer::Impl::AwaitSnapshot() {
  if (snapshots == nullptr) return absl::OkStatus();
  const auto& peers = options.snapshot_peers;
  Doing(Activity::Phase::kSnapshot, Activity::Group::kNone, -1,
        peers.empty() ? -1 : peers[static_cast<size_t>(rank)]);
  return snapshots->Await();
}

bool Trainer::Impl::CheckpointDue(int64_t step) const {
  const auto every = [step](int64_t steps) { return steps > 0 && step % steps == 0; };
  return step > 0 &&
         (every(config.checkpoint.every_steps) || every(config.checkpoint.keep_every_steps) ||
          config.checkpoint.exports(step) || schedule.At(step - 1).ends_phase);
}

int64_t Trainer::Impl::SamplesAt(int64_t step) const {
  if (step == 0) return 0;
  const StepInfo last = schedule.At(step - 1);
  return last.first_sample + last.batch;
}

// A generation has a snapshot of what it starts from: those of older ones are not needed then.
absl::Status Trainer::Impl::Begin(int64_t* saved) {
  RETURN_IF_ERROR(Snapshot(start.step));
  const bool committed =
      start.held.has_value() ? start.held->committed : start.manifest.has_value();
  *saved = committed ? start.step : -1;
  // The generation before may have ended between the step and its checkpoint.
  if (!start.held.has_value() || committed || !CheckpointDue(start.step)) return absl::OkStatus();
  *saved = start.step;
  return Checkpoint(start.step);
}

absl::StatusOr<Outcome> Trainer::Impl::Run() {
  const int64_t last =
      options.until_step >= 0 ? std::min(options.until_step, schedule.steps()) : schedule.steps();
  int64_t done = start.step;
  int64_t saved = -1;
  RETURN_IF_ERROR(Begin(&saved));
  while (done < last) {
    step_now = done + 1;
    RETURN_IF_ERROR(CheckStop());
    const StepInfo info = schedule.At(done);
    if (info.phase != phase) RETURN_IF_ERROR(EnterPhase(info.phase));
    Doing(Activity::Phase::kLease);
    if (snapshots != nullptr) RETURN_IF_ERROR(snapshots->Advance());
    RETURN_IF_ERROR(host->AwaitLease(step_now));
    int shared = 0;
    const absl::StatusOr<StepReport> stepped = Step(info, &shared);
    if (!stepped.ok()) return Fail(stepped.status());
    if (goes_back) {
      RETURN_IF_ERROR(Leave());
      return Outcome::kFoundBad;
    }
    const StepReport& report = *stepped;
    done = report.step;
    const bool stop = shared == static_cast<int>(Command::kStop);
    const bool leave = shared == static_cast<int>(Command::kLeave);
    if (stop || leave || done == last || done % std::max<int64_t>(config.snapshot.every, 1) == 0)
      RETURN_IF_ERROR(Snapshot(done));
    host->Progress(done, work.done());
    if (rank == 0) {
      const Command next = host->StepFinished(report);
      if (static_cast<int>(command) == shared) command = Command::kNone;  // Everybody has it now.
      command = std::max(command, next);
    }
    if (leave) {
      RETURN_IF_ERROR(Leave());
      return Outcome::kLeft;
    }
    if (shared != 0 || CheckpointDue(done) || done == last) {
      RETURN_IF_ERROR(Checkpoint(done));
      saved = done;
    }
    if (shared == static_cast<int>(Command::kPause)) RETURN_IF_ERROR(Pause(done));
    if (stop) break;
  }
  // A run that was asked for no step still leaves a checkpoint of what it began with.
  if (saved != done) RETURN_IF_ERROR(Checkpoint(done));
  RETURN_IF_ERROR(End());
  return done == schedule.steps() ? Outcome::kComplete : Outcome::kStopped;
}

// The last save is settled, nothing is under way.
absl::Status Trainer::Impl::End() {
  Doing(Activity::Phase::kLeaving, Activity::Group::kAll);
  RETURN_IF_ERROR(state->Quiesce());
  RETURN_IF_ERROR(Sync());  // The last that the device has to say.
  RETURN_IF_ERROR(AwaitSnapshot());
  host->Waiting(step_now);
  RETURN_IF_ERROR(saver->Wait());
  clean = true;
  return absl::OkStatus();
}

// Whether the state became a checkpoint or not: who must not go on is told to stop meanwhile.
absl::Status Trainer::Impl::Pause(int64_t step) {
  Doing(Activity::Phase::kCheckpoint);
  host->Waiting(step);
  return saver->Wait();
}

// The snapshots of the last step are whole before anybody is gone. A save that is under way ends
// with the host's orders.
absl::Status Trainer::Impl::Leave() {
  RETURN_IF_ERROR(state->Quiesce());
  RETURN_IF_ERROR(Sync());
  RETURN_IF_ERROR(AwaitSnapshot());
  Doing(Activity::Phase::kLeaving, Activity::Group::kAll);
  for (Group* group : {&host_data_group, &host_pipeline_group, &host_tensor_group})
    RETURN_IF_ERROR(group->Barrier());
  clean = true;
  return absl::OkStatus();
}

Trainer::Trainer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Trainer::~Trainer() = default;

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(const TrainerOptions& options,
                                                         const StartPoint& start,
                                                         std::shared_ptr<Ops> ops,
                                                         Transport* transport, RankHost* host) {
  auto impl = std::make_unique<Impl>(options, start, std::move(ops), transport, host);
  RETURN_IF_ERROR(impl->Prepare());
  return std::unique_ptr<Trainer>(new Trainer(std::move(impl)));
}

absl::StatusOr<Outcome> Trainer::Run() {
  absl::StatusOr<Outcome> outcome = impl_->Run();
  // Whatever it was that a stop made fail first.
  if (const absl::Status stopped = impl_->CheckStop(); !outcome.ok() && !stopped.ok())
    return stopped;
  return outcome;
}

void Trainer::Stop() {
  impl_->stopping = true;
  impl_->transport->Cancel(fmt::format("rank {} was told to stop", impl_->rank));
}

}  // namespace perdure
