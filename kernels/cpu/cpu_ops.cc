#include "kernels/cpu/cpu_ops.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cstring>

#include "kernels/cpu/kernels.h"
#include "kernels/word_sum.h"
#include "runtime/base/check.h"

namespace perdure {

CpuOps::CpuOps(int threads) : threads_(threads), matmul_(threads) {}

CpuOps::~CpuOps() {
  for (const auto& [memory, bytes] : allocations_) munmap(memory, bytes);
}

// Straight from the kernel: zero, aligned to a page, and not touched before it is used.
void* CpuOps::Allocate(size_t bytes) {
  constexpr size_t kPage = 4096;
  constexpr size_t kHugePage = size_t{2} << 20;
  const size_t mapped = (bytes + kPage - 1) / kPage * kPage + (bytes == 0 ? kPage : 0);
  void* memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  PERDURE_CHECK(memory != MAP_FAILED);
  if (mapped >= kHugePage) madvise(memory, mapped, MADV_HUGEPAGE);  // A hint: it may be refused.
  allocations_.emplace(memory, mapped);
  return memory;
}

void CpuOps::Free(void* memory) {
  if (memory == nullptr) return;
  const auto found = allocations_.find(memory);
  PERDURE_CHECK(found != allocations_.end());
  PERDURE_CHECK(munmap(memory, found->second) == 0);
  allocations_.erase(found);
}

void* CpuOps::AllocateHost(size_t bytes) { return Allocate(bytes); }

void CpuOps::FreeHost(void* memory) { Free(memory); }

bool CpuOps::DeviceIsHost() const { return true; }

void CpuOps::Upload(const void* host, size_t bytes, void* device) {
  if (bytes > 0) std::memmove(device, host, bytes);
}

void CpuOps::Download(const void* device, size_t bytes, void* host) {
  if (bytes > 0) std::memmove(host, device, bytes);
}

void CpuOps::DownloadBehind(const void* device, size_t bytes, void* host) {
  Download(device, bytes, host);
}

void CpuOps::AwaitDownloads() {}

absl::Status CpuOps::SyncDownloads() { return absl::OkStatus(); }

absl::Status CpuOps::Sync() { return absl::OkStatus(); }

std::string CpuOps::Describe() const {
  return fmt::format("cpu, {}, {} thread{}", CpuIsa(), threads_, threads_ == 1 ? "" : "s");
}

void CpuOps::Zero(Matrix x) { cpu::Zero(x); }

void CpuOps::Copy(ConstMatrix src, Matrix dst) { cpu::Copy(src, dst); }

void CpuOps::Matmul(Transpose transpose_a, Transpose transpose_b, ConstMatrix a, ConstMatrix b,
                    Matrix c, bool accumulate) {
  matmul_.Multiply(transpose_a, transpose_b, a, b, c, accumulate);
}

void CpuOps::MatmulAdd(Transpose transpose_a, Transpose transpose_b, ConstMatrix a, ConstMatrix b,
                       ConstMatrix residual, Matrix c, Matrix work) {
  matmul_.Multiply(transpose_a, transpose_b, a, b, work, false);
  const ConstMatrix product = work;
  cpu::TreeSum({&product, 1}, residual, c);
}

bool CpuOps::AddsWholeProducts() const { return false; }

void CpuOps::Add(ConstMatrix x, Matrix acc) { cpu::Add(x, acc); }

void CpuOps::TreeSum(std::span<const ConstMatrix> parts, ConstMatrix residual, Matrix out) {
  cpu::TreeSum(parts, residual, out);
}

void CpuOps::SumsOfSquares(const float* x, std::span<const ElementRun> runs, double* sums) {
  for (const ElementRun& run : runs) *sums++ = cpu::SumOfSquares(x + run.begin, run.count);
}

void CpuOps::WordSums(const void* data, std::span<const WordRun> runs, uint64_t* sums) {
  for (const WordRun& run : runs)
    sums[run.sum] += WordSum(static_cast<const char*>(data) + run.begin,
                             static_cast<size_t>(run.bytes), run.first);
}

void CpuOps::Max(ConstMatrix x, Matrix acc) { cpu::Max(x, acc); }

void CpuOps::EmbeddingForward(const int32_t* tokens, ConstMatrix table, int64_t row_begin,
                              Matrix out) {
  cpu::EmbeddingForward(tokens, table, row_begin, out);
}

void CpuOps::EmbeddingBackward(const int32_t* tokens, ConstMatrix dout, int64_t row_begin,
                               Matrix dtable) {
  cpu::EmbeddingBackward(tokens, dout, row_begin, dtable);
}

void CpuOps::RmsNormForward(ConstMatrix x, ConstMatrix weight, float eps, Matrix y, float* rstd) {
  cpu::RmsNormForward(x, weight, eps, y, rstd);
}

void CpuOps::RmsNormBackward(ConstMatrix dy, ConstMatrix x, ConstMatrix weight, const float* rstd,
                             ConstMatrix dresidual, Matrix dx, Matrix dweight) {
  cpu::RmsNormBackward(dy, x, weight, rstd, dresidual, dx, dweight);
}

void CpuOps::Rope(Matrix qkv, const AttentionShape& shape, const float* cos, const float* sin,
                  bool inverse) {
  cpu::Rope(qkv, shape, cos, sin, inverse);
}

void CpuOps::AttentionForward(ConstMatrix qkv, const AttentionShape& shape, Matrix out,
                              float* lse) {
  cpu::AttentionForward(qkv, shape, out, lse, scratch_);
}

void CpuOps::AttentionBackward(ConstMatrix dout, ConstMatrix qkv, ConstMatrix out, const float* lse,
                               const AttentionShape& shape, Matrix dqkv) {
  cpu::AttentionBackward(dout, qkv, out, lse, shape, dqkv, scratch_);
}

void CpuOps::SwiGluForward(ConstMatrix gate_up, Matrix out) { cpu::SwiGluForward(gate_up, out); }

void CpuOps::SwiGluBackward(ConstMatrix dout, ConstMatrix gate_up, Matrix dgate_up, Matrix out) {
  cpu::SwiGluBackward(dout, gate_up, dgate_up, out);
}

void CpuOps::CrossEntropyMax(ConstMatrix logits, float* row_max) {
  cpu::CrossEntropyMax(logits, row_max);
}

void CpuOps::CrossEntropySum(Matrix logits, const float* row_max, const int32_t* targets,
                             int64_t column_begin, float* row_sum, float* target_logit) {
  cpu::CrossEntropySum(logits, row_max, targets, column_begin, row_sum, target_logit);
}

void CpuOps::CrossEntropyLoss(const float* row_sum, const float* target_logit, int64_t rows,
                              double* loss) {
  cpu::CrossEntropyLoss(row_sum, target_logit, rows, loss);
}

void CpuOps::CrossEntropyGradient(ConstMatrix exp_logits, const float* row_sum,
                                  const int32_t* targets, int64_t column_begin, float scale,
                                  Matrix dlogits) {
  cpu::CrossEntropyGradient(exp_logits, row_sum, targets, column_begin, scale, dlogits);
}

void CpuOps::AdamW(const AdamWStep& step, const float* gradient, float* master, float* exp_avg,
                   float* exp_avg_sq, Matrix param) {
  cpu::AdamW(step, gradient, master, exp_avg, exp_avg_sq, param);
}

std::unique_ptr<Ops> NewCpuOps(int threads) { return std::make_unique<CpuOps>(threads); }

}  // namespace perdure
