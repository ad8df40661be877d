#include "tests/kernels/device_ops.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "runtime/base/check.h"

namespace perdure {

DeviceOps::~DeviceOps() {
  Run();
  for (const auto& [memory, bytes] : memory_) ::munmap(memory, bytes);
}

void* DeviceOps::Allocate(size_t bytes) {
  CheckThread();
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t mapped = std::max(page, (bytes + page - 1) / page * page);
  void* memory = ::mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  PERDURE_CHECK(memory != MAP_FAILED);
  memory_.emplace(memory, mapped);
  return memory;
}

// Waits for what is under way, as a device's allocator does.
void DeviceOps::Free(void* memory) {
  CheckThread();
  if (memory == nullptr) return;
  Run();
  const auto found = memory_.find(memory);
  PERDURE_CHECK(found != memory_.end());
  ::munmap(memory, found->second);
  memory_.erase(found);
}

void* DeviceOps::AllocateHost(size_t bytes) {
  CheckThread();
  return ops_->AllocateHost(bytes);
}

void DeviceOps::FreeHost(void* memory) {
  CheckThread();
  ops_->FreeHost(memory);
}

void DeviceOps::Upload(const void* host, size_t bytes, void* device) {
  Enqueue([=, this] { ops_->Upload(host, bytes, device); });
}

void DeviceOps::Download(const void* device, size_t bytes, void* host) {
  if (bytes > 0) std::memset(host, 0xa5, bytes);
  Enqueue([=, this] { ops_->Download(device, bytes, host); });
}

// As late as may be: where somebody waits for it.
void DeviceOps::DownloadBehind(const void* device, size_t bytes, void* host) {
  CheckThread();
  if (bytes > 0) std::memset(host, 0xa5, bytes);
  const std::lock_guard lock(mutex_);
  behind_.push_back([=, this] { ops_->Download(device, bytes, host); });
}

void DeviceOps::AwaitDownloads() {
  CheckThread();
  const std::lock_guard lock(mutex_);
  for (auto& copy : std::exchange(behind_, {})) queue_.push_back(std::move(copy));
}

absl::Status DeviceOps::SyncDownloads() {
  const std::lock_guard lock(mutex_);
  for (auto& copy : std::exchange(behind_, {})) queue_.push_back(std::move(copy));
  RunLocked();
  return absl::OkStatus();
}

absl::Status DeviceOps::Sync() {
  CheckThread();
  PERDURE_CHECK(!hangs_);
  Run();
  ++syncs_;
  return absl::OkStatus();
}

bool DeviceOps::Idle() {
  CheckThread();
  const std::lock_guard lock(mutex_);
  const bool idle = queue_.empty() && !hangs_;
  RunLocked();
  return idle;
}

void DeviceOps::CheckThread() {
  if (thread_ == std::thread::id()) thread_ = std::this_thread::get_id();
  PERDURE_CHECK(thread_ == std::this_thread::get_id());
}

void DeviceOps::Protect(bool accessible) const {
  for (const auto& [memory, bytes] : memory_)
    PERDURE_CHECK(::mprotect(memory, bytes, accessible ? PROT_READ | PROT_WRITE : PROT_NONE) == 0);
}

void DeviceOps::Enqueue(std::function<void()> operation) {
  CheckThread();
  const std::lock_guard lock(mutex_);
  queue_.push_back(std::move(operation));
}

void DeviceOps::Run() {
  const std::lock_guard lock(mutex_);
  RunLocked();
}

void DeviceOps::RunLocked() {
  if (queue_.empty() || hangs_) return;
  Protect(true);
  for (const auto& operation : std::exchange(queue_, {})) operation();
  Protect(false);
}

void DeviceOps::Zero(Matrix x) {
  Enqueue([=, this] { ops_->Zero(x); });
}
void DeviceOps::Copy(ConstMatrix src, Matrix dst) {
  Enqueue([=, this] { ops_->Copy(src, dst); });
}
void DeviceOps::Matmul(Transpose transpose_a, Transpose transpose_b, ConstMatrix a, ConstMatrix b,
                       Matrix c, bool accumulate) {
  Enqueue([=, this] { ops_->Matmul(transpose_a, transpose_b, a, b, c, accumulate); });
}
void DeviceOps::MatmulAdd(Transpose transpose_a, Transpose transpose_b, ConstMatrix a,
                          ConstMatrix b, ConstMatrix residual, Matrix c, Matrix work) {
  Enqueue([=, this] { ops_->MatmulAdd(transpose_a, transpose_b, a, b, residual, c, work); });
}
void DeviceOps::Add(ConstMatrix x, Matrix acc) {
  Enqueue([=, this] { ops_->Add(x, acc); });
}
void DeviceOps::TreeSum(std::span<const ConstMatrix> parts, ConstMatrix residual, Matrix out) {
  const std::vector<ConstMatrix> copy(parts.begin(), parts.end());
  Enqueue([=, this] { ops_->TreeSum(copy, residual, out); });
}
void DeviceOps::SumsOfSquares(const float* x, std::span<const ElementRun> runs, double* sums) {
  const std::vector<ElementRun> copy(runs.begin(), runs.end());
  Enqueue([=, this] { ops_->SumsOfSquares(x, copy, sums); });
}
void DeviceOps::Max(ConstMatrix x, Matrix acc) {
  Enqueue([=, this] { ops_->Max(x, acc); });
}
void DeviceOps::EmbeddingForward(const int32_t* tokens, ConstMatrix table, int64_t row_begin,
                                 Matrix out) {
  Enqueue([=, this] { ops_->EmbeddingForward(tokens, table, row_begin, out); });
}
void DeviceOps::EmbeddingBackward(const int32_t* tokens, ConstMatrix dout, int64_t row_begin,
                                  Matrix dtable) {
  Enqueue([=, this] { ops_->EmbeddingBackward(tokens, dout, row_begin, dtable); });
}
void DeviceOps::RmsNormForward(ConstMatrix x, ConstMatrix weight, float eps, Matrix y,
                               float* rstd) {
  Enqueue([=, this] { ops_->RmsNormForward(x, weight, eps, y, rstd); });
}
void DeviceOps::RmsNormBackward(ConstMatrix dy, ConstMatrix x, ConstMatrix weight,
                                const float* rstd, ConstMatrix dresidual, Matrix dx,
                                Matrix dweight) {
  Enqueue([=, this] { ops_->RmsNormBackward(dy, x, weight, rstd, dresidual, dx, dweight); });
}
void DeviceOps::Rope(Matrix qkv, const AttentionShape& shape, const float* cos, const float* sin,
                     bool inverse) {
  Enqueue([=, this] { ops_->Rope(qkv, shape, cos, sin, inverse); });
}
void DeviceOps::AttentionForward(ConstMatrix qkv, const AttentionShape& shape, Matrix out,
                                 float* lse) {
  Enqueue([=, this] { ops_->AttentionForward(qkv, shape, out, lse); });
}
void DeviceOps::AttentionBackward(ConstMatrix dout, ConstMatrix qkv, ConstMatrix out,
                                  const float* lse, const AttentionShape& shape, Matrix dqkv) {
  Enqueue([=, this] { ops_->AttentionBackward(dout, qkv, out, lse, shape, dqkv); });
}
void DeviceOps::SwiGluForward(ConstMatrix gate_up, Matrix out) {
  Enqueue([=, this] { ops_->SwiGluForward(gate_up, out); });
}
void DeviceOps::SwiGluBackward(ConstMatrix dout, ConstMatrix gate_up, Matrix dgate_up, Matrix out) {
  Enqueue([=, this] { ops_->SwiGluBackward(dout, gate_up, dgate_up, out); });
}
void DeviceOps::CrossEntropyMax(ConstMatrix logits, float* row_max) {
  Enqueue([=, this] { ops_->CrossEntropyMax(logits, row_max); });
}
void DeviceOps::CrossEntropySum(Matrix logits, const float* row_max, const int32_t* targets,
                                int64_t column_begin, float* row_sum, float* target_logit) {
  Enqueue([=, this] {
    ops_->CrossEntropySum(logits, row_max, targets, column_begin, row_sum, target_logit);
  });
}
void DeviceOps::CrossEntropyLoss(const float* row_sum, const float* target_logit, int64_t rows,
                                 double* loss) {
  Enqueue([=, this] { ops_->CrossEntropyLoss(row_sum, target_logit, rows, loss); });
}
void DeviceOps::CrossEntropyGradient(ConstMatrix exp_logits, const float* row_sum,
                                     const int32_t* targets, int64_t column_begin, float scale,
                                     Matrix dlogits) {
  Enqueue([=, this] {
    ops_->CrossEntropyGradient(exp_logits, row_sum, targets, column_begin, scale, dlogits);
  });
}
void DeviceOps::AdamW(const AdamWStep& step, const float* gradient, float* master, float* exp_avg,
                      float* exp_avg_sq, Matrix param) {
  Enqueue([=, this] { ops_->AdamW(step, gradient, master, exp_avg, exp_avg_sq, param); });
}

}  // namespace perdure
