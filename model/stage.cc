#include "model/stage.h"

#include <cmath>
#include <cstring>

#include "model/stage_internal.h"
#include "runtime/base/status.h"

namespace perdure {

// ---- memory

void Stage::Block::TakeAll(Bump& bump, const Stage& stage) {
  const StageOptions& o = stage.options_;
  const int64_t h = o.model.hidden, rows = stage.rows_, own = stage.own_rows_;
  const int64_t f = o.model.ffn / o.slot.shards;
  n1 = bump.Take(o.dtype, own, h);
  x2 = bump.Take(o.dtype, own, h);
  n2 = bump.Take(o.dtype, own, h);
  rstd1 = bump.TakeFloats(own);
  rstd2 = bump.TakeFloats(own);
  for (int64_t s = 0; s < o.slot.local(); ++s) {
    qkv.push_back(bump.Take(o.dtype, rows, stage.attention_.qkv_cols()));
    attention.push_back(bump.Take(o.dtype, rows, stage.attention_.out_cols()));
    lse.push_back(bump.TakeFloats(rows * stage.attention_.q_heads));
    gate_up.push_back(bump.Take(o.dtype, rows, 2 * f));
  }
}

void Stage::Work::TakeAll(Bump& bump, const Stage& stage) {
  const StageOptions& o = stage.options_;
  const int64_t h = o.model.hidden, rows = stage.rows_, own = stage.own_rows_;
  const int64_t f = o.model.ffn / o.slot.shards, local = o.slot.local();
  const bool split = o.slot.size > 1;
  rope_cos = bump.TakeFloats(o.context * stage.attention_.head_dim / 2);
  rope_sin = bump.TakeFloats(o.context * stage.attention_.head_dim / 2);
  if (split) {
    gathered_a = bump.Take(o.dtype, rows, h);
    gathered_b = bump.Take(o.dtype, rows, h);
    local_sum = bump.Take(DType::kF32, rows, h);
    reduced = bump.Take(DType::kF32, own, h);
  }
  for (int64_t s = 0; s < local; ++s) parts.push_back(bump.Take(DType::kF32, rows, h));
  dnorm = bump.Take(o.dtype, own, h);
  dx2 = bump.Take(o.dtype, own, h);
  for (Matrix& d : dblock) d = bump.Take(o.dtype, own, h);
  activation = bump.Take(o.dtype, rows, f);
  dactivation = bump.Take(o.dtype, rows, f);
  dattention = bump.Take(o.dtype, rows, stage.attention_.out_cols());
  dqkv = bump.Take(o.dtype, rows, stage.attention_.qkv_cols());
  norm_sum = bump.TakeFloats(kNormsPerBlock * h);
  if (stage.has_embedding_) norm_partials.push_back(nullptr);
  for (int64_t b = 0; b < stage.blocks_; ++b)
    norm_partials.push_back(bump.TakeFloats(local * kNormsPerBlock * h));
  if (o.recompute) {
    scratch.TakeAll(bump, stage);
    scratch_out = bump.Take(o.dtype, own, h);
  }
  if (!stage.has_head_) return;
  norm_partials.push_back(bump.TakeFloats(local * h));
  const int64_t chunk = stage.HeadRows();
  const int64_t widest = (o.model.vocab + o.slot.shards - 1) / o.slot.shards;
  final_norm = bump.Take(o.dtype, own, h);
  final_rstd = bump.TakeFloats(own);
  if (split) final_rows = bump.Take(o.dtype, rows, h);
  for (int64_t s = 0; s < local; ++s) {
    logits.push_back(bump.Take(DType::kF32, chunk, widest));
    row_stats.push_back(bump.TakeFloats(2 * chunk));
  }
  if (o.dtype != DType::kF32) dlogits = bump.Take(o.dtype, chunk, widest);
  row_max = bump.TakeFloats(o.slot.size * chunk);
  row_max_slice = bump.TakeFloats(chunk);
  row_total = bump.TakeFloats(2 * chunk);
}

namespace {

// Angles of the rotary embedding, position * theta^(-2i / head_dim), in fp64 (Su et al. 2021, eq.
// 15).
void FillRope(int64_t context, int64_t head_dim, double theta, std::vector<float>& cosines,
              std::vector<float>& sines) {
  const int64_t half = head_dim / 2;
  cosines.resize(static_cast<size_t>(context * half));
  sines.resize(cosines.size());
  for (int64_t i = 0; i < half; ++i) {
    const double frequency =
        std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    for (int64_t p = 0; p < context; ++p) {
      const double angle = static_cast<double>(p) * frequency;
      const auto at = static_cast<size_t>(p * half + i);
      cosines[at] = static_cast<float>(std::cos(angle));
      sines[at] = static_cast<float>(std::sin(angle));
    }
  }
}

}  // namespace

Stage::Stage(const StageOptions& options, std::span<const Bucket> buckets, const AtomTable* table,
             Ops* ops, TensorAxis* axis, ParameterAccess* access)
    : options_(options),
      buckets_(buckets.begin(), buckets.end()),
      table_(table),
      ops_(ops),
      axis_(axis),
      access_(access),
      work_(std::make_unique<Work>()) {
  const StageOptions& o = options_;
  if (buckets_.empty()) {  // MemoryOf sets the shape itself and only counts.
    return;
  }
  has_embedding_ = buckets_.front().layer < 0;
  has_head_ = buckets_.back().layer == o.model.layers;
  blocks_ = static_cast<int64_t>(buckets_.size()) - has_embedding_ - has_head_;
  SetShape();
  Bump count(nullptr);
  TakeActivations(count);
  activations_.clear();
  final_.clear();
  Work().TakeAll(count, *this);
  slab_ = ops_->Allocate(count.used());
  Bump bump(slab_);
  TakeActivations(bump);
  work_->TakeAll(bump, *this);
  if (o.model.position != "rope") return;
  FillRope(o.context, attention_.head_dim, o.rope_theta, work_->cos, work_->sin);
  ops_->Upload(work_->cos.data(), work_->cos.size() * sizeof(float), work_->rope_cos);
  ops_->Upload(work_->sin.data(), work_->sin.size() * sizeof(float), work_->rope_sin);
}

void Stage::SetShape() {
  const StageOptions& o = options_;
  rows_ = o.micro_batch * o.context;
  PERDURE_CHECK(rows_ % o.slot.shards == 0);
  own_rows_ = rows_ / o.slot.size;
  attention_ = {.batch = o.micro_batch,
                .sequence = o.context,
                .q_heads = o.model.heads / o.slot.shards,
                .kv_heads = o.model.kv_heads / o.slot.shards,
                .head_dim = o.model.head_dim};
  PERDURE_CHECK(attention_.q_heads > 0 && attention_.kv_heads > 0 && attention_.head_dim > 0);
}

// Per slot: the input and what each block keeps; a block's output is the next one's input.
void Stage::TakeActivations(Bump& bump) {
  const StageOptions& o = options_;
  for (int slot = 0; slot < o.slots; ++slot) {
    std::vector<Block> blocks(static_cast<size_t>(blocks_));
    for (Block& block : blocks) {
      block.x = bump.Take(o.dtype, own_rows_, o.model.hidden);
      if (!o.recompute) block.TakeAll(bump, *this);
    }
    activations_.push_back(std::move(blocks));
    final_.push_back(bump.Take(o.dtype, own_rows_, o.model.hidden));
  }
}

Stage::~Stage() {
  if (slab_ != nullptr) ops_->Free(slab_);
}

Stage::Memory Stage::MemoryOf(const StageOptions& options, int64_t blocks, bool embedding,
                              bool head) {
  Stage stage(options, {}, nullptr, nullptr, nullptr, nullptr);
  stage.has_embedding_ = embedding;
  stage.has_head_ = head;
  stage.blocks_ = blocks;
  stage.SetShape();
  Bump activations(nullptr), work(nullptr);
  stage.TakeActivations(activations);
  stage.work_->TakeAll(work, stage);
  return {static_cast<int64_t>(activations.used()), static_cast<int64_t>(work.used())};
}

bool Stage::has_embedding() const { return has_embedding_; }
bool Stage::has_head() const { return has_head_; }

Matrix Stage::Input(int slot) {
  return blocks_ > 0 ? BlockOf(slot, 0).x : final_[static_cast<size_t>(slot)];
}

Matrix Stage::Output(int slot) { return final_[static_cast<size_t>(slot)]; }

Stage::Block& Stage::BlockOf(int slot, int64_t block) {
  return activations_[static_cast<size_t>(slot)][static_cast<size_t>(block)];
}

// ---- passes

absl::Status Stage::Forward(int slot, const int32_t* tokens) {
  int bucket = 0;
  if (has_embedding_) {
    ASSIGN_OR_RETURN(const void* weights, access_->Weights(options_.first_bucket));
    RETURN_IF_ERROR(ForwardEmbedding(BucketAt(0), weights, tokens, Input(slot)));
    access_->Release(options_.first_bucket);
    ++bucket;
  }
  for (int64_t b = 0; b < blocks_; ++b, ++bucket) {
    Block& block = BlockOf(slot, b);
    const Matrix out = b + 1 < blocks_ ? BlockOf(slot, b + 1).x : Output(slot);
    ASSIGN_OR_RETURN(const void* weights, access_->Weights(options_.first_bucket + bucket));
    if (options_.recompute) {
      work_->scratch.x = block.x;
      RETURN_IF_ERROR(ForwardBlock(BucketAt(bucket), weights, work_->scratch, out));
    } else {
      RETURN_IF_ERROR(ForwardBlock(BucketAt(bucket), weights, block, out));
    }
    access_->Release(options_.first_bucket + bucket);
  }
  return absl::OkStatus();
}

absl::Status Stage::Backward(int slot, const BackwardOptions& options) {
  int bucket = static_cast<int>(buckets_.size()) - 1;
  Matrix dout = options.output_gradient;
  int turn = 0;
  if (has_head_) {
    const int id = options_.first_bucket + bucket;
    ASSIGN_OR_RETURN(const void* weights, access_->Weights(id));
    ASSIGN_OR_RETURN(float* gradients, access_->Gradients(id));
    dout = work_->dblock[turn];
    turn ^= 1;
    RETURN_IF_ERROR(
        BackwardHead(BucketAt(bucket), weights, gradients, Output(slot), dout, options));
    access_->Release(id);
    RETURN_IF_ERROR(FinishBucket(bucket, options.last_of_leaf, true));
    --bucket;
  }
  for (int64_t b = blocks_ - 1; b >= 0; --b, --bucket) {
    const int id = options_.first_bucket + bucket;
    ASSIGN_OR_RETURN(const void* weights, access_->Weights(id));
    ASSIGN_OR_RETURN(float* gradients, access_->Gradients(id));
    Block* block = &BlockOf(slot, b);
    if (options_.recompute) {
      work_->scratch.x = block->x;
      block = &work_->scratch;
      RETURN_IF_ERROR(ForwardBlock(BucketAt(bucket), weights, *block, work_->scratch_out));
    }
    Matrix dx = work_->dblock[turn];
    if (b == 0 && !has_embedding_) dx = options.input_gradient;
    turn ^= 1;
    RETURN_IF_ERROR(BackwardBlock(BucketAt(bucket), weights, gradients, *block, dout, dx,
                                  options.first_of_leaf));
    dout = dx;
    access_->Release(id);
    RETURN_IF_ERROR(FinishBucket(bucket, options.last_of_leaf, true));
  }
  if (has_embedding_) {
    ASSIGN_OR_RETURN(float* gradients, access_->Gradients(options_.first_bucket));
    RETURN_IF_ERROR(BackwardEmbedding(BucketAt(0), gradients, dout, options));
    RETURN_IF_ERROR(FinishBucket(0, options.last_of_leaf, true));
  } else if (blocks_ == 0) {
    ops_->Copy(dout, options.input_gradient);
  }
  return absl::OkStatus();
}

absl::Status Stage::PhantomForward() {
  for (int b = 0; b < static_cast<int>(buckets_.size()) - has_head_; ++b) {
    RETURN_IF_ERROR(access_->Weights(options_.first_bucket + b).status());
    access_->Release(options_.first_bucket + b);
  }
  return absl::OkStatus();
}

absl::Status Stage::PhantomBackward(bool last_of_leaf, bool leaf_has_gradient) {
  for (int b = static_cast<int>(buckets_.size()) - 1; b >= 0; --b) {
    if (b > 0 || !has_embedding_) {
      RETURN_IF_ERROR(access_->Weights(options_.first_bucket + b).status());
      access_->Release(options_.first_bucket + b);
    }
    RETURN_IF_ERROR(FinishBucket(b, last_of_leaf, leaf_has_gradient));
  }
  return absl::OkStatus();
}

// ---- what all parts share

absl::StatusOr<ConstMatrix> Stage::GatherRows(ConstMatrix own, Matrix space) {
  if (options_.slot.size == 1) return own;
  RETURN_IF_ERROR(axis_->AllGather(own.data, own.bytes(), space.data));
  return ConstMatrix(space);
}

absl::Status Stage::SumSlices(std::span<const ConstMatrix> parts, ConstMatrix residual,
                              Matrix out) {
  if (options_.slot.size == 1) {
    ops_->TreeSum(parts, residual, out);
    return absl::OkStatus();
  }
  ConstMatrix local = parts[0];
  if (parts.size() > 1) {
    ops_->TreeSum(parts, {}, work_->local_sum);
    local = work_->local_sum;
  }
  RETURN_IF_ERROR(axis_->ReduceScatterTree(static_cast<const float*>(local.data),
                                           out.rows * out.cols,
                                           static_cast<float*>(work_->reduced.data)));
  const ConstMatrix reduced = work_->reduced;
  ops_->TreeSum({&reduced, 1}, residual, out);
  return absl::OkStatus();
}

void Stage::AddProduct(const ProductSum& sum, size_t slice, Transpose transpose_b, ConstMatrix a,
                       ConstMatrix b) {
  const auto rows = [&](const auto& all) { return all.Rows(sum.first_row, a.rows); };
  // The lowest level of the tree adds neighbours; the matmul may do that.
  const bool joins = slice % 2 == 1 && ops_->AddsWholeProducts();
  const Matrix part = rows(work_->parts[joins ? slice - 1 : slice]);
  if (options_.slot.shards == 1) {  // One part: out needs nothing else.
    const ConstMatrix residual =
        sum.residual.data == nullptr ? ConstMatrix() : ConstMatrix(rows(sum.residual));
    ops_->MatmulAdd(Transpose::kNo, transpose_b, a, b, residual, rows(sum.out), part);
    return;
  }
  ops_->Matmul(Transpose::kNo, transpose_b, a, b, part, joins);
}

absl::Status Stage::FinishProducts(const ProductSum& sum) {
  if (options_.slot.shards == 1) return absl::OkStatus();
  std::vector<ConstMatrix> parts;
  const size_t step = work_->parts.size() > 1 && ops_->AddsWholeProducts() ? 2 : 1;
  for (size_t s = 0; s < work_->parts.size(); s += step) parts.push_back(work_->parts[s]);
  return SumSlices(parts, sum.residual, sum.out);
}

void Stage::NormBackward(ConstMatrix dy, ConstMatrix x, ConstMatrix weight, const float* rstd,
                         ConstMatrix dresidual, Matrix dx, float* partials, int64_t stride,
                         bool first_of_leaf) {
  Matrix dweight(partials, DType::kF32, options_.slot.local(), options_.model.hidden);
  dweight.stride = stride;
  if (first_of_leaf) ops_->Zero(dweight);
  ops_->RmsNormBackward(dy, x, weight, rstd, dresidual, dx, dweight);
}

absl::Status Stage::FinishBucket(int bucket, bool last_of_leaf, bool leaf_has_gradient) {
  if (!last_of_leaf) return absl::OkStatus();
  const int id = options_.first_bucket + bucket;
  float* partials = work_->norm_partials[static_cast<size_t>(bucket)];
  if (leaf_has_gradient && partials != nullptr) {
    ASSIGN_OR_RETURN(float* gradients, access_->Gradients(id));
    const int64_t norms = BucketAt(bucket).layer == options_.model.layers ? 1 : kNormsPerBlock;
    RETURN_IF_ERROR(FinishNorms(BucketAt(bucket), partials, norms, gradients));
  }
  return access_->GradientsReady(id);
}

// The tree over all V sequence slices of the norm weights' gradients.
absl::Status Stage::FinishNorms(const Bucket& bucket, const float* partials, int64_t norms,
                                float* gradients) {
  const int64_t width = norms * options_.model.hidden;
  std::vector<ConstMatrix> parts;
  for (int64_t s = 0; s < options_.slot.local(); ++s)
    parts.emplace_back(partials + s * width, DType::kF32, 1, width);
  ops_->TreeSum(parts, {}, Matrix(work_->norm_sum, DType::kF32, 1, width));
  if (options_.slot.size > 1)
    RETURN_IF_ERROR(axis_->AllReduceTree(work_->norm_sum, width, work_->norm_sum));
  for (int64_t n = 0; n < norms; ++n) {
    const Piece& piece = bucket.pieces[bucket.pieces.size() - static_cast<size_t>(norms - n)];
    ops_->Copy(Matrix(work_->norm_sum + n * options_.model.hidden, DType::kF32, 1, piece.size),
               Matrix(gradients + piece.offset, DType::kF32, 1, piece.size));
  }
  return absl::OkStatus();
}

}  // namespace perdure
