#include "tests/train/trainer_harness.h"

#include <bit>
#include <condition_variable>
#include <filesystem>
#include <map>
#include <mutex>
#include <thread>

#include "model/parameters.h"
#include "runtime/base/check.h"
#include "runtime/base/files.h"
#include "runtime/base/random.h"
#include "runtime/base/status.h"
#include "runtime/data/indexed_dataset.h"

namespace perdure {
namespace {

class MemoryHost final : public RankHost {
 public:
  MemoryHost(const TrainingJob& job, TrainingResult* result)
      : job_(job), config_(job.config), result_(result) {}

  void Certificate(const Digest& certificate) override { result_->loaded = certificate; }

  absl::Status Loaded(std::span<const int64_t>, std::span<const Digest>) override {
    return absl::OkStatus();
  }

  Command StepFinished(const StepReport& report) override {
    const std::lock_guard lock(mutex_);
    result_->loss_bits.push_back(std::bit_cast<uint64_t>(report.loss));
    result_->grad_norms.push_back(report.grad_norm);
    result_->finished = report.step;
    return job_.command ? job_.command(report.step) : Command::kNone;
  }

  void FoundBad(const Gap& gap, const std::string&) override {
    const std::lock_guard lock(mutex_);
    PERDURE_CHECK(!result_->found_bad.has_value() || result_->found_bad == gap);
    result_->found_bad = gap;
  }

  // A rank is lost: nothing will be settled any more.
  void GiveUp() {
    const std::lock_guard lock(mutex_);
    given_up_ = true;
    settled_.notify_all();
  }

  absl::Status Saved(const SavedRun& saved) override {
    const std::lock_guard lock(mutex_);
    if (!saved.status.ok()) return saved.status;
    if (saved.trail.has_value()) trail_ = *saved.trail;
    if (saved.run.has_value()) runs_[saved.run->file].push_back(*saved.run);
    if (++written_ < config_.layout.ranks()) return absl::OkStatus();
    const absl::Status status = Publish(saved.step);
    runs_.clear();
    written_ = 0;
    settled_step_ = saved.step;
    settled_.notify_all();
    return status;
  }

  absl::StatusOr<SaveOrder> NextOrder(int64_t step) override {
    std::unique_lock lock(mutex_);
    settled_.wait(lock, [&] { return settled_step_ >= step || given_up_; });
    if (settled_step_ < step) return absl::CancelledError("the generation has ended");
    return SaveOrder{.kind = SaveOrder::Kind::kSettled};
  }

  absl::Status Verified(int64_t, const std::string&, const absl::Status& vote) override {
    return vote;
  }

 private:
  absl::Status Publish(int64_t step) {
    const AtomTable table(ModelTensors(config_.model, config_.numerics.tensor_shards),
                          config_.numerics.atom_elements);
    Manifest manifest;
    manifest.step = step;
    manifest.phase_name = "tiny";
    manifest.run_id = "tiny";
    manifest.created = "2026-01-01T00:00:00.000Z";
    manifest.generation = job_.generation;
    manifest.trail = trail_;
    manifest.samples = SamplesAt(step);
    manifest.gaps = GapsBehind(job_.gaps, step);
    for (const auto& [_, runs] : runs_) {
      ASSIGN_OR_RETURN(PartReport part, JoinRuns(runs));
      manifest.parts.push_back(std::move(part));
    }
    result_->checkpoint = job_.run_directory + "/ckpt/" + CheckpointName(step, job_.generation, 0);
    const absl::Status status = WriteManifest(result_->checkpoint, table, manifest).status();
    result_->certificate = manifest.certificate;
    result_->certificates[step] = manifest.certificate;
    return status;
  }

  int64_t SamplesAt(int64_t step) const {
    if (step == 0) return 0;
    const StepInfo last = StepSchedule(config_).At(step - 1);
    return last.first_sample + last.batch;
  }

  TrainingJob job_;
  RunConfig config_;
  TrainingResult* result_;
  std::mutex mutex_;
  std::condition_variable settled_;
  std::map<std::string, std::vector<RunReport>> runs_;  // By file.
  Trail trail_;                                         // Of the state that is being saved.
  int64_t written_ = 0;
  int64_t settled_step_ = -1;
  bool given_up_ = false;
};

}  // namespace

RunConfig TinyConfig(const std::string& dtype) {
  RunConfig config;
  config.name = "tiny";
  config.seed = 7;
  config.model = {
      .layers = 4, .hidden = 32, .heads = 4, .kv_heads = 4, .head_dim = 8, .ffn = 64, .vocab = 61};
  config.model.init_range = 0.05;
  PhaseConfig pretrain;
  pretrain.name = "pretrain";
  pretrain.samples = 66;
  pretrain.context = 16;
  pretrain.rope_theta = 10000;
  pretrain.batch = {.initial = 4, .increment = 6, .ramp_samples = 16, .final = 10};
  pretrain.rate = {.peak = 1e-2, .final = 1e-3, .warmup_samples = 8, .decay = "cosine"};
  pretrain.mixture = {{"en", 0.7}, {"fr", 0.3}};
  PhaseConfig extension = pretrain;
  extension.name = "extension";
  extension.samples = 18;
  extension.context = 32;
  extension.rope_theta = 1e6;
  extension.batch = {.initial = 6, .increment = 0, .ramp_samples = 0, .final = 6};
  extension.rate = {.peak = 1e-3, .final = 0, .warmup_samples = 0, .decay = "linear"};
  extension.mixture = {{"fr", 1.0}};
  config.phases = {pretrain, extension};
  config.numerics = {
      .dtype = dtype, .tensor_shards = 4, .micro_batch = 1, .leaf = 2, .atom_elements = 200};
  config.numerics.backend = "cpu";
  config.layout = {.tensor = 1, .pipeline = 1, .data = 1, .zero = 1, .transport = "local"};
  config.checkpoint.every = absl::ZeroDuration();
  return config;
}

void WriteTinyData(const std::string& directory) {
  uint64_t stream = 0;
  for (const char* name : {"en", "fr"}) {
    auto writer = IndexedDatasetWriter::Create(directory + "/" + name, 61);
    PERDURE_CHECK(writer.ok());
    ++stream;
    for (uint64_t document = 0; document < 40; ++document) {
      std::vector<int32_t> tokens;
      // Mostly predictable from the token before, so that there is something to learn.
      int32_t token = static_cast<int32_t>(document % 61);
      for (uint64_t i = 0; i < 60; ++i) {
        const auto random = RandomBits(stream, RandomPurpose::kTest, document, i);
        token = random[0] % 8 == 0 ? static_cast<int32_t>(random[1] % 61)
                                   : (token * 5 + static_cast<int32_t>(stream)) % 61;
        tokens.push_back(token);
      }
      PERDURE_CHECK((*writer)->AddDocument(tokens).ok());
    }
    PERDURE_CHECK((*writer)->Finish().ok());
  }
}

namespace {

// One rank's life.
absl::StatusOr<Outcome> RunRank(const TrainingJob& job, int rank,
                                std::span<const std::string> addresses, MemoryHost* memory_host,
                                std::unique_ptr<Transport> transport) {
  if (job.wrap_transport) transport = job.wrap_transport(rank, std::move(transport));
  std::unique_ptr<RankHost> wrapped;
  if (job.wrap_host) wrapped = job.wrap_host(rank, memory_host);
  RankHost* host = wrapped == nullptr ? memory_host : wrapped.get();
  RETURN_IF_ERROR(transport->Connect(addresses, absl::Seconds(30)));
  TrainerOptions options{.config = job.config,
                         .data_directory = job.data_directory,
                         .run_directory = job.run_directory,
                         .generation = job.generation,
                         .ranks_per_file = 2,
                         .run_id = "tiny",
                         .until_step = job.until_step,
                         .gaps = job.gaps,
                         .snapshot_peers = job.snapshot_peers};
  if (!job.snapshot_directories.empty())
    options.snapshot_directory = job.snapshot_directories[static_cast<size_t>(rank)];
  ASSIGN_OR_RETURN(const std::unique_ptr<Trainer> trainer,
                   Trainer::Create(options, job.start, job.make_ops(), transport.get(), host));
  if (job.made) job.made(rank, trainer.get());
  absl::StatusOr<Outcome> outcome = trainer->Run();
  if (job.made) job.made(rank, nullptr);
  if (!outcome.ok() || *outcome == Outcome::kFoundBad)
    memory_host->GiveUp();  // Before the trainer ends: it waits for its saver.
  return outcome;
}

}  // namespace

TrainingResult RunJob(const TrainingJob& job) {
  TrainingResult result;
  if (const absl::Status made = MakeDirectories(job.run_directory + "/ckpt"); !made.ok())
    return {.status = made};
  const auto ranks = static_cast<int>(job.config.layout.ranks());
  const std::shared_ptr<LocalHub> hub = NewLocalHub(ranks);
  MemoryHost host(job, &result);
  std::vector<std::string> addresses(static_cast<size_t>(ranks));
  result.statuses.resize(static_cast<size_t>(ranks));
  result.outcomes.resize(static_cast<size_t>(ranks));
  std::vector<std::unique_ptr<Transport>> transports;
  for (int r = 0; r < ranks; ++r) {
    transports.push_back(*NewTransport("local", {.rank = r, .size = ranks}, hub));
    addresses[static_cast<size_t>(r)] = *transports.back()->LocalAddress();
  }
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r)
    threads.emplace_back([&, at = static_cast<size_t>(r), r] {
      const absl::StatusOr<Outcome> ran =
          RunRank(job, r, addresses, &host, std::move(transports[at]));
      result.statuses[at] = ran.status();
      if (ran.ok())
        result.outcomes[at] = *ran;
      else
        host.GiveUp();
      if (job.ended) job.ended(r);
    });
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& status : result.statuses) result.status.Update(status);
  result.complete = result.outcomes[0] == Outcome::kComplete;
  return result;
}

TrainingResult Train(const RunConfig& config, const std::string& data_directory,
                     const std::string& run_directory, const std::string& start_checkpoint,
                     int64_t until_step, const OpsFactory& make_ops) {
  TrainingJob job{.config = config,
                  .data_directory = data_directory,
                  .run_directory = run_directory,
                  .until_step = until_step,
                  .make_ops = make_ops};
  if (!start_checkpoint.empty()) {
    absl::StatusOr<Manifest> manifest = ReadManifest(start_checkpoint, nullptr);
    if (!manifest.ok()) return {.status = manifest.status()};
    job.start = {.step = manifest->step, .trail = manifest->trail, .checkpoint = start_checkpoint};
    job.start.manifest = *std::move(manifest);
  }
  return RunJob(job);
}

}  // namespace perdure
