// The two ends of the model: embedding, and final norm, head and cross-entropy. Both are
// vocabulary-parallel.
#include "model/stage_internal.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// Rows whose logits exist at once: enough for matmuls at full speed, and with the 65,024 columns of
// a usual vocabulary half a GiB.
constexpr int64_t kHeadRowsMax = 2048;

}  // namespace

// A sequence slice's rows, or an equal part of them where they are too many. Rows that do not
// divide near the wish stay whole: parts of a few rows would be slow for ever.
int64_t Stage::HeadRows() const {
  const int64_t rows = rows_ / options_.slot.shards;
  const int64_t least = (rows + kHeadRowsMax - 1) / kHeadRowsMax;
  for (int64_t parts = least; parts <= 4 * least; ++parts)
    if (rows % parts == 0) return rows / parts;
  return rows;
}

absl::Status Stage::ForwardEmbedding(const Bucket& bucket, const void* weights,
                                     const int32_t* tokens, Matrix out) {
  const TensorSpec& tensor = table_->tensors()[static_cast<size_t>(bucket.pieces[0].tensor)];
  const int64_t begin = tensor.SliceBegin(options_.slot.first());
  const int64_t end = tensor.SliceBegin(options_.slot.first() + options_.slot.local());
  const ConstMatrix table(weights, options_.dtype, end - begin, options_.model.hidden);
  if (options_.slot.size == 1) {
    ops_->EmbeddingForward(tokens, table, begin, out);
    return absl::OkStatus();
  }
  // A token's row is whole on one rank and zero on the others: their sum is exact, and a sum over
  // rows of all tokens gives each rank its own rows.
  Matrix all = work_->gathered_a;
  ops_->EmbeddingForward(tokens, table, begin, all);
  ops_->Copy(all, work_->local_sum);
  const ConstMatrix part = work_->local_sum;
  return SumSlices({&part, 1}, {}, out);
}

absl::Status Stage::BackwardEmbedding(const Bucket& bucket, float* gradients, Matrix dx,
                                      const BackwardOptions& options) {
  const TensorSpec& tensor = table_->tensors()[static_cast<size_t>(bucket.pieces[0].tensor)];
  const int64_t begin = tensor.SliceBegin(options_.slot.first());
  const int64_t end = tensor.SliceBegin(options_.slot.first() + options_.slot.local());
  Matrix dtable(gradients, DType::kF32, end - begin, options_.model.hidden);
  if (options.first_of_leaf) ops_->Zero(dtable);
  ASSIGN_OR_RETURN(const ConstMatrix d, GatherRows(dx, work_->gathered_a));
  ops_->EmbeddingBackward(options.tokens, d, begin, dtable);
  return absl::OkStatus();
}

absl::Status Stage::BackwardHead(const Bucket& bucket, const void* weights, float* gradients,
                                 Matrix x, Matrix dx, const BackwardOptions& options) {
  const auto local = static_cast<size_t>(options_.slot.local());
  const Piece& norm_piece = bucket.pieces[local];
  const ConstMatrix norm(static_cast<const char*>(weights) +
                             norm_piece.offset * static_cast<int64_t>(SizeOf(options_.dtype)),
                         options_.dtype, 1, options_.model.hidden);
  ops_->RmsNormForward(x, norm, static_cast<float>(options_.model.norm_eps), work_->final_norm,
                       work_->final_rstd);
  ASSIGN_OR_RETURN(const ConstMatrix rows, GatherRows(work_->final_norm, work_->final_rows));
  for (int64_t chunk = 0; chunk < rows_ / HeadRows(); ++chunk)
    RETURN_IF_ERROR(HeadChunk(chunk, rows, bucket, weights, gradients, options));
  RETURN_IF_ERROR(FinishProducts({.residual = {}, .out = work_->dnorm}));
  NormBackward(work_->dnorm, x, norm, work_->final_rstd, {}, dx, work_->norm_partials.back(),
               options_.model.hidden, options.first_of_leaf);
  return absl::OkStatus();
}

// Logits, loss and gradients of one chunk of rows: full logits never exist.
absl::Status Stage::HeadChunk(int64_t chunk, ConstMatrix all_rows, const Bucket& bucket,
                              const void* weights, float* gradients,
                              const BackwardOptions& options) {
  const auto local = static_cast<size_t>(options_.slot.local());
  const int64_t n = HeadRows(), h = options_.model.hidden;
  const ConstMatrix rows = all_rows.Rows(chunk * n, n);
  const int32_t* targets = options.targets + chunk * n;
  const TensorSpec& tensor = table_->tensors()[static_cast<size_t>(bucket.pieces[0].tensor)];
  const auto slice_of = [&](size_t s) { return options_.slot.first() + static_cast<int64_t>(s); };
  const auto weight = [&](size_t s) {
    return ConstMatrix(static_cast<const char*>(weights) +
                           bucket.pieces[s].offset * static_cast<int64_t>(SizeOf(options_.dtype)),
                       options_.dtype, tensor.SliceRows(slice_of(s)), h);
  };
  const auto logits = [&](size_t s) {
    return Matrix(work_->logits[s].data, DType::kF32, n, tensor.SliceRows(slice_of(s)));
  };

  // A maximum is exact in any order.
  float* own_max = work_->row_max_slice;
  const Matrix most(own_max, DType::kF32, 1, n);
  for (size_t s = 0; s < local; ++s) {
    ops_->Matmul(Transpose::kNo, Transpose::kYes, rows, weight(s), logits(s), false);
    float* slice_max = s == 0 ? own_max : work_->row_total;
    ops_->CrossEntropyMax(logits(s), slice_max);
    if (s > 0) ops_->Max(ConstMatrix(slice_max, DType::kF32, 1, n), most);
  }
  if (options_.slot.size > 1) {
    RETURN_IF_ERROR(
        axis_->AllGather(own_max, static_cast<size_t>(n) * sizeof(float), work_->row_max));
    for (int64_t t = 0; t < options_.slot.size; ++t)
      ops_->Max(ConstMatrix(work_->row_max + t * n, DType::kF32, 1, n), most);
  }

  std::vector<ConstMatrix> stats;
  for (size_t s = 0; s < local; ++s) {
    float* sum = work_->row_stats[s];
    ops_->CrossEntropySum(logits(s), own_max, targets, tensor.SliceBegin(slice_of(s)), sum,
                          sum + n);
    stats.emplace_back(sum, DType::kF32, 1, 2 * n);
  }
  float* total = work_->row_total;
  ops_->TreeSum(stats, {}, Matrix(total, DType::kF32, 1, 2 * n));
  if (options_.slot.size > 1) RETURN_IF_ERROR(axis_->AllReduceTree(total, 2 * n, total));
  ops_->CrossEntropyLoss(total, total + n, n, options.loss);

  const bool add = !options.first_of_leaf || chunk > 0;
  const ProductSum dnorm{.residual = {}, .out = work_->dnorm, .first_row = chunk * n};
  for (size_t s = 0; s < local; ++s) {
    Matrix dlogits = logits(s);
    if (options_.dtype != DType::kF32)
      dlogits = Matrix(work_->dlogits.data, options_.dtype, n, dlogits.cols);
    ops_->CrossEntropyGradient(logits(s), total, targets, tensor.SliceBegin(slice_of(s)),
                               options.loss_scale, dlogits);
    Matrix dweight(gradients + bucket.pieces[s].offset, DType::kF32, dlogits.cols, h);
    ops_->Matmul(Transpose::kYes, Transpose::kNo, dlogits, rows, dweight, add);
    AddProduct(dnorm, s, Transpose::kNo, dlogits, weight(s));
  }
  return absl::OkStatus();
}

}  // namespace perdure
