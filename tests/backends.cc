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

#include "tests/kernels/forwarding_ops.h"

namespace perdure {
namespace {

constexpr int kDevice = 0;

class SyncedOps final : public ForwardingOps {
 public:
  using Maker = std::unique_ptr<Ops> (*)();

  explicit SyncedOps(Maker make) : ForwardingOps(make()), make_(make) {}

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
  void Upload(const void* host, size_t bytes, void* device) override {
    Do("Upload", [=, this] { ops_->Upload(host, bytes, device); });
  }
  void Download(const void* device, size_t bytes, void* host) override {
    Do("Download", [=, this] { ops_->Download(device, bytes, host); });
  }
  void DownloadBehind(const void* device, size_t bytes, void* host) override {
    Do("DownloadBehind", [=, this] { ops_->DownloadBehind(device, bytes, host); });
  }

 private:
  void Do(const char* operation, std::function<void()> call) override {
    call();
    Wait(operation);
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
