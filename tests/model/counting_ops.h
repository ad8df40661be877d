// CpuOps that remembers how many bytes were asked of it: what memory estimates are compared with.
#pragma once

#include <cstddef>
#include <map>
#include <string>

#include "tests/kernels/forwarding_ops.h"

namespace perdure {

class CountingOps final : public ForwardingOps {
 public:
  CountingOps() : ForwardingOps(NewCpuOps(1)) {}

  size_t bytes() const { return bytes_; }  // Allocated and not freed.

  void* Allocate(size_t bytes) override {
    void* memory = ops_->Allocate(bytes);
    bytes_ += bytes;
    sizes_.emplace(memory, bytes);
    return memory;
  }
  void Free(void* memory) override {
    const auto found = sizes_.find(memory);
    PERDURE_CHECK(found != sizes_.end());
    bytes_ -= found->second;
    sizes_.erase(found);
    ops_->Free(memory);
  }
  std::string Describe() const override { return "counting " + ops_->Describe(); }

 private:
  std::map<void*, size_t> sizes_;
  size_t bytes_ = 0;
};

}  // namespace perdure
