#include "tests/backends.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory_resource>
#include <mutex>
#include <utility>
#include <vector>

namespace perdure {
namespace {

constexpr int kDevice = 0;

class SyncedOps final : public Ops {
 public:
  using Maker = std::unique_ptr<Ops> (*)();

  explicit SyncedOps(Maker make) : make_(make), ops_(make()) {}

  void* Allocate(size_t bytes) override { return After("Allocate", ops_->Allocate(bytes)); }
  void Free(void* memory) override {
    Do("Free", [&] { ops_->Free(memory); });
  }
  void* AllocateHost(size_t bytes) override {
    return After("AllocateHost", ops_->AllocateHost(bytes));
  }
  void FreeHost(void* memory) override {
    Do("FreeHost", [&] { ops_->FreeHost(memory); });
  }
  bool DeviceIsHost() const override { return ops_->DeviceIsHost(); }
  void Upload(const void* host, size_t bytes, void* device) override {
    Do("Upload", [&] { ops_->Upload(host, bytes, device); });
  }
  void Download(const void* device, size_t bytes, void* host) override {
    Do("Download", [&] { ops_->Download(device, bytes, host); });
  }
  void DownloadBehind(const void* device, size_t bytes, void* host) override {
    Do("DownloadBehind", [&] { ops_->DownloadBehind(device, bytes, host); });
  }
  void AwaitDownloads() override { ops_->AwaitDownloads(); }
  absl::Status SyncDownloads() override { return ops_->SyncDownloads(); }
  absl::Status Sync() override { return ops_->Sync(); }
  std::string Describe() const override { return ops_->Describe(); }

  void Zero(Matrix x) override {
    Do("Zero", [&] { ops_->Zero(x); });
  }
  void Copy(ConstMatrix src, Matrix dst) override {
    Do("Copy", [&] { ops_->Copy(src, dst); });
  }
  void Matmul(Transpose transpose_a, Transpose transpose_b, ConstMatrix a, ConstMatrix b, Matrix c,
              bool accumulate) override {
    Do("Matmul", [&] { ops_->Matmul(transpose_a, transpose_b, a, b, c, accumulate); });
  }
  void MatmulAdd(Transpose transpose_a, Transpose transpose_b, ConstMatrix a, ConstMatrix b,
                 ConstMatrix residual, Matrix c, Matrix work) override {
    Do("MatmulAdd", [&] { ops_->MatmulAdd(transpose_a, transpose_b, a, b, residual, c, work); });
  }
  bool AddsWholeProducts() const override { return ops_->AddsWholeProducts(); }
  void Add(ConstMatrix x, Matrix acc) override {
    Do("Add", [&] { ops_->Add(x, acc); });
  }
  void TreeSum(std::span<const ConstMatrix> parts, ConstMatrix residual, Matrix out) override {
    Do("TreeSum", [&] { ops_->TreeSum(parts, residual, out); });
  }
  void SumsOfSquares(const float* x, std::span<const ElementRun> runs, double* sums) override {
    Do("SumsOfSquares", [&] { ops_->SumsOfSquares(x, runs, sums); });
  }
  void Max(ConstMatrix x, Matrix acc) override {
    Do("Max", [&] { ops_->Max(x, acc); });
  }
  void EmbeddingForward(const int32_t* tokens, ConstMatrix table, int64_t row_begin,
                        Matrix out) override {
    Do("EmbeddingForward", [&] { ops_->EmbeddingForward(tokens, table, row_begin, out); });
  }
  void EmbeddingBackward(const int32_t* tokens, ConstMatrix dout, int64_t row_begin,
                         Matrix dtable) override {
    Do("EmbeddingBackward", [&] { ops_->EmbeddingBackward(tokens, dout, row_begin, dtable); });
  }
  void RmsNormForward(ConstMatrix x, ConstMatrix weight, float eps, Matrix y,
                      float* rstd) override {
    Do("RmsNormForward", [&] { ops_->RmsNormForward(x, weight, eps, y, rstd); });
  }
  void RmsNormBackward(ConstMatrix dy, ConstMatrix x, ConstMatrix weight, const float* rstd,
                       ConstMatrix dresidual, Matrix dx, Matrix dweight) override {
    Do("RmsNormBackward",
       [&] { ops_->RmsNormBackward(dy, x, weight, rstd, dresidual, dx, dweight); });
  }
  void Rope(Matrix qkv, const AttentionShape& shape, const float* cos, const float* sin,
            bool inverse) override {
    Do("Rope", [&] { ops_->Rope(qkv, shape, cos, sin, inverse); });
  }
  void AttentionForward(ConstMatrix qkv, const AttentionShape& shape, Matrix out,
                        float* lse) override {
    Do("AttentionForward", [&] { ops_->AttentionForward(qkv, shape, out, lse); });
  }
  void AttentionBackward(ConstMatrix dout, ConstMatrix qkv, ConstMatrix out, const float* lse,
                         const AttentionShape& shape, Matrix dqkv) override {
    Do("AttentionBackward", [&] { ops_->AttentionBackward(dout, qkv, out, lse, shape, dqkv); });
  }
  void SwiGluForward(ConstMatrix gate_up, Matrix out) override {
    Do("SwiGluForward", [&] { ops_->SwiGluForward(gate_up, out); });
  }
  void SwiGluBackward(ConstMatrix dout, ConstMatrix gate_up, Matrix dgate_up, Matrix out) override {
    Do("SwiGluBackward", [&] { ops_->SwiGluBackward(dout, gate_up, dgate_up, out); });
  }
  void CrossEntropyMax(ConstMatrix logits, float* row_max) override {
    Do("CrossEntropyMax", [&] { ops_->CrossEntropyMax(logits, row_max); });
  }
  void CrossEntropySum(Matrix logits, const float* row_max, const int32_t* targets,
                       int64_t column_begin, float* row_sum, float* target_logit) override {
    Do("CrossEntropySum", [&] {
      ops_->CrossEntropySum(logits, row_max, targets, column_begin, row_sum, target_logit);
    });
  }
  void CrossEntropyLoss(const float* row_sum, const float* target_logit, int64_t rows,
                        double* loss) override {
    Do("CrossEntropyLoss", [&] { ops_->CrossEntropyLoss(row_sum, target_logit, rows, loss); });
  }
  void CrossEntropyGradient(ConstMatrix exp_logits, const float* row_sum, const int32_t* targets,
                            int64_t column_begin, float scale, Matrix dlogits) override {
    Do("CrossEntropyGradient", [&] {
      ops_->CrossEntropyGradient(exp_logits, row_sum, targets, column_begin, scale, dlogits);
    });
  }
  void AdamW(const AdamWStep& step, const float* gradient, float* master, float* exp_avg,
             float* exp_avg_sq, Matrix param) override {
    Do("AdamW", [&] { ops_->AdamW(step, gradient, master, exp_avg, exp_avg_sq, param); });
  }

 private:
  template <typename F>
  void Do(const char* call, const F& f) {
    f();
    Wait(call);
  }
  void* After(const char* call, void* memory) {
    Wait(call);
    return memory;
  }

  // An Ops keeps its first error for ever, so later tests get another one. Where that fails too the
  // device is lost to this process, and every later failure would hide the first.
  void Wait(const char* call) {
    const absl::Status status = ops_->Sync();
    if (status.ok()) return;
    ADD_FAILURE() << call << ": " << status;
    ops_ = make_();
    if (ops_ != nullptr && ops_->Sync().ok()) return;
    std::fprintf(stderr, "no more tests after %s: the device does not recover\n", call);
    std::abort();
  }

  const Maker make_;
  std::unique_ptr<Ops> ops_;
};

std::unique_ptr<Ops> NewCuda() {
  absl::StatusOr<std::unique_ptr<Ops>> ops = NewCudaOps(kDevice);
  if (ops.ok()) return *std::move(ops);
  ADD_FAILURE() << ops.status();
  return nullptr;
}

// Pinned memory. Pinning takes about 100 us a call and unpinning waits for the device, so blocks
// are powers of two, small ones cut from slabs, and none is given back: those freed are taken
// again.
class PinnedMemory final : public std::pmr::memory_resource {
 public:
  explicit PinnedMemory(Ops* ops) : ops_(ops) {}

 private:
  static constexpr size_t kBlockMin = 4096;
  static constexpr size_t kSlab = size_t{32} << 20;
  static constexpr size_t kAlignment = 64;  // AllocateHost's.

  static size_t BlockOf(size_t bytes) { return std::bit_ceil(std::max(bytes, kBlockMin)); }
  void* do_allocate(size_t bytes, size_t alignment) override {
    PERDURE_CHECK(alignment <= kAlignment);
    const std::lock_guard lock(mutex_);
    const size_t block = BlockOf(bytes);
    std::vector<void*>& freed = freed_[block];
    if (!freed.empty()) {
      void* const memory = freed.back();
      freed.pop_back();
      return memory;
    }
    if (block >= kSlab) return ops_->AllocateHost(block);
    if (left_ < block) {
      next_ = static_cast<char*>(ops_->AllocateHost(kSlab));
      left_ = kSlab;
    }
    left_ -= block;
    return std::exchange(next_, next_ + block);
  }
  void do_deallocate(void* memory, size_t bytes, size_t) override {
    const std::lock_guard lock(mutex_);
    freed_[BlockOf(bytes)].push_back(memory);
  }
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }

  Ops* ops_;
  std::mutex mutex_;
  std::map<size_t, std::vector<void*>> freed_;  // By size.
  char* next_ = nullptr;                        // The rest of the last slab.
  size_t left_ = 0;
};

// Not destroyed: at the end of the process the driver may be gone before these are.
Ops* SharedCudaOps() {
  static Ops* const shared = [] {
    Ops* const ops = new SyncedOps(NewCuda);
    std::pmr::set_default_resource(new PinnedMemory(ops));
    return ops;
  }();
  return shared;
}

}  // namespace

std::string NameOf(Backend backend) { return backend == Backend::kCpu ? "cpu" : "cuda"; }

std::string NameOf(DType dtype) { return dtype == DType::kF32 ? "fp32" : "bf16"; }

std::string WhyMissing(Backend backend) {
  if (backend == Backend::kCpu) return "";
  if (!CudaIsBuilt()) return "no CUDA device: this build has no CUDA backend";
  static const bool has_device = CudaDeviceCount() > kDevice;
  return has_device ? "" : "no CUDA device: this process sees none";
}

std::unique_ptr<Ops> NewTestOps(Backend backend) {
  if (!WhyMissing(backend).empty()) return nullptr;
  if (backend == Backend::kCpu)
    return std::make_unique<SyncedOps>([]() -> std::unique_ptr<Ops> { return NewCpuOps(1); });
  SharedCudaOps();  // For the memory.
  return std::make_unique<SyncedOps>(NewCuda);
}

Ops* TestOps(Backend backend) {
  if (!WhyMissing(backend).empty()) return nullptr;
  if (backend == Backend::kCuda) return SharedCudaOps();
  static const std::unique_ptr<Ops> cpu = NewTestOps(Backend::kCpu);
  return cpu.get();
}

}  // namespace perdure
