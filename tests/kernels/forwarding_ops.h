// Ops that hands every call to another, for tests that change a few of them, or how all are made.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/ops.h"

namespace perdure {

class ForwardingOps : public Ops {
 public:
  explicit ForwardingOps(std::unique_ptr<Ops> ops) : ops_(std::move(ops)) {}

  void* Allocate(size_t bytes) override { return ops_->Allocate(bytes); }
  void Free(void* memory) override { ops_->Free(memory); }
  void* AllocateHost(size_t bytes) override { return ops_->AllocateHost(bytes); }
  void FreeHost(void* memory) override { ops_->FreeHost(memory); }
  void PinHost(void* memory, size_t bytes) override { ops_->PinHost(memory, bytes); }
  void UnpinHost(void* memory) override { ops_->UnpinHost(memory); }
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

  bool AddsWholeProducts() const override { return ops_->AddsWholeProducts(); }
  void Zero(Matrix x) override {
    Do("Zero", [=, this] { ops_->Zero(x); });
  }
  void Copy(ConstMatrix src, Matrix dst) override {
    Do("Copy", [=, this] { ops_->Copy(src, dst); });
  }
  void Matmul(Transpose transpose_a, Transpose transpose_b, ConstMatrix a, ConstMatrix b, Matrix c,
              bool accumulate) override {
    Do("Matmul", [=, this] { ops_->Matmul(transpose_a, transpose_b, a, b, c, accumulate); });
  }
  void MatmulAdd(Transpose transpose_a, Transpose transpose_b, ConstMatrix a, ConstMatrix b,
                 ConstMatrix residual, Matrix c, Matrix work) override {
    Do("MatmulAdd",
       [=, this] { ops_->MatmulAdd(transpose_a, transpose_b, a, b, residual, c, work); });
  }
  void Add(ConstMatrix x, Matrix acc) override {
    Do("Add", [=, this] { ops_->Add(x, acc); });
  }
  void TreeSum(std::span<const ConstMatrix> parts, ConstMatrix residual, Matrix out) override {
    const std::vector<ConstMatrix> copy(parts.begin(), parts.end());
    Do("TreeSum", [=, this] { ops_->TreeSum(copy, residual, out); });
  }
  void SumsOfSquares(const float* x, std::span<const ElementRun> runs, double* sums) override {
    const std::vector<ElementRun> copy(runs.begin(), runs.end());
    Do("SumsOfSquares", [=, this] { ops_->SumsOfSquares(x, copy, sums); });
  }
  void WordSums(const void* data, std::span<const WordRun> runs, uint64_t* sums) override {
    const std::vector<WordRun> copy(runs.begin(), runs.end());
    Do("WordSums", [=, this] { ops_->WordSums(data, copy, sums); });
  }
  void Max(ConstMatrix x, Matrix acc) override {
    Do("Max", [=, this] { ops_->Max(x, acc); });
  }
  void EmbeddingForward(const int32_t* tokens, ConstMatrix table, int64_t row_begin,
                        Matrix out) override {
    Do("EmbeddingForward", [=, this] { ops_->EmbeddingForward(tokens, table, row_begin, out); });
  }
  void EmbeddingBackward(const int32_t* tokens, ConstMatrix dout, int64_t row_begin,
                         Matrix dtable) override {
    Do("EmbeddingBackward",
       [=, this] { ops_->EmbeddingBackward(tokens, dout, row_begin, dtable); });
  }
  void RmsNormForward(ConstMatrix x, ConstMatrix weight, float eps, Matrix y,
                      float* rstd) override {
    Do("RmsNormForward", [=, this] { ops_->RmsNormForward(x, weight, eps, y, rstd); });
  }
  void RmsNormBackward(ConstMatrix dy, ConstMatrix x, ConstMatrix weight, const float* rstd,
                       ConstMatrix dresidual, Matrix dx, Matrix dweight) override {
    Do("RmsNormBackward",
       [=, this] { ops_->RmsNormBackward(dy, x, weight, rstd, dresidual, dx, dweight); });
  }
  void Rope(Matrix qkv, const AttentionShape& shape, const float* cos, const float* sin,
            bool inverse) override {
    Do("Rope", [=, this] { ops_->Rope(qkv, shape, cos, sin, inverse); });
  }
  void AttentionForward(ConstMatrix qkv, const AttentionShape& shape, Matrix out,
                        float* lse) override {
    Do("AttentionForward", [=, this] { ops_->AttentionForward(qkv, shape, out, lse); });
  }
  void AttentionBackward(ConstMatrix dout, ConstMatrix qkv, ConstMatrix out, const float* lse,
                         const AttentionShape& shape, Matrix dqkv) override {
    Do("AttentionBackward",
       [=, this] { ops_->AttentionBackward(dout, qkv, out, lse, shape, dqkv); });
  }
  void SwiGluForward(ConstMatrix gate_up, Matrix out) override {
    Do("SwiGluForward", [=, this] { ops_->SwiGluForward(gate_up, out); });
  }
  void SwiGluBackward(ConstMatrix dout, ConstMatrix gate_up, Matrix dgate_up, Matrix out) override {
    Do("SwiGluBackward", [=, this] { ops_->SwiGluBackward(dout, gate_up, dgate_up, out); });
  }
  void CrossEntropyMax(ConstMatrix logits, float* row_max) override {
    Do("CrossEntropyMax", [=, this] { ops_->CrossEntropyMax(logits, row_max); });
  }
  void CrossEntropySum(Matrix logits, const float* row_max, const int32_t* targets,
                       int64_t column_begin, float* row_sum, float* target_logit) override {
    Do("CrossEntropySum", [=, this] {
      ops_->CrossEntropySum(logits, row_max, targets, column_begin, row_sum, target_logit);
    });
  }
  void CrossEntropyLoss(const float* row_sum, const float* target_logit, int64_t rows,
                        double* loss) override {
    Do("CrossEntropyLoss",
       [=, this] { ops_->CrossEntropyLoss(row_sum, target_logit, rows, loss); });
  }
  void CrossEntropyGradient(ConstMatrix exp_logits, const float* row_sum, const int32_t* targets,
                            int64_t column_begin, float scale, Matrix dlogits) override {
    Do("CrossEntropyGradient", [=, this] {
      ops_->CrossEntropyGradient(exp_logits, row_sum, targets, column_begin, scale, dlogits);
    });
  }
  void AdamW(const AdamWStep& step, const float* gradient, float* master, float* exp_avg,
             float* exp_avg_sq, Matrix param) override {
    Do("AdamW", [=, this] { ops_->AdamW(step, gradient, master, exp_avg, exp_avg_sq, param); });
  }

 protected:
  // What every operation goes through: `call` holds its operands and hands them to ops_.
  virtual void Do(const char* /*operation*/, std::function<void()> call) { call(); }

  std::unique_ptr<Ops> ops_;
};

}  // namespace perdure
