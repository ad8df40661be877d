// Working memory that outlives a call, so that a kernel does not allocate every time. It grows to
// the largest need and its contents mean nothing between calls.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

#include "runtime/base/check.h"

namespace perdure::cpu {

class Scratch {
 public:
  // At least `count` elements of T, aligned to 64 bytes, uninitialised; replaces what was reserved
  // before.
  template <typename T>
  T* Reserve(size_t count) {
    const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    if (bytes > bytes_) {
      memory_.reset();
      memory_.reset(std::aligned_alloc(64, bytes));
      PERDURE_CHECK(memory_ != nullptr);
      bytes_ = bytes;
    }
    return static_cast<T*>(memory_.get());
  }

 private:
  struct FreeMemory {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, FreeMemory> memory_;
  size_t bytes_ = 0;
};

}  // namespace perdure::cpu
