#include "tests/kernels/device_ops.h"

#include <sys/mman.h>

#include <deque>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "runtime/base/check.h"

namespace perdure {
namespace {

constexpr size_t kPage = 4096;

class DeviceOps final : public Ops {
 public:
  ~DeviceOps() override {
    Run();
    for (const auto& [memory, bytes] : memory_) PERDURE_CHECK(::munmap(memory, bytes) == 0);
  }

  void* Allocate(size_t bytes) override {
    const size_t mapped = (bytes + kPage) / kPage * kPage;
    void* memory = ::mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    PERDURE_CHECK(memory != MAP_FAILED);
    memory_.emplace(memory, mapped);
    return memory;
  }
  void Free(void* memory) override {
    if (memory == nullptr) return;
    Run();
    const auto found = memory_.find(memory);
    PERDURE_CHECK(found != memory_.end());
    PERDURE_CHECK(::munmap(memory, found->second) == 0);
    memory_.erase(found);
  }
  void* AllocateHost(size_t bytes) override { return cpu_->AllocateHost(bytes); }
  void FreeHost(void* memory) override { cpu_->FreeHost(memory); }
  bool DeviceIsHost() const override { return false; }
  absl::Status Sync() override {
    Run();
    return cpu_->Sync();
  }
  bool Idle() override { return queue_.empty(); }
  std::string Describe() const override { return "a device of " + cpu_->Describe(); }

  void Upload(const void* host, size_t bytes, void* device) override {
    Enqueue([=, this] { cpu_->Upload(host, bytes, device); });
  }
  void Download(const void* device, size_t bytes, void* host) override {
    Enqueue([=, this] { cpu_->Download(device, bytes, host); });
  }
  void Zero(Matrix x) override {
    Enqueue([=, this] { cpu_->Zero(x); });
  }
  void Copy(ConstMatrix src, Matrix dst) override {
    Enqueue([=, this] { cpu_->Copy(src, dst); });
  }
  void Matmul(Transpose transpose_a, Transpose transpose_b, ConstMatrix a, ConstMatrix b, Matrix c,
              bool accumulate) override {
    Enqueue([=, this] { cpu_->Matmul(transpose_a, transpose_b, a, b, c, accumulate); });
  }
  void Add(ConstMatrix x, Matrix acc) override {
    Enqueue([=, this] { cpu_->Add(x, acc); });
  }
  void TreeSum(std::span<const ConstMatrix> parts, ConstMatrix residual, Matrix out) override {
    Enqueue([=, this, kept = std::vector(parts.begin(), parts.end())] {
      cpu_->TreeSum(kept, residual, out);
    });
  }
  void SumsOfSquares(const float* x, std::span<const ElementRun> runs, double* sums) override {
    Enqueue([=, this, kept = std::vector(runs.begin(), runs.end())] {
      cpu_->SumsOfSquares(x, kept, sums);
    });
  }
  void Max(ConstMatrix x, Matrix acc) override {
    Enqueue([=, this] { cpu_->Max(x, acc); });
  }
  void EmbeddingForward(const int32_t* tokens, ConstMatrix table, int64_t row_begin,
                        Matrix out) override {
    Enqueue([=, this] { cpu_->EmbeddingForward(tokens, table, row_begin, out); });
  }
  void EmbeddingBackward(const int32_t* tokens, ConstMatrix dout, int64_t row_begin,
                         Matrix dtable) override {
    Enqueue([=, this] { cpu_->EmbeddingBackward(tokens, dout, row_begin, dtable); });
  }
  void RmsNormForward(ConstMatrix x, ConstMatrix weight, float eps, Matrix y,
                      float* rstd) override {
    Enqueue([=, this] { cpu_->RmsNormForward(x, weight, eps, y, rstd); });
  }
  void RmsNormBackward(ConstMatrix dy, ConstMatrix x, ConstMatrix weight, const float* rstd,
                       ConstMatrix dresidual, Matrix dx, Matrix dweight) override {
    Enqueue([=, this] { cpu_->RmsNormBackward(dy, x, weight, rstd, dresidual, dx, dweight); });
  }
  void Rope(Matrix qkv, const AttentionShape& shape, const float* cos, const float* sin,
            bool inverse) override {
    Enqueue([=, this] { cpu_->Rope(qkv, shape, cos, sin, inverse); });
  }
  void AttentionForward(ConstMatrix qkv, const AttentionShape& shape, Matrix out,
                        float* lse) override {
    Enqueue([=, this] { cpu_->AttentionForward(qkv, shape, out, lse); });
  }
  void AttentionBackward(ConstMatrix dout, ConstMatrix qkv, ConstMatrix out, const float* lse,
                         const AttentionShape& shape, Matrix dqkv) override {
    Enqueue([=, this] { cpu_->AttentionBackward(dout, qkv, out, lse, shape, dqkv); });
  }
  void SwiGluForward(ConstMatrix gate_up, Matrix out) override {
    Enqueue([=, this] { cpu_->SwiGluForward(gate_up, out); });
  }
  void SwiGluBackward(ConstMatrix dout, ConstMatrix gate_up, Matrix dgate_up, Matrix out) override {
    Enqueue([=, this] { cpu_->SwiGluBackward(dout, gate_up, dgate_up, out); });
  }
  void CrossEntropyMax(ConstMatrix logits, float* row_max) override {
    Enqueue([=, this] { cpu_->CrossEntropyMax(logits, row_max); });
  }
  void CrossEntropySum(Matrix logits, const float* row_max, const int32_t* targets,
                       int64_t column_begin, float* row_sum, float* target_logit) override {
    Enqueue([=, this] {
      cpu_->CrossEntropySum(logits, row_max, targets, column_begin, row_sum, target_logit);
    });
  }
  void CrossEntropyLoss(const float* row_sum, const float* target_logit, int64_t rows,
                        double* loss) override {
    Enqueue([=, this] { cpu_->CrossEntropyLoss(row_sum, target_logit, rows, loss); });
  }
  void CrossEntropyGradient(ConstMatrix exp_logits, const float* row_sum, const int32_t* targets,
                            int64_t column_begin, float scale, Matrix dlogits) override {
    Enqueue([=, this] {
      cpu_->CrossEntropyGradient(exp_logits, row_sum, targets, column_begin, scale, dlogits);
    });
  }
  void AdamW(const AdamWStep& step, const float* gradient, float* master, float* exp_avg,
             float* exp_avg_sq, Matrix param) override {
    Enqueue([=, this] { cpu_->AdamW(step, gradient, master, exp_avg, exp_avg_sq, param); });
  }

 private:
  template <typename Work>
  void Enqueue(Work&& work) {
    queue_.emplace_back(std::forward<Work>(work));
  }
  void Protect(int protection) {
    for (const auto& [memory, bytes] : memory_)
      PERDURE_CHECK(::mprotect(memory, bytes, protection) == 0);
  }
  void Run() {
    if (queue_.empty()) return;
    Protect(PROT_READ | PROT_WRITE);
    for (const std::function<void()>& work : queue_) work();
    queue_.clear();
    Protect(PROT_NONE);
  }

  const std::unique_ptr<Ops> cpu_ = NewCpuOps(1);
  std::map<void*, size_t> memory_;  // Of the device.
  std::deque<std::function<void()>> queue_;
};

}  // namespace

std::unique_ptr<Ops> NewDeviceOps() { return std::make_unique<DeviceOps>(); }

}  // namespace perdure
