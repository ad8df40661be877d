// One transformer block: x2 = x + O attention(RoPE(QKV norm1(x))); out = x2 + down SwiGLU(gate_up
// norm2(x2)).
#include "model/stage_internal.h"
#include "runtime/base/status.h"

namespace perdure {

Stage::BlockWeights Stage::ViewBlock(const Bucket& bucket, const void* base, DType dtype) const {
  const int64_t h = options_.model.hidden, f = options_.model.ffn / options_.slot.shards;
  const auto local = static_cast<size_t>(options_.slot.local());
  const auto at = [&](size_t piece, int64_t rows, int64_t cols) {
    // One view type serves weights (read) and gradients (written); callers keep them apart.
    char* data = static_cast<char*>(const_cast<void*>(base)) +
                 bucket.pieces[piece].offset * static_cast<int64_t>(SizeOf(dtype));
    return Matrix(data, dtype, rows, cols);
  };
  const auto fused = [&](size_t first, size_t count) {  // Neighbouring pieces read as one matrix.
    int64_t size = 0;
    for (size_t i = 0; i < count; ++i) {
      PERDURE_CHECK(bucket.pieces[first + i].offset == bucket.pieces[first].offset + size);
      size += bucket.pieces[first + i].size;
    }
    return size;
  };
  BlockWeights view;
  size_t piece = 0;
  for (size_t s = 0; s < local; ++s, piece += 3) {
    PERDURE_CHECK(fused(piece, 3) == attention_.qkv_cols() * h);
    view.qkv.push_back(at(piece, attention_.qkv_cols(), h));
  }
  for (size_t s = 0; s < local; ++s, ++piece) view.o.push_back(at(piece, h, attention_.out_cols()));
  for (size_t s = 0; s < local; ++s, piece += 2) {
    PERDURE_CHECK(fused(piece, 2) == 2 * f * h);
    view.gate_up.push_back(at(piece, 2 * f, h));
  }
  for (size_t s = 0; s < local; ++s, ++piece) view.down.push_back(at(piece, h, f));
  view.norm1 = at(piece, 1, h);
  view.norm2 = at(piece + 1, 1, h);
  return view;
}

absl::Status Stage::ForwardBlock(const Bucket& bucket, const void* weights, Block& block,
                                 Matrix out) {
  const BlockWeights w = ViewBlock(bucket, weights, options_.dtype);
  const auto eps = static_cast<float>(options_.model.norm_eps);
  const auto local = static_cast<size_t>(options_.slot.local());
  const ProductSum attention{.residual = block.x, .out = block.x2};
  const ProductSum feed_forward{.residual = block.x2, .out = out};

  ops_->RmsNormForward(block.x, w.norm1, eps, block.n1, block.rstd1);
  ASSIGN_OR_RETURN(const ConstMatrix n1, GatherRows(block.n1, work_->gathered_a));
  for (size_t s = 0; s < local; ++s) {
    ops_->Matmul(Transpose::kNo, Transpose::kYes, n1, w.qkv[s], block.qkv[s], false);
    if (options_.model.position == "rope")
      ops_->Rope(block.qkv[s], attention_, work_->rope_cos, work_->rope_sin, /*inverse=*/false);
    ops_->AttentionForward(block.qkv[s], attention_, block.attention[s], block.lse[s]);
    AddProduct(attention, s, Transpose::kYes, block.attention[s], w.o[s]);
  }
  RETURN_IF_ERROR(FinishProducts(attention));

  ops_->RmsNormForward(block.x2, w.norm2, eps, block.n2, block.rstd2);
  ASSIGN_OR_RETURN(const ConstMatrix n2, GatherRows(block.n2, work_->gathered_a));
  for (size_t s = 0; s < local; ++s) {
    ops_->Matmul(Transpose::kNo, Transpose::kYes, n2, w.gate_up[s], block.gate_up[s], false);
    ops_->SwiGluForward(block.gate_up[s], work_->activation);
    AddProduct(feed_forward, s, Transpose::kYes, work_->activation, w.down[s]);
  }
  return FinishProducts(feed_forward);
}

absl::Status Stage::BackwardBlock(const Bucket& bucket, const void* weights, float* gradients,
                                  Block& block, Matrix dout, Matrix dx, bool first_of_leaf) {
  const BlockWeights w = ViewBlock(bucket, weights, options_.dtype);
  const BlockWeights g = ViewBlock(bucket, gradients, DType::kF32);
  float* partials = work_->norm_partials[static_cast<size_t>(&bucket - buckets_.data())];
  RETURN_IF_ERROR(BackwardFeedForward(w, g, block, dout, work_->dx2, partials, first_of_leaf));
  return BackwardAttention(w, g, block, work_->dx2, dx, partials, first_of_leaf);
}

absl::Status Stage::BackwardFeedForward(const BlockWeights& w, const BlockWeights& g, Block& block,
                                        Matrix dout, Matrix dx, float* partials,
                                        bool first_of_leaf) {
  const bool add = !first_of_leaf;
  const ProductSum dnorm{.residual = {}, .out = work_->dnorm};
  ASSIGN_OR_RETURN(const ConstMatrix d, GatherRows(dout, work_->gathered_a));
  ASSIGN_OR_RETURN(const ConstMatrix n2, GatherRows(block.n2, work_->gathered_b));
  for (size_t s = 0; s < w.down.size(); ++s) {
    Matrix dgate_up = block.gate_up[s];  // Overwritten in place.
    ops_->Matmul(Transpose::kNo, Transpose::kNo, d, w.down[s], work_->dactivation, false);
    ops_->SwiGluBackward(work_->dactivation, block.gate_up[s], dgate_up, work_->activation);
    ops_->Matmul(Transpose::kYes, Transpose::kNo, d, work_->activation, g.down[s], add);
    ops_->Matmul(Transpose::kYes, Transpose::kNo, dgate_up, n2, g.gate_up[s], add);
    AddProduct(dnorm, s, Transpose::kNo, dgate_up, w.gate_up[s]);
  }
  RETURN_IF_ERROR(FinishProducts(dnorm));
  NormBackward(work_->dnorm, block.x2, w.norm2, block.rstd2, dout, dx,
               partials + options_.model.hidden, kNormsPerBlock * options_.model.hidden,
               first_of_leaf);
  return absl::OkStatus();
}

absl::Status Stage::BackwardAttention(const BlockWeights& w, const BlockWeights& g, Block& block,
                                      Matrix dout, Matrix dx, float* partials, bool first_of_leaf) {
  const bool add = !first_of_leaf;
  const ProductSum dnorm{.residual = {}, .out = work_->dnorm};
  ASSIGN_OR_RETURN(const ConstMatrix d, GatherRows(dout, work_->gathered_a));
  ASSIGN_OR_RETURN(const ConstMatrix n1, GatherRows(block.n1, work_->gathered_b));
  for (size_t s = 0; s < w.o.size(); ++s) {
    ops_->Matmul(Transpose::kNo, Transpose::kNo, d, w.o[s], work_->dattention, false);
    ops_->Matmul(Transpose::kYes, Transpose::kNo, d, block.attention[s], g.o[s], add);
    ops_->AttentionBackward(work_->dattention, block.qkv[s], block.attention[s], block.lse[s],
                            attention_, work_->dqkv);
    if (options_.model.position == "rope")
      ops_->Rope(work_->dqkv, attention_, work_->rope_cos, work_->rope_sin, /*inverse=*/true);
    ops_->Matmul(Transpose::kYes, Transpose::kNo, work_->dqkv, n1, g.qkv[s], add);
    AddProduct(dnorm, s, Transpose::kNo, work_->dqkv, w.qkv[s]);
  }
  RETURN_IF_ERROR(FinishProducts(dnorm));
  NormBackward(work_->dnorm, block.x, w.norm1, block.rstd1, dout, dx, partials,
               kNormsPerBlock * options_.model.hidden, first_of_leaf);
  return absl::OkStatus();
}

}  // namespace perdure
