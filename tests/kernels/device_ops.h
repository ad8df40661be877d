// CpuOps as if its memory were a device's: an oracle for whoever uses Ops.
//
// Device memory cannot be touched by the host: it is mapped without any right, but while operations
// run. They run as late as the contract allows, at Sync(), in order. Memory that a Download is to
// fill is spoilt until then. So what takes device memory for the host's, and what forgets to
// synchronise, ends in a signal or in wrong bits. A call from another thread than the first is a
// CHECK.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "kernels/ops.h"

namespace perdure {

class DeviceOps final : public Ops {
 public:
  ~DeviceOps() override;

  // How often the host has waited, and operations that it has not waited for.
  int syncs() const { return syncs_; }
  size_t queued() const { return queue_.size(); }

  void* Allocate(size_t bytes) override;
  void Free(void* memory) override;
  void* AllocateHost(size_t bytes) override;
  void FreeHost(void* memory) override;
  bool DeviceIsHost() const override { return false; }
  void Upload(const void* host, size_t bytes, void* device) override;
  void Download(const void* device, size_t bytes, void* host) override;
  void DownloadBehind(const void* device, size_t bytes, void* host) override;
  void AwaitDownloads() override;
  absl::Status SyncDownloads() override;
  absl::Status Sync() override;
  // Asked whether it has finished, it works; the answer is of before.
  bool Idle() override;
  // From here on it works on what never ends, a message from somebody who has died: nothing that is
  // enqueued runs, it is never idle. It must not be waited for.
  void Hang() { hangs_ = true; }
  std::string Describe() const override { return "device of " + ops_->Describe(); }

  void Zero(Matrix x) override;
  void Copy(ConstMatrix src, Matrix dst) override;
  void Matmul(Transpose transpose_a, Transpose transpose_b, ConstMatrix a, ConstMatrix b, Matrix c,
              bool accumulate) override;
  void MatmulAdd(Transpose transpose_a, Transpose transpose_b, ConstMatrix a, ConstMatrix b,
                 ConstMatrix residual, Matrix c, Matrix work) override;
  bool AddsWholeProducts() const override { return ops_->AddsWholeProducts(); }
  void Add(ConstMatrix x, Matrix acc) override;
  void TreeSum(std::span<const ConstMatrix> parts, ConstMatrix residual, Matrix out) override;
  void SumsOfSquares(const float* x, std::span<const ElementRun> runs, double* sums) override;
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
  void Enqueue(std::function<void()> operation);
  void Run();
  void RunLocked();
  void Protect(bool accessible) const;
  void CheckThread();

  std::unique_ptr<Ops> ops_ = NewCpuOps(1);
  std::map<void*, size_t> memory_;  // Mapped bytes.
  std::mutex mutex_;  // Guards queues: SyncDownloads may come from another thread.
  std::vector<std::function<void()>> queue_;
  std::vector<std::function<void()>> behind_;  // Downloads that nobody has waited for.
  int syncs_ = 0;
  bool hangs_ = false;
  std::thread::id thread_;  // Of the first call.
};

}  // namespace perdure
