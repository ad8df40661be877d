// Blocks and whole models through model::Stage, their memory taken from the backend under test.
#include <array>
#include <memory>
#include <numeric>
#include <span>
#include <string>

#include "model/parameters.h"
#include "model/stage.h"
#include "runtime/base/status.h"
#include "tests/bench/gpu_bench.h"

namespace perdure {
namespace {

class MemoryAccess final : public ParameterAccess {
 public:
  MemoryAccess(Bench& bench, const AtomTable& table, std::vector<Bucket> buckets)
      : buckets_(std::move(buckets)) {
    const int64_t size = buckets_.back().offset + buckets_.back().size;
    weights_ = bench.New(DType::kBF16, 1, size, Values::kSmall);
    gradients_ = bench.NewFloats(size);
    const std::vector<uint16_t> ones(static_cast<size_t>(kHidden), ToBF16(1));
    for (const Bucket& bucket : buckets_)
      for (const Piece& piece : bucket.pieces)
        if (At(table.tensors(), piece.tensor).init_std == 0)  // A norm.
          bench.ops().Upload(ones.data(), ones.size() * 2,
                             weights_.Cols(bucket.offset + piece.offset, piece.size).data);
    bench.Note(bench.ops().Sync());
  }
  absl::StatusOr<const void*> Weights(int bucket) override {
    return weights_.Cols(At(buckets_, bucket).offset, 1).data;
  }
  void Release(int) override {}
  absl::StatusOr<float*> Gradients(int bucket) override {
    return gradients_ + At(buckets_, bucket).offset;
  }
  absl::Status GradientsReady(int) override { return absl::OkStatus(); }
  const std::vector<Bucket>& buckets() const { return buckets_; }

 private:
  std::vector<Bucket> buckets_;
  Matrix weights_;
  float* gradients_ = nullptr;
};

// Blocks alone, or with the embedding before and the head behind them; leaves of four
// micro-batches.
class ModelStep {
 public:
  ModelStep(Bench& bench, int64_t shards, int64_t batch, int64_t context, bool whole)
      : bench_(bench), whole_(whole), context_(context), rows_(batch * context) {
    model_.layers = bench.options().layers;
    model_.hidden = kHidden;
    model_.heads = kHeads;
    model_.kv_heads = kKvHeads;
    model_.ffn = kFfn;
    model_.vocab = kVocab;
    model_ = ResolveModel(model_);
    table_ = std::make_unique<AtomTable>(ModelTensors(model_, shards), 262144);
    std::vector<int64_t> layers(static_cast<size_t>(model_.layers + (whole ? 2 : 0)));
    std::iota(layers.begin(), layers.end(), whole ? -1 : 0);
    const TensorSlot slot{.shards = shards, .size = 1, .index = 0};
    access_ =
        std::make_unique<MemoryAccess>(bench, *table_, MakeBuckets(*table_, model_, slot, layers));
    stage_ = std::make_unique<Stage>(StageOptions{.model = model_,
                                                  .dtype = DType::kBF16,
                                                  .slot = slot,
                                                  .micro_batch = batch,
                                                  .context = context,
                                                  .rope_theta = 500000},
                                     access_->buckets(), table_.get(), &bench.ops(), nullptr,
                                     access_.get());
    options_.loss_scale = 1.0F / static_cast<float>(rows_);
    if (whole) {
      options_.tokens = bench.NewTokens(Tokens(rows_, true, 1));
      options_.targets = bench.NewTokens(Tokens(rows_, true, 2));
      options_.loss = bench.NewDoubles(1);
    } else {
      bench.Fill(stage_->Input(0), Values::kNormal);
      options_.output_gradient = bench.New(DType::kBF16, rows_, kHidden, Values::kSmall);
      options_.input_gradient = bench.New(DType::kBF16, rows_, kHidden);
    }
  }

  void Run() {
    bench_.Note(stage_->Forward(0, options_.tokens));
    Stage::BackwardOptions options = options_;
    options.first_of_leaf = turn_ % 4 == 0;
    options.last_of_leaf = ++turn_ % 4 == 0;
    bench_.Note(stage_->Backward(0, options));
  }
  // 6 a token for each weight of a matmul (the head's are, the embedding's are not), and attention:
  // 6 L d T of the unmasked half, twice that of the square.
  double Flop(bool causal) const {
    const int64_t block = 2 * kHidden * (kHeads + kKvHeads) * kHeadDim + 3 * kHidden * kFfn;
    const int64_t weights = model_.layers * block + (whole_ ? kHidden * kVocab : 0);
    const double attention = (causal ? 6 : 12) * Real(model_.layers * kHidden) * Real(context_);
    return Real(rows_) * (6 * Real(weights) + attention);
  }
  double tokens() const { return Real(rows_); }

 private:
  Bench& bench_;
  bool whole_;
  int64_t context_, rows_;
  ModelConfig model_;
  std::unique_ptr<AtomTable> table_;
  std::unique_ptr<MemoryAccess> access_;
  std::unique_ptr<Stage> stage_;
  Stage::BackwardOptions options_;
  int64_t turn_ = 0;
};

}  // namespace

void BenchModels(Bench& bench) {
  for (const auto& [batch, context] : {std::pair<int64_t, int64_t>{2, 4096}, {1, 32000}})
    for (const int64_t shards : {1, 4})
      for (const bool whole : {false, true})
        bench.Run(fmt::format("{} {} V{} L{}", whole ? "model" : "blocks", context, shards,
                              bench.options().layers),
                  [&](Bench& b) {
                    const auto step = std::make_shared<ModelStep>(b, shards, batch, context, whole);
                    return Case{.flop = step->Flop(true),
                                .run = [step](int64_t) { step->Run(); },
                                .tokens = step->tokens(),
                                .square_flop = step->Flop(false)};
                  });
}

}  // namespace perdure
