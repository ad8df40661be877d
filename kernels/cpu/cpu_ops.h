// The CPU backend of Ops: every call has finished when it returns. Own kernels run on the calling
// thread; matmuls use the given number of OpenMP threads.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>

#include "kernels/cpu/matmul.h"
#include "kernels/cpu/scratch.h"
#include "kernels/ops.h"

namespace perdure {

class CpuOps final : public Ops {
 public:
  explicit CpuOps(int threads);
  ~CpuOps() override;
  CpuOps(const CpuOps&) = delete;
  CpuOps& operator=(const CpuOps&) = delete;

  void* Allocate(size_t bytes) override;
  void Free(void* memory) override;
  void* AllocateHost(size_t bytes) override;
  void FreeHost(void* memory) override;
  bool DeviceIsHost() const override;
  void Upload(const void* host, size_t bytes, void* device) override;
  void Download(const void* device, size_t bytes, void* host) override;
  void DownloadBehind(const void* device, size_t bytes, void* host) override;
  void AwaitDownloads() override;
  absl::Status SyncDownloads() override;
  absl::Status Sync() override;
  std::string Describe() const override;

  void Zero(Matrix x) override;
  void Copy(ConstMatrix src, Matrix dst) override;
  void Matmul(Transpose transpose_a, Transpose transpose_b, ConstMatrix a, ConstMatrix b, Matrix c,
              bool accumulate) override;
  void MatmulAdd(Transpose transpose_a, Transpose transpose_b, ConstMatrix a, ConstMatrix b,
                 ConstMatrix residual, Matrix c, Matrix work) override;
  bool AddsWholeProducts() const override;
  void Add(ConstMatrix x, Matrix acc) override;
  void TreeSum(std::span<const ConstMatrix> parts, ConstMatrix residual, Matrix out) override;
  void SumsOfSquares(const float* x, std::span<const ElementRun> runs, double* sums) override;
  void WordSums(const void* data, std::span<const WordRun> runs, uint64_t* sums) override;
  void Max(ConstMatrix x, Matrix acc) override;
  void EmbeddingForward(const int32_t* tokens, ConstMatrix table, int64_t row_begin,
                        Matrix out) override;
  void EmbeddingBackward(const int32_t* tokens, ConstMatrix dout, int64_t row_begin,
                         Matrix dtable) override;
  void RmsNormForward(ConstMatrix x, ConstMatrix weight, float eps, Matrix y, float* rstd) override;
  void RmsNormBackward(ConstMatrix dy, ConstMatrix x, ConstMatrix weight, const float* rstd,
                       ConstMatrix dresidual, Matrix dx, Matrix dweight) override;
  void Rope(Matrix qkv, const AttentionShape& shape, const float* cos, const float* sin,
            bool inverse) override;
  void AttentionForward(ConstMatrix qkv, const AttentionShape& shape, Matrix out,
                        float* lse) override;
  void AttentionBackward(ConstMatrix dout, ConstMatrix qkv, ConstMatrix out, const float* lse,
                         const AttentionShape& shape, Matrix dqkv) override;
  void SwiGluForward(ConstMatrix gate_up, Matrix out) override;
  void SwiGluBackward(ConstMatrix dout, ConstMatrix gate_up, Matrix dgate_up, Matrix out) override;
  void CrossEntropyMax(ConstMatrix logits, float* row_max) override;
  void CrossEntropySum(Matrix logits, const float* row_max, const int32_t* targets,
                       int64_t column_begin, float* row_sum, float* target_logit) override;
  void CrossEntropyLoss(const float* row_sum, const float* target_logit, int64_t rows,
                        double* loss) override;
  void CrossEntropyGradient(ConstMatrix exp_logits, const float* row_sum, const int32_t* targets,
                            int64_t column_begin, float scale, Matrix dlogits) override;
  void AdamW(const AdamWStep& step, const float* gradient, float* master, float* exp_avg,
             float* exp_avg_sq, Matrix param) override;

 private:
  const int threads_;
  cpu::MatmulLibrary matmul_;
  cpu::Scratch scratch_;
  std::unordered_map<void*, size_t> allocations_;  // Address to mapped bytes.
};

}  // namespace perdure
