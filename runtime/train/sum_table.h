// Checksums (WordSum) that the device makes and the host compares.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/ops.h"

namespace perdure {

class SumTable {
 public:
  // `size` sums, all zero. The ops outlive it.
  SumTable(Ops* ops, int64_t size);
  ~SumTable();
  SumTable(SumTable&& other) noexcept;
  SumTable& operator=(SumTable&& other) noexcept;

  int64_t size() const { return size_; }
  uint64_t* device(int64_t at = 0) const { return device_ + at; }
  // As of the latest Download, once the device has been waited for.
  std::span<const uint64_t> host() const { return {host_, static_cast<size_t>(size_)}; }

  // All enqueued.
  void Zero();
  // Adds the sum of `count` elements from `data` on, which are `first` elements behind the
  // beginning of what is summed there: an even number, where two elements make a word.
  void Add(int64_t at, const void* data, DType dtype, int64_t first, int64_t count);
  void Add(const void* data, std::span<const WordRun> runs);
  void Download();
  void DownloadBehind();

 private:
  Ops* ops_;
  int64_t size_;
  uint64_t* device_ = nullptr;
  uint64_t* host_ = nullptr;
};

}  // namespace perdure
