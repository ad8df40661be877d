#include "tests/train/trainer_harness.h"

#include <atomic>
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
  MemoryHost(const RunConfig& config, std::string run_directory, TrainingResult* result)
      : config_(config), run_directory_(std::move(run_directory)), result_(result) {}

  absl::Status Loaded(std::span<const int64_t>, std::span<const Digest>) override {
    return absl::OkStatus();
  }

  Command StepFinished(const StepReport& report) override {
    const std::lock_guard lock(mutex_);
    result_->loss_bits.push_back(std::bit_cast<uint64_t>(report.loss));
    result_->grad_norms.push_back(report.grad_norm);
    chains_[report.step] = report.sample_chain;
    return Command::kNone;
  }

  absl::Status Saved(const SavedRun& saved) override {
    const std::lock_guard lock(mutex_);
    if (!saved.status.ok()) return saved.status;
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
    settled_.wait(lock, [&] { return settled_step_ >= step; });
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
    manifest.generation = 1;
    manifest.sample_chain = chains_[step];
    for (const auto& [_, runs] : runs_) {
      ASSIGN_OR_RETURN(PartReport part, JoinRuns(runs));
      manifest.parts.push_back(std::move(part));
    }
    result_->checkpoint = run_directory_ + "/ckpt/" + CheckpointName(step, 1, 0);
    const absl::Status status = WriteManifest(result_->checkpoint, table, manifest).status();
    result_->certificate = manifest.certificate;
    return status;
  }

  RunConfig config_;
  std::string run_directory_;
  TrainingResult* result_;
  std::mutex mutex_;
  std::condition_variable settled_;
  std::map<std::string, std::vector<RunReport>> runs_;  // By file.
  int64_t written_ = 0;
  int64_t settled_step_ = -1;
  std::map<int64_t, Digest> chains_;  // By step: training goes on while a step is being saved.
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

TrainingResult Train(const RunConfig& config, const std::string& data_directory,
                     const std::string& run_directory, const std::string& start_checkpoint,
                     int64_t until_step, const OpsFactory& make_ops) {
  TrainingResult result;
  StartPoint start;
  if (!start_checkpoint.empty()) {
    absl::StatusOr<Manifest> manifest = ReadManifest(start_checkpoint, nullptr);
    if (!manifest.ok()) return {.status = manifest.status()};
    start = {.step = manifest->step,
             .sample_chain = manifest->sample_chain,
             .checkpoint = start_checkpoint};
    start.manifest = *std::move(manifest);
  }
  if (const absl::Status made = MakeDirectories(run_directory + "/ckpt"); !made.ok())
    return {.status = made};
  const auto ranks = static_cast<int>(config.layout.ranks());
  const std::shared_ptr<LocalHub> hub = NewLocalHub(ranks);
  MemoryHost host(config, run_directory, &result);
  std::vector<std::string> addresses(static_cast<size_t>(ranks));
  std::vector<absl::Status> statuses(static_cast<size_t>(ranks));
  std::atomic<bool> complete = false;
  std::vector<std::unique_ptr<Transport>> transports;
  for (int r = 0; r < ranks; ++r) {
    transports.push_back(*NewTransport("local", {.rank = r, .size = ranks}, hub));
    addresses[static_cast<size_t>(r)] = *transports.back()->LocalAddress();
  }
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r)
    threads.emplace_back([&, r] {
      std::unique_ptr<Transport> transport = std::move(transports[static_cast<size_t>(r)]);
      absl::Status& status = statuses[static_cast<size_t>(r)];
      status = transport->Connect(addresses, absl::Seconds(30));
      if (!status.ok()) return;
      TrainerOptions options{.config = config,
                             .data_directory = data_directory,
                             .run_directory = run_directory,
                             .ranks_per_file = 2,
                             .run_id = "tiny",
                             .until_step = until_step};
      auto trainer = Trainer::Create(options, start, make_ops(), transport.get(), &host);
      status = trainer.status();
      if (!status.ok()) return;
      const absl::StatusOr<Outcome> ran = (*trainer)->Run();
      status = ran.status();
      if (ran.ok() && *ran == Outcome::kComplete) complete = true;
    });
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& status : statuses) result.status.Update(status);
  result.complete = complete;
  return result;
}

}  // namespace perdure
