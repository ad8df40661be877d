// Ops that hands every call to another, for tests that change a few of them.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <utility>

#include "kernels/ops.h"

namespace perdure {

class ForwardingOps : public Ops {
 public:
  explicit ForwardingOps(std::unique_ptr<Ops> ops) : ops_(std::move(ops)) {}

  void* Allocate(size_t bytes) override { return ops_->Allocate(bytes); }
  void Free(void* memory) override { ops_->Free(memory); }
  void* AllocateHost(size_t bytes) override { return ops_->AllocateHost(bytes); }
  void FreeHost(void* memory) override { ops_->FreeHost(memory); }
  bool DeviceIsHost() const override { return ops_->DeviceIsHost(); }
  void Upload(const void* host, size_t bytes, void* device) override {
    ops_->Upload(host, bytes, device);
  }
  void Download(const void* device, size_t bytes, void* host) override {
    ops_->Download(device, bytes, host);
  }
  absl::Status Sync() override { return ops_->Sync(); }
  void DownloadBehind(const void* device, size_t bytes, void* host) override {
    ops_->DownloadBehind(device, bytes, host);
  }
  void AwaitDownloads() override { ops_->AwaitDownloads(); }
  absl::Status SyncDownloads() override { return ops_->SyncDownloads(); }
  bool Idle() override { return ops_->Idle(); }
  void* NativeStream() override { return ops_->NativeStream(); }
  std::string Describe() const override { return ops_->Describe(); }

  void Zero(Matrix x) override { ops_->Zero(x); }
  void Copy(ConstMatrix src, Matrix dst) override { ops_->Copy(src, dst); }
  void Matmul(Transpose transpose_a, Transpose transpose_b, ConstMatrix a, ConstMatrix b, Matrix c,
              bool accumulate) override {
    ops_->Matmul(transpose_a, transpose_b, a, b, c, accumulate);
  }
  void MatmulAdd(Transpose transpose_a, Transpose transpose_b, ConstMatrix a, ConstMatrix b,
                 ConstMatrix residual, Matrix c, Matrix work) override {
    ops_->MatmulAdd(transpose_a, transpose_b, a, b, residual, c, work);
  }
  bool AddsWholeProducts() const override { return ops_->AddsWholeProducts(); }
  void Add(ConstMatrix x, Matrix acc) override { ops_->Add(x, acc); }
  void TreeSum(std::span<const ConstMatrix> parts, ConstMatrix residual, Matrix out) override {
    ops_->TreeSum(parts, residual, out);
  }
  void SumsOfSquares(const float* x, std::span<const ElementRun> runs, double* sums) override {
    ops_->SumsOfSquares(x, runs, sums);
  }
  void Max(ConstMatrix x, Matrix acc) override { ops_->Max(x, acc); }
  void EmbeddingForward(const int32_t* tokens, ConstMatrix table, int64_t row_begin,
                        Matrix out) override {
    ops_->EmbeddingForward(tokens, table, row_begin, out);
  }
  void EmbeddingBackward(const int32_t* tokens, ConstMatrix dout, int64_t row_begin,
                         Matrix dtable) override {
    ops_->EmbeddingBackward(tokens, dout, row_begin, dtable);
  }
  void RmsNormForward(ConstMatrix x, ConstMatrix weight, float eps, Matrix y,
                      float* rstd) override {
    ops_->RmsNormForward(x, weight, eps, y, rstd);
  }
  void RmsNormBackward(ConstMatrix dy, ConstMatrix x, ConstMatrix weight, const float* rstd,
                       ConstMatrix dresidual, Matrix dx, Matrix dweight) override {
    ops_->RmsNormBackward(dy, x, weight, rstd, dresidual, dx, dweight);
  }
  void Rope(Matrix qkv, const AttentionShape& shape, const float* cos, const float* sin,
            bool inverse) override {
    ops_->Rope(qkv, shape, cos, sin, inverse);
  }
  void AttentionForward(ConstMatrix qkv, const AttentionShape& shape, Matrix out,
                        float* lse) override {
    ops_->AttentionForward(qkv, shape, out, lse);
  }
  void AttentionBackward(ConstMatrix dout, ConstMatrix qkv, ConstMatrix out, const float* lse,
                         const AttentionShape& shape, Matrix dqkv) override {
    ops_->AttentionBackward(dout, qkv, out, lse, shape, dqkv);
  }
  void SwiGluForward(ConstMatrix gate_up, Matrix out) override {
    ops_->SwiGluForward(gate_up, out);
  }
  void SwiGluBackward(ConstMatrix dout, ConstMatrix gate_up, Matrix dgate_up, Matrix out) override {
    ops_->SwiGluBackward(dout, gate_up, dgate_up, out);
  }
  void CrossEntropyMax(ConstMatrix logits, float* row_max) override {
    ops_->CrossEntropyMax(logits, row_max);
  }
  void CrossEntropySum(Matrix logits, const float* row_max, const int32_t* targets,
                       int64_t column_begin, float* row_sum, float* target_logit) override {
    ops_->CrossEntropySum(logits, row_max, targets, column_begin, row_sum, target_logit);
  }
  void CrossEntropyLoss(const float* row_sum, const float* target_logit, int64_t rows,
                        double* loss) override {
    ops_->CrossEntropyLoss(row_sum, target_logit, rows, loss);
  }
  void CrossEntropyGradient(ConstMatrix exp_logits, const float* row_sum, const int32_t* targets,
                            int64_t column_begin, float scale, Matrix dlogits) override {
    ops_->CrossEntropyGradient(exp_logits, row_sum, targets, column_begin, scale, dlogits);
  }
  void AdamW(const AdamWStep& step, const float* gradient, float* master, float* exp_avg,
             float* exp_avg_sq, Matrix param) override {
    ops_->AdamW(step, gradient, master, exp_avg, exp_avg_sq, param);
  }

 protected:
  const std::unique_ptr<Ops> ops_;
};

}  // namespace perdure
