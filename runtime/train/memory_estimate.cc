#include "runtime/train/memory_estimate.h"

#include <algorithm>
#include <vector>

#include "model/parameters.h"
#include "runtime/base/check.h"
#include "runtime/train/mesh.h"

namespace perdure {
namespace {

constexpr int64_t kFloat = 4;
constexpr int64_t kRuntimeBytes = int64_t{64} << 20;

int64_t DivCeil(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Letters as in model/stage.h: M rows of a micro-batch, Mt = M / T own rows, h hidden; a and c the
// attention and qkv columns, f the feed-forward's, of one slice; V slices, V / T of them local.
struct Shape {
  ModelConfig model;
  LayoutConfig layout;
  int64_t V = 1, T = 1, P = 1, D = 1;
  int64_t local = 1;    // V / T.
  int64_t element = 4;  // Bytes of the compute dtype.
  int64_t M = 0, Mt = 0, h = 0, a = 0, c = 0, f = 0;
  int64_t context = 0;
  int64_t micro_batches = 0;  // Of a replica, per step.
  bool recompute = false;
  std::vector<int64_t> bucket_elements{};  // Of tensor rank 0, [layer + 1].
};

Shape MakeShape(const RunConfig& config, const LayoutConfig& layout, const PhaseConfig& phase) {
  PERDURE_CHECK(layout.data > 0);
  Shape s{.model = ResolveModel(config.model), .layout = layout};
  const NumericsConfig& numerics = config.numerics;
  s.V = numerics.tensor_shards;
  s.T = layout.tensor;
  s.P = layout.pipeline;
  s.D = layout.data;
  s.local = s.V / s.T;
  s.element = numerics.dtype == "bf16" ? 2 : 4;
  s.M = numerics.micro_batch * phase.context;
  s.Mt = s.M / s.T;
  s.h = s.model.hidden;
  s.a = s.model.heads * s.model.head_dim / s.V;
  s.c = s.a + 2 * s.model.kv_heads * s.model.head_dim / s.V;
  s.f = s.model.ffn / s.V;
  s.context = phase.context;
  s.micro_batches = ReplicaMicroBatches(numerics, s.D, phase.batch.final);
  s.recompute = layout.recompute == "full";
  s.bucket_elements.resize(static_cast<size_t>(s.model.layers) + 2);
  for (const TensorSpec& tensor : ModelTensors(s.model, s.V)) {
    const int64_t slices = tensor.axis == SliceAxis::kNone ? 1 : s.local;
    for (int64_t slice = 0; slice < slices; ++slice)
      s.bucket_elements[static_cast<size_t>(tensor.layer + 1)] += tensor.SliceSize(slice);
  }
  return s;
}

// What a pipeline rank holds of the model.
struct Part {
  int64_t rank = 0;
  int64_t chunk_blocks = 0;   // Of its largest chunk.
  int64_t elements = 0;       // Of its arena.
  int64_t widest_bucket = 0;  // Elements of its largest: a block, the embedding, norm and head.
  bool head = false;
};

Part MakePart(const Shape& s, int64_t rank) {
  const int64_t stages = s.P * s.layout.virtual_stages;
  Part part{.rank = rank, .head = rank == s.P - 1};
  std::vector<int64_t> layers;
  for (int64_t stage = rank; stage < stages; stage += s.P) {
    const std::vector<int64_t> more = LayersOfStage(s.model.layers, stages, stage);
    const auto is_block = [&](int64_t layer) { return 0 <= layer && layer < s.model.layers; };
    part.chunk_blocks =
        std::max<int64_t>(part.chunk_blocks, std::count_if(more.begin(), more.end(), is_block));
    layers.insert(layers.end(), more.begin(), more.end());
  }
  for (int64_t layer : layers) {
    const int64_t bucket = s.bucket_elements[static_cast<size_t>(layer + 1)];
    part.elements += bucket;
    part.widest_bucket = std::max(part.widest_bucket, bucket);
  }
  return part;
}

// Everything up to ZeRO 2; under ZeRO 3 two buckets gathered at a time, and bf16 copies of the
// owned share, whose fp32 values count as masters.
int64_t ParameterBytes(const Shape& s, const Part& part) {
  if (s.layout.zero < 3) return part.elements * s.element;
  const int64_t owned = s.element == 2 ? DivCeil(part.elements, s.D) : 0;
  return (owned + 2 * part.widest_bucket) * s.element;
}

// The leaf's gradients, twice where one leaf is exchanged while the next is computed and nothing is
// sharded away; and the sum over leaves at the atoms' owners.
int64_t GradientBytes(const Shape& s, const Part& part) {
  const int64_t leaves = s.layout.zero <= 1 && s.D > 1 ? 2 : 1;
  return (leaves * part.elements + DivCeil(part.elements, s.D)) * kFloat;
}

// Two moments, and master values where the whole weights are not fp32, of the owned share.
int64_t OptimizerBytes(const Shape& s, const Part& part) {
  const int64_t owned = s.layout.zero == 0 ? part.elements : DivCeil(part.elements, s.D);
  const bool masters = s.element == 2 || s.layout.zero == 3;
  return owned * (masters ? 3 : 2) * kFloat;
}

// Block inputs and their norms [Mt, h] four times, their rstd, and per local slice qkv [M, c],
// attention [M, a], its log-sum-exp, gate and up [M, 2f].
int64_t BlockBytes(const Shape& s) {
  const int64_t lse = s.M * (s.model.heads / s.V) * kFloat;
  const int64_t slice = s.M * (s.c + s.a + 2 * s.f) * s.element + lse;
  return 4 * s.Mt * s.h * s.element + 2 * s.Mt * kFloat + s.local * slice;
}

// Micro-batches whose activations a pipeline rank holds at once, each of one chunk: 1F1B, or its
// interleaved form (Narayanan et al. 2021), in which the first ranks run further ahead.
int64_t InFlight(const Shape& s, const Part& part) {
  const int64_t chunks = s.layout.virtual_stages;
  const int64_t ahead =
      chunks == 1 ? s.P - part.rank : 2 * (s.P - part.rank - 1) + (chunks - 1) * s.P + 1;
  return std::min(ahead, s.micro_batches * chunks);
}

int64_t ActivationBytes(const Shape& s, const Part& part) {
  const int64_t input = s.Mt * s.h * s.element;
  const int64_t blocks = part.chunk_blocks * (s.recompute ? input : BlockBytes(s));
  const int64_t output = input;  // Of the chunk's last block: sent on, or read by the head.
  return InFlight(s, part) * (blocks + output) + (s.recompute ? BlockBytes(s) : 0);
}

// Partial sums fp32 per local slice, gradients between and inside blocks, and, where T > 1, rows
// gathered from the tensor axis and their sums, and where P > 1 gradients on their way; for the
// head a chunk of logits, M / V rows, per local slice.
int64_t WorkBytes(const Shape& s, const Part& part) {
  int64_t bytes = s.local * s.M * s.h * kFloat;
  bytes += 4 * s.Mt * s.h * s.element;
  bytes += s.M * (2 * s.f + s.a + s.c) * s.element;
  bytes += s.context * s.model.head_dim * kFloat;  // Rotary angles: sine and cosine of half each.
  if (s.P > 1) bytes += 4 * s.layout.virtual_stages * s.Mt * s.h * s.element;
  if (s.T > 1) bytes += 2 * s.M * s.h * s.element + (s.M + s.Mt) * s.h * kFloat;
  if (part.head) {
    const int64_t logits = s.M / s.V * DivCeil(s.model.vocab, s.V);
    bytes += s.local * logits * kFloat + (s.element == 2 ? logits * s.element : 0);
    bytes += (s.Mt + (s.T > 1 ? s.M : 0)) * s.h * s.element;
  }
  return bytes;
}

// What the other replicas send of this rank's share of each bucket, D - 1 times 1 / D of the arena.
int64_t ExchangeBytes(const Shape& s, const Part& part) {
  return s.D == 1 ? 0 : DivCeil(part.elements, s.D) * (s.D - 1) * kFloat;
}

}  // namespace

int64_t ReplicaMicroBatches(const NumericsConfig& numerics, int64_t data, int64_t batch) {
  const int64_t leaves = DivCeil(batch / numerics.micro_batch, numerics.leaf);
  return DivCeil(leaves, data) * numerics.leaf;
}

MemoryEstimate EstimateMemory(const RunConfig& config, const LayoutConfig& layout,
                              const PhaseConfig& phase) {
  const Shape shape = MakeShape(config, layout, phase);
  MemoryEstimate worst;
  for (int64_t rank = 0; rank < shape.P; ++rank) {
    const Part part = MakePart(shape, rank);
    const MemoryEstimate estimate{
        .parameters = ParameterBytes(shape, part),
        .gradients = GradientBytes(shape, part),
        .optimizer = OptimizerBytes(shape, part),
        .activations = ActivationBytes(shape, part),
        .buffers = WorkBytes(shape, part) + ExchangeBytes(shape, part),
        .runtime = kRuntimeBytes,
    };
    if (estimate.total() > worst.total()) worst = estimate;
  }
  return worst;
}

}  // namespace perdure
