#include "runtime/train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <set>

#include "model/init.h"
#include "model/parameters.h"
#include "runtime/base/parallel.h"
#include "runtime/base/status.h"
#include "runtime/comm/group.h"
#include "runtime/comm/make_collectives.h"
#include "runtime/comm/sync_watching.h"
#include "runtime/train/checkpoint_saver.h"
#include "runtime/train/pipeline.h"
#include "runtime/train/sharded_state.h"
#include "runtime/train/statistics.h"
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
  kHostPipelineChannel = 6
};

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
        schedule(config),
        table(ModelTensors(config.model, config.numerics.tensor_shards),
              config.numerics.atom_elements),
        ops(std::move(rank_ops)),
        host_tensor_group(transport, mesh.TensorGroup(at), kHostTensorChannel),
        host_data_group(transport, mesh.DataGroup(at), kHostDataChannel),
        host_pipeline_group(transport, mesh.PipelineGroup(at), kHostPipelineChannel) {}
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
  absl::Status FillState();
  absl::StatusOr<Outcome> Run();
  absl::Status EnterPhase(int phase);
  absl::StatusOr<StepReport> Step(const StepInfo& info, int* command);
  absl::Status Checkpoint(int64_t step);
  void MakeSaver();
  // Bounded where the device waits for a message from a rank that is lost.
  absl::Status Sync() {
    Collectives* const groups[] = {tensor_group.get(), data_group.get(), pipeline_group.get()};
    return SyncWatching(ops.get(), groups);
  }
  // How memory of devices gets from rank to rank, in words for people; empty where it does not.
  std::string DeviceTransport() const;
  // Norms are replicated along the tensor axis: only its first rank answers for them.
  std::vector<AtomState> AtomsToWrite();
  double WaitSeconds() const {
    return tensor_group->wait_seconds() + data_group->wait_seconds() +
           pipeline_group->wait_seconds() + host_tensor_group.wait_seconds() +
           host_data_group.wait_seconds() + host_pipeline_group.wait_seconds();
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
  Group host_tensor_group, host_data_group, host_pipeline_group;
  std::unique_ptr<ShardedState> state;
  Writers writers;
  std::unique_ptr<CheckpointSaver> saver;
  std::optional<StatisticsGather> statistics;
  std::unique_ptr<SampleOrder> samples;
  std::unique_ptr<Pipeline> pipeline;
  int phase = -1;
  Command command = Command::kNone;  // Rank 0: what the host asked for, not yet shared.
  Digest chain;
  bool clean = false;  // Nothing is under way any more.
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
  RETURN_IF_ERROR(MakeGroups());
  const std::vector<int64_t> layers = LayersOfRank(config.model.layers, config.layout, at.pipeline);
  const TensorSlot slot{
      .shards = config.numerics.tensor_shards, .size = config.layout.tensor, .index = at.tensor};
  ShardedState::Options state_options{.dtype = DTypeOf(config.numerics),
                                      .zero = static_cast<int>(config.layout.zero),
                                      .optimizer = config.optimizer,
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
  chain = start.sample_chain;
  return FillState();
}

absl::Status Trainer::Impl::FillState() {
  RETURN_IF_ERROR(state->FillOwned([&](std::span<AtomState> atoms) -> absl::Status {
    if (start.manifest.has_value())
      return ReadAtoms(start.checkpoint, *start.manifest, table, atoms);
    const auto fill = [&](size_t i) {
      const AtomState& atom = atoms[i];
      const Atom& place = table.atoms()[static_cast<size_t>(atom.atom)];
      InitializeAtom(table, place, config.seed, {atom.parts[0], static_cast<size_t>(place.count)});
      for (float* moment : {atom.parts[1], atom.parts[2]}) std::fill_n(moment, place.count, 0.0F);
      return absl::OkStatus();
    };
    return ForEachInParallel(atoms.size(), fill, static_cast<size_t>(options.host_threads));
  }));
  RETURN_IF_ERROR(state->ShareState());
  std::vector<int64_t> loaded;
  std::vector<Digest> digests;
  RETURN_IF_ERROR(state->ReadOwned([&](std::span<const AtomState> atoms) {
    std::vector<AtomState> mine(atoms.begin(), atoms.end());
    std::erase_if(mine,
                  [&](const AtomState& atom) { return !AnswersFor(table, atom.atom, at.tensor); });
    const size_t first = digests.size();
    digests.resize(first + mine.size());
    for (const AtomState& atom : mine) loaded.push_back(atom.atom);
    const auto digest = [&](size_t i) {
      const int64_t count = table.atoms()[static_cast<size_t>(mine[i].atom)].count;
      digests[first + i] = AtomDigest(mine[i], count);
      return absl::OkStatus();
    };
    return ForEachInParallel(mine.size(), digest, static_cast<size_t>(options.host_threads));
  }));
  RETURN_IF_ERROR(host->Loaded(loaded, digests));
  MakeSaver();
  return state->PublishParameters();
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
  saver = std::make_unique<CheckpointSaver>(saver_options, &table, &writers, rank, AtomsToWrite(),
                                            ops.get(), host);
}

std::vector<AtomState> Trainer::Impl::AtomsToWrite() {
  std::vector<AtomState> atoms = state->OwnedAtoms();
  std::erase_if(atoms,
                [&](const AtomState& atom) { return !AnswersFor(table, atom.atom, at.tensor); });
  return atoms;
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
  const Pipeline::Options pipeline_options{
      .config = config, .phase = phase, .at = at, .sync = [this] { return Sync(); }};
  RETURN_IF_ERROR(state->Quiesce());
  pipeline.reset();
  pipeline = std::make_unique<Pipeline>(pipeline_options, &table, ops.get(), state.get(),
                                        tensor_group.get(), pipeline_group.get(), samples.get());
  return absl::OkStatus();
}

absl::StatusOr<StepReport> Trainer::Impl::Step(const StepInfo& info, int* shared_command) {
  const auto began = std::chrono::steady_clock::now();
  const double waited = WaitSeconds();
  RETURN_IF_ERROR(pipeline->RunStep(info));
  ASSIGN_OR_RETURN(const std::vector<double> squares, state->FinishGradients());
  ASSIGN_OR_RETURN(const StepStatistics totals,
                   statistics->Gather(LeavesOf(config.numerics, info.batch), pipeline->losses(),
                                      squares, static_cast<int>(command)));
  *shared_command = totals.command;
  StepReport report;
  report.step = info.step + 1;
  report.phase = info.phase;
  report.step_tokens = info.batch * info.context;
  report.loss = totals.loss_sum / static_cast<double>(report.step_tokens);
  report.grad_norm = std::sqrt(totals.square_sum);
  if (!std::isfinite(report.loss) || !std::isfinite(report.grad_norm))
    return DataLoss(
        "step {}: loss {} and gradient norm {} are not both finite; the newest checkpoint is from "
        "before. Look at the "
        "data of samples {} to {}, or lower the rate",
        report.step, report.loss, report.grad_norm, info.first_sample,
        info.first_sample + info.batch);
  RETURN_IF_ERROR(
      state->Update(report.step, info.rate, ClipScale(config.optimizer.clip, report.grad_norm)));
  report.samples = info.first_sample + info.batch;
  const PhasePlan& plan = schedule.phases()[static_cast<size_t>(info.phase)];
  for (int p = 0; p < info.phase; ++p)
    report.tokens += schedule.phases()[static_cast<size_t>(p)].tokens;
  report.tokens += (info.phase_sample + info.batch) * info.context;
  PERDURE_CHECK(report.samples == plan.first_sample + info.phase_sample + info.batch);
  report.rate = info.rate;
  report.batch = info.batch;
  report.context = info.context;
  report.first_sample = info.phase_sample;
  chain = samples->Chain(chain, info.phase_sample, info.phase_sample + info.batch);
  report.sample_chain = chain;
  report.wait_seconds = WaitSeconds() - waited;
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  return report;
}

absl::Status Trainer::Impl::Checkpoint(int64_t step) {
  RETURN_IF_ERROR(state->Quiesce());
  return saver->Save(step);
}

absl::StatusOr<Outcome> Trainer::Impl::Run() {
  const int64_t last =
      options.until_step >= 0 ? std::min(options.until_step, schedule.steps()) : schedule.steps();
  int64_t done = start.step;
  int64_t saved = start.manifest.has_value() ? start.step : -1;
  while (done < last) {
    const StepInfo info = schedule.At(done);
    if (info.phase != phase) RETURN_IF_ERROR(EnterPhase(info.phase));
    int shared = 0;
    ASSIGN_OR_RETURN(const StepReport report, Step(info, &shared));
    done = report.step;
    if (rank == 0) {
      const Command next = host->StepFinished(report);
      if (static_cast<int>(command) == shared) command = Command::kNone;  // Everybody has it now.
      command = std::max(command, next);
    }
    const bool stop = shared == static_cast<int>(Command::kStop);
    const bool by_count =
        config.checkpoint.every_steps > 0 && done % config.checkpoint.every_steps == 0;
    const bool kept =
        config.checkpoint.keep_every_steps > 0 && done % config.checkpoint.keep_every_steps == 0;
    if (shared != 0 || by_count || kept || config.checkpoint.exports(done) || info.ends_phase ||
        done == last) {
      RETURN_IF_ERROR(Checkpoint(done));
      saved = done;
    }
    if (stop) break;
  }
  // A run that was asked for no step still leaves a checkpoint of what it began with.
  if (saved != done) RETURN_IF_ERROR(Checkpoint(done));
  RETURN_IF_ERROR(saver->Wait());
  RETURN_IF_ERROR(state->Quiesce());
  RETURN_IF_ERROR(Sync());  // The last that the device has to say.
  clean = true;
  return done == schedule.steps() ? Outcome::kComplete : Outcome::kStopped;
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

absl::StatusOr<Outcome> Trainer::Run() { return impl_->Run(); }

void Trainer::Stop() { impl_->transport->Cancel("told to stop"); }

}  // namespace perdure
