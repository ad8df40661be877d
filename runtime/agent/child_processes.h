// Copies of this process that do a piece of work beside it and share memory with it: what several
// processes see of one thing, and what may never come back.
//
// Whoever forks has one thread. A child never returns from these calls and dies with its parent.
#pragma once

#include <sys/mman.h>
#include <sys/types.h>

#include <functional>
#include <new>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/base/check.h"

namespace perdure {

// A T, zeroed, that this process and its later children all see.
template <typename T>
class SharedMemory {
  static_assert(std::is_trivially_destructible_v<T>);

 public:
  SharedMemory() {
    void* memory =
        ::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    PERDURE_CHECK(memory != MAP_FAILED);
    value_ = new (memory) T();
  }
  ~SharedMemory() { ::munmap(value_, sizeof(T)); }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  T* operator->() const { return value_; }
  T& operator*() const { return *value_; }

 private:
  T* value_;
};

// A child that runs `work` and ends with what it returns as exit code. The caller waits for it.
absl::StatusOr<pid_t> StartChild(const std::function<int()>& work);

// work(0), ..., work(count - 1) at the same time, each in a child. The first error among what they
// return; Internal when one of them died.
absl::Status RunInChildren(int count, const std::function<absl::Status(int)>& work);

}  // namespace perdure
