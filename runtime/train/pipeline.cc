#include "runtime/train/pipeline.h"

#include <algorithm>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// Operation numbers on the pipeline group: (receiving virtual stage, direction). Messages of one
// kind match in order, which is micro-batch order on both sides.
uint32_t Operation(int virtual_stage, bool backward) {
  return static_cast<uint32_t>(2 * virtual_stage + (backward ? 1 : 0));
}

// Micro-batches whose tokens may wait for the device at once. Enough that the host waits for it a
// few times a step at most; few enough to be no memory.
constexpr int kStagedBatches = 64;

}  // namespace

DType DTypeOf(const NumericsConfig& numerics) {
  return numerics.dtype == "bf16" ? DType::kBF16 : DType::kF32;
}

int64_t LeavesOf(const NumericsConfig& numerics, int64_t batch) {
  const int64_t leaf_samples = numerics.micro_batch * numerics.leaf;
  return (batch + leaf_samples - 1) / leaf_samples;
}

std::vector<int> SlotsOf(const RunConfig& config, const PhaseConfig& phase, int stage) {
  const LayoutConfig& layout = config.layout;
  std::vector<int> slots(static_cast<size_t>(layout.virtual_stages), 1);
  const int64_t leaves =
      LeavesOf(config.numerics, std::max(phase.batch.initial, phase.batch.final));
  const int64_t rounds = (leaves + layout.data - 1) / layout.data;
  for (int64_t r = 1; r <= rounds; ++r) {  // A ramp has steps of fewer rounds.
    const PipelineSchedule schedule = MakePipelineSchedule(static_cast<int>(layout.pipeline),
                                                           static_cast<int>(layout.virtual_stages),
                                                           r * config.numerics.leaf, stage);
    for (size_t c = 0; c < slots.size(); ++c)
      slots[c] = std::max(slots[c], schedule.in_flight_max[c]);
    // Once a pipeline is full, more rounds do not put more in flight.
    if (r * config.numerics.leaf >= 4 * layout.pipeline * layout.virtual_stages) break;
  }
  return slots;
}

StageOptions StageOptionsOf(const RunConfig& config, const PhaseConfig& phase, int tensor_index,
                            int slots) {
  StageOptions options;
  options.model = config.model;
  options.dtype = DTypeOf(config.numerics);
  options.slot = {
      .shards = config.numerics.tensor_shards, .size = config.layout.tensor, .index = tensor_index};
  options.micro_batch = config.numerics.micro_batch;
  options.context = phase.context;
  options.rope_theta = phase.rope_theta;
  options.recompute = config.layout.recompute == "full";
  options.slots = slots;
  return options;
}

// The tensor axis over a communication group.
class Pipeline::Axis final : public TensorAxis {
 public:
  explicit Axis(Collectives* group) : group_(group) {}
  absl::Status AllGather(const void* in, size_t bytes, void* out) override {
    return group_->AllGather(in, bytes, out);
  }
  absl::Status ReduceScatterTree(const float* partial, int64_t count, float* out) override {
    return group_->ReduceScatterTree(partial, count, out);
  }
  absl::Status AllReduceTree(const float* partial, int64_t count, float* out) override {
    return group_->AllReduceTree(partial, count, out);
  }

 private:
  Collectives* group_;
};

struct Pipeline::Message {
  bool posted = false;
  std::vector<RequestPtr> requests;
};

// One virtual stage on this rank with its messages under way.
struct Pipeline::Chunk {
  std::unique_ptr<Stage> stage;
  int slots = 1;
  Matrix output_gradient[2], input_gradient[2];  // [Mt, h], by micro-batch parity.
  std::vector<Message> input, output;            // By slot: activations received, sent.
  Message gradient_received[2], gradient_sent[2];
};

Pipeline::Pipeline(const Options& options, const AtomTable* table, Ops* ops, ShardedState* state,
                   Collectives* tensor, Collectives* pipeline, const SampleOrder* samples)
    : options_(options),
      ops_(ops),
      sync_(options.sync ? options.sync : [ops] { return ops->Sync(); }),
      state_(state),
      pipeline_(pipeline),
      samples_(samples),
      axis_(std::make_unique<Axis>(tensor)),
      stages_(pipeline->size()),
      chunks_count_(static_cast<int>(options.config.layout.virtual_stages)),
      dtype_(DTypeOf(options.config.numerics)) {
  const RunConfig& config = options_.config;
  const PhaseConfig& phase = config.phases[static_cast<size_t>(options_.phase)];
  const std::vector<int> slots = SlotsOf(config, phase, options_.at.pipeline);
  rows_ = config.numerics.micro_batch * phase.context;
  own_rows_ = rows_ / config.layout.tensor;
  int first_bucket = 0;
  for (int c = 0; c < chunks_count_; ++c) {
    auto chunk = std::make_unique<Chunk>();
    chunk->slots = slots[static_cast<size_t>(c)];
    StageOptions stage = StageOptionsOf(config, phase, options_.at.tensor, chunk->slots);
    stage.first_bucket = first_bucket;
    const auto layers =
        LayersOfStage(config.model.layers, int64_t{stages_} * chunks_count_, VirtualStage(c));
    const std::span<const Bucket> buckets(state_->buckets().data() + first_bucket, layers.size());
    PERDURE_CHECK(buckets.front().layer == layers.front());
    chunk->stage = std::make_unique<Stage>(stage, buckets, table, ops_, axis_.get(), state_);
    chunk->input.resize(static_cast<size_t>(chunk->slots));
    chunk->output.resize(static_cast<size_t>(chunk->slots));
    const size_t bytes = static_cast<size_t>(own_rows_ * config.model.hidden) * SizeOf(dtype_);
    for (Matrix* gradients : {chunk->output_gradient, chunk->input_gradient})
      for (int parity = 0; parity < 2; ++parity)
        gradients[parity] = Matrix(ops_->Allocate(bytes), dtype_, own_rows_, config.model.hidden);
    first_bucket += static_cast<int>(layers.size());
    chunks_.push_back(std::move(chunk));
  }
  const size_t token_bytes = static_cast<size_t>(2 * rows_) * sizeof(int32_t);
  tokens_ = static_cast<int32_t*>(ops_->Allocate(token_bytes));
  staging_ = static_cast<int32_t*>(ops_->AllocateHost(kStagedBatches * token_bytes));
  sample_.resize(static_cast<size_t>(phase.context) + 1);
  const int64_t leaves =
      LeavesOf(config.numerics, std::max(phase.batch.initial, phase.batch.final));
  const auto rounds = static_cast<size_t>((leaves + config.layout.data - 1) / config.layout.data);
  round_losses_ = static_cast<double*>(ops_->Allocate(rounds * sizeof(double)));
  host_losses_ = static_cast<double*>(ops_->AllocateHost(rounds * sizeof(double)));
}

Pipeline::~Pipeline() {
  for (const auto& chunk : chunks_)
    for (Matrix* gradients : {chunk->output_gradient, chunk->input_gradient})
      for (int parity = 0; parity < 2; ++parity) ops_->Free(gradients[parity].data);
  ops_->Free(tokens_);
  ops_->Free(round_losses_);
  ops_->FreeHost(staging_);
  ops_->FreeHost(host_losses_);
}

int Pipeline::VirtualStage(int chunk) const { return chunk * stages_ + options_.at.pipeline; }

int Pipeline::SlotOf(const Pass& pass) const {
  return static_cast<int>(pass.micro_batch % chunks_[static_cast<size_t>(pass.chunk)]->slots);
}

Pipeline::MicroBatch Pipeline::Describe(const StepInfo& step, int64_t micro_batch) const {
  const NumericsConfig& numerics = options_.config.numerics;
  MicroBatch result;
  result.round = first_round_ + micro_batch / numerics.leaf;
  const int64_t within = micro_batch % numerics.leaf;
  const int64_t replicas = options_.config.layout.data;
  const int64_t leaf = result.round * replicas + (options_.at.data + shift_) % replicas;
  result.leaf_is_real = leaf < LeavesOf(numerics, step.batch);
  const int64_t first = (leaf * numerics.leaf + within) * numerics.micro_batch;
  result.real = first < step.batch;
  result.first_of_leaf = within == 0;
  result.last_of_leaf = within == numerics.leaf - 1;
  result.first_sample = step.phase_sample + first;
  return result;
}

// Enqueued: passes that are under way still find the tokens before.
absl::Status Pipeline::UploadTokens(int64_t first_sample) {
  if (staged_ == kStagedBatches) {
    RETURN_IF_ERROR(sync_());
    staged_ = 0;
  }
  int32_t* tokens = staging_ + 2 * rows_ * staged_++;
  int32_t* targets = tokens + rows_;
  const int64_t context = static_cast<int64_t>(sample_.size()) - 1;
  for (int64_t i = 0; i < options_.config.numerics.micro_batch; ++i) {
    RETURN_IF_ERROR(samples_->Read(samples_->Locate(first_sample + i), sample_));
    std::copy(sample_.begin(), sample_.end() - 1, tokens + i * context);
    std::copy(sample_.begin() + 1, sample_.end(), targets + i * context);
  }
  ops_->Upload(tokens, static_cast<size_t>(2 * rows_) * sizeof(int32_t), tokens_);
  return absl::OkStatus();
}

absl::Status Pipeline::Finish(Message& message) {
  if (!message.posted) return absl::OkStatus();
  message.posted = false;
  const absl::Status status = pipeline_->WaitAll(message.requests);
  message.requests.clear();
  return status;
}

void Pipeline::Post(Message& message, uint32_t operation, const Transfer& transfer) {
  message.posted = true;
  message.requests = pipeline_->Start(operation, {&transfer, 1});
}

// Posts what `pass` will need, unless its memory is still in use by `running`, the pass before it.
void Pipeline::PostReceive(const StepInfo& step, const Pass& pass, const Pass* running) {
  if (!Describe(step, pass.micro_batch).real) return;
  Chunk& chunk = *chunks_[static_cast<size_t>(pass.chunk)];
  const int k = VirtualStage(pass.chunk), last = stages_ * chunks_count_ - 1;
  const size_t bytes =
      static_cast<size_t>(own_rows_ * options_.config.model.hidden) * SizeOf(dtype_);
  if (pass.backward) {
    Message& message = chunk.gradient_received[pass.micro_batch % 2];
    if (k == last || message.posted) return;
    Post(message, Operation(k, true),
         {.kind = Transfer::Kind::kRecv,
          .member = (k + 1) % stages_,
          .data = chunk.output_gradient[pass.micro_batch % 2].data,
          .bytes = bytes});
    return;
  }
  const int slot = SlotOf(pass);
  Message& message = chunk.input[static_cast<size_t>(slot)];
  if (k == 0 || message.posted) return;
  if (running != nullptr && running->chunk == pass.chunk && SlotOf(*running) == slot) return;
  Post(message, Operation(k, false),
       {.kind = Transfer::Kind::kRecv,
        .member = (k - 1) % stages_,
        .data = chunk.stage->Input(slot).data,
        .bytes = bytes});
}

Pipeline::PassBegin Pipeline::Begins(const Pass& pass) const {
  const int k = VirtualStage(pass.chunk), last = stages_ * chunks_count_ - 1;
  PassBegin begin{.backward = pass.backward, .micro_batch = pass.micro_batch};
  if (pass.backward ? k < last : k > 0) begin.peer = (pass.backward ? k + 1 : k - 1) % stages_;
  if (begin.peer == options_.at.pipeline) begin.peer = -1;
  return begin;
}

absl::Status Pipeline::Forward(const StepInfo& step, const Pass& pass) {
  Chunk& chunk = *chunks_[static_cast<size_t>(pass.chunk)];
  const MicroBatch batch = Describe(step, pass.micro_batch);
  if (!batch.real) return chunk.stage->PhantomForward();
  const int k = VirtualStage(pass.chunk), last = stages_ * chunks_count_ - 1;
  const int slot = SlotOf(pass);
  RETURN_IF_ERROR(Finish(chunk.input[static_cast<size_t>(slot)]));
  RETURN_IF_ERROR(Finish(chunk.output[static_cast<size_t>(slot)]));
  if (k == 0) RETURN_IF_ERROR(UploadTokens(batch.first_sample));
  RETURN_IF_ERROR(chunk.stage->Forward(slot, tokens_));
  if (k < last) {
    const Matrix out = chunk.stage->Output(slot);
    Post(chunk.output[static_cast<size_t>(slot)], Operation(k + 1, false),
         {.kind = Transfer::Kind::kSend,
          .member = (k + 1) % stages_,
          .data = out.data,
          .bytes = out.bytes()});
  }
  return absl::OkStatus();
}

absl::Status Pipeline::Backward(const StepInfo& step, const Pass& pass) {
  Chunk& chunk = *chunks_[static_cast<size_t>(pass.chunk)];
  const MicroBatch batch = Describe(step, pass.micro_batch);
  if (!batch.real) return chunk.stage->PhantomBackward(batch.last_of_leaf, batch.leaf_is_real);
  const int k = VirtualStage(pass.chunk), last = stages_ * chunks_count_ - 1;
  const auto parity = static_cast<size_t>(pass.micro_batch % 2);
  RETURN_IF_ERROR(Finish(chunk.gradient_received[parity]));
  RETURN_IF_ERROR(Finish(chunk.gradient_sent[parity]));
  if (k == 0 || k == last) RETURN_IF_ERROR(UploadTokens(batch.first_sample));
  Stage::BackwardOptions options;
  options.tokens = tokens_;
  options.targets = tokens_ + rows_;
  options.output_gradient = chunk.output_gradient[parity];
  options.input_gradient = chunk.input_gradient[parity];
  options.loss_scale = static_cast<float>(1.0 / static_cast<double>(step.batch * step.context));
  options.first_of_leaf = batch.first_of_leaf;
  options.last_of_leaf = batch.last_of_leaf;
  options.loss = round_losses_ + batch.round;
  RETURN_IF_ERROR(chunk.stage->Backward(SlotOf(pass), options));
  if (k > 0) {
    const Matrix gradient = chunk.input_gradient[parity];
    Post(chunk.gradient_sent[parity], Operation(k - 1, true),
         {.kind = Transfer::Kind::kSend,
          .member = (k - 1) % stages_,
          .data = gradient.data,
          .bytes = gradient.bytes()});
  }
  return absl::OkStatus();
}

absl::Status Pipeline::RunStep(const StepInfo& step) {
  first_round_ = shift_ = 0;
  RETURN_IF_ERROR(state_->BeginStep(LeavesOf(options_.config.numerics, step.batch)));
  const auto rounds = static_cast<size_t>(state_->rounds());
  losses_ = std::span(host_losses_, rounds);
  // As floats: eight zero bytes are 0.0.
  ops_->Zero(Matrix(round_losses_, DType::kF32, 1, 2 * state_->rounds()));
  RETURN_IF_ERROR(RunPasses(step, state_->rounds()));
  ops_->Download(round_losses_, rounds * sizeof(double), host_losses_);
  return absl::OkStatus();
}

absl::Status Pipeline::RunLeaf(const StepInfo& step, int64_t round, int shift) {
  first_round_ = round;
  shift_ = shift;
  return RunPasses(step, 1);
}

absl::Status Pipeline::RunPasses(const StepInfo& step, int64_t rounds) {
  staged_ = 0;  // Whoever took the losses of the step before has synchronised.
  const PipelineSchedule schedule = MakePipelineSchedule(
      stages_, chunks_count_, rounds * options_.config.numerics.leaf, options_.at.pipeline);
  const Pass* running = nullptr;
  for (size_t i = 0; i < schedule.passes.size(); ++i) {
    const Pass& pass = schedule.passes[i];
    if (options_.before_pass) RETURN_IF_ERROR(options_.before_pass(Begins(pass)));
    PostReceive(step, pass, nullptr);
    running = &pass;
    if (i + 1 < schedule.passes.size()) PostReceive(step, schedule.passes[i + 1], running);
    RETURN_IF_ERROR(pass.backward ? Backward(step, pass) : Forward(step, pass));
  }
  for (const auto& chunk : chunks_) {
    for (Message& message : chunk->output) RETURN_IF_ERROR(Finish(message));
    for (Message& message : chunk->gradient_sent) RETURN_IF_ERROR(Finish(message));
  }
  return absl::OkStatus();
}

}  // namespace perdure
