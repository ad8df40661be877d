#include "runtime/train/sum_table.h"

#include <utility>

#include "runtime/base/check.h"

namespace perdure {

SumTable::SumTable(Ops* ops, int64_t size)
    : ops_(ops),
      size_(size),
      device_(static_cast<uint64_t*>(ops->Allocate(static_cast<size_t>(size) * sizeof(uint64_t)))),
      host_(
          static_cast<uint64_t*>(ops->AllocateHost(static_cast<size_t>(size) * sizeof(uint64_t)))) {
}

SumTable::~SumTable() {
  if (device_ != nullptr) ops_->Free(device_);
  if (host_ != nullptr) ops_->FreeHost(host_);
}

SumTable::SumTable(SumTable&& other) noexcept
    : ops_(other.ops_),
      size_(other.size_),
      device_(std::exchange(other.device_, nullptr)),
      host_(std::exchange(other.host_, nullptr)) {}

SumTable& SumTable::operator=(SumTable&& other) noexcept {
  std::swap(ops_, other.ops_);
  std::swap(size_, other.size_);
  std::swap(device_, other.device_);
  std::swap(host_, other.host_);
  return *this;
}

// As floats: two make a sum.
void SumTable::Zero() { ops_->Zero(Matrix(device_, DType::kF32, 1, 2 * size_)); }

void SumTable::Add(int64_t at, const void* data, DType dtype, int64_t first, int64_t count) {
  const auto width = static_cast<int64_t>(SizeOf(dtype));
  PERDURE_CHECK(first * width % 4 == 0 && at < size_);
  const WordRun run{.begin = 0, .bytes = count * width, .first = first * width / 4, .sum = at};
  ops_->WordSums(data, {&run, 1}, device_);
}

void SumTable::Add(const void* data, std::span<const WordRun> runs) {
  ops_->WordSums(data, runs, device_);
}

void SumTable::Download() {
  ops_->Download(device_, static_cast<size_t>(size_) * sizeof(uint64_t), host_);
}

void SumTable::DownloadBehind() {
  ops_->DownloadBehind(device_, static_cast<size_t>(size_) * sizeof(uint64_t), host_);
}

}  // namespace perdure
