#include "kernels/cuda/attention.h"

#include "kernels/cuda/attention_cudnn.h"
#include "kernels/cuda/kernels.h"
#include "runtime/base/check.h"

namespace perdure::cuda {
namespace {

// Of both passes.
void CheckOperands(ConstMatrix qkv, const AttentionShape& shape, ConstMatrix out,
                   const float* lse) {
  PERDURE_CHECK(shape.kv_heads > 0 && shape.q_heads > 0 && shape.q_heads % shape.kv_heads == 0);
  PERDURE_CHECK(shape.head_dim > 0 && shape.head_dim <= 256);
  PERDURE_CHECK(qkv.rows == shape.rows() && qkv.cols == shape.qkv_cols());
  PERDURE_CHECK(out.rows == shape.rows() && out.cols == shape.out_cols());
  PERDURE_CHECK(qkv.dtype == out.dtype);
  PERDURE_CHECK(lse != nullptr || shape.rows() == 0);
}

}  // namespace

Attention::Attention(const Stream* stream) : stream_(stream), work_(stream) {}

Attention::~Attention() = default;

CudnnAttention& Attention::Cudnn() {
  if (cudnn_ == nullptr) cudnn_ = std::make_unique<CudnnAttention>(stream_, &work_);
  return *cudnn_;
}

void Attention::Forward(ConstMatrix qkv, const AttentionShape& shape, Matrix out, float* lse) {
  CheckOperands(qkv, shape, out, lse);
  if (shape.rows() == 0) return;
  if (CudnnTakes(shape, qkv.dtype) && CudnnReads(qkv) && CudnnReads(out)) {
    Cudnn().Forward(qkv, shape, out, lse);
  } else {
    PlainAttentionForward(*stream_, qkv, shape, out, lse);
  }
}

void Attention::Backward(ConstMatrix dout, ConstMatrix qkv, ConstMatrix out, const float* lse,
                         const AttentionShape& shape, Matrix dqkv) {
  CheckOperands(qkv, shape, out, lse);
  PERDURE_CHECK(SameShape(dout, out) && SameShape(dqkv, qkv));
  PERDURE_CHECK(dout.dtype == qkv.dtype && dqkv.dtype == qkv.dtype);
  if (shape.rows() == 0) return;
  if (CudnnTakes(shape, qkv.dtype) && CudnnReads(dout) && CudnnReads(qkv) && CudnnReads(out) &&
      CudnnReads(dqkv)) {
    Cudnn().Backward(dout, qkv, out, lse, shape, dqkv);
  } else {
    PlainAttentionBackward(*stream_, work_, dout, qkv, out, lse, shape, dqkv);
  }
}

}  // namespace perdure::cuda
